"""What it costs that a graph grows: maps beside units declared up front, many runs beside one.

Memory is measured in fresh processes: ``python -m benchmarks.growth COUNT KEPT`` prints bytes.
"""

import asyncio
import functools
import gc
import subprocess
import sys
import tracemalloc
from typing import Any

from benchmarks import flows, shapes
from benchmarks.flows import Flow
from benchmarks.measure import Contender, Figure, Row, Size, Table, Target, compared, in_turn
from benchmarks.overhead import noop
from benchmarks.shapes import Graph
from quantum_async import QuantumPartitioner, Runtime

_WIDTH, _DEPTH = 4, 5  # of the graph that is run many times: 20 units
_SLOTS = 200


async def item(_: Any) -> None:
    """Do nothing with an item."""


async def wait(_: Any) -> None:
    """Wait as for an answer from a network near by."""
    await asyncio.sleep(0.01)


def measure(size: Size) -> Table:
    """Measure it all."""
    quick = Size(quick=True)
    asyncio.run(_maps(quick))  # what only a first time costs
    rows = [*asyncio.run(_maps(size)), *_memory_rows(size), *asyncio.run(_runs(size))]
    return Table("Graphs that grow", rows)


# -- maps -----------------------------------------------------------------------------------------


def mapped(count: int) -> Flow:
    """Return a map over so many items, planned."""
    flow: Flow = QuantumPartitioner()
    flow.map(item, range(count))
    flow.build_execution_plan()
    return flow


def declared(count: int) -> Flow:
    """Return a unit for each of so many items, planned."""
    flow: Flow = QuantumPartitioner()
    for number in range(count):
        flow.add_unit(item, args=[number])
    flow.build_execution_plan()
    return flow


async def _maps(size: Size) -> list[Row]:
    count, rounds = size.pick(100_000, 1_000), size.pick(5, 1)

    async def map_all(_: None) -> None:
        await mapped(count).run()

    async def declare_all(_: None) -> None:
        await declared(count).run()

    whole = f"a map over {count:,} items: declare + plan + run"
    same = "the same units, declared up front: declare + plan + run"
    run, same_run = f"a map over {count:,} items, `run` alone", "the same units, `run` alone"
    times = await in_turn(
        {
            whole: Contender(map_all),
            same: Contender(declare_all),
            run: Contender(Flow.run, functools.partial(mapped, count)),
            same_run: Contender(Flow.run, functools.partial(declared, count)),
        },
        rounds,
    )
    return [
        compared(times, whole, same, count=count, target=Target(1.5)),
        compared(times, run, same_run, count=count),
    ]


# -- memory ---------------------------------------------------------------------------------------


def _memory_rows(size: Size) -> list[Row]:
    few, many = size.pick(20_000, 1_000), size.pick(100_000, 5_000)
    flat = [_peak_of(count, kept=False) for count in (few, many)]
    kept = [_peak_of(count, kept=True) for count in (few, many)]
    each = (kept[1] - kept[0]) / (many - few) / 1000
    return [
        Row(
            f"peak memory of a map over {many:,} items, results not kept",
            f"over {few:,} items",
            Figure.of([flat[1] / flat[0]]),
            Target(1.1),
            f"{flat[1] / 1000:,.0f} / {flat[0] / 1000:,.0f} KB",
        ),
        Row(
            "each further item of a map, results kept",
            "results not kept: nothing",
            Figure.of([each], " KB"),
            Target(1.0, unit=" KB"),
            f"{kept[1] / 1e6:,.1f} MB at {many:,} items",
        ),
    ]


def _peak_of(count: int, *, kept: bool) -> int:
    """Return the most bytes that a run held beside what was there before it."""
    command = [sys.executable, "-m", "benchmarks.growth", str(count), "kept" if kept else "dropped"]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


async def _peak(count: int, *, kept: bool) -> int:
    await mapped(10).run()  # what only a first time costs
    flow = mapped(count)
    gc.collect()
    tracemalloc.start()
    result = await flow.run(keep="all" if kept else ())
    peak = tracemalloc.get_traced_memory()[1]
    assert result.ok
    return peak


# -- runs that share a runtime --------------------------------------------------------------------


def side_by_side(graph: Graph, times: int) -> Graph:
    """Return a graph of so many copies of another."""
    size = len(graph)
    return Graph(
        [
            tuple(above + copy * size for above in dependencies)
            for copy in range(times)
            for dependencies in graph.dependencies
        ]
    )


async def _runs(size: Size) -> list[Row]:
    runs, rounds = size.pick(1_000, 30), size.pick(5, 1)
    graph = shapes.layered(_WIDTH, _DEPTH, degree=2)
    in_one, count = side_by_side(graph, runs), runs * len(graph)

    async def at_once(flow: Flow, slots: int | None = None) -> None:
        async with Runtime(max_workers=slots):
            await asyncio.gather(*(flow.run() for _ in range(runs)))

    prepared = functools.partial(flows.planned, graph)
    prepared_in_one = functools.partial(flows.planned, in_one)
    kinds = {
        f"{len(graph)} units of 10 ms in {_SLOTS} slots": (
            Contender(lambda flow: at_once(flow, _SLOTS), lambda: prepared(wait)),
            Contender(lambda flow: flow.run(max_workers=_SLOTS), lambda: prepared_in_one(wait)),
            Target(1.2),
        ),
        f"{len(graph)} no-op units, declared for it": (
            Contender(lambda _: at_once(flows.declare(graph, noop))),
            Contender(lambda _: flows.declare(in_one, noop).run()),
            Target(1.2),
        ),
        f"{len(graph)} no-op units, `run` alone": (
            Contender(at_once, lambda: prepared(noop)),
            Contender(Flow.run, lambda: prepared_in_one(noop)),
            None,  # it shows what a run costs beside its units
        ),
    }
    rows = []
    for kind, (ours, theirs, target) in kinds.items():
        what, against = f"{runs:,} runs at once in one `Runtime`, of {kind}", "as many in one run"
        times = await in_turn({what: ours, against: theirs}, rounds)
        more = Figure.of(a - b for a, b in zip(times[what], times[against], strict=True)).middle
        detail = f"{more / runs * 1e6:,.0f} µs more for each run"
        rows.append(compared(times, what, against, count=count, target=target, detail=detail))
    return rows


if __name__ == "__main__":
    print(asyncio.run(_peak(int(sys.argv[1]), kept=sys.argv[2] == "kept")))
