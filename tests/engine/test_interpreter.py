"""Sub-interpreters, played by threads: what is done on this side of them, on any Python.

Real ones are in `test_workers`. Calls go to and fro as bytes in both.
"""

import asyncio
import os
from types import SimpleNamespace

import pytest
from anyio import to_interpreter, to_thread

from quantum_async import PlanError, QuantumPartitioner, UnitState
from quantum_async.engine.executors import interpreter


@pytest.fixture(autouse=True)
def played_by_threads(monkeypatch):
    async def run_sync(function, *args, limiter):
        return await to_thread.run_sync(function, *args, limiter=limiter)

    monkeypatch.setattr(to_interpreter, "run_sync", run_sync)
    monkeypatch.setattr(interpreter, "sys", SimpleNamespace(version_info=(3, 13, 0)))


@pytest.fixture
def flow():
    return QuantumPartitioner(default_execution_mode="interpreter", failure_policy="collect")


async def test_results_and_errors_come_back_as_copies(flow):
    given = [1, 2]
    flow.add_unit(lambda ctx: ctx["given"], name="same")
    flow.add_unit(lambda _: {}["x"], name="fails")
    result = await flow.run({"given": given})
    assert result["same"] == given
    assert result["same"] is not given
    assert isinstance(result.errors["fails"], KeyError)
    assert any(
        note.startswith("in the sub-interpreter") for note in result.errors["fails"].__notes__
    )
    assert result.units["same"].ran_on == "interpreter"


@pytest.fixture
def pipes():
    """Two pipes: numbers of descriptors are the same in all that this process has."""
    ends = [*os.pipe(), *os.pipe()]
    yield ends
    for end in ends:
        os.close(end)


def stand_still(ctx):
    os.write(ctx["began"], b"!")
    os.read(ctx["go_on"], 1)
    raise ValueError("nobody asks for this any more")


async def test_one_that_was_cancelled_is_waited_for_since_it_cannot_be_stopped(flow, pipes):
    is_standing, began, go_on, go = pipes
    flow.add_unit(stand_still, name="unit")
    run = asyncio.ensure_future(flow.run({"began": began, "go_on": go_on}))
    await asyncio.to_thread(os.read, is_standing, 1)
    run.cancel()
    ended, _ = await asyncio.wait([run], timeout=0.02)
    assert not ended
    os.write(go, b"!")
    with pytest.raises(asyncio.CancelledError):
        await run
    assert flow.last_result.states["unit"] is UnitState.CANCELED


@pytest.mark.parametrize("end", ["returned", "cancelled"])
async def test_one_that_ended_together_with_its_attempt_keeps_no_slot(end):
    running = asyncio.get_running_loop().create_future()
    if end == "returned":
        running.set_result(b"")
    else:
        running.cancel()
    told = []
    interpreter._returned(SimpleNamespace(late=False, returned=told.append), running)
    assert told == []


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_a_limit_that_would_need_to_kill_is_refused(flow, limit):
    with pytest.raises(PlanError, match=f"cannot be stopped, so {limit}="):
        flow.add_unit(stand_still, mode="interpreter", **{limit: 1})
    assert flow.add_unit(stand_still, name="unit", mode="interpreter").id == "unit"
