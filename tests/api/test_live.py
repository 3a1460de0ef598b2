"""What may be asked of a run while it goes on: what runs, and what a unit waits for."""

import asyncio

import pytest

from quantum_async import Limit, QuantumPartitioner, RetryPolicy
from quantum_async.core.events import UnitEmitted, UnitRetrying, UnitStarted


@pytest.fixture
def held():
    """What units may wait for, to be asked while they do."""
    return asyncio.Event()


async def until(events, kind, unit):
    async for event in events:
        if isinstance(event, kind) and event.unit == unit:
            return
    raise AssertionError(f"no {kind.__name__} of {unit}")


async def test_a_unit_waits_for_dependencies_that_have_not_ended(held):
    flow = QuantumPartitioner()

    @flow.unit
    async def load(ctx):
        await held.wait()

    flow.add_unit(lambda ctx: 1, ["load"], name="clean")
    flow.add_unit(lambda ctx: 1, ["clean", "load"], name="report")
    async with flow.stream() as events:
        await until(events, UnitStarted, "load")
        assert events.explain("report") == "report waits for clean (pending), load (running)"
        assert events.explain(load).startswith("load has been running for 0.0")
        assert list(events.running) == ["load"]
        assert "(attempt 1, loop)" in events.explain("load")
        with pytest.raises(KeyError, match="did you mean 'clean'"):
            events.explain("clen")
        held.set()
        async for _ in events:
            pass
        assert events.running == {}
        assert events.explain("load").startswith("load completed")


async def test_a_ready_unit_waits_for_a_slot(held):
    flow = QuantumPartitioner(max_workers=1)
    flow.add_unit(lambda ctx: held.wait(), name="a")
    flow.add_unit(lambda ctx: held.wait(), name="b")
    async with flow.stream(mode="sequential") as events:
        await until(events, UnitStarted, "a")
        assert events.explain("b") == "b is ready and waits for a slot: all 1 of the run are in use"


async def test_a_ready_unit_waits_for_a_limit(held):
    flow = QuantumPartitioner(limits={"api": Limit(1), "rate": Limit(rate=1, per=1000)})

    async def wait(ctx):
        await held.wait()

    flow.add_unit(wait, name="a", uses={"api": 1, "rate": 1})
    flow.add_unit(wait, name="b", uses="api")
    flow.add_unit(wait, name="c", uses="rate")
    async with flow.stream() as events:
        await until(events, UnitStarted, "a")
        assert events.explain("b") == "b is ready and waits for the limit 'api'"
        assert events.explain("c").startswith("c is ready and waits for the limit 'rate', in ")


async def test_a_unit_backs_off():
    import tenacity

    flow = QuantumPartitioner()
    policy = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(100))

    @flow.unit(retry=policy)
    async def fails(ctx):
        raise ConnectionError

    async with flow.stream() as events:
        await until(events, UnitRetrying, "fails")
        await asyncio.sleep(0)
        told = events.explain("fails")
    assert told.startswith("fails backs off for ")
    assert told.endswith(" s more, before attempt 2")


async def test_a_unit_waits_for_its_resource(held):
    flow = QuantumPartitioner()

    @flow.resource
    async def pool():
        opening.set()
        await held.wait()
        yield 1

    opening = asyncio.Event()

    @flow.unit
    async def query(pool):
        return pool

    async with flow.stream() as events:
        await opening.wait()
        assert events.explain("query") == "query waits for resources to open: pool"
        assert events.running == {}


async def test_units_of_maps_and_nested_runs_are_told_of(held):
    inner = QuantumPartitioner()

    @inner.unit
    async def leaf(ctx):
        ctx.emit("here")
        await held.wait()

    inner.add_unit(lambda ctx: 1, ["leaf"], name="after")
    flow = QuantumPartitioner()
    flow.include(inner, "inside")

    async def wait(item):
        await held.wait()

    flow.map(wait, [1, 2], name="map")
    async with flow.stream() as events:
        await until(events, UnitEmitted, "inside/leaf")
        assert {"inside", "inside/leaf", "map", "map[0]", "map[1]"} == events.running.keys()
        assert events.explain("inside/after") == "inside/after waits for leaf (running)"
        assert "waits for its own units: map[0], map[1]" in events.explain("map")
        assert events.explain("map[1]").startswith("map[1] has been running")
        held.set()
        async for _ in events:
            pass
        assert events.explain("inside/leaf").startswith("inside/leaf completed")


async def test_each_of_several_nested_runs_is_asked_for_its_own_units(held):
    inner = QuantumPartitioner()

    @inner.unit
    async def leaf(ctx):
        ctx.emit("here")
        await held.wait()

    flow = QuantumPartitioner()

    @flow.unit
    async def twice(ctx):
        await asyncio.gather(ctx.run(inner), ctx.run(inner))

    async with flow.stream() as events:
        await until(events, UnitEmitted, "twice/2/leaf")
        assert events.explain("twice/2/leaf").startswith("twice/2/leaf has been running")
        assert events.explain("twice/leaf").startswith("twice/leaf has been running")
        with pytest.raises(KeyError, match="no unit"):
            events.explain("twice/2/other")


async def test_a_unit_with_a_condition_waits_for_events_to_be_taken():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="maybe", when=lambda ctx: True)
    async with flow.stream(buffer=1) as events:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert events.explain("maybe").startswith("maybe waits for somebody to take events")
        async for _ in events:
            pass


async def test_nothing_can_be_asked_before_the_run():
    events = QuantumPartitioner().stream()
    assert events.running == {}
    assert events.plan is None
    with pytest.raises(RuntimeError, match="not begun"):
        events.explain("a")
