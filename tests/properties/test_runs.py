"""The whole engine on random graphs: against an oracle and the simulator."""

import asyncio
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from quantum_async import QuantumPartitioner, RetryPolicy, UnitState
from quantum_async.core import events
from quantum_async.core.scheduler import Scheduler
from quantum_async.testing import VirtualClock, broken_laws

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED


@dataclass
class Declared:
    """One unit of a random graph."""

    above: list[int]
    seconds: int
    fails: int  # in so many attempts
    retries: int
    kind: str  # "async" or "thread"


@st.composite
def graphs(draw, most=10, kinds=("async",)):
    units = []
    for number in range(draw(st.integers(1, most))):
        above = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        retries = draw(st.integers(0, 2))
        fails = draw(st.sampled_from([0, 0, 0, 1, 3]))
        seconds = draw(st.integers(0, 5))
        units.append(Declared(sorted(above), seconds, fails, retries, draw(st.sampled_from(kinds))))
    return units


def oracle(units):
    """Run a graph in the plainest way: one unit after the other."""
    states, values = [], []
    for number, unit in enumerate(units):
        if any(states[above] is not COMPLETED for above in unit.above):
            states.append(SKIPPED)
        else:
            states.append(COMPLETED if unit.fails <= unit.retries else FAILED)
        values.append(number + sum(values[above] for above in unit.above))
    return states, values


def built(units, **options):
    flow = QuantumPartitioner(failure_policy="collect", **options)
    names = [f"u{number}" for number in range(len(units))]

    def unit_of(number, unit):
        def value(ctx):
            if ctx.attempt <= unit.fails:
                raise ValueError(number)
            return number + sum(ctx[names[above]] for above in unit.above)

        async def on_loop(ctx):
            await asyncio.sleep(unit.seconds)
            return value(ctx)

        return value if unit.kind == "thread" else on_loop

    for number, unit in enumerate(units):
        flow.add_unit(
            unit_of(number, unit),
            [names[above] for above in unit.above],
            names[number],
            retry=RetryPolicy.after(unit.retries) if unit.retries else None,
            cost=float(unit.seconds),
        )
    return flow


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    """Check the scheduler's invariants after every step."""
    for name in ("complete", "fail", "retry", "wake", "give_up"):
        step = getattr(Scheduler, name)

        def stepped(self, *args, step=step, **options):
            step(self, *args, **options)
            self.check_invariants()

        monkeypatch.setattr(Scheduler, name, stepped)


@settings(max_examples=150)
@given(units=graphs(kinds=("async", "async", "thread")), most=st.sampled_from([None, 1, 2, 3]))
def test_a_run_ends_as_the_oracle_says_and_breaks_no_law(units, most):
    flow, log = built(units, max_workers=most), []
    result = VirtualClock().run(flow.run(observers=[log.append]))
    states, values = oracle(units)
    assert list(result.states.values()) == states
    expected = [v for v, state in zip(values, states, strict=True) if state is COMPLETED]
    assert list(result.values()) == expected
    assert broken_laws(flow.build_execution_plan(), log, max_running=most) == []


@settings(max_examples=150)
@given(units=graphs(), workers=st.integers(1, 4), data=st.data())
def test_the_engine_on_virtual_time_does_what_the_simulator_says(units, workers, data):
    for unit in units:
        unit.fails, unit.seconds = 0, max(1, unit.seconds)
    flow, log = built(units, max_workers=workers), []
    simulated = flow.build_execution_plan().simulate(max_workers=workers)
    VirtualClock().run(flow.run(observers=[log.append]))
    began = log[0].time
    starts = {e.unit: e.time - began for e in log if isinstance(e, events.UnitStarted)}
    ends = {e.unit: e.time - began for e in log if isinstance(e, events.UnitCompleted)}
    assert starts == pytest.approx(dict(simulated.starts), abs=1e-3)
    assert ends == pytest.approx(dict(simulated.ends), abs=1e-3)
    # Graham: any list schedule is within (2 - 1/m) of the best, and no schedule beats these bounds.
    work = sum(unit.seconds for unit in units)
    path = max(simulated.ends.values()) if workers >= len(units) else 0
    longest = _longest_path(units)
    assert simulated.makespan <= work / workers + longest * (1 - 1 / workers) + 1e-9
    assert simulated.makespan >= max(work / workers, longest, path) - 1e-9


def _longest_path(units):
    ends = []
    for unit in units:
        ends.append(unit.seconds + max((ends[above] for above in unit.above), default=0))
    return max(ends)
