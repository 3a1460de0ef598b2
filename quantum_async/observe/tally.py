"""How far a run is, counted from its events: what ended, what runs, how long it may take."""

from dataclasses import dataclass, field
from typing import Any

from quantum_async.core.events import (
    Event,
    RunFinished,
    RunStarted,
    UnitCanceled,
    UnitCompleted,
    UnitFailed,
    UnitReady,
    UnitRetrying,
    UnitSkipped,
    UnitStarted,
    UnitTimedOut,
)
from quantum_async.core.plan import ExecutionPlan

EVENT_TYPES: tuple[type[Event], ...] = (
    RunStarted,
    UnitReady,
    UnitStarted,
    UnitRetrying,
    UnitCompleted,
    UnitFailed,
    UnitTimedOut,
    UnitSkipped,
    UnitCanceled,
    RunFinished,
)


@dataclass(slots=True)
class Row:
    """One unit that runs, or backs off between two attempts.

    Attributes:
        unit: Its name.
        since: When its first attempt started, by the run's clock.
        attempt: Which attempt it is at.
        backs_off: Whether it waits for the next one.
        holds_others: Whether others run inside it: it is no work itself.
    """

    unit: str
    since: float
    attempt: int
    backs_off: bool = False
    holds_others: bool = False


@dataclass(slots=True)
class Tally:
    """The counts of one run.

    Attributes:
        run_id: The run's name.
        title: The partitioner's name.
        began: When it started, by the run's clock.
        total: How many units there are, as far as is known: maps and nested runs add to it.
        completed: How many have a result.
        failed: How many failed or timed out for good.
        skipped: How many were skipped.
        canceled: How many were cancelled.
        retried: How many attempts were tried again.
        running: The units that run, oldest first.
        state: How the run ended; empty before.
        ended: When it ended.
    """

    run_id: str
    title: str = ""
    began: float = 0.0
    total: int = 0
    completed: int = 0
    failed: int = 0
    skipped: int = 0
    canceled: int = 0
    retried: int = 0
    running: dict[str, Row] = field(default_factory=dict)
    state: str = ""
    ended: float = 0.0
    _measured: int = 0
    _worked: float = 0.0  # seconds of the units that were measured

    def grow(self, plan: ExecutionPlan) -> None:
        """Take the plan of a run inside this one."""
        self.total += plan.unit_count

    def take(self, event: Any) -> None:
        """Count an event."""
        match event:
            case UnitReady():
                if event.attempt == 1 and self._is_child(event.unit):
                    self.total += 1
            case UnitStarted():
                row = self.running.get(event.unit)
                if row is None:
                    inside = event.where in ("map", "run", "race")
                    self.running[event.unit] = Row(event.unit, event.time, 1, holds_others=inside)
                else:
                    row.attempt, row.backs_off = event.attempt, False
            case UnitRetrying():
                self.retried += 1
                if event.unit in self.running:
                    self.running[event.unit].backs_off = True
            case UnitCompleted():
                self.completed += 1
                self._ended(event, event.duration)
            case UnitFailed() | UnitTimedOut():
                self.failed += 1
                self._ended(event, event.duration)
            case UnitSkipped():
                self.skipped += 1
                self._ended(event)
            case UnitCanceled():
                self.canceled += 1
                self._ended(event)
            case RunStarted():
                self.title, self.began = event.partitioner, event.time
                self.total += event.units
            case RunFinished():
                self.state, self.ended = event.state, event.time

    @property
    def done(self) -> int:
        """How many units have ended."""
        return self.completed + self.failed + self.skipped + self.canceled

    @property
    def share(self) -> float:
        """The share of units that have ended, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    def elapsed(self, now: float) -> float:
        """Return seconds since the run began."""
        return max(0.0, (self.ended if self.state else now) - self.began)

    def seconds_left(self, now: float) -> float | None:
        """Return how many seconds the rest may take; None while nothing was measured.

        Units that are left are taken to be as long as those that were measured, and as many to run
        at once as did so far.
        """
        elapsed = self.elapsed(now)
        if not self._measured or elapsed <= 0 or self.state:
            return None
        mean = self._worked / self._measured
        ages = [max(0.0, now - row.since) for row in self.running.values() if not row.holds_others]
        at_once = max((self._worked + sum(ages)) / elapsed, 1e-9)
        left = (self.total - self.done - len(self.running)) * mean
        left += sum(max(0.0, mean - age) for age in ages)
        return max(0.0, left / at_once)

    def _is_child(self, unit: str) -> bool:
        parent, bracket, _ = unit.rpartition("[")
        return bool(bracket) and parent in self.running

    def _ended(self, event: Any, duration: float | None = None) -> None:
        row = self.running.pop(event.unit, None)
        if row is not None and duration is not None and not row.holds_others:
            self._measured += 1
            self._worked += duration
