"""What holds of every run, checked from its events alone.

The list is that of docs/design.md: what a scheduler may do in any order, and what in none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quantum_async.core import events
from quantum_async.core.plan import ExecutionPlan

_ENDS = (
    events.UnitCompleted,
    events.UnitFailed,
    events.UnitTimedOut,
    events.UnitSkipped,
    events.UnitCanceled,
)


@dataclass(slots=True)
class _Log:
    """What the events have said so far."""

    plan: ExecutionPlan
    given: frozenset[str]
    problems: list[str] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)  # the attempt of each
    ended: dict[str, type[events.Event]] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)  # when a back-off is over
    canceled: bool = False

    def wrong(self, event: events.Event, what: str) -> None:
        self.problems.append(f"event {event.seq} ({type(event).__name__}): {what}")

    def started(self, event: events.UnitStarted) -> None:
        unit = event.unit
        if unit in self.ended:
            self.wrong(event, f"{unit!r} started although it had ended")
        if unit in self.running:
            self.wrong(event, f"{unit!r} started although it was running")
        if event.attempt != self.attempts.get(unit, 0) + 1:
            self.wrong(event, f"{unit!r} started attempt {event.attempt} out of order")
        if event.time < self.due.pop(unit, event.time):
            self.wrong(event, f"{unit!r} did not wait until its back-off was over")
        if self.canceled:
            self.wrong(event, f"{unit!r} started after the run was cancelled")
        for dependency in self.plan.dependencies[unit]:
            ended = self.ended.get(dependency)
            if ended is not events.UnitCompleted and dependency not in self.given:
                self.wrong(event, f"{unit!r} started although {dependency!r} had no result")
        self.running[unit] = self.attempts[unit] = event.attempt

    def over(self, event: "events.UnitRetrying | _End", *, ran: bool) -> None:
        """An attempt has ended, or a unit."""
        attempt = self.running.pop(event.unit, None)
        if ran and attempt is None:
            self.wrong(event, f"{event.unit!r} ended and did not run")
        if attempt not in (None, event.attempt):
            self.wrong(event, f"{event.unit!r} ended attempt {event.attempt}, and ran {attempt}")

    def final(self, event: "_End") -> None:
        if event.unit in self.ended:
            self.wrong(event, f"{event.unit!r} ended twice")
        self.ended[event.unit] = type(event)
        if isinstance(event, events.UnitSkipped) and self.ended.get(event.root) not in (
            events.UnitFailed,
            events.UnitTimedOut,
            events.UnitCanceled,
        ):
            self.wrong(event, f"{event.unit!r} blames {event.root!r}, which did not fail")


_End = (
    events.UnitCompleted
    | events.UnitFailed
    | events.UnitTimedOut
    | events.UnitSkipped
    | events.UnitCanceled
)


def broken_laws(
    plan: ExecutionPlan,
    log: Iterable[events.Event],
    *,
    given: Iterable[str] = (),
    max_running: int | None = None,
    slots: Mapping[str, int] | None = None,
) -> list[str]:
    """Return what the events of one run, in order, say that must not be; nothing if all is well.

    Args:
        plan: What ran.
        log: The events of the run, from the first to the last.
        given: Units that did not run because their results were given, or were not asked for.
        max_running: How many units might run at once.
        slots: The same for each place: ``"loop"``, ``"thread"``, ``"process"`` and so on.
    """
    seen = _Log(plan, frozenset(given))
    where: dict[str, str] = {}
    last = -1
    for event in log:
        if event.seq != last + 1:
            seen.wrong(event, f"it comes after event {last}")
        last = event.seq
        if isinstance(event, events.UnitStarted):
            seen.started(event)
            where[event.unit] = event.where
            places = [where[unit] for unit in seen.running]
            limit = (slots or {}).get(event.where)
            if limit is not None and places.count(event.where) > limit:
                seen.wrong(event, f"more than {limit} units ran in place {event.where!r}")
            if max_running is not None and len(places) > max_running:
                seen.wrong(event, f"more than {max_running} units ran")
        elif isinstance(event, events.UnitRetrying):
            seen.over(event, ran=True)
            seen.due[event.unit] = event.time + event.wait
        elif isinstance(event, _ENDS):
            # A running unit may be cancelled by somebody else, and the run goes on. Those that
            # wait are cancelled by the run alone, before it cancels what runs.
            seen.canceled |= isinstance(event, events.UnitCanceled) and (
                event.unit not in seen.running
            )
            seen.over(event, ran=isinstance(event, events.UnitCompleted | events.UnitFailed))
            seen.final(event)
    over = seen.ended.keys() | seen.given
    problems = seen.problems
    problems += [f"{unit!r} never ended" for unit in plan.names if unit not in over]
    problems += [f"{unit!r} was still running at the end" for unit in seen.running]
    return problems
