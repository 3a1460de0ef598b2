"""How good the schedule is: units that sleep, against the critical path and the simulator."""

import asyncio
import functools
import importlib
import importlib.util
import selectors
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import by_hand, flows, offload, optimum, shapes
from benchmarks.flows import Flow
from benchmarks.measure import (
    Contender,
    Figure,
    Row,
    Size,
    Table,
    Target,
    in_turn,
    shown,
    skipped,
)
from benchmarks.shapes import Graph
from quantum_async.tuning import usable_cpus

#: The least and the most seconds of a unit in a lane.
LEAST, MOST = 0.001, 0.010
SLOTS = 4

#: One real workflow of each kind: the longest lists of units whose sleeps stay above the timer's
#: millisecond.
WORKFLOWS = (
    "dax-epigenomics_24",
    "dax-inspiral_100",
    "dax-montage_50",
    "dax-sipht_30",
    "wf-1000genome-chameleon-10ch-250k-001",
    "wf-airrflow-dirt02-001",
    "wf-blast-chameleon-large-001",
    "wf-bwa-chameleon-small-001",
    "wf-cycles-chameleon-1l-1c-9p-001",
    "wf-epigenomics-chameleon-ilmn-2seq-50k-001",
    "wf-montage-chameleon-dss-10d-001",
    "wf-seismology-chameleon-100p-001",
    "wf-soykb-chameleon-10fastq-10ch-001",
    "wf-srasearch-chameleon-50a-001",
)

#: Those that are computed too.
COMPUTED = WORKFLOWS[2], WORKFLOWS[4], WORKFLOWS[9]

_REMARK = (
    "A sleep on asyncio's default loop ends up to 1 ms late, since `epoll` counts whole "
    "milliseconds. *As declared* takes the durations that were asked for, so that this lateness "
    "counts against the engine; *as slept* takes those that the units had."
)


def measure(size: Size) -> Table:
    """Measure it all."""
    asyncio.run(sleepers(Graph([()], [0.0])).run())  # what only a first time costs
    rows = [*_lanes(size), *_workflows(size), *_in_workers(size), *optimum.measure(size)]
    return Table("Quality of the schedule", rows, [_REMARK])


def sleeper(seconds: float) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """Return a unit that sleeps."""

    async def sleeping(ctx: Any) -> None:
        await asyncio.sleep(seconds)

    return sleeping


def sleepers(graph: Graph) -> Flow:
    """Declare a graph whose units sleep their durations, and make its plan."""
    return flows.with_costs(graph, [sleeper(seconds) for seconds in graph.durations])


def slept(flow: Flow) -> list[float]:
    """Return how long each unit took in the last run."""
    assert flow.last_result is not None
    return [record.duration or 0.0 for record in flow.last_result.units.values()]


# -- lanes ----------------------------------------------------------------------------------------


def _lanes(size: Size) -> list[Row]:
    count = size.pick(20, 5)
    graph = shapes.lanes(count, count, LEAST, MOST)
    what = f"{count} lanes of {count} units that sleep 1–10 ms"
    rows = []
    loops = {"default loop": None, "loop with exact timers (`select`)": _exact}
    if importlib.util.find_spec("uvloop") is not None:
        loops["uvloop"] = importlib.import_module("uvloop").new_event_loop
    for loop, factory in loops.items():
        with asyncio.Runner(loop_factory=factory) as runner:
            rows += runner.run(_on_lanes(graph, size.pick(9, 1), what, loop))
    return rows


def _exact() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _on_lanes(graph: Graph, rounds: int, what: str, loop: str) -> list[Row]:
    # What a run took, over the critical path of the sleeps as they were in that very run.
    over_slept: list[float] = []

    async def run(flow: Flow) -> None:
        began = perf_counter()
        await flow.run()
        took = perf_counter() - began
        over_slept.append(took / graph.critical_path(slept(flow)))

    times = await in_turn(
        {
            "units": Contender(run, functools.partial(sleepers, graph)),
            "lanes": Contender(lambda _: by_hand.each_lane(graph)),
            "levels": Contender(lambda _: by_hand.level_by_level(graph)),
        },
        rounds,
    )
    path = graph.critical_path()
    least = f"{shown(1000 * path)} ms"
    floor = _over(times["lanes"], path)
    return [
        Row(
            f"makespan of {what}, {loop}",
            "critical path as declared",
            _over(times["units"], path),
            Target(1.05),
            f"path {least}; one coroutine a lane, by hand: {floor}",
        ),
        Row("the same", "critical path as slept", Figure.of(over_slept), Target(1.05)),
        Row(
            "level by level (`gather`), the same",
            "critical path as declared",
            _over(times["levels"], path),
            detail=f"path {least}",
        ),
    ]


