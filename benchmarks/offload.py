"""CPU-bound units in worker processes: round trip, granularity, makespan, big payloads."""

import array
import asyncio
import functools
import importlib
import importlib.util
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
from anyio import to_process

from benchmarks import by_hand, shapes
from benchmarks.measure import (
    Contender,
    Figure,
    Row,
    Size,
    Table,
    Target,
    Times,
    compared,
    in_turn,
    ratio,
    shown,
    skipped,
)
from benchmarks.shapes import Graph, Grid
from quantum_async import QuantumPartitioner
from quantum_async.tuning import usable_cpus

Flow = QuantumPartitioner[Any, Any]

FROM_ASYNCIO = "ready queue over `ProcessPoolExecutor` driven from asyncio, by hand"
FROM_FUTURES = "ready queue over `ProcessPoolExecutor` with `concurrent.futures.wait`, by hand"

_PEAK = "peak"
_REMARK = (
    "METG(50 %) is the smallest time a task at which half of the peak rate is still reached; Task "
    "Bench patterns, own implementation: the stencil of width 4, each task checks its inputs. "
    "Work is a fixed number of rounds, so that what the parent's own work takes from the CPUs "
    "counts. On both sides each worker is bound to a CPU of its own: left alone, some kernels of "
    "virtual machines pack short work onto one CPU, and what is measured then is the kernel."
)


# -- what runs in the workers ---------------------------------------------------------------------


def noop(*inputs: Any) -> None:
    """Do nothing."""


def spin(rounds: int, *inputs: Any) -> None:
    """Work for a number of rounds, about 30 ns each."""
    value = 0.0
    for _ in range(rounds):
        value = value * 0.5 + 1.0


def rounds_a_second() -> float:
    """Measure how many rounds of `spin` a CPU does in a second, at its best of five."""
    rounds, took = 1_000_000, []
    for _ in range(5):
        began = perf_counter()
        spin(rounds)
        took.append(perf_counter() - began)
    return rounds / min(took)


def echo(payload: Any) -> Any:
    """Send back what came."""
    return payload


def task(step: int, column: int, width: int, rounds: int, *inputs: Any) -> tuple[int, int]:
    """Run a task of the stencil, and check that it got the results that it wanted."""
    spin(rounds)
    above = range(max(0, column - 1), min(width, column + 2)) if step else ()
    wanted = tuple((step - 1, one) for one in above)
    if inputs != wanted:
        raise AssertionError(f"task {(step, column)} got {inputs}, and wanted {wanted}")
    return step, column


# -- the section ----------------------------------------------------------------------------------


def measure(size: Size) -> Table:
    """Measure it all."""
    with _pool() as pool:
        rows = asyncio.run(_in_workers(size, pool))
    return Table(f"CPU-bound units in {usable_cpus()} worker processes", rows, [_REMARK])


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    # Spawned: a fork of a process with threads may hang, and warns of it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cpus(), mp_context=context) as pool:
        yield pool


async def _in_workers(size: Size, pool: ProcessPoolExecutor) -> list[Row]:
    speed = await _warmed(pool)
    return [
        *await _round_trip(size),
        *await _kills(size),
        *await _granularity(size, pool, speed),
        *await _makespan(size, pool, speed),
        *await _payloads(size, pool),
    ]


async def _warmed(pool: ProcessPoolExecutor) -> float:
    """Start all workers, and return rounds a second while all of them work."""
    workers, rounds = usable_cpus(), 300_000
    await asyncio.gather(*[_submitted(pool, spin, rounds) for _ in range(2 * workers)])
    before = _children()
    await as_units(shapes.wide(workers), [(spin, (rounds,))] * workers).run()
    _pin(sorted(_children() - before))
    _pin([one.pid or 0 for one in multiprocessing.active_children()])
    seconds = [await _evenly(workers * rounds) for _ in range(5)]
    return rounds / statistics.median(seconds)


