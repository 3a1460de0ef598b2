"""Errors that say for how long a resource is to be left alone, by everybody."""

import asyncio

import pytest

from quantum_async import Backpressure, QuantumPartitioner, UnitState
from quantum_async.testing import assert_run
from tests.api.test_limits import after, flow_with, ran, starts


class BusyError(Exception):
    def __init__(self, retry_after):
        super().__init__("too many requests")
        self.retry_after = retry_after


async def test_an_error_with_retry_after_pauses_the_resource_for_everyone(virtual_clock):
    flow = flow_with(api=5, other=5)

    @flow.unit(uses="api", retries=1, priority=9)
    async def told(ctx):
        await asyncio.sleep(1)
        if ctx.attempt == 1:
            raise BusyError("30")

    flow.add_unit(after(1), name="early", uses="api")
    flow.add_unit(after(2), name="two_seconds")
    flow.add_unit(after(1), ["two_seconds"], name="api_user", uses="api")
    flow.add_unit(after(1), ["two_seconds"], name="other_user", uses="other")
    flow.add_unit(after(1), ["two_seconds"], name="user_of_nothing")
    result = await ran(flow)
    assert_run(result).ok().attempts("told", 2)
    began = starts(result)
    assert began["early"] == 0  # what runs goes on
    assert began["api_user"] == 31
    assert began["other_user"] == began["user_of_nothing"] == 2
    assert virtual_clock.time() == pytest.approx(32, abs=0.01)


async def test_backpressure_pauses_a_resource_by_name_whether_the_unit_uses_it(virtual_clock):
    flow = flow_with(api=5)

    @flow.unit
    async def told():
        raise Backpressure("api", 20)

    flow.add_unit(after(1), ["told"], name="next", uses="api", trigger="all_done")
    result = await ran(flow)
    assert starts(result)["next"] == 20
    assert "'api' is to be left alone for 20 s" in str(result.errors["told"])


async def test_backpressure_of_nothing_known_goes_to_the_log(caplog):
    flow = flow_with(api=5)

    @flow.unit
    async def told():
        raise Backpressure("apj", 20)

    await flow.run()
    assert "'told' asked for less of 'apj', and there is no such limit" in caplog.text


async def test_without_limits_backpressure_is_an_error_like_any_other():
    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit
    async def told():
        raise Backpressure("api", 20)

    assert isinstance((await flow.run()).errors["told"], Backpressure)


@pytest.mark.slow
async def test_backpressure_comes_back_from_worker_processes():
    flow = flow_with(api=5)

    @flow.unit(mode="process")
    def told():
        raise Backpressure("api", 0.2)

    flow.add_unit(after(0), ["told"], name="next", uses="api", trigger="all_done")
    result = await ran(flow)
    assert result.units["next"].waited >= 0.15


async def test_a_deadline_passes_while_the_resource_is_paused(virtual_clock):
    flow = flow_with(api=5)

    @flow.unit(uses="api", retries=3, deadline=5)
    async def asks():
        await asyncio.sleep(1)
        raise BusyError(60)

    result = await ran(flow)
    assert result.states["asks"] is UnitState.TIMEOUT
    assert result.units["asks"].attempts == 1
    assert virtual_clock.time() == pytest.approx(5, abs=0.01)
