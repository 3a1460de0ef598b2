"""Runnable examples, one idea a file: ``python -m examples.first_steps``."""
