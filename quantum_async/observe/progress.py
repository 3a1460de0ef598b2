"""How far runs are, on the terminal, in a notebook, or in plain lines: ``observers=[Progress()]``.

Shown by rich (extra ``progress``), on stderr. Everything happens on the event loop, in steps of a
few milliseconds: events are counted, and a timer shows the counts ten times a second.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol

from quantum_async.core.events import RunFinished, RunStarted, UnitFailed, UnitTimedOut
from quantum_async.core.plan import ExecutionPlan
from quantum_async.observe.relay import one_line
from quantum_async.observe.tally import EVENT_TYPES, Row, Tally

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_FRAME = 0.1  # seconds between two pictures
_STEP = 0.1  # share of the units after which there is another plain line
_MOST_LINES = 20  # failures that have a plain line each


class Screen(Protocol):
    """Where progress is shown."""

    interval: float

    def show(self, tallies: list[Tally], now: float) -> None:
        """Show how far the runs are."""
        ...

    def tell(self, tally: Tally, event: Any, now: float) -> None:
        """Take an event that was just counted."""
        ...

    def close(self) -> None:
        """Leave the last picture as it is."""
        ...


class Progress:
    """An observer that shows how far runs are: a bar, the units that run, and counts.

    In a terminal and in a notebook a picture changes in place; what is printed meanwhile appears
    above it. Elsewhere, in a pipe or a file, there are plain lines without control codes: at the
    start, at every tenth of the units, at each failure, and at the end.

    One `Progress` may serve many runs, one after the other or at once. On a virtual clock it shows
    only what events say.

    Args:
        console: A ``rich.console.Console``; by default one for stderr.
        rows: How many running units have a row.
        every: Seconds after which there is a plain line in any case.

    Raises:
        ImportError: If rich is not installed.
    """

    def __init__(
        self, console: "Console | None" = None, *, rows: int = 8, every: float = 30.0
    ) -> None:
        try:
            from rich.console import Console
        except ImportError:
            raise ImportError(
                "Progress shows runs with rich, which is not installed: "
                "pip install 'quantum-async[progress]'"
            ) from None
        self._console = Console(stderr=True) if console is None else console
        self._rows = rows
        self._every = every
        self._tallies: dict[str, Tally] = {}
        self._screen: Screen | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._context = copy_context()
        self._clock: Callable[[], float] = time.perf_counter
        self.event_types = EVENT_TYPES

    def on_plan(self, run_id: str, plan: ExecutionPlan, prefix: str) -> None:
        """Take the plan of a run inside one."""
        if prefix and run_id in self._tallies:
            self._tallies[run_id].grow(plan)

    def __call__(self, event: Any) -> None:
        """Count an event."""
        if isinstance(event, RunStarted):
            self._begin(event)
        tally = self._tallies.get(event.run_id)
        if tally is None or self._screen is None:
            return
        try:
            tally.take(event)
            self._screen.tell(tally, event, self._clock())
            if isinstance(event, RunFinished):
                self._end(tally)
        except BaseException:
            self._stop()  # a terminal that is gone: nothing of it may stay
            raise

    def _begin(self, event: RunStarted) -> None:
        self._tallies[event.run_id] = Tally(event.run_id)
        if self._screen is not None:
            return
        loop = asyncio.get_running_loop()
        virtual = hasattr(loop, "outside_work")
        self._clock = loop.time if virtual else time.perf_counter
        self._screen = _screen(self._console, self._rows, self._every)
        if not virtual:
            # In the loop's next turn, when the event has been counted.
            self._timer = loop.call_later(0, self._tick, context=self._context)

    def _end(self, tally: Tally) -> None:
        if self._screen is not None and all(one.state for one in self._tallies.values()):
            self._screen.show(list(self._tallies.values()), self._clock())
            self._stop()

    def _tick(self) -> None:
        screen = self._screen
        if screen is None:
            return
        try:
            screen.show(list(self._tallies.values()), self._clock())
        except Exception:
            self._stop()
            raise
        self._timer = asyncio.get_running_loop().call_later(
            screen.interval, self._tick, context=self._context
        )

    def _stop(self) -> None:
        screen, self._screen = self._screen, None
        self._tallies.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if screen is not None:
            screen.close()

    def __repr__(self) -> str:
        return f"<Progress of {len(self._tallies)} runs>"


def _screen(console: "Console", rows: int, every: float) -> Screen:
    if console.is_jupyter:
        return _Notebook(rows)
    if console.is_terminal and not console.is_dumb_terminal:
        return _Terminal(console, rows)
    return _Lines(console, every)


class _Terminal:
    """A picture at the bottom of a terminal, which changes in place."""

    interval = _FRAME

    def __init__(self, console: "Console", rows: int) -> None:
        from rich.live import Live

        self._rows = rows
        # Without its thread: it would look at counts while they change. What goes to a pipe or a
        # file is not redirected to the terminal.
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
        self._live.start()

    def show(self, tallies: list[Tally], now: float) -> None:
        """Draw it anew."""
        self._live.update(picture(tallies, now, self._rows), refresh=True)

    def tell(self, tally: Tally, event: Any, now: float) -> None:
        """Nothing is drawn for a single event."""

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


class _Notebook:
    """A picture in a notebook's output, which changes in place; it needs no widgets."""

    interval = 0.25

    def __init__(self, rows: int) -> None:
        from IPython.display import display

        self._rows = rows
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, tallies: list[Tally], now: float) -> None:
        """Draw it anew."""
        self._handle.update(bundle(tallies, now, self._rows), raw=True)

    def tell(self, tally: Tally, event: Any, now: float) -> None:
        """Nothing is drawn for a single event."""

    def close(self) -> None:
        """The last picture stays."""


