"""A recorded run again in the simulator, with something changed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantum_async.account import BACK_OFF, OPENED, RUNNING, Recorded, slices_of
from quantum_async.core.checks import check_number, check_workers
from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.limits import Limit, Needs, unmet
from quantum_async.core.shapes import Mapped
from quantum_async.core.simulate import Replay, Simulation, simulate
from quantum_async.core.states import ExecutionMode, Strategy, parse


class Model:
    """A recorded run, ready to be run again as often as it takes.

    Args:
        result: The run.
    """

    def __init__(self, result: Recorded) -> None:
        self._result = result
        self._seconds, self._children, self._items = _measured(result)
        total = result._ledger.scheduler.total
        self._workers = None if total is None else total.capacity

    def what_if(
        self,
        durations: Mapping[str, float] | None = None,
        max_workers: int | None = None,
        limits: Mapping[str, Limit | float | None] | None = None,
        *,
        slots: Mapping[str, int] | None = None,
        strategy: Strategy | str | None = None,
    ) -> Simulation:
        """Run it on modelled time; see `RunResult.what_if`."""
        result, plan, ledger = self._result, self._result.plan, self._result._ledger
        seconds, children = dict(self._seconds), dict(self._children)
        _change(result, durations, seconds, children)
        allowed = _limits(ledger.scheduler.limits, limits)
        ran = [name in seconds for name in plan.names]
        replay = Replay(
            ranking=_ranking(result, strategy),
            places=[_place(result, unit) if ran[unit] else "" for unit in range(plan.unit_count)],
            slots=_slots(result, self._workers, max_workers, slots),
            needs=_needs(result, ran, allowed),
            limits=allowed,
            children=children,
            given=[unit for unit, ran_on in ledger.ran_on.items() if ran_on == "given"],
        )
        modelled = simulate(
            plan,
            lambda name: seconds.get(name, 0.0),
            self._workers if max_workers is None else max_workers,
            Strategy.CRITICAL_PATH,
            self._items,
            replay,
        )
        return _of_those_that_ran(modelled, seconds, plan.index)


def _needs(result: Recorded, ran: Sequence[bool], allowed: Mapping[str, Limit]) -> list[Needs]:
    """Return what each unit used of the limits, as far as they are still there."""
    found: list[Needs] = []
    for unit, name in enumerate(result.plan.names):
        used = result._ledger.scheduler.needs_of(unit) if ran[unit] else ()
        found.append(tuple((of, tokens) for of, tokens in used if of in allowed))
        if (problem := unmet(name, found[-1], allowed)) is not None:
            raise problem
    return found


def _measured(result: Recorded) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Return how long units took, and children of maps, and how many of these each map had."""
    ledger, plan = result._ledger, result.plan
    rows = ledger.rows
    seconds: dict[str, float] = {}
    children: dict[str, float] = {}
    items = {
        name: 0
        for name, unit in plan.units.items()
        if isinstance(unit.options.shape, Mapped)
    }  # fmt: skip
    for unit in rows.in_order():
        if not ledger.in_run(unit) or not ledger.attempts[unit]:
            continue
        name = rows.names[unit]
        took = sum(it.duration for it in slices_of(result, name) if it.kind in (RUNNING, BACK_OFF))
        if unit < rows.count:
            seconds[name] = took
            continue
        parent = rows.names[rows.parent(unit)]
        children[name] = took
        items[parent] = max(items[parent], rows.index(unit) + 1)
    for name in items:
        if name in seconds:
            # Of its children; its own time is theirs. One that was not recorded is as the others.
            own = [took for it, took in children.items() if it.rpartition("[")[0] == name]
            seconds[name] = sum(own) / len(own) if own else 0.0
    return seconds, children, items


def _change(
    result: Recorded,
    durations: Mapping[str, float] | None,
    seconds: dict[str, float],
    children: dict[str, float],
) -> None:
    known = [*seconds, *children]
    for name, value in (durations or {}).items():
        if name not in seconds and name not in children:
            if name in result.units:
                raise PlanError(f"durations name {name!r}, and that unit did not run by itself")
            raise PlanError(
                f"durations name {name!r}, and no unit of the run has that name"
                f"{did_you_mean(name, known)}"
            )
        check_number(name, "its duration", value)
        if name in children:
            children[name] = value
            continue
        seconds[name] = value
        for child in [it for it in children if it.rpartition("[")[0] == name]:
            children[child] = value


def _limits(
    recorded: Mapping[str, Limit], changed: Mapping[str, Limit | float | None] | None
) -> dict[str, Limit]:
    allowed = dict(recorded)
    for name, limit in (changed or {}).items():
        if name not in allowed:
            raise PlanError(
                f"limits name {name!r}, and the run had no such limit{did_you_mean(name, allowed)}"
            )
        if limit is None:
            del allowed[name]
        else:
            allowed[name] = Limit.of(limit, name)
    return allowed


def _ranking(result: Recorded, strategy: Strategy | str | None) -> Any:
    environment, plan = result._ledger.environment, result.plan
    if strategy is None and environment.get("mode") == ExecutionMode.SEQUENTIAL.value:
        return plan.sequence
    strategy = strategy or environment.get("strategy", Strategy.CRITICAL_PATH)
    return plan.ranking(parse(Strategy, strategy, "strategy"))


def _place(result: Recorded, unit: int) -> str:
    """Return where a unit took a slot; a map's children do, where the map says."""
    ledger = result._ledger
    ran_on = ledger.ran_on.get(unit)
    is_map = isinstance(result.plan.handles[unit].options.shape, Mapped)
    return "" if ran_on in OPENED and not is_map else ledger.where[ledger.scheduler.lanes[unit]]


def place_slots(result: Recorded) -> dict[str, int]:
    """Return how many units could run at once in each place of a run that had a limit of its own.

    What only the run's whole number of workers limited is not among them.
    """
    ledger = result._ledger
    total, found = ledger.scheduler.total, dict[str, int]()
    for place, gauges in zip(ledger.where, ledger.scheduler.gauges, strict=True):
        most = min((gauge.capacity for gauge in gauges), default=None)
        if most is not None and (total is None or most < total.capacity):
            found[place] = most
    return found


def _slots(
    result: Recorded,
    recorded: int | None,
    max_workers: int | None,
    changed: Mapping[str, int] | None,
) -> dict[str, int]:
    slots = place_slots(result)
    if max_workers is not None and recorded is None:
        # As many threads as workers; processes were limited by the CPUs, which are the same.
        slots.pop("thread", None)
    places = set(result._ledger.where)
    for place, most in (changed or {}).items():
        if place not in places:
            raise PlanError(
                f"slots name {place!r}, and no unit ran there{did_you_mean(place, places)}"
            )
        check_workers(most)
        slots[place] = most
    return slots


def _of_those_that_ran(
    modelled: Simulation, seconds: Mapping[str, float], index: Mapping[str, int]
) -> Simulation:
    """Leave out the units that did not run in the recorded run: they took no time here either."""

    def ran(moments: Mapping[str, float]) -> Iterator[tuple[str, float]]:
        return ((name, it) for name, it in moments.items() if name in seconds or name not in index)

    ends = dict(ran(modelled.ends))
    return Simulation(max(ends.values(), default=0.0), dict(ran(modelled.starts)), ends)
