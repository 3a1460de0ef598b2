"""Hard use with fresh seeds, for as long as one likes: ``python -m tests.torture --minutes 10``.

Random graphs in random orders, with failures and cancellations on virtual time, against a plain
oracle and the laws of every run; and on real time, units in worker processes that are killed,
interrupted and cancelled. What goes wrong is printed with the seed that shows it (``--seed``).
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

import tenacity
from anyio import to_process

from quantum_async import ExecutionMode, QuantumPartitioner, RetryPolicy, UnitState
from quantum_async.core.scheduler import Scheduler
from quantum_async.testing import Resources, explore
from tests.torture.graphs import expected, random_graph

AGAIN = RetryPolicy(stop=tenacity.stop_after_attempt(30), wait=tenacity.wait_none())


def orders(seed: int, counts: Counter[str]) -> None:
    """Run a random graph in several orders, on virtual time."""
    chance = random.Random(seed)
    flow = random_graph(chance)
    values = expected(flow)

    def right(result) -> bool:
        return all(result[name] == values[name] for name in result)

    bad = {"failures": chance.random() < 0.5, "cancels": chance.random() < 0.5}
    found = explore(flow, {}, seeds=[seed + n for n in range(8)], check=right, **bad)
    counts["graphs"] += 1
    counts["units"] += found.runs * len(values)
    counts["cancels"] += found.canceled
    counts["retries"] += found.retried


def add_up(ctx) -> int:
    """Work a little in a worker process."""
    return int(ctx.unit_id[1:]) + sum(ctx.unit_results.values())


def harmed(seed: int, counts: Counter[str]) -> None:
    """Run a random graph in worker processes that come to harm, and perhaps cancel it."""
    chance = random.Random(seed)
    plan = random_graph(chance)
    flow = QuantumPartitioner(default_execution_mode=ExecutionMode.PROCESS)
    for name, unit in plan.units.items():
        flow.add_unit(add_up, unit.dependencies, name, retry=AGAIN, timeout=30)
    values = expected(flow)
    cancels = chance.random() < 0.3

    async def main() -> None:
        running = asyncio.ensure_future(flow.run({}))
        for _ in range(chance.randint(0, 6)):
            await asyncio.sleep(chance.random() * 0.1)
            with contextlib.suppress(LookupError, ProcessLookupError, PermissionError):
                pids = [one.pid for one in to_process._process_pool_workers.get()]
                if pids and not running.done():
                    kind = chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
                    os.kill(chance.choice(pids), kind)
                    counts["signals"] += 1
        if cancels:
            running.cancel()
            counts["cancels"] += 1
        with contextlib.suppress(asyncio.CancelledError):
            result = await running
            assert dict(result) == values, f"{dict(result)} is not {values}"
            assert set(result.states.values()) == {UnitState.COMPLETED}

    before = Resources.now()
    asyncio.run(main())
    left = Resources.left_since(before)
    assert not left, f"left behind: {left}"
    counts["graphs in workers"] += 1
    counts["units"] += len(values)


def check_every_step(counts: Counter[str]) -> None:
    """Check the scheduler's invariants after each of its steps, from now on."""
    for name in ("complete", "fail", "retry", "wake", "give_up", "cancel_waiting"):
        step: Callable[..., object] = getattr(Scheduler, name)

        def stepped(self, *args, step=step, **options):
            done = step(self, *args, **options)
            self.check_invariants()
            counts["steps"] += 1
            return done

        setattr(Scheduler, name, stepped)


def torture(minutes: float, seed: int | None = None) -> tuple[Counter[str], list[str]]:
    """Go on for some minutes, or through one seed.

    Returns:
        What was done, and what went wrong.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    check_every_step(counts)
    until = time.monotonic() + 60 * minutes
    first = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    while time.monotonic() < until or (seed is not None and not counts["seeds"]):
        for kind in (orders, orders, orders, harmed):
            try:
                kind(first, counts)
            except Exception:
                wrong.append(f"--seed {first} ({kind.__name__}):\n{traceback.format_exc()}")
        counts["seeds"] += 1
        first += 1
    return counts, wrong


def main() -> int:
    """Return the exit code: 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="go through one seed, and end")
    wanted = parser.parse_args()
    counts, wrong = torture(0 if wanted.seed is not None else wanted.minutes, wanted.seed)
    sys.stdout.write(
        ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())) + "\n"
    )
    sys.stdout.write("".join(f"\n{one}" for one in wrong) or "nothing went wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