class _Lines:
    """Plain lines, without control codes."""

    def __init__(self, console: "Console", every: float) -> None:
        self.interval = every
        self._file = console.file
        self._told: dict[str, tuple[int, float]] = {}  # tenths and moment of the last line
        self._failures: dict[str, int] = {}

    def show(self, tallies: list[Tally], now: float) -> None:
        """Write a line for each run that has none since `every` seconds."""
        for tally in tallies:
            when = self._told.get(tally.run_id, (0, now))[1]
            if not tally.state and now - when >= self.interval:
                self._line(tally, now, summary(tally, now))

    def tell(self, tally: Tally, event: Any, now: float) -> None:
        """Write a line at the start, a failure, each tenth of the units, and the end."""
        if isinstance(event, RunStarted):
            self._line(tally, now, f"{tally.total} units")
        elif isinstance(event, RunFinished):
            self._line(tally, now, summary(tally, now))
        elif isinstance(event, UnitFailed | UnitTimedOut):
            count = self._failures[tally.run_id] = self._failures.get(tally.run_id, 0) + 1
            if count <= _MOST_LINES:
                how = "timed out" if isinstance(event, UnitTimedOut) else "failed"
                self._line(tally, now, f"{one_line(event.unit)} {how}: {_message(event.error)}")
        elif self._told.get(tally.run_id, (0, now))[0] < int(tally.share / _STEP) < 1 / _STEP:
            self._line(tally, now, summary(tally, now))

    def _line(self, tally: Tally, now: float, text: str) -> None:
        self._told[tally.run_id] = int(tally.share / _STEP), now
        self._file.write(f"{_title(tally)}: {text}\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing is open."""


# -- in words and pictures ------------------------------------------------------------------------


def summary(tally: Tally, now: float) -> str:
    """Return how far a run is, on one line."""
    told = [f"{tally.done} of {max(tally.total, tally.done)} units ({tally.share:.0%})"]
    told += [f"{count} {what}" for what, count in _counts(tally)]
    if tally.state:
        told.append(f"{tally.state} after {seconds(tally.elapsed(now))}")
    else:
        told.append(f"{sum(not row.holds_others for row in tally.running.values())} running")
        left = tally.seconds_left(now)
        if left is not None:
            told.append(f"about {seconds(left)} left")
    return ", ".join(told)


def picture(tallies: list[Tally], now: float, rows: int) -> "RenderableType":
    """Return what is drawn: for each run a bar with its counts, and rows of what runs."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for tally in tallies:
        head = Table.grid(padding=(0, 1))
        bad = tally.failed or tally.state in ("failed", "timeout")
        bar = ProgressBar(
            total=1.0,
            completed=tally.share,
            width=24,
            complete_style="red" if bad else "cyan",
            finished_style="red" if bad else "green",
        )
        # Texts, not strings: names may hold what looks like markup.
        head.add_row(Text(_title(tally), style="bold"), bar)
        parts += [head, Text(f"  {summary(tally, now)}", no_wrap=True, overflow="ellipsis")]
        shown = sorted(tally.running.values(), key=lambda row: (row.holds_others, row.since))
        table = Table.grid(padding=(0, 1))
        for row in shown[:rows]:
            table.add_row(*map(Text, ("  ·", *_cells(row, now))))
        if shown:
            parts.append(table)
        if len(shown) > rows:
            parts.append(Text(f"  … and {len(shown) - rows} more", style="dim"))
    return Group(*parts)


def bundle(tallies: list[Tally], now: float, rows: int) -> dict[str, str]:
    """Return the picture for a notebook, as plain text and as HTML."""
    import io

    from rich.console import Console

    console = Console(
        file=io.StringIO(), record=True, width=100, force_terminal=True, force_jupyter=False
    )
    console.print(picture(tallies, now, rows))
    html = console.export_html(
        inline_styles=True, clear=False, code_format="<pre style='line-height:1.3'>{code}</pre>"
    )
    return {"text/plain": console.export_text(), "text/html": html}


def _counts(tally: Tally) -> list[tuple[str, int]]:
    counts = {
        "failed": tally.failed,
        "retried": tally.retried,
        "skipped": tally.skipped,
        "canceled": tally.canceled,
    }
    return [(what, count) for what, count in counts.items() if count]


def _cells(row: Row, now: float) -> tuple[str, str, str]:
    age = seconds(max(0.0, now - row.since))
    attempt = f"attempt {row.attempt}" if row.attempt > 1 or row.backs_off else ""
    return one_line(row.unit), age, f"{attempt}, backing off" if row.backs_off else attempt


def _title(tally: Tally) -> str:
    return one_line(f"{tally.title} {tally.run_id}")


def _message(error: BaseException) -> str:
    try:
        return one_line(f"{type(error).__name__}: {error}")
    except Exception:
        return type(error).__name__


def seconds(value: float) -> str:
    """Return a time as people read it."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
