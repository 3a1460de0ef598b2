"""The event loop is never held over 50 ms by us, however much there is to do."""

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial

import pytest
import tenacity

from quantum_async import ExecutionError, QuantumPartitioner, RetryPolicy
from quantum_async.core.scheduler import Scheduler
from tests.support.blocking import run_watched
from tests.support.measured import is_measured

LIMIT = 0.05  # seconds
TRIES = 3  # the first try may meet what is done once, and a page fault takes its time

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(is_measured(), reason="measured, everything takes several times as long"),
]


async def noop(ctx):
    pass


async def fail(ctx):
    raise ValueError


async def hang(ctx):
    await asyncio.sleep(60)


async def suspend(ctx):
    await asyncio.sleep(0)


def wide(count, unit=noop, above=None, **options):
    flow = QuantumPartitioner(failure_policy="collect")
    if above is not None:
        flow.add_unit(above, name="above")
    for _ in range(count):
        flow.add_unit(unit, [] if above is None else ["above"], **options)
    return flow


def chain(count, unit=noop):
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(unit, name="0")
    for number in range(1, count):
        flow.add_unit(unit, [str(number - 1)], str(number))
    return flow


async def just_run(flow):
    await flow.run()


async def cancel(flow):
    task = asyncio.create_task(flow.run())
    while len(asyncio.all_tasks()) < flow.build_execution_plan().unit_count:
        await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def raise_it(flow):
    with pytest.raises(ExecutionError):
        await flow.run(failure_policy="continue")


async def fail_fast(flow):
    with pytest.raises(ExecutionError):
        await flow.run(failure_policy="fail_fast")


async def override(flow):
    await flow.run(overrides=dict.fromkeys(map(str, range(20_000)), 1))


async def resume(flow):
    result = await flow.run()
    await flow.run(resume_from=result)


async def stream(flow):
    async with flow.stream() as events:
        async for _ in events:
            pass


async def keep_targets(flow):
    await flow.run(keep="targets")


def through_workers(make):
    flow = QuantumPartitioner(default_execution_mode="process")
    flow.add_unit(make, name="made", args=[])
    flow.unit(lambda made: len(made), name="length")
    return flow


def make_much():
    return bytes(50_000_000)


TWICE = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(0.5))
CASES = {
    "50,000 units that do nothing": (partial(wide, 50_000), just_run),
    "50,000 units that suspend": (partial(wide, 50_000, suspend), just_run),
    "10,000 units with a time limit": (partial(wide, 10_000, timeout=60), just_run),
    "2,000 units in threads": (partial(wide, 2_000, lambda ctx: None), just_run),
    "a chain of 20,000": (partial(chain, 20_000), just_run),
    "20,000 failures": (partial(wide, 20_000, fail), just_run),
    "20,000 failures in one error": (partial(wide, 20_000, fail), raise_it),
    "50,000 units that are skipped": (partial(wide, 50_000, above=fail), just_run),
    "20,000 skipped links of a chain": (partial(chain, 20_000, fail), just_run),
    "50,000 units that a failure stops": (partial(wide, 50_000, above=fail), fail_fast),
    "10,000 units that are cancelled": (partial(wide, 10_000, hang), cancel),
    "10,000 cancel scopes": (partial(wide, 10_000, hang, timeout=60), cancel),
    # asyncio itself takes longer than that to end 10,000 of its own timeouts that are due at once.
    "2,000 units that time out at once": (partial(wide, 2_000, hang, timeout=0.3), just_run),
    "10,000 units that back off": (partial(wide, 10_000, fail, retry=TWICE), just_run),
    "20,000 units that are given": (partial(chain, 20_000), override),
    "a run that goes on from one of 20,000": (partial(chain, 20_000), resume),
    "10,000 units in a stream of events": (partial(wide, 10_000), stream),
    "20,000 results that are dropped": (partial(chain, 20_000), keep_targets),
    "50 MB from a worker and to another": (partial(through_workers, make_much), just_run),
}


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Import what the first run of a process imports; that takes longer than the limit."""
    through_workers(bytes).execute()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Leave out what is not ours, or only here: handlers of the log, checks of the scheduler."""
    monkeypatch.setattr(logging.getLogger("quantum_async"), "level", logging.CRITICAL + 1)
    for name, step in list(vars(Scheduler).items()):
        if hasattr(step, "__wrapped__"):
            monkeypatch.setattr(Scheduler, name, step.__wrapped__)


@pytest.mark.parametrize(("make", "how"), CASES.values(), ids=CASES)
def test_the_loop_is_not_held(make, how):
    held = []
    for _ in range(TRIES):
        flow = make()
        flow.build_execution_plan()
        seconds, where = run_watched(partial(how, flow), LIMIT)
        if seconds < LIMIT:
            return
        held.append(seconds)
    pytest.fail(f"held for {min(held):.3f} s; when {LIMIT} s had passed it was here:\n{where}")


def test_what_holds_the_loop_is_found():
    async def hold(ctx):
        time.sleep(0.06)

    flow = wide(1, hold)
    seconds, where = run_watched(flow.run, LIMIT)
    assert seconds > LIMIT
    assert "time.sleep(0.06)" in where
