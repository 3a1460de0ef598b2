"""How much output of a call is taken, by the worker's side and by the pool's."""

import time


class Allowance:
    """How much output of a call is taken: a megabyte at once, then 64 KiB a second.

    So a flood is cut off, and a unit that prints for hours is not.
    """

    def __init__(self) -> None:
        self._left = 1024.0 * 1024
        self._since = time.monotonic()
        self.dropped = 0

    def take(self, size: int, lines: int) -> bool:
        """Return whether `size` bytes may pass; count them as dropped if not."""
        now = time.monotonic()
        rate = 64 * 1024
        self._left = min(1024 * 1024, self._left + rate * (now - self._since))
        self._since = now
        cost = size + 32 * lines  # a line is work, however short
        # After a flood once a second, not a line here and there.
        if self._left < (max(rate, cost) if self.dropped else cost):
            self.dropped += size
            return False
        self._left -= cost
        return True

    def owed(self) -> int:
        """Return how many bytes were dropped since this was last asked."""
        dropped, self.dropped = self.dropped, 0
        return dropped
