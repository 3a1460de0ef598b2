"""Random graphs in worker processes and threads that come to harm; time is real."""

import asyncio
import contextlib
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import tenacity

from quantum_async import ExecutionMode, QuantumPartitioner, RetryPolicy, UnitState
from quantum_async.engine.executors import session
from quantum_async.testing import Resources
from quantum_async.tuning import usable_cpus
from tests.support import cold, harm, hostile, slots, terminal
from tests.support.carried import add_up
from tests.support.processes import until
from tests.torture.graphs import expected, random_graph

AGAIN = RetryPolicy(stop=tenacity.stop_after_attempt(30), wait=tenacity.wait_none())
# A worker that is stopped while it starts, or is idle, is waited for so long.
session._LONGEST_START, session._LONGEST_LEAVE = 5.0, 0.5


def harmed(seed: int, counts: "Counter[str]") -> None:
    """Run a random graph in worker processes that get all kinds of signals; perhaps cancel it."""
    chance = random.Random(seed)
    plan = random_graph(chance)
    flow = QuantumPartitioner(default_execution_mode=ExecutionMode.PROCESS)
    for name, unit in plan.units.items():
        flow.add_unit(add_up, unit.dependencies, name, retry=AGAIN, timeout=2)
    values = expected(flow)
    cancels = chance.random() < 0.3
    ways = [
        harm.kill, harm.kill, harm.interrupt, harm.interrupt_group, harm.terminate,
        harm.terminate_group, harm.stop_for_a_while, harm.stop,
    ]  # fmt: skip

    async def main() -> None:
        log = []
        running = asyncio.ensure_future(flow.run({}, observers=[log.append]))
        async with harm.harm(
            chance, ways, counts, pause=0.1, whom=harm.children, most=chance.randint(0, 6)
        ):
            if cancels:
                await asyncio.wait([running], timeout=chance.random() * 0.4)
                running.cancel()
                counts["cancels"] += 1
            with contextlib.suppress(asyncio.CancelledError):
                result = await running
                assert dict(result) == values, f"{dict(result)} is not {values}"
                assert set(result.states.values()) <= {UnitState.COMPLETED}

    _clean(main)
    counts["graphs"] += 1
    counts["units"] += len(values)


def cold_starts(seed: int, counts: "Counter[str]") -> None:
    """Cancel a run, and do harm to another, at a random moment of a worker's start."""
    chance = random.Random(seed)
    counts["cancels"] += cold.cancelled_after(chance.random() * cold.LONGEST)
    way = chance.choice([harm.kill, harm.interrupt, harm.terminate, harm.stop_for_a_while])
    counts["signals"] += cold.harmed_after(chance.random() * cold.LONGEST, way, chance)
    counts["cold starts"] += 2


def hostile_units(seed: int, counts: "Counter[str]") -> None:
    """Run units that crash, flood, fill memory and give what cannot travel."""
    flow, due = hostile.hostile_flow(random.Random(seed), 20)

    async def main() -> None:
        log = []
        found = hostile.wrong(await flow.run({}, observers=[log.append]), due)
        assert not found, "; ".join(found)

    _clean(main)
    counts["graphs"] += 1
    counts["units"] += len(due)


def slots_in_use(seed: int, counts: "Counter[str]") -> None:
    """Count what runs at once, with what was given up and runs on."""
    chance, threads = random.Random(seed), slots.Threads()
    most = chance.choice([1, 2, 3, None])

    async def main(folder: str) -> None:
        flow = slots.slow_flow(chance, 30, threads, folder)
        log = []
        result = await flow.run(max_workers=most, observers=[log.append])
        counted = [result[name] for name in result if name.startswith("p")]
        assert threads.most <= (most or min(32, usable_cpus() + 4)), f"{threads.most} threads"
        assert max(counted, default=0) <= min(most or usable_cpus(), usable_cpus())
        await until(lambda: not threads.now and not result._ledger.scheduler.used)

    with tempfile.TemporaryDirectory() as folder:
        _clean(lambda: main(folder))
    counts["graphs"] += 1
    counts["units"] += 30


def terminals(seed: int, counts: "Counter[str]") -> None:
    """Send signals to a script that executes a graph, and to all its processes."""
    chance = random.Random(seed)
    to = chance.choice(terminal.TO)
    kind = chance.randrange(4)
    if kind == 0:
        terminal.goes_on_after_stops(to, chance)
    elif kind == 1:
        terminal.ended_by_many_interrupts(chance)
    else:
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        terminal.ended_by(number, to, chance)
    counts["scripts"] += 1
    counts["signals"] += 1


def _clean(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    before = Resources.now()
    asyncio.run(main())
    left = Resources.left_since(before)
    assert not left, f"left behind: {left}"
