"""A run with a bit of everything, for what reads runs afterwards."""

import asyncio

from quantum_async import Limit, QuantumPartitioner, RunResult
from quantum_async.testing import VirtualClock

# Quotes, markup, a line break, an escape of terminals, a lone surrogate.
HOSTILE = 'it\'s "<b>&</b>"\n\x1b[31m\x00\ud800'


def flow_of_everything() -> QuantumPartitioner:
    """Return a partitioner with waits, retries, a timeout, a map, a nested run and a race."""
    flow = QuantumPartitioner(
        max_workers=3, limits={"api": 1, "rate": Limit(rate=1, per=2)}, failure_policy="collect"
    )

    async def second(ctx):
        await asyncio.sleep(1)

    async def flaky(ctx):
        await asyncio.sleep(0.5)
        if ctx.attempt < 2:
            raise ValueError("not yet")
        return {1}

    async def fails(ctx):
        raise KeyError(HOSTILE)

    async def squared(item):
        await asyncio.sleep(item)
        return item * item

    inner = QuantumPartitioner()
    inner.add_unit(second, name="x")
    inner.add_unit(second, ["x"], name="y")
    flow.add_unit(second, name="first", uses="api")
    flow.add_unit(second, name="then", uses="api")
    flow.add_unit(flaky, ["first"], name="flaky", retries=1)
    flow.add_unit(lambda ctx: asyncio.sleep(9), ["first"], name="late", timeout=0.5)
    flow.add_unit(fails, name="fails")
    flow.add_unit(second, ["fails"], name=HOSTILE)
    flow.add_unit(fails, name="falls back", fallback=(7, None))
    flow.add_unit(second, ["flaky"], name="not now", when=lambda ctx: False)
    flow.map(squared, [1, 2], name="squares")
    flow.include(inner, "inside", dependencies=["flaky"])
    slow = flow.add_unit(lambda ctx: asyncio.sleep(3), name="slow")
    fast = flow.add_unit(lambda ctx: asyncio.sleep(2), name="fast")
    flow.first(slow, fast, name="race")
    return flow


def run_of_everything() -> RunResult:
    """Return what a run of it on virtual time gave."""
    return VirtualClock().run(flow_of_everything().run({"input": 1}, run_id="r1"))
