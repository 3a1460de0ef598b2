"""A run while it goes on: what runs, and what a unit waits for."""

import math
from collections.abc import Iterator

from quantum_async.core.errors import did_you_mean
from quantum_async.core.phases import BACKOFF, OPEN, OPENING, READY, RUNNING, STATE_OF, WAITING
from quantum_async.core.plan import ExecutionPlan
from quantum_async.engine.engine import Engine
from quantum_async.explain import explain_unit
from quantum_async.result import RunResult

_MOST = 5  # units that are named one by one


class LiveRun:
    """One run, asked from outside while it goes on.

    Args:
        engine: What drives it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._setup = engine.setup

    @property
    def plan(self) -> ExecutionPlan:
        """What runs."""
        return self._setup.plan

    @property
    def running(self) -> dict[str, float]:
        """Seconds since the first start of each unit that runs, by name, oldest first."""
        ledger, now = self._setup.ledger, self._setup.clock()
        scheduler = self._setup.scheduler
        units = [*scheduler.in_phase(RUNNING), *scheduler.in_phase(OPEN)]
        found = {
            ledger.rows.names[unit]: now - ledger.starts[unit]
            for unit in units
            if ledger.attempts[unit]
        }
        for prefix, run in self._inside():
            found |= {prefix + name: age for name, age in run.running.items()}
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def explain(self, unit: str) -> str:
        """Say what a unit is doing now, and what it waits for.

        Raises:
            KeyError: If there is no such unit in the run.
        """
        ledger = self._setup.ledger
        number = ledger.rows.number(unit)
        if number is None or not ledger.in_run(number):
            for prefix, run in self._inside():
                if unit.startswith(prefix):
                    return prefix + run.explain(unit.removeprefix(prefix))
            result = RunResult(ledger, self._engine.timers.pauses)
            if unit in result.units:  # of a nested run that has ended
                return explain_unit(result, result.units[unit])
            raise KeyError(f"no unit {unit!r} in this run{did_you_mean(unit, self.plan.names)}")
        phase = self._setup.scheduler.phase[number]
        if phase not in (WAITING, OPENING, READY, BACKOFF, RUNNING, OPEN):
            result = RunResult(ledger, self._engine.timers.pauses)
            return explain_unit(result, result.units[unit])
        return f"{unit} {self._doing(number, phase)}"

    def _inside(self) -> Iterator[tuple[str, "LiveRun"]]:
        """Yield the runs that go on inside it, each with what its units' names begin with."""
        around = f"{self._setup.ledger.run_id}/"
        found = {
            f"{inside.ledger.run_id.removeprefix(around)}/": LiveRun(inside)
            for inside in self._setup.inside
            if isinstance(inside, Engine)
        }
        # ``unit/2/`` before ``unit/``, which it begins with too.
        yield from sorted(found.items(), key=lambda one: -len(one[0]))

    def _doing(self, unit: int, phase: int) -> str:
        ledger = self._setup.ledger
        if phase == WAITING:
            return f"waits for {self._dependencies(unit)}"
        if phase == OPENING:
            return self._opening(unit)
        if phase == READY:
            return f"is ready and waits for {' and '.join(self._obstacles(unit))}"
        if phase == BACKOFF:
            seconds = self._engine.timers.due_in(unit)
            return f"backs off for {seconds:.2f} s more, before attempt {ledger.attempts[unit] + 1}"
        age = self._setup.clock() - ledger.starts[unit]
        where = ledger.ran_on.get(unit) or ledger.where[self._setup.scheduler.lanes[unit]]
        told = f"has been running for {age:.2f} s (attempt {ledger.attempts[unit]}, {where})"
        if phase == OPEN:
            name = ledger.rows.names[unit]
            below = [one for one in self.running if one.startswith((f"{name}[", f"{name}/"))]
            told += f", and waits for its own units: {_listed(below) or 'none of them runs now'}"
        return told

    def _dependencies(self, unit: int) -> str:
        plan, phases = self.plan, self._setup.scheduler.phase
        above_it = plan.edges_up[unit] if unit < plan.unit_count else ()
        left = [
            f"{plan.names[above]} ({STATE_OF[phases[above]].value})"
            for above in above_it
            if not self._setup.scheduler.has_ended(above)
        ]
        return _listed(left) or "the loop's next turn"

    def _opening(self, unit: int) -> str:
        view = self._setup.view
        taken = self.plan.uses_resources.get(unit, ()) if unit < self.plan.unit_count else ()
        missing = [name for name in taken if name not in view.opened]
        if missing:
            return f"waits for resources to open: {_listed(missing)}"
        return f"waits for {self._gate() or 'its condition, or what it uses, to be known'}"

    def _gate(self) -> str:
        shut = any(gate.is_shut for gate in self._setup.bus.gates)
        return "somebody to take events: the buffer of the stream is full" if shut else ""

    def _obstacles(self, unit: int) -> list[str]:
        """Return what keeps a ready unit from starting."""
        setup, scheduler = self._setup, self._setup.scheduler
        lane, gate = scheduler.lanes[unit], self._gate()
        found = [gate] if gate else []
        full = [gauge for gauge in scheduler.gauges[lane] if not gauge.has_room]
        if full:
            whose = "of the run" if full[0] is scheduler.total else f"({setup.ledger.where[lane]})"
            found.append(f"a slot: all {full[0].capacity} {whose} are in use")
        needs = scheduler.needs_of(unit)
        lacking = setup.budget.lacking(needs) if needs and setup.budget is not None else {}
        for name, seconds in lacking.items():
            when = "" if math.isinf(seconds) else f", in {seconds:.2f} s at the earliest"
            found.append(f"the limit {name!r}{when}")
        return found or ["its turn: others go before it, or the loop has yet to turn"]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
