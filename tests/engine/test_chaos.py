"""Real processes, killed, stopped and interrupted at random while they work.

`QUANTUM_CHAOS=1` in the environment gives the full counts.
"""

import asyncio
import os
import random
import signal
from collections import Counter

import pytest
import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy, UnitState, WorkerCrashedError
from quantum_async.engine.executors import session
from tests.support import harm
from tests.support.carried import work
from tests.support.processes import until

KILLS, UNITS = (1_000, 5_000) if harm.FULL else (25, 125)
INTERRUPTS = 300 if harm.FULL else 40
STOPS = 200 if harm.FULL else 8
AGAIN = RetryPolicy(stop=tenacity.stop_after_attempt(40), wait=tenacity.wait_none())
EVERYTHING = [
    harm.kill, harm.interrupt, harm.interrupt_group, harm.terminate, harm.terminate_group,
    harm.stop, harm.stop_for_a_while,
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("ways", "most", "count", "pause", "timeout"),
    [
        pytest.param([harm.kill], KILLS, UNITS, 0.1, None, id="kill -9"),
        pytest.param(
            [harm.interrupt, harm.interrupt_group],
            INTERRUPTS, 8 * INTERRUPTS, 0.02, None, id="SIGINT",
        ),
        pytest.param(
            [harm.terminate, harm.terminate_group], KILLS, UNITS, 0.1, None, id="SIGTERM"
        ),
        pytest.param([harm.stop], STOPS, 4 * STOPS, 0.1, 1.0, id="SIGSTOP"),
        pytest.param(
            [harm.stop_for_a_while], INTERRUPTS, 8 * INTERRUPTS, 0.02, None, id="SIGSTOP, SIGCONT"
        ),
        pytest.param(EVERYTHING, KILLS, UNITS, 0.1, 1.0, id="everything"),
    ],
)  # fmt: skip
async def test_no_value_is_wrong_and_every_unit_ends(
    ways, most, count, pause, timeout, record_property, monkeypatch
):
    monkeypatch.setattr(session, "_LONGEST_LEAVE", 0.3)
    monkeypatch.setattr(session, "_LONGEST_START", 2.0)
    flow = QuantumPartitioner(failure_policy="collect")
    for number in range(count):
        flow.add_unit(
            work,
            name=f"unit {number}",
            mode="process",
            args=[number],
            retry=AGAIN,
            timeout=timeout,
        )
    counts, runs = Counter(), 0
    async with harm.harm(random.Random(7), ways, counts, pause=pause, most=most):
        while not runs or counts["signals"] < most:
            runs += 1
            result = await flow.run({})
            assert set(result.states.values()) == {UnitState.COMPLETED}, result.explain()
            assert list(result.values()) == [(n, 2_000 * n) for n in range(count)]
    for what, done in counts.items():
        record_property(what, done)
    record_property("units", runs * count)


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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSEGV", "SIGUSR1", "SIGABRT"])
async def test_a_signal_that_ends_a_worker_has_its_name_in_the_error(name):
    flow = QuantumPartitioner(failure_policy="collect")
    number = getattr(signal, name)
    flow.add_unit(lambda: os.kill(os.getpid(), number), name="hit", mode="process", args=[])
    flow.add_unit(work, name="beside", mode="process", args=[3])
    result = await flow.run({})
    error = result.errors["hit"]
    assert isinstance(error, WorkerCrashedError)
    assert error.how == name
    assert name in str(error)
    assert result["beside"] == (3, 6_000)


async def test_a_worker_that_is_stopped_and_goes_on_is_not_noticed():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: (_nap(0.3), os.getpid()), name="nap", mode="process", args=[])
    running = asyncio.create_task(flow.run({}))
    await until(harm.workers)
    pid = harm.workers()[0]
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGCONT)
    result = await running
    assert result["nap"][1] == pid
    assert result.units["nap"].attempts == 1


def _nap(seconds):
    import time

    time.sleep(seconds)


# -- stopped while no unit runs in it: no time limit of a unit ends that --------------------------


async def test_a_run_does_not_wait_for_ever_for_an_idle_worker_that_was_stopped(monkeypatch):
    monkeypatch.setattr(session, "_LONGEST_LEAVE", 0.2)
    flow = QuantumPartitioner()
    flow.add_unit(work, name="short", mode="process", args=[1])
    stopped = asyncio.Event()
    flow.add_unit(lambda short: stopped.wait(), name="wait", args=[flow.units["short"]])
    running = asyncio.create_task(flow.run({}))
    await until(lambda: flow_is_at("wait"))
    pids = harm.workers()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    stopped.set()
    assert (await running).ok
    assert not set(harm.workers()) & set(pids)
    assert (await flow.run({}))["short"] == (1, 2_000)


def flow_is_at(unit):
    return any(f"/{unit}#" in task.get_name() for task in asyncio.all_tasks())


@pytest.mark.parametrize("limit", ["start", "leave"])
async def test_a_worker_that_is_stopped_while_it_starts_is_replaced_or_given_up(limit, monkeypatch):
    monkeypatch.setattr(session, "_LONGEST_LEAVE", 0.2)
    if limit == "start":
        monkeypatch.setattr(session, "_LONGEST_START", 1.0)
    flow = QuantumPartitioner()
    flow.add_unit(work, name="short", mode="process", args=[1])
    before = set(harm.children())
    running = asyncio.create_task(flow.run({}))
    await until(lambda: set(harm.children()) - before)
    pids = set(harm.children()) - before
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(session, "_LONGEST_START", 60.0)  # for those that take their place
    if limit == "start":
        assert (await running)["short"] == (1, 2_000)
        assert running.result().units["short"].attempts == 1
    else:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not pids & set(harm.children())


async def test_a_slow_start_of_a_worker_does_not_count_against_the_timeout():
    flow = QuantumPartitioner(failure_policy="collect")
    # What the worker imports for its first call does count, and takes long where it is measured.
    flow.add_unit(work, name="short", mode="process", args=[1], timeout=1.5)
    before = set(harm.children())
    running = asyncio.create_task(flow.run({}))
    await until(lambda: set(harm.children()) - before)
    pids = set(harm.children()) - before
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(1.8)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    result = await running
    assert result.states["short"] is UnitState.COMPLETED
    assert result.units["short"].attempts == 1
