"""From the engine to those who listen: one list of observers an event type.

An observer is any callable that takes an event. One that has `event_types` gets only those, and
an event that nobody takes is never made. An observer that raises is dropped, and said so once.

One that has `on_plan` is called with run, plan and what the names of its units begin with, before
the first event and again for each run inside the run. One that cannot take events without end has
a `gate`, and the run starts nothing more while that is shut.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from quantum_async.core.events import EVENT_TYPES, Event, RunFinished, RunStarted, UnitSkipped
from quantum_async.core.plan import ExecutionPlan

Observer = Callable[[Any], object]
Complain = Callable[[str, BaseException | None], None]

_WALL_HOLDS = 1.0  # seconds for which the wall clock is taken to go as the run's does
_make: Callable[[type, tuple[Any, ...]], Any] = tuple.__new__


class Gate(Protocol):
    """What holds a run up, while somebody has yet to take the events that there are."""

    @property
    def is_shut(self) -> bool:
        """Whether nothing may start now."""
        ...

    def call_when_open(self, callback: Callable[[], object]) -> None:
        """Call `callback` once, when it opens."""
        ...


class Bus:
    """Carries the events of one run.

    Args:
        observers: Who listens.
        run_id: The run's name.
        clock: The run's monotonic clock, in seconds.
        complain: Takes a sentence about an observer that raised, and its exception.

    Attributes:
        gates: Those of the observers that have one.
    """

    def __init__(
        self,
        observers: Iterable[Observer],
        run_id: str,
        clock: Callable[[], float],
        complain: Complain,
    ) -> None:
        self._run_id = run_id
        self._clock = clock
        self._complain = complain
        self._seq = 0
        self._latest = -math.inf
        self._epoch = self._epoch_until = -math.inf  # the clock's zero in seconds since the epoch
        self._takers: dict[type, list[Observer]] = {}
        self._observers = observers = list(observers)
        gates = [getattr(observer, "gate", None) for observer in observers]
        self.gates: Sequence[Gate] = [gate for gate in gates if gate is not None]
        for observer in observers:
            wanted = getattr(observer, "event_types", None)
            for kind in EVENT_TYPES if wanted is None else wanted:
                self._takers.setdefault(kind, []).append(observer)

    def __contains__(self, kind: type) -> bool:
        """Whether anybody takes this type of event."""
        return bool(self._takers.get(kind))

    def introduce(self, plan: ExecutionPlan, prefix: str = "") -> None:
        """Give the plan, of this run or one inside it, to observers that have `on_plan`."""
        for observer in self._observers:
            on_plan = getattr(observer, "on_plan", None)
            if on_plan is not None:
                try:
                    on_plan(self._run_id, plan, prefix)
                except Exception as error:
                    self._drop([(observer, error)])

    def holds(self, go_on: Callable[[], object]) -> bool:
        """Whether somebody must first take what was told; `go_on` is called when he has."""
        shut = [gate for gate in self.gates if gate.is_shut]
        for gate in shut:
            gate.call_when_open(go_on)
        return bool(shut)

    def tell(self, kind: type[Event], *facts: Any) -> None:
        """Make an event of what happens now and pass it on, if anybody takes it."""
        if self._takers.get(kind):
            self.tell_at(kind, self._clock(), facts)

    def tell_at(self, kind: type[Event], at: float, facts: tuple[Any, ...]) -> None:
        """Make an event of what happened at a moment of the run's clock.

        There are three a unit, so nothing is looked up twice: the moment is one that the engine
        has, the wall clock is asked once a second, and the named tuple's own constructor, which
        costs as much as all of this, is passed by.
        """
        takers = self._takers.get(kind)
        if not takers:
            return
        if at < self._latest:  # the engine may have looked at the clock before it told of more
            at = self._latest
        self._latest = at
        if at >= self._epoch_until:
            self._epoch, self._epoch_until = time.time() - self._clock(), at + _WALL_HOLDS
        event = _make(kind, (self._run_id, self._seq, at, self._epoch + at) + facts)  # noqa: RUF005
        self._seq += 1
        broken: list[tuple[Observer, BaseException]] | None = None
        for observer in takers:
            try:
                observer(event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                broken = [*(broken or ()), (observer, error)]
        if broken is not None:
            self._drop(broken)

    def _drop(self, broken: list[tuple[Observer, BaseException]]) -> None:
        for observer, error in broken:
            self._observers = [one for one in self._observers if one is not observer]
            for takers in self._takers.values():
                takers[:] = [taker for taker in takers if taker is not observer]
            self._complain(f"the observer {_named(observer)} raised and hears no more of it", error)


class NestedBus:
    """Carries the events of a nested run as those of the run around it.

    Args:
        outer: The bus of that run.
        prefix: What comes before the names of units.
    """

    def __init__(self, outer: "Bus | NestedBus", prefix: str) -> None:
        self._outer = outer
        self._prefix = prefix

    @property
    def gates(self) -> Sequence[Gate]:
        """Those of the run around it."""
        return self._outer.gates

    def holds(self, go_on: Callable[[], object]) -> bool:
        """Whether somebody must first take what was told; `go_on` is called when he has."""
        return self._outer.holds(go_on)

    def introduce(self, plan: ExecutionPlan, prefix: str = "") -> None:
        """Give the plan, of this run or one inside it, to observers that have `on_plan`."""
        self._outer.introduce(plan, self._prefix + prefix)

    def __contains__(self, kind: type) -> bool:
        """Whether anybody takes this type of event."""
        return kind not in (RunStarted, RunFinished) and kind in self._outer

    def tell(self, kind: type[Event], *facts: Any) -> None:
        """Make an event and pass it on, if anybody takes it; the nested run's own ends are none."""
        if kind in self:
            self._outer.tell(kind, *self._prefixed(kind, *facts))

    def tell_at(self, kind: type[Event], at: float, facts: tuple[Any, ...]) -> None:
        """Make an event of what happened at a moment of the run's clock."""
        if kind in self:
            self._outer.tell_at(kind, at, self._prefixed(kind, *facts))

    def _prefixed(self, kind: type[Event], unit: str, *rest: Any) -> tuple[Any, ...]:
        if kind is UnitSkipped:
            attempt, root = rest
            rest = attempt, self._prefix + root
        return self._prefix + unit, *rest


def _named(observer: object) -> str:
    try:
        return repr(observer) or type(observer).__name__
    except Exception:
        return type(observer).__name__
