"""Listeners to a run's events. Nothing here can decide, delay or break a run."""
