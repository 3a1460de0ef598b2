"""Streaming units that fail, are given, left out or cancelled, and what takes their items."""

import asyncio
from itertools import pairwise

import pytest

from quantum_async import DependencyError, QuantumPartitioner, UnitState
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


# -- failures --------------------


async def test_a_source_that_fails_in_the_middle(flow):
    @flow.unit
    async def source():
        yield 1
        yield 2
        raise LookupError("no more")

    flow.map(same, source, name="m")

    @flow.unit(after=[source])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    result = await flow.run()
    assert result.states == {
        "source": FAILED, "m": SKIPPED, "m[0]": COMPLETED, "m[1]": COMPLETED, "reader": FAILED,
    }  # fmt: skip
    assert result.units["m"].cause == "'source' failed"
    with pytest.raises(DependencyError, match="'source' ended without a result: it is failed"):
        raise result.errors["reader"]


async def test_a_source_that_is_tried_again_gives_no_item_twice(flow, virtual_clock):
    @flow.unit(retries=2)
    async def source(ctx):
        for number in range(3 * ctx.attempt):
            yield number
        if ctx.attempt < 3:
            raise ConnectionError

    flow.map(same, source, name="m")

    @flow.unit(after=[source])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    result = await flow.run()
    assert result["source"] == result["m"] == result["reader"] == list(range(9))


@pytest.mark.parametrize(("before", "seen"), [(0, ["x", "y"]), (1, [0, "y"]), (3, [0, 1, 2])])
async def test_a_fallback_gives_what_has_not_been_given_yet(flow, before, seen):
    @flow.unit(fallback=["x", "y"])
    async def source():
        for number in range(before):
            yield number
        raise LookupError

    flow.map(same, source, name="m")

    @flow.unit(after=[source])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    result = await flow.run()
    assert result.ok
    assert result["source"] == ["x", "y"]
    assert result["m"] == result["reader"] == seen


async def test_a_source_has_a_timeout_also_while_it_waits_for_room(flow, virtual_clock):
    counting(flow, 10 * BOUND, timeout=5)

    async def slow(item):
        await asyncio.sleep(1)

    flow.map(slow, "source", name="m", max_concurrency=1)
    result = await flow.run()
    assert result.states["source"] is UnitState.TIMEOUT
    assert result.states["m"] is SKIPPED
    assert virtual_clock.time() < 5 + 2 * BOUND


async def test_a_condition_skips_a_source_and_what_is_over_it(flow):
    counting(flow, 3, when=lambda ctx: False)
    flow.map(same, "source", name="m")
    result = await flow.run()
    assert result.ok
    assert result.states == {"source": SKIPPED, "m": SKIPPED}
    assert result.units["m"].cause == "'source' was skipped (condition)"


async def test_a_source_whose_result_is_given(flow):
    counting(flow, 3)
    flow.map(same, "source", name="m")

    @flow.unit(after=["source"])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    result = await flow.run(overrides={"source": [7, 8]})
    assert result["m"] == result["reader"] == [7, 8]
    assert result.units["source"].ran_on == "given"
    again = await flow.run(resume_from=result)
    assert again["m"] == [7, 8]
    assert again.units["m"].ran_on == "given"
    assert (await flow.run(overrides={"m": ["x"]}, targets=["m"]))["m"] == ["x"]


async def test_targets_and_keep(flow):
    counting(flow, 3)
    flow.map(same, "source", name="m")
    flow.map(same, "m", name="n")
    result = await flow.run(targets=["m"])
    assert dict(result) == {"source": [0, 1, 2], "m": [0, 1, 2]}
    assert "n" not in result.units
    result = await flow.run(keep=["n"])
    assert dict(result) == {"n": [0, 1, 2]}


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_cancelled_anywhere_nothing_is_left(flow, steps):
    opened, closed = [], []

    @flow.unit
    async def source():
        opened.append("source")
        try:
            for number in range(100):
                await asyncio.sleep(0)
                yield number
        finally:
            await asyncio.sleep(0)
            closed.append("source")

    async def items():
        opened.append("items")
        try:
            for number in range(100):
                yield number
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            closed.append("items")

    async def slow(item):
        await asyncio.sleep(0)
        return item

    flow.map(slow, flow.map(slow, source, name="a"), name="b", max_concurrency=2)
    flow.map(slow, "items", name="c", max_concurrency=1)

    @flow.unit(after=[source])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    task = asyncio.create_task(flow.run({"items": items()}, max_workers=3))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert sorted(closed) == sorted(opened)
    if flow.last_result is not None:
        ends = set(flow.last_result.states.values())
        assert ends <= {COMPLETED, CANCELED}


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_what_clean_up_raises_does_not_go_over_a_cancellation(flow, kind, caplog):
    def plain():
        try:
            yield from range(100)
        finally:
            raise ValueError("in clean-up")

    async def asynchronous():
        try:
            for number in range(100):
                yield number
                await asyncio.sleep(0)
        finally:
            raise ValueError("in clean-up")

    hangs = asyncio.Event()

    async def hang(item):
        hangs.set()
        await asyncio.sleep(60)

    flow.map(hang, "items", name="m", max_concurrency=1)
    made = {"plain": plain, "asynchronous": asynchronous}[kind]
    task = asyncio.create_task(flow.run({"items": made()}))
    await hangs.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = flow.last_result.units["m"]
    assert record.state is CANCELED
    assert isinstance(record.error, ValueError)
    assert "raised while it was cancelled" in caplog.text


async def test_the_items_order_is_kept_by_a_reader_under_load(flow):
    counting(flow, 5 * BOUND)

    @flow.unit(after=["source"])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    flow.map(same, "source", name="m", max_concurrency=1)
    read = (await flow.run(max_workers=2))["reader"]
    assert all(before < after for before, after in pairwise(read))
