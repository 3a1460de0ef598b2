"""Runs as streams of aiostream: its operators work, and closing one ends the run."""

import asyncio
import sys

import pytest

from quantum_async import ExecutionError, QuantumPartitioner, UnitState
from quantum_async.core.events import RunFinished, UnitEmitted, UnitStarted

pytest.importorskip("aiostream", reason="aiostream is not installed")
from aiostream import pipe, stream

from quantum_async.streams import events, results


@pytest.fixture
def flow():
    flow = QuantumPartitioner()

    @flow.unit
    async def counts(ctx):
        for number in range(ctx["up_to"]):
            ctx.emit(number)
        return ctx["up_to"]

    return flow


@pytest.fixture
def endless():
    """A flow that runs for ever, and what its unit said when it was stopped."""
    flow = QuantumPartitioner()
    flow.stopped = []

    @flow.unit
    async def hangs(ctx):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            flow.stopped.append(ctx.run_id)

    return flow


def emitted(run):
    return run | pipe.filter(lambda e: isinstance(e, UnitEmitted)) | pipe.map(lambda e: e.value)


async def test_events_go_through_pipes(flow):
    assert await stream.list(emitted(events(flow, {"up_to": 3}))) == [0, 1, 2]
    assert flow.last_result.ok


async def test_several_runs_are_merged(flow):
    both = stream.merge(emitted(events(flow, {"up_to": 3})), emitted(events(flow, {"up_to": 2})))
    assert sorted(await stream.list(both)) == [0, 0, 1, 1, 2]


async def test_a_stream_can_be_iterated_again_and_is_another_run(flow):
    ends = events(flow, {"up_to": 1}) | pipe.filter(lambda e: isinstance(e, RunFinished))
    first, second = await stream.list(ends), await stream.list(ends)
    assert first[0].run_id != second[0].run_id


async def test_results_are_a_stream_too(flow):
    assert await stream.list(results(flow, {"up_to": 2})) == [("counts", 2)]


async def test_closing_a_stream_ends_the_run(endless):
    async with events(endless, run_id="a").stream() as streamer:
        async for event in streamer:
            if isinstance(event, UnitStarted):
                break
    assert endless.stopped == ["a"]
    assert endless.last_result.states == {"hangs": UnitState.CANCELED}


async def test_taking_some_ends_the_run(endless):
    taken = await stream.list(events(endless, run_id="a") | pipe.take(2))
    assert len(taken) == 2
    assert endless.last_result.states == {"hangs": UnitState.CANCELED}


async def test_closing_a_merged_stream_ends_all_its_runs(endless):
    runs = [events(endless, run_id=run_id) for run_id in "abc"]
    started = 0
    async with stream.merge(*runs).stream() as streamer:
        async for event in streamer:
            started += isinstance(event, UnitStarted)
            if started == 3:
                break
    assert sorted(endless.stopped) == ["a", "b", "c"]


async def test_a_timeout_ends_the_run(endless):
    with pytest.raises(asyncio.TimeoutError):
        await stream.list(events(endless, run_id="a") | pipe.timeout(0.01))
    assert endless.stopped == ["a"]


async def test_the_error_of_the_run_comes_after_its_events():
    flow, seen = QuantumPartitioner(), []
    flow.add_unit(lambda ctx: 1 / 0, name="bad")
    with pytest.raises(ExecutionError):
        await stream.list(events(flow) | pipe.action(seen.append))
    assert isinstance(seen[-1], RunFinished)


def test_without_aiostream_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiostream", None)
    monkeypatch.delitem(sys.modules, "quantum_async.streams")
    with pytest.raises(ImportError, match=r"pip install 'quantum-async\[streams\]'"):
        import quantum_async.streams  # noqa: F401
