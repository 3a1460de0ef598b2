"""Streaming units, and maps that take items while they still come."""

import asyncio

import pytest

from quantum_async import QuantumPartitioner, UnitState
from quantum_async.engine.streams import BOUND

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED = UnitState.CANCELED


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


async def same(item):
    return item


def counting(flow, most, name="source", **options):
    """Declare a streaming unit that gives numbers, and return what it has given."""
    given = []

    @flow.unit(name=name, **options)
    async def source():
        for number in range(most):
            given.append(number)
            yield number

    return given


# -- streaming units --------------------


async def test_a_consumer_that_does_not_stream_gets_the_list(flow):
    counting(flow, 3)

    @flow.unit
    async def total(source):
        return sum(source)

    result = await flow.run()
    assert result["source"] == [0, 1, 2]
    assert result["total"] == 3


async def test_it_gets_what_it_names_and_the_context(flow):
    @flow.unit
    async def source(ctx, first, *, step=2):
        yield ctx.unit_id
        yield first + step

    assert (await flow.run({"first": 1}))["source"] == ["source", 3]


async def test_ctx_stream_gets_items_as_they_come(flow):
    order = []

    @flow.unit
    async def source():
        for number in range(3):
            order.append(f"give {number}")
            yield number
            await asyncio.sleep(0)

    @flow.unit(after=[source])
    async def reader(ctx):
        async for item in ctx.stream("source"):
            order.append(f"take {item}")
        return "read"

    result = await flow.run()
    assert result["reader"] == "read"
    assert order.index("take 0") < order.index("give 2")


async def test_a_helper_may_read_if_the_unit_says_so(flow):
    counting(flow, 500)

    async def all_of(ctx):
        return [item async for item in ctx.stream("source")]

    @flow.unit(streams=["source"], after=["source"])
    async def reader(ctx):
        return await all_of(ctx)

    assert (await flow.run())["reader"] == list(range(500))


async def test_the_stream_of_any_other_dependency_is_that_of_its_result(flow):
    flow.add_unit(lambda ctx: [1, 2], name="plain")

    @flow.unit(after=["plain"])
    async def reader(ctx):
        return [item async for item in ctx.stream("plain")]

    assert (await flow.run())["reader"] == [1, 2]


async def test_two_readers_get_all_items(flow):
    counting(flow, 3 * BOUND)

    async def read(ctx):
        return [item async for item in ctx.stream("source")]

    flow.add_unit(read, ["source"], "fast")
    flow.add_unit(read, ["source"], "slow")
    result = await flow.run()
    assert result["fast"] == result["slow"] == result["source"] == list(range(3 * BOUND))


async def test_a_streaming_unit_may_read_another(flow):
    counting(flow, 100)

    @flow.unit(after=["source"])
    async def pairs(ctx):
        before = None
        async for item in ctx.stream("source"):
            if item % 2:
                yield before, item
            before = item

    flow.map(sum, pairs, name="sums")
    assert (await flow.run())["sums"] == [2 * n + 1 for n in range(0, 100, 2)]


async def test_a_synchronous_generator_is_no_unit(flow):
    with pytest.raises(Exception, match="generator"):

        @flow.unit
        def source():
            yield 1


# -- back-pressure --------------------


@pytest.mark.parametrize("workers", [1, 2, None])
async def test_no_more_than_the_bound_wait_for_a_map(flow, workers):
    given, taken, most = counting(flow, 300), [], 0

    async def take(item):
        nonlocal most
        taken.append(item)
        most = max(most, len(given) - len(taken))
        await asyncio.sleep(0)
        return item

    flow.map(take, "source", name="m", max_concurrency=2)
    result = await flow.run(max_workers=workers)
    assert result["m"] == list(range(300))
    assert most <= BOUND + 2  # those that have started may not have come to their first line


@pytest.mark.parametrize("workers", [1, 2, None])
async def test_no_more_than_the_bound_wait_for_a_reader(flow, workers):
    given, taken, most = counting(flow, 300), [], 0

    @flow.unit(after=["source"])
    async def reader(ctx):
        nonlocal most
        async for item in ctx.stream("source"):
            taken.append(item)
            most = max(most, len(given) - len(taken))
            await asyncio.sleep(0)

    result = await flow.run(max_workers=workers)
    assert result.ok
    assert taken == list(range(300))
    assert most <= BOUND


async def test_no_more_than_the_bound_wait_of_an_asynchronous_iterable(flow):
    given = []

    async def items():
        for number in range(300):
            given.append(number)
            yield number

    most, taken = 0, []

    async def take(item):
        nonlocal most
        taken.append(item)
        most = max(most, len(given) - len(taken))
        await asyncio.sleep(0)

    flow.map(take, "items", name="m", max_concurrency=3)
    assert (await flow.run({"items": items()})).ok
    assert taken == list(range(300))
    assert most <= BOUND + 3  # those that have started may not have come to their first line


async def test_back_pressure_goes_through_a_chain_of_maps(flow):
    given, ended, most = counting(flow, 500), [], 0

    async def last(item):
        nonlocal most
        await asyncio.sleep(0)
        ended.append(item)
        most = max(most, len(given) - len(ended))

    first = flow.map(same, "source", name="first")
    flow.map(last, flow.map(same, first, name="second"), name="last", max_concurrency=1)
    assert (await flow.run()).ok
    assert ended == list(range(500))
    assert most <= 2 * 3 * BOUND  # in each map, as many wait as are on the way


