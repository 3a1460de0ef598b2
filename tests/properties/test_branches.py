"""Random graphs that branch, race, map and share limits: against oracles that are plainer."""

import asyncio
from dataclasses import dataclass
from heapq import heappop, heappush

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from quantum_async import Limit, QuantumPartitioner, Runtime, UnitState
from quantum_async.testing import VirtualClock, broken_laws
from tests.support.scarce import passed

pytestmark = pytest.mark.slow

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED = UnitState.CANCELED
TRIGGERS = ["all_success", "all_success", "all_done", "none_failed", "one_success"]


@dataclass
class Declared:
    """One unit of a random graph."""

    number: int
    above: list[int]
    kind: str  # "unit", "map" or "race"
    trigger: str
    when: bool  # what its condition says
    fails: bool
    seconds: float
    uses: dict[str, int]

    @property
    def name(self):
        return f"u{self.number}"


@st.composite
def graphs(draw, most=9, limits=()):
    units = []
    for number in range(draw(st.integers(1, most))):
        above = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        kind = draw(st.sampled_from(["unit", "unit", "map", "race" if above else "unit"]))
        units.append(
            Declared(
                number,
                sorted(above),
                kind,
                draw(st.sampled_from(TRIGGERS)) if kind != "race" else "race",
                when=draw(st.sampled_from([True, True, True, False])),
                fails=kind != "race" and draw(st.sampled_from([False, False, True])),
                # No two sums of different units are the same.
                seconds=draw(st.integers(1, 3)) + 2.0 ** -(3 + number),
                uses={} if kind == "race" else draw(_uses(limits)),
            )
        )
    return units


def _uses(limits):
    return st.fixed_dictionaries({}, optional={n: st.integers(1, most) for n, most in limits})


def built(units, **options):
    flow = QuantumPartitioner(failure_policy="collect", **options)
    for unit in units:
        above = [f"u{number}" for number in unit.above]
        when = None if unit.when else lambda ctx: False
        if unit.kind == "race":
            flow.first(*above, name=unit.name, when=when)
            continue

        async def works(_, unit=unit):
            await asyncio.sleep(unit.seconds)
            if unit.fails:
                raise ValueError(unit.name)
            return unit.name

        chosen = {"when": when, "trigger": unit.trigger, "uses": unit.uses, "cost": unit.seconds}
        if unit.kind == "map":
            flow.map(works, range(2), name=unit.name, after=above, **chosen)
        else:
            flow.add_unit(works, above, name=unit.name, **chosen)
    return flow


# -- the exact oracle: without slots and limits it is known when everything ends ---------------


class Oracle:
    """Runs a graph by its dependencies' ends alone, one after the other.

    Each unit has a loss: None, or the root that is to blame. Roots that are choices are kept.
    """

    def __init__(self, units):
        self.units = units
        self.below = [[u.number for u in units if n in u.above] for n in range(len(units))]
        self.states = {}
        self.roots = {}
        self.choices = set()
        self.winners = {}
        self.ambiguous = False
        self._decided, self._skipped = set(), set()  # moments
        self._heard = [{} for _ in units]  # by dependency, its loss
        self._when = [{} for _ in units]  # by moment, what kinds of ends it heard of
        self._started = set()
        self._ends = []
        for unit in units:
            if not unit.above:
                self._start(unit, 0.0)
        while self._ends:
            moment, number, ending = heappop(self._ends)
            if number not in self.states:
                self._end(number, moment, ending)
        # Whether somebody else still needed a loser depends on what was told first.
        self.ambiguous |= bool(self._decided & self._skipped)

    def _start(self, unit, moment):
        self._started.add(unit.number)
        if not unit.when:
            self._lose(unit.number, moment, unit.number, choice=True)
        elif unit.kind == "race":
            self._decide(unit, moment)
        else:
            ending = FAILED if unit.fails else COMPLETED
            heappush(self._ends, (moment + unit.seconds, unit.number, ending))

    def _end(self, number, moment, state):
        self.states[number] = state
        if state is COMPLETED:
            self._tell(number, moment, None)
        else:
            self._tell(number, moment, number)

    def _lose(self, number, moment, root, *, choice=False):
        self.states[number], self.roots[number] = SKIPPED, root
        self._skipped.add(moment)
        if choice:
            self.choices.add(root)
        self._tell(number, moment, root)

    def _tell(self, number, moment, root):
        for below in self.below[number]:
            unit, heard, when = self.units[below], self._heard[below], self._when[below]
            kinds = when.setdefault(moment, set())
            kinds.add("result" if root is None else root)
            self.ambiguous |= len(kinds) > 1
            if below in self.states or below in self._started:
                continue
            heard[number] = root
            losses = [loss for loss in heard.values() if loss is not None]
            failures = [loss for loss in losses if loss not in self.choices]
            all_over = len(heard) == len(unit.above)
            blamed = (failures or losses or [None])[0]
            if unit.trigger == "all_success":
                skips, starts = bool(losses), all_over
            elif unit.trigger == "all_done":
                skips, starts = False, all_over
            elif unit.trigger == "none_failed":
                skips, starts = bool(failures), all_over
            else:
                skips = all_over and len(losses) == len(unit.above) and unit.kind != "race"
                starts = root is None or all_over
            if skips:
                self._lose(below, moment, blamed)
            elif starts:
                if root is None:
                    self.winners[below] = number
                self._start(unit, moment)

    def _decide(self, race, moment):
        winner = self.winners.get(race.number)
        if winner is None:
            lost = list(self._heard[race.number].values())  # the first that was lost is named
            if any(self.states[above] is FAILED for above in race.above):
                self._end(race.number, moment, FAILED)
            else:
                failures = [root for root in lost if root not in self.choices]
                self._lose(race.number, moment, (failures or lost)[0])
            return
        self.states[race.number] = COMPLETED
        self._decided.add(moment)
        asked = [above for above in race.above if above != winner]
        while asked:
            number = asked.pop()
            if number in self.states or any(n not in self.states for n in self.below[number]):
                continue
            self.states[number] = CANCELED
            self.choices.add(number)
            asked += self.units[number].above
        self._tell(race.number, moment, None)


