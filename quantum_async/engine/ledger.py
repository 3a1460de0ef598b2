"""What happened in one run: one column a fact, one row a unit.

Rows are written by the engine alone. `RunResult` reads them and makes `UnitRecord`s when they are
asked for: a run of a million units pays for the columns, not for a million records.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantum_async.core.effects import EffectLog
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.record import NOTHING, Elsewhere, Outcome, UnitRecord, Usage
from quantum_async.core.scheduler import (
    CANCELED,
    FAILED,
    OUTSIDE,
    SKIPPED,
    TIMEOUT,
    Scheduler,
)
from quantum_async.core.states import UnitState
from quantum_async.engine.rows import Rows

__all__ = ["NOTHING", "Ledger"]


_NOT_YET = -1.0  # a moment: a virtual clock may say 0


@dataclass(slots=True)
class Ledger:
    """The columns of one run. Times are seconds of the run's monotonic clock.

    Attributes:
        plan: The plan that ran.
        scheduler: Whose `phase` is the column of states.
        run_id: The run's name.
        wall: Seconds since the epoch when the run started.
        began: When the run started.
        ended: When it ended.
        where: Name of each lane: where its units run.
        rows: The units by number, with the children that the run grew.
        results: Result of each unit, `NOTHING` where there is none.
        errors: Exception of the last attempt, of the units that have one.
        attempts: How many attempts each unit started.
        starts: When each unit's first attempt started.
        ends: When each unit ended.
        ran_on: Where a unit ran, if its lane does not say it.
        fallbacks: Units whose result is their fallback.
        roots: For each skipped unit the failed unit that is to blame.
        causes: Why a unit ended, where nothing else says it.
        forgiven: Units whose failure is no failure of the run: of maps that collect them.
        nested: The results of the runs inside each unit.
        stop_cause: Why the run was stopped; None if it ran to its end.
        usage: What units cost that ran in other processes.
        metrics: What units recorded.
        effects: The side effects that they performed.
        held_by: The limit that kept a unit waiting when it was ready; slots are not told.
        retries: For each unit that was tried again, the back-off after each attempt that went
            wrong, in seconds, and why it went wrong.
        environment: Facts about the run: mode, strategy, workers.
    """

    plan: ExecutionPlan
    scheduler: Scheduler
    run_id: str
    wall: float
    began: float
    where: list[str]
    rows: Rows
    ended: float = _NOT_YET
    results: list[Any] = field(init=False)
    errors: dict[int, BaseException] = field(default_factory=dict)
    attempts: "array[int]" = field(init=False)
    starts: "array[float]" = field(init=False)
    ends: "array[float]" = field(init=False)
    ran_on: dict[int, str] = field(default_factory=dict)
    fallbacks: set[int] = field(default_factory=set)
    roots: dict[int, int] = field(default_factory=dict)
    causes: dict[int, str] = field(default_factory=dict)
    forgiven: set[int] = field(default_factory=set)
    nested: dict[int, list[Any]] = field(default_factory=dict)
    stop_cause: str | None = None
    usage: dict[int, Usage] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    effects: EffectLog = field(default_factory=EffectLog)
    held_by: dict[int, str] = field(default_factory=dict)
    retries: dict[int, list[tuple[float, str]]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.plan.unit_count
        self.results = [NOTHING] * count
        self.attempts = array("I", [0]) * count
        self.starts = array("d", [0.0]) * count
        self.ends = array("d", [_NOT_YET]) * count

    def give(self, values: Mapping[int, Any]) -> None:
        """Write the results that were known before the run."""
        for unit, value in values.items():
            self.results[unit] = value
            self.ran_on[unit] = "given"

    def grow(self, child: int) -> None:
        """Make a row for a child, or an old one new."""
        if child == len(self.results):
            self.results.append(NOTHING)
            self.attempts.append(0)
            self.starts.append(0.0)
            self.ends.append(_NOT_YET)
        else:
            self.results[child] = NOTHING
            self.attempts[child], self.starts[child], self.ends[child] = 0, 0.0, _NOT_YET

    def forget(self, child: int) -> None:
        """Drop what is known of a child whose result nobody keeps."""
        self.results[child] = NOTHING
        self.usage.pop(child, None)
        self.ran_on.pop(child, None)
        self.causes.pop(child, None)
        self.errors.pop(child, None)
        self.fallbacks.discard(child)
        self.held_by.pop(child, None)
        self.retries.pop(child, None)

    def note_limit(self, unit: int) -> None:
        """A unit has started: keep which limit refused it before, if one did."""
        limit = self.scheduler.held_by.get(self.scheduler.lanes[unit])
        if limit is not None and self.attempts[unit] == 1:
            self.held_by[unit] = limit

    def in_run(self, unit: int) -> bool:
        """Return whether the unit is part of this run."""
        return self.scheduler.phase[unit] != OUTSIDE

    def ready_at(self, unit: int) -> float:
        """Return when the unit's last dependency ended; the run's start if it has none."""
        ends = self.ends
        if unit >= self.rows.count:
            return self.starts[self.rows.parent(unit)]
        last = max((ends[above] for above in self.plan.edges_up[unit]), default=_NOT_YET)
        return self.began if last == _NOT_YET else last

    @property
    def until(self) -> float:
        """The run's end; while it goes on, the last moment that was written down."""
        if self.ended != _NOT_YET:
            return self.ended
        return max((self.began, *self.starts, *self.ends))

    def moment(self, clock: float) -> float | None:
        """Return a moment of the clock in seconds since the run began; None if it has not come."""
        return None if clock == _NOT_YET else clock - self.began

    def record(self, unit: int) -> UnitRecord:
        """Return a unit's row as a record."""
        scheduler, name = self.scheduler, self.rows.names[unit]
        attempts, ended = self.attempts[unit], self.ends[unit]
        started = self.starts[unit] if attempts else None
        result = self.results[unit]
        return UnitRecord(
            name=name,
            state=scheduler.state(unit),
            result=None if result is NOTHING else result,
            error=self.errors.get(unit),
            attempts=attempts,
            started_at=None if started is None else self._wall(started),
            ended_at=None if ended == _NOT_YET else self._wall(ended),
            duration=None if started is None or ended == _NOT_YET else ended - started,
            waited=None if started is None else max(0.0, started - self.ready_at(unit)),
            ran_on=self.ran_on.get(unit)
            or (self.where[scheduler.lanes[unit]] if attempts else None),
            fallback_used=unit in self.fallbacks,
            cause=self.cause(unit),
            usage=self.usage.get(unit),
            held_by=self.held_by.get(unit),
        )

    def cause(self, unit: int) -> str | None:
        """Return why a unit ended, where its state alone does not say it."""
        phase = self.scheduler.phase[unit]
        if phase == SKIPPED and unit in self.roots:
            root = self.roots[unit]
            if root == unit:
                return self.causes.get(unit)
            how = self.scheduler.state(root).value
            if self.scheduler.phase[root] == SKIPPED:
                return f"{self.plan.names[root]!r} was skipped ({self.cause(root)})"
            return f"{self.plan.names[root]!r} {_ENDED.get(how, how)}"
        cause = self.causes.get(unit)
        if cause is None and phase == CANCELED:
            return self.stop_cause
        return cause

    @property
    def failed(self) -> list[int]:
        """Units that failed or timed out, in plan order."""
        phase = self.scheduler.phase
        if FAILED not in phase and TIMEOUT not in phase:
            return []
        return [unit for unit in self.rows.in_order() if phase[unit] in (FAILED, TIMEOUT)]

    @property
    def guilty(self) -> list[int]:
        """Units whose failure is the run's: not those that were in a race, or are collected."""
        excused = self.plan.contenders
        return [unit for unit in self.failed if unit not in excused and unit not in self.forgiven]

    @property
    def complete(self) -> bool:
        """Whether all that was to be done was: what a choice left out was not."""
        if not self.scheduler.finished or self.guilty:
            return False
        phase, triggers = self.scheduler.phase, self.scheduler.triggers
        if SKIPPED not in phase and CANCELED not in phase:
            return True
        choices = set() if triggers is None else triggers.choices
        return all(
            self.roots.get(unit, unit) in choices or unit in self.plan.contenders
            for lost in (SKIPPED, CANCELED)
            for unit in self.scheduler.in_phase(lost)
        )

    def inside(self, name: object) -> tuple[Any, str]:
        """Return the nested run that ``unit/child`` (or ``unit/2/child``) is of, and the rest."""
        text = name if isinstance(name, str) else ""
        for at in (at for at, letter in enumerate(text) if letter == "/"):
            unit, rest = self.rows.number(text[:at]), text[at + 1 :]
            runs = [] if unit is None else self.nested.get(unit, [])
            if not runs:
                continue
            number, slash, further = rest.partition("/")
            if slash and number.isdecimal() and 2 <= int(number) <= len(runs):
                return runs[int(number) - 1], further
            return runs[0], rest
        return None, ""

    def outcome(self, unit: int) -> Outcome:
        """Return how a unit ended, for one that depends on it."""
        result = self.results[unit]
        if isinstance(result, Elsewhere):
            result = result.here()
        return Outcome(
            self.scheduler.state(unit),
            None if result is NOTHING else result,
            self.errors.get(unit),
            self.cause(unit),
        )

    def _wall(self, moment: float) -> float:
        return self.wall + (moment - self.began)


_ENDED = {UnitState.TIMEOUT.value: "timed out", UnitState.CANCELED.value: "was canceled"}
