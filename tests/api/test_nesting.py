"""Partitioners inside partitioners: `include`, and `ctx.run` inside a unit."""

import asyncio

import anyio
import pytest

from quantum_async import (
    Limit,
    PlanError,
    QuantumPartitioner,
    RunResult,
    UnitState,
)
from quantum_async.core import events

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED, TIMEOUT = UnitState.CANCELED, UnitState.TIMEOUT


def made(**options):
    return QuantumPartitioner(**{"failure_policy": "collect", **options})


@pytest.fixture
def flow():
    return made()


@pytest.fixture
def inner():
    """Return a partitioner of two units: ``last`` is ten times the input ``n`` plus one."""
    flow = made(name="inner")

    @flow.unit
    async def first(n):
        return 10 * n

    @flow.unit
    async def last(first):
        return first + 1

    return flow


def hanging(cleaned):
    flow = made()

    @flow.unit
    async def hangs():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append("hangs")

    return flow


# -- include --------------------


async def test_a_partitioner_is_one_unit(flow, inner):
    part = flow.include(inner, "part")

    @flow.unit
    async def after(part):
        return part["last"]

    result = await flow.run({"n": 2})
    assert isinstance(result[part], RunResult)
    assert result["after"] == result["part"]["last"] == result["part/last"] == 21
    assert result.states == {"part": COMPLETED, "after": COMPLETED}
    assert result.units["part/first"].result == 20
    assert result.units["part/first"].name == "part/first"
    assert result.units["part"].ran_on == "run"
    assert "part/last" in result
    for name in ("part/none", "part/", "none/last"):
        assert name not in result
        assert name not in result.units


@pytest.mark.parametrize("how", ["value", "handle", "function"])
async def test_its_input_is_given(flow, inner, how):
    @flow.unit
    async def number():
        return 4

    given = {"value": {"n": 4}, "handle": {"n": number}, "function": lambda ctx: {"n": ctx["k"]}}
    flow.include(inner, "part", input=given[how])
    assert (await flow.run({"k": 4}))["part/last"] == 41


async def test_it_waits_for_its_dependencies(flow, inner):
    log = []

    @flow.unit
    async def before(): ...

    flow.include(inner, "part", input={"n": 1}, dependencies=[before])
    await flow.run(observers=[log.append])
    told = [(type(e), e.unit) for e in log if isinstance(e, events.UnitStarted)]
    assert [unit for _, unit in told] == ["before", "part", "part/first", "part/last"]


async def test_the_same_partitioner_may_be_included_twice_and_deeply(flow, inner):
    middle = made()
    middle.include(inner, "one", input={"n": 1})
    middle.include(inner, "two", input={"n": 2})
    flow.include(middle, "a")
    flow.include(middle, "b")
    result = await flow.run()
    assert [result[f"{x}/{y}/last"] for x in "ab" for y in ("one", "two")] == [11, 21, 11, 21]
    assert result["a"]["two/last"] == 21


def test_a_partitioner_that_includes_itself_is_refused(flow, inner):
    with pytest.raises(PlanError, match="include its own partitioner"):
        flow.include(flow, "self")
    flow.include(inner, "inner")
    with pytest.raises(PlanError, match="include its own partitioner"):
        inner.include(flow, "circle")


def test_only_partitioners_and_known_options_are_taken(flow, inner):
    with pytest.raises(PlanError, match="takes a partitioner"):
        flow.include(lambda: None, "part")
    with pytest.raises(PlanError, match="no option 'timeout'"):
        flow.include(inner, "part", timeout=3)


async def test_a_condition_skips_all_of_it(flow, inner):
    flow.include(inner, "part", when=lambda ctx: False)
    result = await flow.run()
    assert result.ok
    assert result.units["part"].cause == "condition"
    assert "part/last" not in result.units


async def test_bad_input_of_an_included_partitioner_fails_its_unit(flow, inner):
    flow.include(inner, "part", input={"m": 1})

    @flow.unit
    async def beside():
        return 1

    result = await flow.run()
    assert result["beside"] == 1
    with pytest.raises(PlanError, match="'first' has a parameter 'n'"):
        raise result.errors["part"]


# -- ctx.run --------------------


async def test_a_unit_runs_partitioners_by_turns(flow, inner):
    @flow.unit
    async def loop(ctx):
        return [(await ctx.run(inner, {"n": n}))["last"] for n in range(3)]

    result = await flow.run()
    assert result["loop"] == [1, 11, 21]
    assert result["loop/last"] == 1
    assert result["loop/2/last"] == 11
    assert result["loop/3/last"] == result.units["loop/3/last"].result == 21
    assert "loop/4/last" not in result


async def test_a_graph_may_be_made_of_data(flow):
    @flow.unit
    async def agent(ctx, tools):
        graph = made()
        for tool in tools:
            graph.add_unit(lambda ctx, tool=tool: tool.upper(), name=tool)
        return dict(await ctx.run(graph))

    result = await flow.run({"tools": ["look", "read"]})
    assert result["agent"] == {"look": "LOOK", "read": "READ"}
    assert result["agent/read"] == "READ"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_depth_of_fifty_does_not_deadlock(workers):
    flow = made(max_workers=workers)
    running = most = 0

    @flow.unit
    async def leaf(n):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    @flow.unit
    async def down(ctx, n, leaf):
        return 0 if n == 0 else 1 + (await ctx.run(flow, {"n": n - 1}))["down"]

    result = await flow.run({"n": 50})
    assert result["down"] == 50
    assert most <= workers
    deepest = "down/" * 50 + "down"
    assert result[deepest] == 0
    assert result.units[deepest].state is COMPLETED
    assert "down/" * 51 not in result.units
    assert result.explain()