async def test_a_source_that_waits_for_room_holds_no_slot(flow):
    counting(flow, 10 * BOUND)
    flow.map(same, "source", name="m")

    @flow.unit(after=["source"])
    async def reader(ctx):
        return sum([item async for item in ctx.stream("source")])

    result = await flow.run(max_workers=1)
    assert result["reader"] == sum(result["m"]) == sum(range(10 * BOUND))


async def test_a_reader_that_stops_early_does_not_stop_its_source(flow):
    counting(flow, 10 * BOUND)

    @flow.unit(after=["source"])
    async def reader(ctx):
        async for item in ctx.stream("source"):
            if item == 3:
                break
        return item

    result = await flow.run(max_workers=1)
    assert result["reader"] == 3
    assert len(result["source"]) == 10 * BOUND


async def test_a_taker_that_needs_the_sources_end_does_not_hold_it_up(flow):
    #  source → total → shares (a map over source)      source → m → reader (of source)
    counting(flow, 10 * BOUND)

    @flow.unit
    async def total(source):
        return sum(source)

    flow.map(lambda item, total: item / total, "source", name="shares")
    flow.map(same, "source", name="m")

    @flow.unit(after=["source"])
    async def reader(ctx, m):
        return len([item async for item in ctx.stream("source")])

    result = await flow.run()
    assert sum(result["shares"]) == pytest.approx(1)
    assert result["reader"] == 10 * BOUND


async def test_a_taker_that_needs_the_end_of_what_feeds_its_source_does_not_hold_it_up(flow):
    counting(flow, 10 * BOUND)
    flow.map(same, "source", name="m")

    @flow.unit
    async def total(source):
        return sum(source)

    flow.map(lambda item, total: item / total, "m", name="shares")
    assert sum((await flow.run())["shares"]) == pytest.approx(1)


# -- order --------------------


async def test_children_start_while_an_asynchronous_iterable_still_yields(flow):
    order = []

    async def items():
        for number in range(3):
            order.append(f"give {number}")
            yield number
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def take(item):
        order.append(f"take {item}")

    flow.map(take, "items", name="m")
    await flow.run({"items": items()})
    assert order == [f"{what} {n}" for n in range(3) for what in ("give", "take")]


@pytest.mark.parametrize("make", [list, iter])
async def test_a_chain_of_maps_goes_depth_first(flow, make):
    order = []

    def step(name):
        async def note(item):
            order.append((item, name))
            await asyncio.sleep(0)
            return item

        return note

    @flow.unit
    async def items():
        return make(range(4))

    a = flow.map(step("a"), items, name="a")
    b = flow.map(step("b"), a, name="b")
    flow.map(step("c"), b, name="c")

    @flow.unit
    async def after(b):
        order.append("after")

    await flow.run(max_workers=1)
    assert [one for one in order if one != "after"] == [
        (item, name) for item in range(4) for name in "abc"
    ]
    assert order.index("after") > order.index((3, "b"))


async def test_an_item_does_not_wait_for_the_others(flow, virtual_clock):
    ended = []

    async def wait(item):
        await asyncio.sleep(item)
        return item

    async def note(item):
        ended.append((item, virtual_clock.time()))

    flow.map(note, flow.map(wait, [30, 1, 2], name="a"), name="b")
    await flow.run()
    assert [item for item, _ in ended] == [1, 2, 30]
    assert all(moment == pytest.approx(item, abs=0.01) for item, moment in ended)


async def test_results_of_a_chain_stand_in_the_order_of_the_items(flow, virtual_clock):
    async def wait(item):
        await asyncio.sleep(item)
        return item

    flow.map(same, flow.map(wait, [3, 1, 2], name="a"), name="b")
    flow.map(same, "b", name="c", ordered=False)
    result = await flow.run()
    assert result["b"] == [3, 1, 2]
    assert result["c"] == [1, 2, 3]
    assert result["b[0]"] == 3


async def test_the_stream_of_a_map_is_of_its_results_as_they_come(flow, virtual_clock):
    async def wait(item):
        await asyncio.sleep(item)
        return item

    flow.map(wait, [3, 1, 2], name="m")

    @flow.unit(after=["m"])
    async def reader(ctx):
        return [(item, round(virtual_clock.time())) async for item in ctx.stream("m")]

    assert (await flow.run())["reader"] == [(1, 1), (2, 2), (3, 3)]


async def test_two_maps_over_one_stream_each_get_all(flow):
    counting(flow, 200)
    flow.map(same, "source", name="a")
    flow.map(same, "source", name="b", max_concurrency=1)
    result = await flow.run()
    assert result["a"] == result["b"] == list(range(200))


@pytest.mark.parametrize("workers", [1, 3])
async def test_memory_is_flat_where_results_are_not_kept(flow, workers):
    counting(flow, 3000)

    async def one(item):
        await asyncio.sleep(0)
        return item

    flow.map(one, flow.map(one, "source", name="a"), name="b")
    result = await flow.run(max_workers=workers, keep=[])
    assert result.ok
    assert dict(result) == {}
    assert len(result._ledger.results) < 5 * BOUND