def _children() -> set[int]:
    """Return the child processes of this one, where the platform tells."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in found for pid in file.read_text().split()}


def _pin(workers: Sequence[int]) -> None:
    """Give each worker a CPU of its own."""
    if hasattr(os, "sched_setaffinity"):
        for pid, cpu in zip(workers, sorted(os.sched_getaffinity(0)), strict=False):
            os.sched_setaffinity(pid, {cpu})


async def _evenly(rounds: int) -> float:
    """Do work with all workers and nothing in between: the least time it can take."""
    workers = usable_cpus()
    began = perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(to_process.run_sync, spin, rounds // workers)
    return perf_counter() - began


async def _submitted(pool: ProcessPoolExecutor, function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *args)


def as_units(graph: Graph, calls: by_hand.Calls, *, batch: bool = True) -> Flow:
    """Declare calls as units in worker processes, results as arguments; make the plan."""
    flow: Flow = QuantumPartitioner(batch=batch)
    handles: list[Any] = []
    for (function, given), above in zip(calls, graph.dependencies, strict=True):
        inputs = [handles[one] for one in above]
        handles.append(flow.add_unit(function, mode="process", args=[*given, *inputs]))
    flow.build_execution_plan()
    return flow


def _as_contender(graph: Graph, calls: by_hand.Calls) -> Contender:
    return Contender(Flow.run, functools.partial(as_units, graph, calls))


# -- round trip -----------------------------------------------------------------------------------


async def _round_trip(size: Size) -> list[Row]:
    count, rounds = size.pick(500, 20), size.pick(5, 1)
    chain = f"round trip of a warm no-op unit, chain of {count}"
    ours, single = f"{chain}, `batch=False`", f"{chain}, as it is declared"
    theirs = "`anyio.to_process.run_sync`"
    calls = [(noop, ())] * count

    async def bare(_: None) -> None:
        for _turn in range(count):
            await to_process.run_sync(noop)

    trips = Contender(
        Flow.run, functools.partial(as_units, shapes.chain(count), calls, batch=False)
    )
    fused = _as_contender(shapes.chain(count), calls)
    times = await in_turn({ours: trips, single: fused, theirs: Contender(bare)}, rounds)
    return [
        compared(times, ours, theirs, count=count, target=Target(1.8)),
        compared(times, single, theirs, count=count, target=Target(1.3)),
    ]


# -- stopping -------------------------------------------------------------------------------------


def hang() -> None:
    """Work for ever."""
    while True:
        pass


async def _kills(size: Size) -> list[Row]:
    freed, replaced = [], []
    for _ in range(size.pick(10, 1)):
        flow: Flow = QuantumPartitioner(max_workers=1, failure_policy="collect")
        flow.add_unit(hang, name="hang", args=[], mode="process", timeout=0.1, priority=1)
        flow.add_unit(os.getpid, name="next", args=[], mode="process")  # nothing to import
        units = (await flow.run()).units
        freed.append(1000 * ((units["hang"].duration or 0.0) - 0.1))
        # The first worker was warm, the second is the one that takes its place.
        replaced.append(1000 * (units["next"].duration or 0.0))
    what = "a unit that never ends is killed with its worker"
    return [
        Row(f"{what}: its time is up to slot free", "", Figure.of(freed, " ms"), Target(100)),
        Row(f"{what}: slot free to end of next unit", "", Figure.of(replaced, " ms"), Target(150)),
    ]


# -- METG -----------------------------------------------------------------------------------------


def metg(grains: Sequence[float], rates: Sequence[float]) -> float | None:
    """Return the minimum effective task granularity, at half of the peak rate.

    Args:
        grains: Seconds a task takes of a worker, overhead included, from long tasks to short ones.
        rates: The share of the peak rate that was reached at each.

    Returns:
        Seconds; None if there are no lengths on both sides of one half.
    """
    last = max((at for at, rate in enumerate(rates) if rate >= 0.5), default=-1)
    if not 0 <= last < len(rates) - 1:
        return None
    share = (rates[last] - 0.5) / (rates[last] - rates[last + 1])
    return min(grains[last], grains[last] + share * (grains[last + 1] - grains[last]))


async def _granularity(size: Size, pool: ProcessPoolExecutor, speed: float) -> list[Row]:
    grid = Grid(width=4, steps=size.pick(150, 5))
    graph = shapes.task_bench("stencil_1d", grid)
    ours = f"METG(50 %), stencil of width {grid.width}, {grid.steps} steps"
    lengths = [max(1, round(speed * 1_600e-6 / 2**halved)) for halved in range(9)]
    # What no driver can beat is measured beside each length: a machine's speed changes.
    peak_work = round(speed * 0.05 * usable_cpus())
    peak = {_PEAK: Contender(lambda _: _evenly(peak_work))}
    timed: list[Times] = []
    for length in lengths:
        calls = [(task, (*label, grid.width, length)) for label in graph.labels]
        drivers = _drivers(ours, graph, calls, pool)
        timed.append(await in_turn({**drivers, **peak}, size.pick(3, 1)))
    found = {
        name: [
            _metg_of(
                [times[name][turn] / len(graph) for times in timed],
                [
                    times[_PEAK][turn] / peak_work * n
                    for times, n in zip(timed, lengths, strict=True)
                ],
            )
            for turn in range(len(timed[0][name]))
        ]
        for name in drivers
    }
    limits = {FROM_ASYNCIO: 0.7, FROM_FUTURES: 1.0}
    return [_metg_row(ours, found[ours], name, found[name], limits[name]) for name in limits]


def _metg_of(walls: Sequence[float], least: Sequence[float]) -> float | None:
    """Return the METG of one round, from seconds a task and the least that these could be."""
    rates = [best / wall for best, wall in zip(least, walls, strict=True)]
    return metg([wall * usable_cpus() for wall in walls], rates)


def _drivers(
    ours: str, graph: Graph, calls: by_hand.Calls, pool: ProcessPoolExecutor
) -> Mapping[str, Contender]:
    async def from_futures(_: None) -> None:
        by_hand.queue_from_futures(graph, calls, pool)

    return {
        ours: _as_contender(graph, calls),
        FROM_ASYNCIO: Contender(lambda _: by_hand.queue_from_asyncio(graph, calls, pool)),
        FROM_FUTURES: Contender(from_futures),
    }


def _metg_row(
    ours: str,
    own: Sequence[float | None],
    theirs: str,
    other: Sequence[float | None],
    limit: float,
) -> Row:
    pairs = [(a, b) for a, b in zip(own, other, strict=True) if a and b]
    if not pairs:
        return skipped(ours, theirs, "no lengths on both sides of 50 %")
    sides = " / ".join(shown(1e6 * statistics.median(side)) for side in zip(*pairs, strict=True))
    return Row(ours, theirs, Figure.of(a / b for a, b in pairs), Target(limit), f"{sides} µs")


# -- makespan -------------------------------------------------------------------------------------


async def _makespan(size: Size, pool: ProcessPoolExecutor, speed: float) -> list[Row]:
    rows = []
    for millis, depth, limit in ((5, size.pick(20, 2), 1.10), (50, size.pick(5, 1), 1.04)):
        rows += await _layers(size, pool, round(millis * speed / 1000), millis, depth, limit)
    return rows


async def _layers(
    size: Size, pool: ProcessPoolExecutor, rounds: int, millis: int, depth: int, limit: float
) -> list[Row]:
    # Each layer fills the workers several times: the bound is the work shared out evenly.
    graph = shapes.layered(4 * usable_cpus(), depth)
    calls = [(spin, (rounds,))] * len(graph)
    ours = f"makespan of {len(graph)} units of {millis} ms in {depth} layers"
    bound, by_queue = "the same work shared out evenly", "ready queue over `ProcessPoolExecutor`"
    times = await in_turn(
        {
            ours: _as_contender(graph, calls),
            bound: Contender(lambda _: _evenly(len(graph) * rounds)),
            by_queue: Contender(lambda _: by_hand.queue_from_asyncio(graph, calls, pool)),
        },
        size.pick(5, 1),
    )
    each = [shown(1000 * statistics.median(times[name])) for name in (ours, bound)]
    detail = f"{' / '.join(each)} ms; by hand: {ratio(times, by_queue, bound)}"
    return [Row(ours, bound, ratio(times, ours, bound), Target(limit), detail)]


# -- payloads -------------------------------------------------------------------------------------


async def _payloads(size: Size, pool: ProcessPoolExecutor) -> list[Row]:
    big, huge = size.pick(10_000_000, 1_000_000), size.pick(100_000_000, 2_000_000)
    at_least_3 = Target(3, at_least=True)
    numbers = array.array("d", bytes(big))
    rows = [
        await _payload("1 KB of bytes", bytes(1_000), None, size, pool),
        await _payload("1 MB of bytes", bytes(1_000_000), None, size, pool),
        await _payload(f"{big // 1_000_000} MB of bytes", bytes(big), at_least_3, size, pool),
        await _payload(f"{big // 1_000_000} MB `array`", numbers, at_least_3, size, pool),
        await _payload(f"{huge // 1_000_000} MB of bytes", bytes(huge), None, size, pool),
    ]
    name = f"{big // 1_000_000} MB NumPy array"
    if importlib.util.find_spec("numpy") is None:
        return [*rows, skipped(f"{name}, there and back", "", "NumPy is not installed")]
    zeros = importlib.import_module("numpy").zeros(big // 8)
    return [*rows, await _payload(name, zeros, at_least_3, size, pool)]


async def _payload(
    name: str, payload: Any, target: Target | None, size: Size, pool: ProcessPoolExecutor
) -> Row:
    trips = size.pick(5 if sys.getsizeof(payload) < 50_000_000 else 2, 2)
    contenders = {
        "units": Contender(Flow.run, functools.partial(_trips, payload, trips)),
        "pool": Contender(lambda _: _trips_in_pool(payload, trips, pool)),
    }
    times = await in_turn(contenders, size.pick(5, 1))
    each = [shown(1000 * statistics.median(times[side]) / trips) for side in contenders]
    return Row(
        f"throughput of {name}, there and back",
        "`ProcessPoolExecutor`",
        ratio(times, "pool", "units"),
        target,
        f"{' / '.join(each)} ms a trip",
    )


def _trips(payload: Any, count: int) -> Flow:
    """Declare a chain of units in worker processes that pass a payload on."""

    async def given() -> Any:
        return payload

    flow: Flow = QuantumPartitioner()
    handle = flow.add_unit(given, args=[])
    for _ in range(count):
        handle = flow.add_unit(echo, mode="process", args=[handle])
    flow.build_execution_plan()
    return flow


async def _trips_in_pool(payload: Any, count: int, pool: ProcessPoolExecutor) -> None:
    for _ in range(count):
        payload = await _submitted(pool, echo, payload)
