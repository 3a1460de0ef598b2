"""Hard use with fresh seeds: ``python -m tests.torture --minutes 10``; see `__main__`."""