@pytest.mark.parametrize("workers", [1, 2])
async def test_runs_side_by_side_share_the_slots(flow, workers):
    wide = made()
    running = most = 0

    async def count(ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1

    for number in range(5):
        wide.add_unit(count, [f"u{number - 1}"] if number > 2 else [], name=f"u{number}")

    @flow.unit
    async def many(ctx):
        await asyncio.gather(*(ctx.run(wide) for _ in range(4)))
        await count(ctx)

    flow.include(wide, "part")
    assert (await flow.run(max_workers=workers)).ok
    assert most == workers


async def test_a_unit_has_its_slot_back_after_the_last_of_its_runs(flow):
    # The one slot, back after the short run, would be missing for the long one.
    chain = made()

    @chain.unit
    async def length(n):
        return n

    @chain.unit
    async def runs(ctx, length):
        for _ in range(length):
            await asyncio.sleep(0)

    @chain.unit
    async def last(runs): ...

    @flow.unit
    async def both(ctx):
        slow = asyncio.create_task(ctx.run(chain, {"n": 9}))
        await ctx.run(chain, {"n": 0})
        return await slow

    result = await flow.run(max_workers=1)
    assert result.ok
    assert result["both"].ok


@pytest.mark.parametrize("limit", [asyncio.timeout, anyio.fail_after])
async def test_a_unit_that_stops_waiting_has_its_slot_again(flow, virtual_clock, limit):
    running, most = 0, 0

    async def busy(ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(3)
        running -= 1

    @flow.unit
    async def impatient(ctx):
        try:
            async with anyio.create_task_group():
                if limit is asyncio.timeout:
                    async with limit(1):
                        await ctx.run(hanging([]))
                else:
                    with limit(1):
                        await ctx.run(hanging([]))
        except* TimeoutError:
            await busy(ctx)
        return "went on"

    for number in range(3):
        flow.add_unit(busy, name=f"busy{number}")
    result = await flow.run(max_workers=1)
    assert result["impatient"] == "went on"
    assert result.states["impatient"] is COMPLETED
    assert most == 1


async def test_limits_are_shared_and_not_held_while_a_unit_waits():
    flow = made(limits={"api": Limit(concurrency=1)})
    inner = made()
    inner.add_unit(lambda ctx: "called", name="call", uses="api")

    @flow.unit(uses="api")
    async def outer(ctx):
        return (await ctx.run(inner))["call"]

    assert (await flow.run())["outer"] == "called"
    with pytest.raises(PlanError, match="'call' uses 'api', and there is no such limit"):
        await inner.run()


@pytest.mark.parametrize("outer_limits", [None, {"api": 3}, {"db": 2}])
async def test_a_partitioner_keeps_its_own_limits_where_the_run_has_none_of_the_name(outer_limits):
    inner = made(limits={"db": 1})
    flow = made(limits=outer_limits)
    running = most = 0

    async def query(ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    for number in range(5):
        inner.add_unit(query, name=f"q{number}", uses="db")
    flow.include(inner, "one")
    flow.include(inner, "two")
    assert (await flow.run()).ok
    assert most == (2 if outer_limits == {"db": 2} else 1)


async def test_events_of_nested_runs_are_events_of_the_run(flow, inner):
    log = []

    @flow.unit
    async def outer(ctx):
        await ctx.run(inner, {"n": 1})

    flow.include(inner, "part", input={"n": 1})
    result = await flow.run(observers=[log.append])
    ended = [e.unit for e in log if isinstance(e, events.UnitCompleted)]
    assert sorted(ended) == [
        "outer", "outer/first", "outer/last", "part", "part/first", "part/last",
    ]  # fmt: skip
    assert {e.run_id for e in log} == {result.run_id}
    assert [e.seq for e in log] == list(range(len(log)))
    assert sum(isinstance(e, events.RunStarted) for e in log) == 1
    assert sum(isinstance(e, events.RunFinished) for e in log) == 1


async def test_the_last_result_is_that_of_the_outer_run_alone(flow, inner):
    flow.include(inner, "part", input={"n": 1})
    result = await flow.run()
    assert flow.last_result is result
    assert inner.last_result is None


@pytest.mark.parametrize("option", ["observers", "run_id", "priority"])
async def test_options_that_are_the_outer_runs_are_refused(flow, inner, option):
    @flow.unit
    async def outer(ctx):
        await ctx.run(inner, {"n": 1}, **{option: 1})

    with pytest.raises(PlanError, match=option):
        raise (await flow.run()).errors["outer"]


async def test_options_of_a_run_are_its_own(flow, inner):
    @flow.unit
    async def outer(ctx):
        return await ctx.run(inner, overrides={"first": 5}, targets=["last"], max_workers=1)

    assert (await flow.run())["outer"]["last"] == 6


async def test_a_thread_runs_a_partitioner_through_the_loop(flow, inner):
    @flow.unit
    def threaded(ctx):
        return anyio.from_thread.run(ctx.run, inner, {"n": 3})["last"]

    result = await flow.run(max_workers=1)
    assert result["threaded"] == result["threaded/last"] == 31


async def test_in_a_thread_itself_it_is_refused(flow, inner):
    @flow.unit
    def threaded(ctx):
        asyncio.run(ctx.run(inner, {"n": 3}))

    with pytest.raises(RuntimeError, match=r"use anyio.from_thread.run"):
        raise (await flow.run()).errors["threaded"]
