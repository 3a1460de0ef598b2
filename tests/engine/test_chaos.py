"""Real processes, killed and interrupted at random while they work.

`QUANTUM_CHAOS=1` in the environment gives the full counts.
"""

import asyncio
import contextlib
import os
import random
import signal

import pytest
import tenacity
from anyio import to_process

from quantum_async import QuantumPartitioner, RetryPolicy, UnitState

FULL = "QUANTUM_CHAOS" in os.environ
KILLS, UNITS = (1_000, 5_000) if FULL else (25, 125)
INTERRUPTS = 300 if FULL else 40
AGAIN = RetryPolicy(stop=tenacity.stop_after_attempt(40), wait=tenacity.wait_none())


def work(number):
    value = 0
    for _ in range(2_000):
        value += number
    return number, value


def workers():
    with contextlib.suppress(LookupError):
        return [one.pid for one in to_process._process_pool_workers.get()]
    return []


async def harm(chance, ended, ways, counts, pause):
    """Send signals to random workers until the run has ended, or there were enough of them."""
    while not ended.is_set() and counts["sent"] < counts["most"]:
        await asyncio.sleep(chance.random() * pause)
        pids = workers()
        if pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                chance.choice(ways)(chance.choice(pids))
                counts["sent"] += 1


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def interrupt(pid):
    os.kill(pid, signal.SIGINT)


def interrupt_group(pid):
    os.killpg(pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ways", "most", "count", "pause"),
    [
        pytest.param([kill], KILLS, UNITS, 0.1, id="kill -9"),
        pytest.param([interrupt, interrupt_group], INTERRUPTS, 8 * INTERRUPTS, 0.02, id="SIGINT"),
    ],
)
async def test_no_value_is_wrong_and_every_unit_ends(ways, most, count, pause, record_property):
    flow = QuantumPartitioner(failure_policy="collect")
    for number in range(count):
        flow.add_unit(work, name=f"unit {number}", mode="process", args=[number], retry=AGAIN)
    ended, counts, round_ = asyncio.Event(), {"sent": 0, "most": most}, 0
    harming = asyncio.create_task(harm(random.Random(7), ended, ways, counts, pause))
    while not round_ or counts["sent"] < most:
        round_ += 1
        result = await flow.run({})
        assert set(result.states.values()) == {UnitState.COMPLETED}, result.explain()
        assert list(result.values()) == [(n, 2_000 * n) for n in range(count)]
    ended.set()
    await harming
    record_property("signals", counts["sent"])
    record_property("units", round_ * count)


@pytest.mark.slow
async def test_a_stopped_worker_is_killed_by_the_timeout_and_others_go_on():
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(
        lambda _: os.kill(os.getpid(), signal.SIGSTOP), name="stops", mode="process", timeout=0.5
    )
    flow.add_unit(lambda _: 1, ["stops"], name="after", mode="process")
    flow.add_unit(lambda _: 2, name="beside", mode="process")
    result = await flow.run({})
    assert result.states["stops"] is UnitState.TIMEOUT
    assert result["beside"] == 2
