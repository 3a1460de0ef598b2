"""Graphs with what a cancellation may meet."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import anyio
import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy
from tests.support.carried import add_up

Graph = QuantumPartitioner[Any, Any]


async def cleans_up(ctx):
    try:
        await asyncio.sleep(2)
    finally:
        await asyncio.sleep(0)


async def shielded(ctx):
    with anyio.CancelScope(shield=True):
        await asyncio.sleep(1)


async def grouped(ctx):
    async with anyio.create_task_group() as group:
        group.start_soon(asyncio.sleep, 1)
        group.start_soon(asyncio.sleep, 3)


async def in_a_native_group(ctx):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(1))
        group.create_task(asyncio.sleep(2))


async def fails(ctx):
    await asyncio.sleep(0.5)
    raise ValueError


async def fails_to_clean_up(ctx):
    try:
        await asyncio.sleep(1)
    finally:
        raise ValueError("in clean-up")


async def turns(ctx):
    for _ in range(3):
        await asyncio.sleep(0)


def mixed() -> Graph:
    """A dozen units of all kinds, with limits, retries and fallbacks."""
    flow, chance = QuantumPartitioner(failure_policy="collect"), random.Random(5)
    kinds = [cleans_up, shielded, grouped, fails, lambda ctx: None]
    for number in range(12):
        above = {f"u{chance.randrange(number)}" for _ in range(2)} if number else set()
        flow.add_unit(
            kinds[number % len(kinds)],
            sorted(above),
            f"u{number}",
            timeout=2.5 if number % 3 else None,
            retries=number % 2,
            fallback=None,
        )
    return flow


def chain() -> Graph:
    """A chain of short units."""
    flow = QuantumPartitioner()
    for number in range(6):
        above = [f"u{number - 1}"] if number else []
        flow.add_unit(turns, above, f"u{number}", timeout=5 if number % 2 else None)
    return flow


def wide() -> Graph:
    """Units side by side, more than there are slots."""
    flow = QuantumPartitioner(max_workers=2, failure_policy="fail_fast")
    for number, kind in enumerate((turns, grouped, in_a_native_group, fails_to_clean_up, turns)):
        flow.add_unit(kind, name=f"u{number}")
    flow.add_unit(fails, ["u0"], "u5")
    return flow


def backing_off() -> Graph:
    """Units that are tried again, up to a deadline, and fall back on a coroutine."""
    flow = QuantumPartitioner(failure_policy="collect")
    again = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(0.3))

    async def instead(ctx, error):
        await asyncio.sleep(0.1)
        return "instead"

    flow.add_unit(fails, name="u0", retry=again, fallback=instead)
    flow.add_unit(fails, name="u1", retry=again, deadline=0.6)
    flow.add_unit(cleans_up, name="u2", retry=again, timeout=0.4, fallback=lambda ctx, error: 1)
    flow.add_unit(turns, ["u0", "u2"], "u3")
    flow.add_unit(turns, ["u1"], "u4")
    return flow


def in_threads() -> Graph:
    """Threads that take a little real time, and one that is late."""
    flow = QuantumPartitioner(max_workers=3, failure_policy="collect")
    flow.add_unit(lambda ctx: time.sleep(0.002), name="u0")
    flow.add_unit(lambda ctx: time.sleep(0.001), ["u0"], "u1", retries=1)
    flow.add_unit(lambda ctx: 1 / 0, ["u0"], "u2", fallback=lambda ctx, error: 0)
    flow.add_unit(lambda ctx: time.sleep(0.001), ["u1", "u2"], "u3", timeout=60)
    flow.add_unit(turns, ["u0"], "u4")
    return flow


def nested() -> Graph:
    """A unit that runs another graph."""
    flow = QuantumPartitioner()
    inner = chain()

    async def runs_another(ctx):
        return len(await inner.run({}))

    flow.add_unit(turns, name="u0")
    flow.add_unit(runs_another, ["u0"], "u1")
    flow.add_unit(runs_another, ["u0"], "u2", timeout=50)
    flow.add_unit(turns, ["u1", "u2"], "u3")
    return flow


GRAPHS: list[Callable[[], Graph]] = [mixed, chain, wide, backing_off, in_threads, nested]


def in_processes() -> Graph:
    """Units in worker processes, beside others."""
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(add_up, name="u0", mode="process")
    flow.add_unit(add_up, ["u0"], "u1", mode="process", timeout=30)
    flow.add_unit(add_up, ["u0"], "u2", mode="process", grace=0.2)
    again = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())
    flow.add_unit(lambda ctx: 1 / 0, ["u0"], "u3", mode="process", retry=again, fallback=4)
    flow.add_unit(add_up, ["u1", "u2", "u3"], "u4")
    return flow
