"""What is going on, for whoever waits: one changing line on a terminal, plain lines in a pipe.

Knows nothing of the engine; `pipeline.watch` turns its events into calls.
"""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR = 24  # characters
QUIET = 0.5  # seconds between two lines in a pipe; trouble is told at once


class Progress:
    """Counts units as they end, and says so.

    Args:
        stream: Where to; the standard error by default, so that the report can be piped on alone.
        clock: A monotonic clock, in seconds.
        columns: The width of the terminal; asked for again at each line by default.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
        columns: int | None = None,
    ) -> None:
        self.total = 0
        self.ended = 0
        self.running: dict[str, None] = {}  # a set that keeps its order
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._columns = columns
        self._began = clock()
        self._quiet_until = 0.0
        self._shown = 0

    def run_started(self, units: int) -> None:
        """A run of so many units began."""
        self.total = units

    def unit_started(self, unit: str) -> None:
        """A unit began to run."""
        self.running[unit] = None
        if self._terminal:
            self._redraw()

    def unit_ended(self, unit: str, trouble: str = "") -> None:
        """A unit came to its end; `trouble` says why, if it was not a good one."""
        self.running.pop(unit, None)
        self.ended += 1
        if trouble:
            self._tell(f"{unit}: {trouble}")
        elif self._terminal:
            self._redraw()
        elif self.ended == self.total or self._elapsed() >= self._quiet_until:
            self._quiet_until = self._elapsed() + QUIET
            self._tell(f"{unit} done")

    def unit_dropped(self, unit: str) -> None:
        """A unit was skipped or cancelled: nothing to tell, the trouble was elsewhere."""
        self.running.pop(unit, None)
        self.ended += 1
        if self._terminal:
            self._redraw()

    def unit_retrying(self, unit: str, trouble: str) -> None:
        """A unit failed and will be tried again."""
        self.running.pop(unit, None)
        self._tell(f"{unit}: trying again after {trouble}")

    def close(self) -> None:
        """Take the changing line away."""
        self._erase()

    def _tell(self, text: str) -> None:
        self._erase()
        count = f"{self.ended:>{len(str(self.total))}}/{self.total}"
        self._stream.write(f"{self._elapsed():7.1f} s  {count}  {one_line(text)}\n")
        self._stream.flush()
        if self._terminal:
            self._redraw()

    def _redraw(self) -> None:
        columns = self._columns or shutil.get_terminal_size().columns
        # One column stays free: a full line makes some terminals wrap.
        line = status_line(self.ended, self.total, list(self.running), self._elapsed(), columns - 1)
        self._stream.write("\r" + line.ljust(self._shown))
        self._stream.flush()
        self._shown = len(line)

    def _erase(self) -> None:
        if self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()
            self._shown = 0

    def _elapsed(self) -> float:
        return self._clock() - self._began


def status_line(ended: int, total: int, running: list[str], elapsed: float, columns: int) -> str:
    """Format the line that changes.

    Args:
        ended: How many units have ended.
        total: How many there are.
        running: Names of those that run now.
        elapsed: Seconds since the beginning.
        columns: At most so many characters.

    Example:
        >>> status_line(1, 2, ["parse"], 0.5, 60)
        '[############            ] 1/2    0.5 s  parse'
    """
    full = BAR * ended // total if total else BAR
    bar = "#" * full + " " * (BAR - full)
    line = f"[{bar}] {ended}/{total} {elapsed:6.1f} s  {', '.join(running)}"
    if len(line) <= columns:
        return line.rstrip()
    return line[: max(columns - 3, 0)] + "..."[: max(columns, 0)]


def one_line(text: str, columns: int = 160) -> str:
    """Squeeze a text of many lines into one that can be shown."""
    text = " ".join(text.split())
    return text if len(text) <= columns else text[: columns - 3] + "..."