def _over(times: Sequence[float], seconds: float) -> Figure:
    return Figure.of(one / seconds for one in times)


# -- real workflows -------------------------------------------------------------------------------


def _workflows(size: Size) -> list[Row]:
    folder = Path(size.graphs)
    names = WORKFLOWS[: size.pick(len(WORKFLOWS), 2)]
    what = f"wall time of {len(names)} real workflows at {SLOTS} slots"
    paths = [path for name in names for path in sorted(folder.glob(f"{name}.json*"))]
    if not paths:
        return [skipped(what, "simulated", f"no graphs in `{folder}`")]
    total = 0.05 if size.quick else 2.0
    found = [_workflow(shapes.load(path), total) for path in paths]
    declared, as_slept, by_levels = (Figure.of(values) for values in zip(*found, strict=True))
    worst = paths[[one[0] for one in found].index(declared.high)].name.partition(".")[0]
    each = f"each scaled to {total:g} s; the worst is {worst}"
    return [
        Row(f"{what}, median", "simulated, as declared", declared, Target(1.03), each),
        Row(f"{what}, median", "simulated, as slept", as_slept, Target(1.03)),
        Row(f"{what}, worst", "simulated, as slept", Figure.of([as_slept.high])),
        Row("the same level by level, modelled, median", "simulated, as declared", by_levels),
    ]


def _workflow(graph: Graph, total: float) -> tuple[float, float, float]:
    """Run a workflow, scaled to last `total` seconds.

    Returns:
        Wall time over simulated time, with the durations as declared and as they were; and the
        modelled time level by level over the simulated one.
    """
    modelled = sleepers(graph).build_execution_plan().simulate(max_workers=SLOTS).makespan
    graph = graph.scaled(total / modelled)
    flow = sleepers(graph)
    began = perf_counter()
    asyncio.run(flow.run(max_workers=SLOTS))
    took = perf_counter() - began
    plan = flow.build_execution_plan()
    durations = dict(zip(plan.names, slept(flow), strict=True))
    again = plan.simulate(durations, max_workers=SLOTS).makespan
    return took / total, took / again, _level_by_level(graph) / total


# -- the same in worker processes ------------------------------------------------------------------


def _in_workers(size: Size) -> list[Row]:
    """Run workflows whose units keep a CPU busy, a worker process to each CPU."""
    slots = usable_cpus()
    what, against = f"real workflows that compute, in {slots} worker processes", "simulated"
    folder = Path(size.graphs)
    paths = [path for name in COMPUTED for path in sorted(folder.glob(f"{name}.json*"))]
    if not paths:
        return [skipped(what, against, f"no graphs in `{folder}`")]
    rounds = offload.rounds_a_second()
    total = 0.05 if size.quick else 1.0
    found = [asyncio.run(_computed(shapes.load(path), total, slots, rounds)) for path in paths]
    declared, as_worked = (Figure.of(values) for values in zip(*found, strict=True))
    each = f"each scaled to {total:g} s of one CPU's speed when it works alone"
    what = f"wall time of {len(paths)} {what}, median"
    return [
        Row(what, f"{against}, as declared", declared, detail=each),
        Row(what, f"{against}, as worked", as_worked, Target(1.03)),
    ]


async def _computed(graph: Graph, total: float, slots: int, rounds: float) -> tuple[float, float]:
    """Return wall time over simulated, with the durations as declared and as they were."""
    modelled = sleepers(graph).build_execution_plan().simulate(max_workers=slots).makespan
    graph = graph.scaled(total / modelled)
    spins = [functools.partial(offload.spin, int(rounds * took)) for took in graph.durations]
    flow = flows.with_costs(graph, spins, mode="process")
    await flow.warm()
    began = perf_counter()
    result = await flow.run()
    took = perf_counter() - began
    plan = flow.build_execution_plan()
    durations = {name: record.duration or 0.0 for name, record in result.units.items()}
    return took / total, took / plan.simulate(durations, max_workers=slots).makespan


def _level_by_level(graph: Graph) -> float:
    """Return the modelled time of a graph of which each level waits for the one before."""
    seconds = 0.0
    for level in graph.levels:
        alone = Graph([()] * len(level), [graph.durations[node] for node in level])
        seconds += sleepers(alone).build_execution_plan().simulate(max_workers=SLOTS).makespan
    return seconds
