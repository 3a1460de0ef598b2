"""What the events of a run say, where a run does not go its plain way."""

import asyncio
import contextlib
import time

import pytest

from quantum_async import ExecutionError, QuantumPartitioner
from quantum_async.core import events


async def hang(ctx):
    await asyncio.sleep(60)


async def test_a_unit_is_ready_for_the_attempt_that_starts_then():
    flow, log = QuantumPartitioner(), []
    flow.add_unit(lambda ctx: asyncio.sleep(0), name="a")
    flow.add_unit(lambda ctx: asyncio.sleep(0), ["a"], name="b")
    await flow.run(observers=[log.append])
    ready = [(e.unit, e.attempt) for e in log if isinstance(e, events.UnitReady)]
    assert ready == [("a", 1), ("b", 1)]


async def test_a_run_whose_caller_was_cancelled_is_canceled_under_fail_fast_too():
    flow, log = QuantumPartitioner(failure_policy="fail_fast"), []
    flow.add_unit(hang, name="a")
    running = asyncio.create_task(flow.run(observers=[log.append]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert log[-1].state == "canceled"


async def test_a_run_that_raises_did_not_complete():
    flow, log = QuantumPartitioner(), []

    async def cancelled_from_outside(ctx):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    flow.add_unit(cancelled_from_outside, name="a")
    with pytest.raises(ExecutionError):
        await flow.run(observers=[log.append])
    assert log[-1].state == "failed"


async def test_times_never_go_back_and_are_those_of_the_records():
    flow, log = QuantumPartitioner(failure_policy="collect", limits={"api": 3}), []

    async def child(item):
        return item

    def uses(ctx):
        if ctx.item % 2:
            raise ValueError  # told of when the child is made, which may be as another starts
        return "api"

    flow.map(child, over=range(200), name="map", uses=uses, on_item_error="collect")
    flow.add_unit(lambda ctx: asyncio.sleep(0), name="unit")
    result = await flow.run(observers=[log.append])
    assert [event.seq for event in log] == list(range(len(log)))
    times = [event.time for event in log]
    assert times == sorted(times)
    record = result.units["unit"]
    started, completed = (e for e in log if e[4] == "unit" and not isinstance(e, events.UnitReady))
    assert completed.duration == pytest.approx(record.duration)
    assert completed.duration == pytest.approx(completed.time - started.time, abs=0.01)
    assert all(len(event) == len(event._fields) for event in log)
    assert started.wall == pytest.approx(record.started_at, abs=0.05)
    assert log[0].wall == pytest.approx(time.time(), abs=5)
    assert log[-1].wall - log[0].wall == pytest.approx(log[-1].time - log[0].time, abs=0.05)
