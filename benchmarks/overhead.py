"""What a unit costs when it does nothing: beside bare asyncio, for several shapes."""

import asyncio
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import by_hand, flows, shapes
from benchmarks.flows import Flow
from benchmarks.measure import (
    EAGER,
    Contender,
    Row,
    Size,
    Table,
    Target,
    Times,
    compared,
    doubled_before_eager,
    in_turn,
    skipped,
)
from benchmarks.shapes import Graph
from quantum_async.tuning import usable_cpus

GATHER = "`asyncio.gather` of as many bare coroutines"
EAGER_GROUP = "`TaskGroup` with eager tasks, by hand"
#: Real graphs, in words and by the names of their files.
REAL = {
    "the history of a repository": "commits-prefect",
    "a build with ninja": "ninja-esp32-bootloader",
    "packages and what they need": "packages-opam",
    "a Dask array, rechunked": "dask-rechunk-200-to-200",
}
_NO_EAGER = "no eager tasks before Python 3.12"


async def noop(ctx: Any) -> None:
    """Do nothing, as a unit."""


async def bare() -> None:
    """Do nothing, as a coroutine."""


async def nap(ctx: Any) -> None:
    """Suspend once, as a unit."""
    await asyncio.sleep(0)


async def bare_nap() -> None:
    """Suspend once, as a coroutine."""
    await asyncio.sleep(0)


def idle(ctx: Any = None) -> None:
    """Do nothing, as a plain function."""


def measure(size: Size) -> Table:
    """Measure it all."""
    for part in (_no_ops, _naps):
        asyncio.run(part(Size(quick=True)))  # what only a first time costs
    parts = (_no_ops, _sizes, _shapes, _naps, _limited, _in_threads, _observed)
    rows = [row for part in parts for row in asyncio.run(part(size))]
    rows.insert(7, _on_uvloop(size))
    return Table("Overhead a unit", rows)


def running(graph: Graph, unit: Callable[[Any], Any], **options: Any) -> Contender:
    """Return the run of a graph that is declared and planned before."""
    return Contender(Flow.run, functools.partial(flows.planned, graph, unit, **options))


