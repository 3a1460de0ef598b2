"""The driver: runs on asyncio what the scheduler of `core` hands out, and reports back."""
