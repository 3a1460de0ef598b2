"""What holds of every run, checked from its events alone.

The list is that of docs/design.md: what a scheduler may do in any order, and what in none.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from quantum_async.core import events
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.shapes import RACE
from quantum_async.core.triggers import Trigger

_ENDS = (
    events.UnitCompleted,
    events.UnitFailed,
    events.UnitTimedOut,
    events.UnitSkipped,
    events.UnitCanceled,
)

# Where units are that hold no slot: they wait for others.
_WITHOUT_SLOT = ("map", "run", "race")


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
    choices: set[str] = field(default_factory=set)  # ended without a result, and nobody failed
    where: dict[str, str] = field(default_factory=dict)
    hosts: set[str] = field(default_factory=set)  # what other units run inside
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
        if unit in self.plan.index:
            self._pulled(event)
        elif not any(host in self.running for host in _hosts_of(unit)):
            self.wrong(event, f"{unit!r} started although nothing that it is part of was running")
        self.where[unit] = event.where
        self.running[unit] = self.attempts[unit] = event.attempt

    def _pulled(self, event: events.UnitStarted) -> None:
        """Whether the unit's trigger let it start, given how its dependencies ended."""
        unit, dependencies = event.unit, self.plan.dependencies[event.unit]
        trigger = self.plan.units[unit].options.trigger
        without = [
            name
            for name in dependencies
            if not (self.has_result(name) or self.is_giving(name, unit))
        ]
        if trigger in (Trigger.ONE_SUCCESS, Trigger.RACE):
            nobody = bool(dependencies) and len(without) == len(dependencies)
            if nobody and not self.is_lost_race(unit):
                self.wrong(event, f"{unit!r} started although no dependency had a result")
            return
        for name in without:
            if trigger == Trigger.ALL_SUCCESS:
                self.wrong(event, f"{unit!r} started although {name!r} had no result")
            elif name not in self.ended:
                self.wrong(event, f"{unit!r} started although {name!r} had not ended")
            elif trigger == Trigger.NONE_FAILED and name not in self.choices:
                self.wrong(event, f"{unit!r} started although {name!r} had failed")

    def has_result(self, unit: str) -> bool:
        """Whether a unit has a result."""
        return self.ended.get(unit) is events.UnitCompleted or unit in self.given

    def is_giving(self, source: str, unit: str) -> bool:
        """Whether a unit has begun to give items, to another that takes them as they come."""
        index, streams = self.plan.index, self.plan.streams
        return source in self.attempts and index[unit] in streams.get(index[source], ())

    def has_slot(self, unit: str) -> bool:
        """Whether a running unit is sure to have a slot: it never waits for another that runs."""
        streams, number = self.plan.streams, self.plan.index.get(unit)
        waits = number in streams or any(number in below for below in streams.values())
        return not (waits or unit in self.hosts or self.where[unit] in _WITHOUT_SLOT)

    def is_lost_race(self, unit: str) -> bool:
        """Whether it is a race that everybody has lost: it begins, to fail or be skipped."""
        all_over = all(name in self.ended for name in self.plan.dependencies[unit])
        return self.plan.units[unit].options.shape is RACE and all_over

    def canceled_by_run(self, event: events.Event) -> bool:
        """Whether an event says that the run was cancelled.

        A running unit may be cancelled by somebody else, and one whose dependents have all ended
        because a race was decided, and the run goes on. Others that wait are cancelled by the run
        alone, before it cancels what runs.
        """
        if not isinstance(event, events.UnitCanceled) or event.unit in self.running:
            return False
        if event.unit not in self.plan.index:
            return False
        below = self.plan.dependents[event.unit]
        return not below or not all(name in self.ended for name in below)

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
        if isinstance(event, events.UnitSkipped):
            self._blamed(event)
        elif isinstance(event, events.UnitCanceled) and not self.canceled:
            self.choices.add(event.unit)

    def _blamed(self, event: events.UnitSkipped) -> None:
        """Whether the unit that is to blame failed, or was left out by a choice."""
        unit, root = event.unit, event.root
        if unit == root:
            handle = self.plan.units.get(unit)  # there is none of a nested run's unit
            if handle and handle.options.when is None and handle.options.shape is not RACE:
                self.wrong(event, f"{unit!r} was skipped by itself, and has no condition")
            self.choices.add(unit)
        elif root in self.choices:
            self.choices.add(unit)
        elif self.ended.get(root) not in (
            events.UnitFailed,
            events.UnitTimedOut,
            events.UnitCanceled,
        ):
            self.wrong(event, f"{unit!r} blames {root!r}, which did not fail")


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
    log = list(log)
    seen = _Log(plan, frozenset(given))
    seen.hosts = {host for event in log for host in _hosts_of(getattr(event, "unit", ""))}
    last = -1
    for event in log:
        if event.seq != last + 1:
            seen.wrong(event, f"it comes after event {last}")
        last = event.seq
        if isinstance(event, events.UnitStarted):
            seen.started(event)
            places = [seen.where[unit] for unit in seen.running if seen.has_slot(unit)]
            limit = (slots or {}).get(event.where)
            if limit is not None and places.count(event.where) > limit:
                seen.wrong(event, f"more than {limit} units ran in place {event.where!r}")
            if max_running is not None and len(places) > max_running:
                seen.wrong(event, f"more than {max_running} units ran")
        elif isinstance(event, events.UnitRetrying):
            seen.over(event, ran=True)
            seen.due[event.unit] = event.time + event.wait
        elif isinstance(event, _ENDS):
            seen.canceled |= seen.canceled_by_run(event)
            seen.over(event, ran=isinstance(event, events.UnitCompleted | events.UnitFailed))
            seen.final(event)
    over = seen.ended.keys() | seen.given
    problems = seen.problems
    problems += [f"{unit!r} never ended" for unit in plan.names if unit not in over]
    problems += [f"{unit!r} was still running at the end" for unit in seen.running]
    return problems


def _hosts_of(unit: str) -> Iterator[str]:
    """Yield what a unit may run inside: ``map`` of ``map[3]``, ``a`` and ``a/b`` of ``a/b/c``."""
    for at, letter in enumerate(unit):
        if letter in "[/":
            yield unit[:at]