async def _no_ops(size: Size) -> list[Row]:
    """Side by side and in layers, against the floor."""
    count, rounds = size.pick(100_000, 1_000), size.pick(5, 1)
    wide, layered = shapes.wide(count), shapes.layered(count // 100, 100)

    async def from_nothing(_: None) -> None:
        await flows.declare(wide, noop).run()

    async def declare(_: None) -> None:
        flows.declare(wide, noop)

    async def plan(flow: Flow) -> None:
        flow.build_execution_plan()

    side_by_side = f"{count:,} no-op units side by side, `run` alone"
    in_layers = f"{count:,} no-op units in 100 layers, 4 dependencies each, `run` alone"
    everything = f"declare + plan + run, {count:,} no-op units side by side"
    contenders = {
        side_by_side: running(wide, noop),
        in_layers: running(layered, noop),
        everything: Contender(from_nothing),
        "declare alone": Contender(declare),
        "plan alone": Contender(plan, functools.partial(flows.declare, wide, noop)),
        GATHER: Contender(lambda _: by_hand.gather(bare, count)),
    }
    in_eager_layers = f"{EAGER_GROUP}, each awaits its 4"
    if EAGER:
        contenders[EAGER_GROUP] = Contender(lambda _: by_hand.eager_task_group(bare, count))
        contenders[in_eager_layers] = Contender(lambda _: by_hand.eager_layers(bare, layered))
    times = await in_turn(contenders, rounds)
    row = functools.partial(compared, times, count=count)
    return [
        row(side_by_side, GATHER, target=doubled_before_eager(0.6)),
        row(in_layers, GATHER, target=doubled_before_eager(0.8)),
        row(everything, GATHER, target=doubled_before_eager(2.0)),
        row("declare alone", GATHER),
        row("plan alone", GATHER),
        *_against_eager(times, count, (side_by_side, EAGER_GROUP), (in_layers, in_eager_layers)),
    ]


def _against_eager(times: Times, count: int, *pairs: tuple[str, str]) -> list[Row]:
    if not EAGER:
        return [skipped(ours, theirs, _NO_EAGER) for ours, theirs in pairs]
    return [
        compared(times, ours, theirs, count=count, target=Target(1.5)) for ours, theirs in pairs
    ]


def _on_uvloop(size: Size) -> Row:
    """Where `execute` runs them."""
    count, rounds = size.pick(30_000, 500), size.pick(5, 1)
    ours, theirs = f"{count:,} no-op units side by side on uvloop", "`asyncio.gather` on uvloop"
    if importlib.util.find_spec("uvloop") is None:
        return skipped(ours, theirs, "uvloop is not installed")
    contenders = {
        ours: running(shapes.wide(count), noop),
        theirs: Contender(lambda _: by_hand.gather(bare, count)),
    }
    uvloop = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return compared(runner.run(in_turn(contenders, rounds)), ours, theirs, count=count)


async def _sizes(size: Size) -> list[Row]:
    """Small graphs, for which the run itself counts; see `scale` for large ones."""
    rows = []
    for count in (100, 1_000, 10_000):
        ours = f"{count:,} no-op units side by side, `run` alone"
        contenders = {
            ours: running(shapes.wide(count), noop),
            GATHER: Contender(functools.partial(_gathered, count)),
        }
        times = await in_turn(contenders, size.pick(200_000 // count, 1) if count < 10_000 else 9)
        rows.append(compared(times, ours, GATHER, count=count))
    return rows


async def _gathered(count: int, _: None) -> None:
    await by_hand.gather(bare, count)


def _real(folder: Path) -> dict[str, Graph]:
    found = {}
    for what, name in REAL.items():
        for path in sorted(folder.glob(f"{name}.json*")):
            graph = shapes.load(path)
            found[f"{what}: {len(graph):,} no-op units"] = graph
    return found


async def _shapes(size: Size) -> list[Row]:
    """Chains and trees, and real graphs: what becomes ready one by one."""
    count, rounds = size.pick(30_000, 500), size.pick(5, 1)
    graphs = {
        f"chain of {count:,} no-op units": shapes.chain(count),
        f"binary tree of {count:,} no-op units": shapes.tree(count),
    }
    graphs |= (real := _real(Path(size.graphs)))
    missing = skipped("real graphs", GATHER, f"no graphs in `{size.graphs}`")
    rows = [] if real else [missing]
    for ours, graph in graphs.items():
        contenders = {
            ours: running(graph, noop),
            GATHER: Contender(functools.partial(_gathered, len(graph))),
        }
        times = await in_turn(contenders, rounds)
        rows.append(compared(times, ours, GATHER, count=len(graph)))
    return rows


async def _naps(size: Size) -> list[Row]:
    """Units that suspend once: each needs its task."""
    count, rounds = size.pick(100_000, 1_000), size.pick(3, 1)
    ours, theirs = f"{count:,} units that suspend once", "`asyncio.TaskGroup` of the same"
    times = await in_turn(
        {
            ours: running(shapes.wide(count), nap),
            theirs: Contender(lambda _: by_hand.task_group(bare_nap, count)),
        },
        rounds,
    )
    return [compared(times, ours, theirs, count=count, target=doubled_before_eager(1.1))]


async def _limited(size: Size) -> list[Row]:
    """Units with a time limit: each needs its cancel scope."""
    count, rounds = size.pick(20_000, 300), size.pick(5, 1)
    ours = f"{count:,} no-op units with `timeout=60`"
    by_asyncio, by_anyio = "`gather` with `asyncio.timeout`", "`gather` with `anyio.fail_after`"
    times = await in_turn(
        {
            ours: running(shapes.wide(count), noop, timeout=60),
            by_asyncio: Contender(lambda _: by_hand.timed_out_by_asyncio(bare, count, 60)),
            by_anyio: Contender(lambda _: by_hand.timed_out_by_anyio(bare, count, 60)),
        },
        rounds,
    )
    return [compared(times, ours, theirs, count=count) for theirs in (by_asyncio, by_anyio)]


async def _observed(size: Size) -> list[Row]:
    """With an observer that is given three events a unit, and does nothing with them."""
    count, rounds = size.pick(30_000, 500), size.pick(5, 1)
    graph, rows = shapes.wide(count), []
    for what, unit in (("no-op units", noop), ("units that suspend once", nap)):
        ours, theirs = f"{count:,} {what}, one observer of all events", f"{what}, no observer"
        contenders = {
            ours: Contender(
                lambda flow: flow.run(observers=[idle]),
                functools.partial(flows.planned, graph, unit),
            ),
            theirs: running(graph, unit),
        }
        times = await in_turn(contenders, rounds)
        rows.append(compared(times, ours, theirs, count=count, target=Target(1.3)))
    return rows


async def _in_threads(size: Size) -> list[Row]:
    """Plain functions in threads, as many threads on each side."""
    counts = [(100, 15), (3_000, 5), (30_000, 1)]
    rows = [await _threads_of(*some) for some in (counts if not size.quick else [(100, 1)])]
    return [row for some in rows for row in some]


async def _threads_of(count: int, rounds: int) -> list[Row]:
    slots = min(32, usable_cpus() + 4)  # asyncio's default, and the engine's
    ours = f"{count:,} no-op functions in {slots} threads"
    by_asyncio, by_anyio = "`asyncio.to_thread`, gathered", "`anyio.to_thread`, in a task group"
    times = await in_turn(
        {
            ours: running(shapes.wide(count), idle),
            by_asyncio: Contender(lambda _: by_hand.in_asyncio_threads(idle, count)),
            by_anyio: Contender(lambda _: by_hand.in_anyio_threads(idle, count, slots)),
        },
        rounds,
    )
    return [compared(times, ours, theirs, count=count) for theirs in (by_asyncio, by_anyio)]
