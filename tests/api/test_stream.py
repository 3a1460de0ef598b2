"""A run's events as an asynchronous iterator, and what becomes of the run."""

import asyncio

import anyio
import pytest

from quantum_async import ExecutionError, QuantumPartitioner, UnitState
from quantum_async.core.events import (
    RunFinished,
    RunStarted,
    UnitCompleted,
    UnitEmitted,
    UnitFailed,
    UnitStarted,
)

CANCELED = UnitState.CANCELED


@pytest.fixture
def flow():
    flow = QuantumPartitioner()

    @flow.unit
    async def first(ctx):
        ctx.emit("half way")
        return 1

    @flow.unit
    def second(first):
        return first + 1

    return flow


@pytest.fixture
def endless():
    """A flow that runs for ever, and what its unit said when it was stopped."""
    flow = QuantumPartitioner()
    flow.cleaned = []

    async def hang(ctx):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            flow.cleaned.append(ctx.unit_id)

    flow.add_unit(hang, name="hang")
    return flow


def failing():
    flow = QuantumPartitioner()

    async def bad(ctx):
        raise ValueError("broken")

    flow.add_unit(bad, name="bad")
    return flow


async def test_events_come_in_the_order_in_which_things_happened(flow):
    async with flow.stream() as events:
        seen = [event async for event in events]
    assert [event.seq for event in seen] == list(range(len(seen)))
    assert isinstance(seen[0], RunStarted)
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].state == "completed"
    told = [
        (type(event), event.unit)
        for event in seen
        if isinstance(event, UnitStarted | UnitCompleted | UnitEmitted)
    ]
    assert told == [
        (UnitStarted, "first"),
        (UnitEmitted, "first"),
        (UnitCompleted, "first"),
        (UnitStarted, "second"),
        (UnitCompleted, "second"),
    ]
    assert [event.time for event in seen] == sorted(event.time for event in seen)


async def test_the_result_is_there_afterwards(flow):
    async with flow.stream() as events:
        async for _ in events:
            pass
    assert dict(events.result) == {"first": 1, "second": 2}
    assert events.result is flow.last_result


async def test_the_options_of_run_go_for_a_stream_too(flow):
    heard = []
    async with flow.stream(
        {"x": 1}, targets=["first"], run_id="mine", observers=[heard.append]
    ) as e:
        async for _ in e:
            pass
    assert list(e.result) == ["first"]
    assert e.result.run_id == "mine"
    assert heard


async def test_leaving_early_cancels_the_run_and_waits_for_it(endless):
    async with endless.stream() as events:
        async for event in events:
            if isinstance(event, UnitStarted):
                break
    assert endless.cleaned == ["hang"]
    assert events.result.states == {"hang": CANCELED}


async def test_a_block_that_never_asks_for_an_event_cancels_the_run_too(endless):
    async with endless.stream() as events:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert events.result is None or events.result.states == {"hang": CANCELED}
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_an_error_of_the_consumer_goes_through_and_ends_the_run(endless):
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012 - the block is what is tested
        async with endless.stream() as events:
            async for event in events:
                if isinstance(event, UnitStarted):
                    raise KeyError("mine")
    assert endless.cleaned == ["hang"]


async def test_a_run_that_failed_raises_on_leaving():
    flow = failing()
    seen = []
    with pytest.raises(ExecutionError) as caught:  # noqa: PT012 - the block is what is tested
        async with flow.stream() as events:
            async for event in events:
                seen.append(type(event))
    assert UnitFailed in seen
    assert seen[-1] is RunFinished
    assert isinstance(caught.value.__cause__, ValueError)
    assert events.result is caught.value.result


async def test_a_run_that_failed_raises_on_leaving_at_its_last_event():
    with pytest.raises(ExecutionError):  # noqa: PT012 - the block is what is tested
        async with failing().stream() as events:
            async for event in events:
                if isinstance(event, RunFinished):
                    break


async def test_the_consumers_own_error_goes_over_the_runs():
    with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
        async with failing().stream() as events:
            async for event in events:
                if isinstance(event, RunFinished):
                    raise KeyError


async def test_collect_does_not_raise_on_leaving():
    async with failing().stream(failure_policy="collect") as events:
        async for _ in events:
            pass
    assert not events.result.ok


async def test_a_cancelled_consumer_leaves_nothing_running(endless):
    started = asyncio.Event()

    async def consume():
        async with endless.stream() as events:
            async for event in events:
                if isinstance(event, UnitStarted):
                    started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert endless.cleaned == ["hang"]
    assert endless.last_result.states == {"hang": CANCELED}


async def test_a_consumer_whose_scope_is_cancelled_leaves_nothing_running(endless):
    with anyio.CancelScope() as scope:
        async with endless.stream() as events:
            async for event in events:
                if isinstance(event, UnitStarted):
                    scope.cancel()
    assert scope.cancelled_caught
    assert endless.cleaned == ["hang"]


async def test_a_stream_that_was_not_entered_says_so(flow):
    events = flow.stream()
    with pytest.raises(RuntimeError, match="async with"):
        await anext(events)
    assert flow.last_result is None


async def test_a_stream_is_entered_once(flow):
    events = flow.stream()
    async with events:
        with pytest.raises(RuntimeError, match="again"):
            await events.__aenter__()
        async for _ in events:
            pass
    with pytest.raises(RuntimeError, match="again"):
        await events.__aenter__()


async def test_what_was_not_taken_can_be_taken_afterwards(flow):
    async with flow.stream() as events:
        async for event in events:
            if isinstance(event, RunFinished):
                break
    assert [event async for event in events] == []


async def test_two_streams_of_one_partitioner_do_not_mix(flow):
    async def consume(run_id):
        async with flow.stream(run_id=run_id) as events:
            return {event.run_id async for event in events}, events

    (a, of_a), (b, of_b) = await asyncio.gather(consume("a"), consume("b"))
    assert (a, b) == ({"a"}, {"b"})
    assert of_a.result is not of_b.result


async def test_two_consumers_of_one_stream_share_its_events(flow):
    got = []

    async def consume(events):
        async for event in events:
            got.append(event.seq)

    async with flow.stream() as events, asyncio.timeout(5):
        await asyncio.gather(consume(events), consume(events))
    assert sorted(got) == list(range(len(got)))


async def test_a_slow_consumer_does_not_hold_the_run_back(flow):
    async with flow.stream() as events:
        first = await anext(events)
        while flow.last_result is None:
            await asyncio.sleep(0)
        rest = [event async for event in events]
    assert isinstance(first, RunStarted)
    assert isinstance(rest[-1], RunFinished)
