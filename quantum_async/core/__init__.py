"""The pure core: what a graph is and what may run next. No loop, clock, thread or log."""
