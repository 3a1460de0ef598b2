"""A run told again from its events alone, from nothing, and held against its result."""

import functools
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from quantum_async import RunResult, UnitState
from quantum_async.core import events
from quantum_async.engine.bus import Bus
from quantum_async.engine.engine import Engine
from quantum_async.engine.ledger import NOTHING

MOST = 40  # units of a run that is checked by itself

_STATES = {
    events.UnitStarted: UnitState.RUNNING,
    events.UnitRetrying: UnitState.PENDING,
    events.UnitCompleted: UnitState.COMPLETED,
    events.UnitFailed: UnitState.FAILED,
    events.UnitTimedOut: UnitState.TIMEOUT,
    events.UnitSkipped: UnitState.SKIPPED,
    events.UnitCanceled: UnitState.CANCELED,
}
_ENDS = (
    events.UnitCompleted,
    events.UnitFailed,
    events.UnitTimedOut,
    events.UnitSkipped,
    events.UnitCanceled,
)


@dataclass
class Told:
    """What the events say of one unit."""

    state: UnitState = UnitState.PENDING
    attempts: int = 0
    where: str | None = None
    result: Any = NOTHING
    error: BaseException | None = None
    root: str | None = None
    waits: list[float] = field(default_factory=list)  # of its back-offs


@dataclass
class Story:
    """What the events say of a run.

    Attributes:
        units: Each unit that an event is about.
        started: Their names in the order of their first starts.
        ended: Their names in the order of their ends.
        verdict: How the run ended; None if it has not.
    """

    units: dict[str, Told] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    verdict: str | None = None

    def add(self, event: events.Event) -> None:
        """Go on by one event."""
        if isinstance(event, events.RunFinished):
            self.verdict = event.state
        if isinstance(event, events.RunStarted | events.RunFinished):
            return
        unit = self.units.setdefault(event.unit, Told())
        unit.state = _STATES.get(type(event), unit.state)
        if isinstance(event, events.UnitStarted):
            if not unit.attempts:
                self.started.append(event.unit)
            unit.attempts, unit.where = event.attempt, event.where
        elif isinstance(event, events.UnitCompleted):
            unit.result, unit.error, unit.where = event.result, event.error, event.where
        elif isinstance(event, events.UnitFailed | events.UnitTimedOut | events.UnitRetrying):
            unit.error = event.error
            if isinstance(event, events.UnitRetrying):
                unit.waits.append(event.wait)
        elif isinstance(event, events.UnitSkipped):
            unit.root = event.root
        if isinstance(event, _ENDS):
            self.ended.append(event.unit)


def folded(log: Iterable[events.Event]) -> Story:
    """Return what the events of a run say, from nothing."""
    story = Story()
    for event in log:
        story.add(event)
    return story


def differences(result: RunResult, log: Iterable[events.Event]) -> list[str]:
    """Return where a run's events tell something else than its result does, in words."""
    story, found = folded(log), []

    def same(what: str, told: object, is_so: object) -> None:
        if told is not is_so and told != is_so:
            found.append(f"{what}: the events tell {told!r}, and the result has {is_so!r}")

    for name, record in result.units.items():
        unit = story.units.get(name)
        if unit is None:
            same(f"{name!r}, of which no event tells", "given", record.ran_on)
            continue
        same(f"state of {name!r}", unit.state, record.state)
        same(f"attempts of {name!r}", unit.attempts, record.attempts)
        number = result._located(name)[1]
        backed_off = [wait for wait, _ in result._ledger.retries.get(number, ())]
        same(f"back-offs of {name!r}", unit.waits, backed_off)
        same(f"blame for {name!r}", unit.root, result.roots.get(name))
        # What was cancelled may have an error of its clean-up, of which no event tells.
        if record.state is not UnitState.CANCELED and unit.error is not record.error:
            same(f"error of {name!r}", repr(unit.error), repr(record.error))
        if record.state is UnitState.COMPLETED:
            same(f"place of {name!r}", unit.where, record.ran_on)
        if name in result and unit.result is not (stored := result._stored(name)):
            same(f"result of {name!r}", unit.result, stored)
    # Of a map's children whose results nobody keeps, nothing is kept.
    told = {name for name in story.units if name not in result.units and "[" not in name}
    same("units", told, set())
    for what, order, moments in (
        ("starts", story.started, {n: r.started_at for n, r in result.units.items()}),
        ("ends", story.ended, {n: r.ended_at for n, r in result.units.items()}),
    ):
        # A unit that was cancelled while it waited for others has no moment of its own.
        known = [(name, moment) for name in order if (moment := moments.get(name)) is not None]
        same(f"order of {what}", known, sorted(known, key=lambda one: one[1]))
    if story.verdict not in ("canceled", "timeout"):
        same("end of the run", story.verdict, "completed" if result.ok else "failed")
    if story.verdict in ("canceled", "timeout"):
        same("stop of the run", True, result._ledger.stop_cause is not None)
    return found


def check_every_run() -> None:
    """Tell each small run again, from now on, if somebody listens to all of its events."""
    run = Engine.run

    @functools.wraps(run)
    def watched(self: Engine) -> Coroutine[Any, Any, None]:
        bus = self.setup.bus
        if not isinstance(bus, Bus):
            return run(self)  # a run inside another, whose events are that one's
        if len(self._names) <= MOST and all(kind in bus for kind in events.EVENT_TYPES):
            return told_again(self)
        return run(self)

    async def told_again(self: Engine) -> None:
        log: list[events.Event] = []
        for takers in self.setup.bus._takers.values():
            takers.append(log.append)
        try:
            await run(self)
        finally:
            if self._done and not self._broken:
                found = differences(RunResult(self.ledger, self.timers.pauses), log)
                assert not found, "; ".join(found)

    Engine.run = watched  # type: ignore[method-assign]