@settings(max_examples=400)
@given(units=graphs())
def test_a_graph_that_branches_and_races_ends_as_the_oracle_says(units):
    oracle = Oracle(units)
    assume(not oracle.ambiguous)
    flow, log = built(units), []
    result = VirtualClock().run(flow.run(observers=[log.append]))
    states = {unit.name: oracle.states[unit.number] for unit in units}
    assert {name: result.states[name] for name in states} == states
    roots = {f"u{number}": f"u{root}" for number, root in oracle.roots.items()}
    assert result.roots == roots
    for number, winner in oracle.winners.items():
        if units[number].kind == "race" and states[f"u{number}"] is COMPLETED:
            assert result[f"u{number}"] == result[f"u{winner}"]
    assert broken_laws(flow.build_execution_plan(), log) == []


# -- in any order: each end follows from those above it ----------------------------------------

SCARCE = {
    "gpu": Limit(concurrency=2),
    "api": Limit(rate=3, per=4, burst=2),
    "both": Limit(concurrency=3, rate=4, per=5),
}
MOST = [(name, int(limit.most)) for name, limit in SCARCE.items()]


def unexplained(units, result):
    """Return the units whose end does not follow from how their dependencies ended."""
    wrong = []
    states, roots = result.states, result.roots

    def failed(name):
        root = roots.get(name, name)
        return states[root] in {FAILED, UnitState.TIMEOUT}

    for unit in units:
        above = [f"u{number}" for number in unit.above]
        good = [name for name in above if states[name] is COMPLETED]
        lost = [name for name in above if states[name] in {FAILED, SKIPPED, CANCELED}]
        own = SKIPPED if not unit.when else FAILED if unit.fails else COMPLETED
        if unit.kind == "race":
            if good or not unit.when:
                expected = {own}
            else:
                expected = {FAILED if any(states[n] is FAILED for n in above) else SKIPPED}
        elif unit.trigger == "all_success":
            expected = {SKIPPED if lost else own}
        elif unit.trigger == "none_failed":
            expected = {SKIPPED if any(map(failed, lost)) else own}
        elif unit.trigger == "one_success":
            expected = {own if good or not above else SKIPPED}
        else:
            expected = {own}
        below = [other for other in units if unit.number in other.above]
        if below and all(
            (other.kind == "race" and states[other.name] is COMPLETED)
            or states[other.name] in {CANCELED, COMPLETED, FAILED, SKIPPED}
            for other in below
        ):
            expected.add(CANCELED)  # perhaps nobody needed it any more
        if states[unit.name] not in expected:
            wrong.append((unit, states[unit.name], expected))
    return wrong


@settings(max_examples=300)
@given(units=graphs(limits=MOST), most=st.sampled_from([None, 1, 2, 3]))
def test_limits_are_never_passed_and_every_end_has_its_reason(units, most):
    flow, log = built(units, limits=SCARCE, max_workers=most), []
    result = VirtualClock().run(flow.run(observers=[log.append]))
    assert passed(log, SCARCE, {unit.name: unit.uses for unit in units}) == []
    assert unexplained(units, result) == []
    assert broken_laws(flow.build_execution_plan(), log, max_running=most) == []


@settings(max_examples=100)
@given(
    graphs_=st.lists(graphs(most=5, limits=MOST), min_size=2, max_size=4),
    starts=st.lists(st.sampled_from([0, 0.5, 2]), min_size=4, max_size=4),
    most=st.sampled_from([None, 1, 3]),
    cancels=st.sampled_from([None, 0, 1.2, 4]),
)
def test_runs_that_share_a_runtime_pass_no_limit_and_leave_nothing(graphs_, starts, most, cancels):
    log = []

    async def one(units, start):
        await asyncio.sleep(start)
        return await built(units).run()

    async def main():
        runtime = Runtime(max_workers=most, limits=SCARCE, observers=[log.append])
        async with runtime:
            runs = [asyncio.create_task(one(u, s)) for u, s in zip(graphs_, starts, strict=False)]
            if cancels is not None:
                await asyncio.sleep(cancels)
                runs[0].cancel()
            results = await asyncio.gather(*runs, return_exceptions=True)
        assert runtime.slots.total is None or not runtime.slots.total.used
        assert runtime._budget.idle
        return results

    results = VirtualClock().run(main())
    for units, result in zip(graphs_[1:], results[1:], strict=True):
        assert unexplained(units, result) == []


@settings(max_examples=150)
@given(units=graphs(limits=MOST), workers=st.sampled_from([None, 1, 2]))
def test_the_engine_holds_limits_when_the_simulator_says(units, workers):
    for unit in units:
        unit.kind, unit.trigger, unit.fails, unit.when = "unit", "all_success", False, True
    flow = built(units, limits=SCARCE, max_workers=workers)
    simulated = flow.build_execution_plan().simulate(max_workers=workers)
    result = VirtualClock().run(flow.run())
    ends = {name: result.spans(name)[0][1] for name in result.states}
    assert ends == pytest.approx(dict(simulated.ends), abs=1e-2)
