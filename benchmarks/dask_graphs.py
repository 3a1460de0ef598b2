"""Dask's graphs on our ready queue, beside Dask's own scheduler for threads.

Graphs are made anew for each round, and are what a scheduler is given: optimised by Dask.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.measure import Contender, Row, Size, Table, Target, compared, in_turn, skipped
from quantum_async.tuning import usable_cpus

_TITLE = "Graphs of Dask's collections in threads"
_OURS, _THEIRS = "`dask_scheduler.get`", "`dask.threaded.get`"

Graph = tuple[dict[Any, Any], Any]  # tasks by key, and the keys that are asked for


def measure(size: Size) -> Table:
    """Measure it all."""
    # Operations of one task are to use one CPU, as Dask recommends it.
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    try:
        import dask.array
        import dask.threaded

        from quantum_async.dask_scheduler import get
    except ImportError as missing:
        rows = [skipped(_OURS, _THEIRS, f"{missing.name or 'dask'} is not installed")] * 4
        return Table(_TITLE, rows)
    schedulers = {_OURS: get, _THEIRS: dask.threaded.get}
    rows = asyncio.run(_compare(schedulers, _overhead(size), Target(1.5), rounds=size.pick(3, 1)))
    arrays = _arrays(size, dask.array)
    rows += asyncio.run(_compare(schedulers, arrays, Target(1.0), rounds=size.pick(9, 1)))
    remark = f"Both with {usable_cpus()} threads. Overhead: no-op tasks; makespan: arrays."
    return Table(_TITLE, rows, [remark])


async def _compare(
    schedulers: dict[str, Callable[..., Any]],
    graphs: Iterator[tuple[str, Callable[[], Graph]]],
    target: Target,
    rounds: int,
) -> list[Row]:
    rows = []
    for what, make in graphs:
        count = len(make()[0])
        contenders = {
            name: Contender(partial(_computed, scheduler), make)
            for name, scheduler in schedulers.items()
        }
        times = await in_turn(contenders, rounds)
        row = compared(times, _OURS, _THEIRS, count=count, target=target)
        rows.append(Row(f"{what}, {count:,} tasks", row.against, row.figure, target, row.detail))
    return rows


async def _computed(scheduler: Callable[..., Any], graph: Graph) -> None:
    scheduler(*graph)


# -- graphs ---------------------------------------------------------------------------------------


def _overhead(size: Size) -> Iterator[tuple[str, Callable[[], Graph]]]:
    count = size.pick(100_000, 100)
    yield "overhead: pairs side by side", partial(_pairs, count // 2)
    yield "overhead: a chain", partial(_chain, count // 10)
    yield "overhead: layers with 3 dependencies each", partial(_layers, count // 100, 100)


def _add(number: int, *others: int) -> int:
    return number + 1


def _pairs(count: int) -> Graph:
    tasks: dict[Any, Any] = {("a", number): (_add, 1) for number in range(count)}
    tasks |= {("b", number): (_add, ("a", number)) for number in range(count)}
    return tasks, [("b", number) for number in range(count)]


def _chain(count: int) -> Graph:
    tasks: dict[Any, Any] = {("a", 0): (_add, 1)}
    tasks |= {("a", number): (_add, ("a", number - 1)) for number in range(1, count)}
    return tasks, ("a", count - 1)


def _layers(width: int, depth: int) -> Graph:
    tasks: dict[Any, Any] = {("a", 0, number): (_add, 1) for number in range(width)}
    for layer in range(1, depth):
        for number in range(width):
            needs = [("a", layer - 1, (number + step) % width) for step in (-1, 0, 1)]
            tasks["a", layer, number] = (_add, *needs)
    return tasks, [("a", depth - 1, number) for number in range(width)]


def _arrays(size: Size, array: Any) -> Iterator[tuple[str, Callable[[], Graph]]]:
    def random(side: int, chunk: int) -> Any:
        side = size.pick(side, 2 * chunk)
        return array.random.random((side, side), chunks=(chunk, chunk))

    def total() -> Any:
        return random(4_000, 250).sum()

    def product() -> Any:
        blocks = random(900, 100)
        return blocks @ blocks

    def contraction() -> Any:
        blocks = random(1_600, 200)
        return array.tensordot(blocks, blocks, axes=((0, 1), (0, 1)))

    def transposes() -> Any:
        blocks = random(2_000, 100)
        return (blocks.rechunk((size.pick(2_000, 200), 50)) + blocks.T).sum()

    def many_small() -> Any:
        blocks = random(1_000, 25)
        return ((blocks + blocks.T) - blocks.mean(axis=0)).std()

    for what, make in (
        ("makespan: sum of random blocks", total),
        ("makespan: matrix product", product),
        ("makespan: tensordot", contraction),
        ("makespan: rechunk and transpose", transposes),
        ("makespan: small blocks", many_small),
    ):
        yield what, partial(_optimised, make)


def _optimised(make: Callable[[], Any]) -> Graph:
    import dask

    [blocks] = dask.optimize(make())
    return dict(blocks.__dask_graph__()), blocks.__dask_keys__()
