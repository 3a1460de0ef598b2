"""The runs of a test are kept, whoever starts them."""

import asyncio

import pytest

from quantum_async import ExecutionError, QuantumPartitioner
from quantum_async.testing import RunRecorder


def a_flow(name, seconds=0.0):
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(seconds, name), name=name, args=[])
    return flow


async def test_all_runs_of_a_block_are_kept_in_the_order_in_which_they_began(virtual_clock):
    first, second = a_flow("first", 60), a_flow("second")
    await first.run(run_id="before")
    with RunRecorder() as recorder:
        running = asyncio.create_task(first.run(run_id="a"))
        await asyncio.sleep(0)
        await second.run(run_id="b")
        await running
        await second.run(run_id="c")
    await second.run(run_id="after")
    assert [result.run_id for result in recorder.results] == ["a", "b", "c"]
    assert [log[0].run_id for log in recorder.events] == ["a", "b", "c"]
    recorder.check()


async def test_runs_that_fail_are_kept_too():
    flow = QuantumPartitioner()

    @flow.unit
    async def broken():
        raise ZeroDivisionError

    with RunRecorder() as recorder:
        with pytest.raises(ExecutionError):
            await flow.run()
        with pytest.raises(ExecutionError):
            await flow.run()
    assert [list(result.errors) for result in recorder.results] == [["broken"], ["broken"]]
    assert all("ZeroDivisionError" in text for text in recorder.timelines())
