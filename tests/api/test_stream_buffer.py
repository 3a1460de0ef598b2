"""How many events a stream holds, and what becomes of the run when that is too few."""

import asyncio

import pytest

from quantum_async import PlanError, QuantumPartitioner, RunTimeoutError, UnitState
from quantum_async.core.events import RunFinished, UnitCompleted

UNITS = 50


@pytest.fixture
def wide():
    """A flow of many units side by side, and which of them have started."""
    flow = QuantumPartitioner()
    flow.started = []

    async def work(ctx):
        flow.started.append(ctx.unit_id)

    for number in range(UNITS):
        flow.add_unit(work, name=f"work-{number}")
    return flow


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_full_buffer_lets_nothing_start(wide):
    async with wide.stream(buffer=8) as events:
        await turns()
        held = len(wide.started)
        await turns()
        assert held == len(wide.started) < UNITS // 2
        seen = [event async for event in events]
    assert len(wide.started) == UNITS
    assert [event.seq for event in seen] == list(range(len(seen)))
    assert events.dropped == 0
    assert events.result.ok


async def test_a_buffer_of_one_is_enough(wide):
    async with wide.stream(buffer=1) as events:
        seen = [event async for event in events]
    assert sum(isinstance(event, UnitCompleted) for event in seen) == UNITS


async def test_what_runs_while_the_buffer_is_full_ends(wide):
    flow = QuantumPartitioner()
    go_on = asyncio.Event()

    @flow.unit
    async def talks(ctx):
        for number in range(20):
            ctx.emit(number)
        await go_on.wait()
        return "done"

    @flow.unit
    async def after(talks):
        return talks

    async with flow.stream(buffer=2) as events:
        await turns()
        go_on.set()
        await turns()
        assert flow.last_result is None
        assert "take events" in events.explain("after")
        assert [e async for e in events][-1].state == "completed"
    assert events.result["after"] == "done"


async def test_leaving_with_a_full_buffer_cancels_the_run(wide):
    async with wide.stream(buffer=1) as events:
        await turns()
    assert set(events.result.states.values()) <= {UnitState.CANCELED, UnitState.COMPLETED}
    assert UnitState.CANCELED in events.result.states.values()


async def test_a_time_limit_ends_a_run_that_is_held(wide):
    with pytest.raises(RunTimeoutError):  # noqa: PT012 - the block is what is tested
        async with wide.stream(buffer=1, timeout=0.05) as events:
            while wide.last_result is None:
                await asyncio.sleep(0)
            seen = [event async for event in events]
    assert seen[-1].state == "timeout"


async def test_nested_runs_and_maps_are_held_too():
    flow = QuantumPartitioner()
    inner = QuantumPartitioner()
    inner.add_unit(lambda ctx: ctx["x"], name="leaf", mode="async")
    flow.map(lambda item: item, [1, 2, 3, 4], name="map")
    flow.include(inner, "inside", input={"x": 5})
    async with flow.stream(buffer=1) as events:
        seen = [event async for event in events]
    assert [e.unit for e in seen if isinstance(e, UnitCompleted)].count("inside/leaf") == 1
    assert events.result["map"] == [1, 2, 3, 4]


async def test_runs_of_one_runtime_do_not_hold_each_other_up(wide):
    from quantum_async import Runtime

    async with Runtime(max_workers=2), wide.stream(buffer=1) as events:
        await turns()
        result = await QuantumPartitioner(name="other").run()
        assert result.ok
        assert isinstance([event async for event in events][-1], RunFinished)


async def test_the_oldest_events_are_dropped_and_counted(wide):
    async with wide.stream(buffer=4, overflow="drop_oldest") as events:
        while wide.last_result is None:
            await asyncio.sleep(0)
        seen = [event async for event in events]
    assert len(seen) == 4
    assert isinstance(seen[-1], RunFinished)
    assert events.dropped == seen[0].seq > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"buffer": 0}, "buffer must be a whole number of events from 1 up, not 0"),
        ({"buffer": True}, "not True"),
        ({"buffer": 2.5}, "not 2.5"),
        ({"overflow": "blok"}, "did you mean 'block'"),
        ({"overflow": None}, "must be 'block' or 'drop_oldest', not None"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, told):
    with pytest.raises(PlanError, match=told):
        QuantumPartitioner().stream(**options)


async def test_results_come_as_units_complete():
    flow = QuantumPartitioner()
    slow_may_end = asyncio.Event()

    @flow.unit
    async def slow(ctx):
        await slow_may_end.wait()
        return "slow"

    @flow.unit
    async def quick(ctx):
        return "quick"

    got = []
    async for name, value in flow.results():
        got.append((name, value))
        slow_may_end.set()
    assert got == [("quick", "quick"), ("slow", "slow")]
    assert flow.last_result.ok


async def test_results_of_children_come_when_they_are_asked_for():
    flow = QuantumPartitioner()
    flow.map(lambda item: item * 2, [1, 2], name="twice")
    assert [item async for item in flow.results()] == [("twice", [2, 4])]
    named = dict([item async for item in flow.results(children=True)])
    assert named == {"twice[0]": 2, "twice[1]": 4, "twice": [2, 4]}


async def test_leaving_the_block_of_results_cancels_the_run():
    flow, stopped = QuantumPartitioner(), []

    @flow.unit
    async def hangs(ctx):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("hangs")

    flow.add_unit(lambda ctx: 1, name="one")
    async with flow.results() as results:
        async for name, _ in results:
            assert name == "one"
            break
    assert stopped == ["hangs"]
    assert results.result.states["hangs"] is UnitState.CANCELED


async def test_leaving_a_plain_loop_over_results_cancels_the_run():
    flow, stopped = QuantumPartitioner(), asyncio.Event()

    @flow.unit
    async def hangs(ctx):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    flow.add_unit(lambda ctx: 1, name="one")
    async for _ in flow.results():
        break
    async with asyncio.timeout(5):
        await stopped.wait()
        while flow.last_result is None:
            await asyncio.sleep(0)


async def test_results_end_with_the_error_of_the_run():
    from quantum_async import ExecutionError

    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="good")
    flow.add_unit(lambda ctx: 1 / 0, name="bad")
    got = []
    with pytest.raises(ExecutionError):  # noqa: PT012 - the loop is what is tested
        async for name, _ in flow.results():
            got.append(name)
    assert got == ["good"]
