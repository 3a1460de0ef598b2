"""Units on clusters of two local workers, beside the same done with their own means by hand."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.measure import Contender, Row, Size, Table, Target, compared, in_turn, skipped
from quantum_async import QuantumPartitioner

_ON_DASK, _ON_RAY = "Units on a Dask cluster", "Units on a Ray cluster"
_OURS, _BY_HAND = "units in mode 'remote'", "the same by hand"

Flow = QuantumPartitioner[Any, Any]
Work = Callable[[Any], Coroutine[Any, Any, object]]


def noop() -> None:
    """Do nothing."""


def add(number: int) -> int:
    """Add one."""
    return number + 1


def measure(size: Size) -> Table:
    """Measure units on Dask."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as missing:
        why = f"{missing.name or 'distributed'} is not installed"
        return Table(_ON_DASK, [skipped(_OURS, _BY_HAND, why)] * 2)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        rows = asyncio.run(_measured(size, Client, cluster.scheduler_address))
    remark = (
        "The scheduler of Dask is in this process, beside the engine, as `LocalCluster` has it. "
        "By hand nothing is known of a unit but its result: no times, logs, or traceback."
    )
    return Table(_ON_DASK, rows, [remark])


async def _measured(size: Size, client_of: Any, address: str) -> list[Row]:
    from quantum_async.executors.dask import DaskExecutor

    async with client_of(address, asynchronous=True, set_as_default=False) as client:
        executor = DaskExecutor(client)

        async def ours(flow: Flow) -> None:
            await flow.run(executor=executor, keep="targets")

        async def many(count: int) -> None:
            await client.gather([client.submit(noop, pure=False) for _ in range(count)])

        async def chain(count: int) -> None:
            link = client.submit(add, 0, pure=False)
            for _ in range(count - 1):
                link = client.submit(add, link, pure=False)
            await link

        rounds = size.pick(7, 1)
        return [
            await _compared("no-ops side by side", ours, _many, many, 1_000, 1.3, size, rounds),
            await _compared("a chain", ours, _chain, chain, 200, 1.2, size, rounds),
        ]


def measure_ray(size: Size) -> Table:
    """Measure units on Ray."""
    try:
        import ray
    except ImportError:
        return Table(_ON_RAY, [skipped(_OURS, _BY_HAND, "ray is not installed")] * 2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        rows = asyncio.run(_measured_ray(size, ray))
    finally:
        ray.shutdown()
    return Table(_ON_RAY, rows, ["By hand nothing is known of a unit but its result."])


async def _measured_ray(size: Size, ray: Any) -> list[Row]:
    from quantum_async.executors.ray import RayExecutor

    executor = RayExecutor()
    remote_noop, remote_add = ray.remote(noop), ray.remote(add)

    async def ours(flow: Flow) -> None:
        await flow.run(executor=executor, keep="targets")

    async def many(count: int) -> None:
        ray.get([remote_noop.remote() for _ in range(count)])

    async def chain(count: int) -> None:
        link = 0
        for _ in range(count):
            link = remote_add.remote(link)
        ray.get(link)

    rounds = size.pick(7, 1)
    return [
        await _compared("no-ops side by side", ours, _many, many, 1_000, 1.3, size, rounds),
        await _compared("a chain", ours, _chain, chain, 200, 1.2, size, rounds),
    ]


async def _compared(
    what: str,
    ours: Work,
    make: Callable[[int], Flow],
    by_hand: Work,
    count: int,
    limit: float,
    size: Size,
    rounds: int,
) -> Row:
    count = size.pick(count, 10)
    contenders = {
        _OURS: Contender(ours, lambda: make(count)),
        _BY_HAND: Contender(by_hand, lambda: count),
    }
    target = Target(limit)
    row = compared(await in_turn(contenders, rounds), _OURS, _BY_HAND, count=count, target=target)
    return Row(f"{what}, {count:,} units", row.against, row.figure, target, row.detail)


def _many(count: int) -> Flow:
    flow = Flow()
    for _ in range(count):
        flow.add_unit(noop, args=[], mode="remote")
    flow.build_execution_plan()
    return flow


def _chain(count: int) -> Flow:
    flow = Flow()
    last: Any = 0
    for _ in range(count):
        last = flow.add_unit(add, args=[last], mode="remote")
    flow.build_execution_plan()
    return flow
