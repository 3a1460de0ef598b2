"""Doubles in the place of units, and one unit alone: on the engine's own ways."""

import asyncio
import contextvars
import os
import threading
from functools import partial
from unittest.mock import AsyncMock, Mock

import pytest
import tenacity

from quantum_async import (
    CachingQuantumPartitioner,
    ExecutionError,
    MissingInputError,
    PlanError,
    QuantumPartitioner,
    RetryPolicy,
    RunTimeoutError,
    UnitState,
    UnitTimeoutError,
    UnpicklableUnitError,
)
from quantum_async.request import interventions
from quantum_async.testing import Faults, assert_run, run_unit, value

TWICE = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())


@pytest.fixture
def flow():
    flow = QuantumPartitioner()

    @flow.unit
    async def fetch(url):
        return f"page of {url}"

    @flow.unit
    def length(fetch):
        return len(fetch)

    @flow.unit
    async def report(fetch, length):
        return f"{fetch}: {length}"

    return flow


@pytest.fixture(autouse=True)
def no_block_is_left():
    yield
    assert interventions.get() == ()


INPUT = {"url": "x"}


# -- functions and values --------------------------------------------------------------------------


async def test_a_value_is_a_given_result(flow):
    with flow.override({"fetch": "stub"}):
        result = await flow.run(INPUT)
    assert result["report"] == "stub: 4"
    assert_run(result).ran_on("fetch", "given").attempts("fetch", 0)
    assert (await flow.run(INPUT))["fetch"] == "page of x"


async def test_none_is_a_value(flow):
    with flow.override({"length": None}):
        assert (await flow.run(INPUT))["report"] == "page of x: None"


async def test_a_function_is_called_in_the_place_of_the_units_own(flow):
    calls = []

    async def fetch(url):
        calls.append(url)
        return "stub"

    with flow.override({"fetch": fetch}):
        result = await flow.run(INPUT)
    assert calls == ["x"]
    assert_run(result).result("report", "stub: 4").ran_on("fetch", "loop").attempts("fetch", 1)


async def test_handles_are_keys_too(flow):
    with flow.override({flow.units["fetch"]: "stub"}):
        assert (await flow.run(INPUT))["length"] == 4


async def test_a_double_gets_what_the_units_own_binding_gives():
    flow = QuantumPartitioner()
    seen = []

    def note(*args, **kwargs):
        seen.append((args, kwargs))

    a = flow.add_unit(lambda ctx: 1, name="a")
    flow.add_unit(lambda ctx: 2, ["a"], "b")
    flow.add_unit(print, name="c", args=[a, "word"], kwargs={"key": [a]})

    @flow.unit
    def d(a, /, b, ctx, given, other=5): ...

    with flow.override(dict.fromkeys("bcd", note)):
        await flow.run({"given": 4}, mode="sequential")
    (ctx,), none = seen[0]
    assert (ctx["a"], ctx.unit_id, none) == (1, "b", {})
    assert seen[1] == ((1, "word"), {"key": [1]})
    args, kwargs = seen[2]
    assert args == (1,)
    assert kwargs.pop("ctx").unit_id == "d"
    assert kwargs == {"b": None, "given": 4}


@pytest.mark.parametrize("double", [lambda fetch: 40 + 2, partial(lambda n, fetch: n, 42)])
async def test_a_plain_function_runs_where_the_unit_would(flow, double):
    threads = []

    def length(fetch):
        threads.append(threading.current_thread())
        return double(fetch=fetch)

    with flow.override({"length": length}):
        result = await flow.run(INPUT)
    assert_run(result).result("length", 42).ran_on("length", "thread")
    assert threads[0] is not threading.current_thread()


async def test_a_plain_function_in_the_place_of_a_coroutine_function_runs_on_the_loop(flow):
    threads = []

    def fetch(url):
        threads.append(threading.current_thread())
        return "stub"

    with flow.override({"fetch": fetch}):
        assert_run(await flow.run(INPUT)).ran_on("fetch", "loop").result("length", 4)
    assert threads == [threading.current_thread()]


async def test_a_coroutine_function_in_the_place_of_a_plain_one(flow):
    async def length(fetch):
        await asyncio.sleep(0)
        return 42

    with flow.override({"length": length}):
        assert_run(await flow.run(INPUT)).result("length", 42)
        assert_run(await flow.run(INPUT, mode="sequential")).result("length", 42)


@pytest.mark.parametrize("mock", [Mock, AsyncMock])
async def test_mocks_are_functions(flow, mock):
    doubles = {"fetch": mock(return_value="stub"), "length": mock(return_value=7)}
    with flow.override(doubles):
        assert (await flow.run(INPUT))["report"] == "stub: 7"
    doubles["fetch"].assert_called_once_with(url="x")
    doubles["length"].assert_called_once_with(fetch="stub")


async def test_a_function_as_a_value(flow):
    with flow.override({"fetch": value(len)}):
        assert (await flow.run(INPUT, targets=["fetch"]))["fetch"] is len


async def test_another_unit_as_a_double(flow):
    other = QuantumPartitioner()

    @other.unit
    async def fetch(url):
        return "other's"

    with flow.override({"fetch": fetch}):
        assert (await flow.run(INPUT))["fetch"] == "other's"


async def test_retries_time_limits_and_fallbacks_are_the_units_own():
    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit(retry=TWICE)
    async def retried(): ...

    @flow.unit(timeout=0.01)
    async def limited(): ...

    @flow.unit(fallback="instead")
    async def falls_back(): ...

    flaky = Mock(side_effect=[OSError, "second"])
    doubles = {
        "retried": flaky,
        "limited": lambda: asyncio.sleep(60),
        "falls_back": Mock(side_effect=OSError),
    }
    with flow.override(doubles):
        run = assert_run(await flow.run())
    run.attempts("retried", 2).result("retried", "second")
    run.timed_out("limited").fallback_used("falls_back", "instead")


async def test_what_a_double_needs_is_still_run_and_what_a_value_needs_is_not(flow):
    with flow.override({"length": lambda fetch: 1}):
        assert_run(await flow.run(INPUT, targets=["length"])).completed("fetch")
    with flow.override({"length": 1}):
        assert_run(await flow.run(INPUT, targets=["length"])).not_in_run("fetch", "report")


async def test_a_cache_is_neither_asked_nor_told():
    flow = CachingQuantumPartitioner()

    @flow.unit(metadata={"cacheable": True})
    async def square(x):
        return x * x

    with flow.override({"square": lambda x: "stub"}):
        assert_run(await flow.run({"x": 3})).result("square", "stub").ran_on("square", "loop")
    assert_run(await flow.run({"x": 3})).result("square", 9).ran_on("square", "loop")
    with flow.override({"square": lambda x: "stub"}):
        assert_run(await flow.run({"x": 3})).result("square", "stub").ran_on("square", "loop")
    assert_run(await flow.run({"x": 3})).result("square", 9).ran_on("square", "cache")


# -- blocks ----------------------------------------------------------------------------------------


async def test_inner_blocks_decide_and_others_still_hold(flow):
    with flow.override({"fetch": "outer", "length": 1}):
        with flow.override({"fetch": lambda url: "inner"}):
            assert (await flow.run(INPUT))["report"] == "inner: 1"
            with flow.override({"fetch": "innermost"}):
                assert (await flow.run(INPUT))["report"] == "innermost: 1"
            assert (await flow.run(INPUT))["report"] == "inner: 1"
        assert (await flow.run(INPUT))["report"] == "outer: 1"
    assert (await flow.run(INPUT))["report"] == "page of x: 9"


async def test_a_block_goes_before_what_the_call_says(flow):
    for double in ("block", lambda url: "block"):
        with flow.override({"fetch": double}):
            for key in ("fetch", flow.units["fetch"]):
                result = await flow.run(INPUT, overrides={key: "call", "length": 0})
                assert result["report"] == "block: 0"


async def test_a_value_goes_before_an_earlier_result_and_a_function_is_not_called(flow):
    earlier = await flow.run(INPUT)
    with flow.override({"length": 1}):
        assert (await flow.run(INPUT, resume_from=earlier))["length"] == 1
    with flow.override({"length": lambda fetch: 1}):
        assert (await flow.run(INPUT, resume_from=earlier))["length"] == 9


async def test_tasks_do_not_see_each_others_doubles(flow):
    both_inside = asyncio.Barrier(3)

    async def run(double):
        with flow.override({"fetch": double}):
            await both_inside.wait()
            result = await flow.run(INPUT)
            await both_inside.wait()
        return result["fetch"], (await flow.run(INPUT))["fetch"]

    async def without():
        await both_inside.wait()
        result = await flow.run(INPUT)
        await both_inside.wait()
        return result["fetch"]

    found = await asyncio.gather(run("one"), run(lambda url: "two"), without())
    assert found == [("one", "page of x"), ("two", "page of x"), "page of x"]


async def test_tasks_that_are_started_in_a_block_inherit_it(flow):
    left = asyncio.Event()

    async def later():
        await left.wait()
        return (await flow.run(INPUT))["fetch"]

    with flow.override({"fetch": "stub"}):
        task = asyncio.create_task(later())
        async with flow.stream(INPUT) as events:
            async for _ in events:
                pass
    left.set()
    assert await task == "stub"
    assert events.result["fetch"] == "stub"


async def test_runs_inside_units_and_in_threads_see_a_block_too(flow):
    outer = QuantumPartitioner()

    @outer.unit
    async def nested():
        return (await flow.run(INPUT))["fetch"]

    @outer.unit
    def blocking():
        return flow.execute(INPUT)["fetch"]

    with flow.override({"fetch": "stub"}):
        assert dict(await outer.run()) == {"nested": "stub", "blocking": "stub"}


async def test_a_run_that_goes_on_keeps_its_doubles(flow):
    entered, left = asyncio.Event(), asyncio.Event()

    async def fetch(url):
        entered.set()
        await left.wait()
        return "stub"

    with flow.override({"fetch": fetch, "length": lambda fetch: 1}):
        run = asyncio.create_task(flow.run(INPUT))
        await entered.wait()
    left.set()
    assert (await run)["report"] == "stub: 1"


async def test_other_partitioners_do_not_see_a_block(flow):
    other = QuantumPartitioner()

    @other.unit
    async def fetch():
        return "other's"

    with flow.override({"fetch": "stub"}):
        assert (await other.run())["fetch"] == "other's"


async def test_blocks_of_generators_may_end_in_any_order(flow):
    def block(double):
        with flow.override({"fetch": double}):
            yield

    first, second = block("first"), block("second")
    next(first)
    next(second)
    assert (await flow.run(INPUT))["fetch"] == "second"
    next(first, None)
    assert (await flow.run(INPUT))["fetch"] == "second"
    next(second, None)
    assert (await flow.run(INPUT))["fetch"] == "page of x"


async def test_a_block_of_an_asynchronous_generator_may_end_in_another_context(flow):
    async def block():
        with flow.override({"fetch": "stub"}):
            yield (await flow.run(INPUT))["fetch"]

    generator = block()
    contexts = [contextvars.copy_context() for _ in range(2)]
    assert await asyncio.create_task(anext(generator), context=contexts[0]) == "stub"
    await asyncio.create_task(generator.aclose(), context=contexts[1])
    assert contexts[1].run(interventions.get) == ()


@pytest.fixture
def doubled(flow):
    with flow.override({"fetch": "fixture's"}):
        yield flow


@pytest.fixture
async def doubled_by_the_loop(flow):
    with flow.override({"fetch": "fixture's"}):
        yield flow


async def test_a_block_may_be_in_a_fixture(doubled):
    assert (await doubled.run(INPUT))["fetch"] == "fixture's"


async def test_a_block_may_be_in_an_asynchronous_fixture(doubled_by_the_loop):
    assert (await doubled_by_the_loop.run(INPUT))["fetch"] == "fixture's"


async def test_a_block_ends_when_it_is_left_by_an_exception(flow):
    with pytest.raises(ZeroDivisionError), flow.override({"fetch": "stub"}):
        _ = 1 / 0
    assert (await flow.run(INPUT))["fetch"] == "page of x"


def test_a_block_can_be_entered_again(flow):
    block = flow.override({"fetch": "stub"})
    for _ in range(2):
        with block, block:
            assert flow.execute(INPUT)["fetch"] == "stub"
        assert flow.execute(INPUT)["fetch"] == "page of x"


# -- what is refused -------------------------------------------------------------------------------


def test_unknown_names_are_refused_all_at_once(flow):
    stranger = QuantumPartitioner().add_unit(print, name="length")
    with pytest.raises(PlanError) as refused:
        flow.override({"fetsh": 1, stranger: 2, 3: 4, "report": 5})
    messages = [str(problem) for problem in refused.value.problems]
    assert len(messages) == 3
    assert "override names 'fetsh'" in messages[0]
    assert "did you mean 'fetch'?" in messages[0]
    assert "'length'" in messages[1]


def test_a_double_that_is_no_mapping_is_refused(flow):
    with pytest.raises(PlanError, match="a mapping of unit to double, not 'fetch'"):
        flow.override("fetch")


@pytest.mark.parametrize(
    ("unit", "double", "why"),
    [
        ("fetch", lambda: 1, r"with \(url=…\), and does not take that: got an unexpected"),
        ("length", lambda page: 1, r"with \(fetch=…\), and does not take that: "),
        ("context", lambda: 1, r"with \(ctx\), and does not take that: too many positional"),
        ("exact", lambda one: 1, r"with \(…, …, key=…\), and does not take that: "),
    ],
)
def test_a_function_that_cannot_take_the_units_arguments_is_refused(flow, unit, double, why):
    flow.add_unit(lambda ctx: 1, name="context")
    flow.add_unit(print, name="exact", args=[1, 2], kwargs={"key": 3})
    with pytest.raises(PlanError, match=f"the double of unit '{unit}' is called as the .*{why}"):
        flow.override({unit: double})
    flow.override({unit: lambda *_, **__: 1})


async def test_bad_overrides_of_the_call_are_refused_as_ever(flow):
    with flow.override({"fetch": "stub"}), pytest.raises(PlanError, match="overrides must be a"):
        await flow.run(INPUT, overrides=[1])


def test_what_a_block_is(flow):
    block = flow.override({"fetch": "stub", "length": dict})
    assert repr(block) == "<Override: 'length' by <class 'dict'>, 'fetch' is 'stub'>"


# -- one unit alone --------------------------------------------------------------------------------


async def test_one_unit_runs_alone_on_the_results_that_are_given(flow):
    assert await run_unit(flow, "length", {"fetch": "four"}) == 4
    assert await run_unit(flow, flow.units["report"], {flow.units["fetch"]: 1, "length": 2}) == (
        "1: 2"
    )
    assert await run_unit(flow, "fetch", INPUT) == "page of x"
    assert_run(flow.last_result).only("completed", "fetch")


async def test_it_runs_with_its_mode_time_limit_and_retries():
    flow = QuantumPartitioner()
    threads = []

    @flow.unit(retry=TWICE)
    def flaky(above, ctx):
        threads.append(threading.current_thread())
        if ctx.attempt == 1:
            raise OSError
        return above, ctx["key"]

    @flow.unit
    async def above(): ...

    @flow.unit(timeout=0.01)
    async def slow():
        await asyncio.sleep(60)

    assert await run_unit(flow, flaky, {"above": 1, "key": 2}) == (1, 2)
    assert len(threads) == 2
    assert threading.current_thread() not in threads
    with pytest.raises(UnitTimeoutError, match="'slow'"):
        await run_unit(flow, slow)


async def test_its_own_exception_is_raised():
    flow = QuantumPartitioner()
    error = ValueError("no")

    @flow.unit
    async def broken():
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        await run_unit(flow, broken)
    assert caught.value is error
    assert "in unit 'broken', attempt 1, on the event loop" in error.__notes__


async def test_its_fallback_is_its_result():
    flow = QuantumPartitioner()

    @flow.unit(fallback="instead")
    async def broken():
        raise ValueError

    assert await run_unit(flow, broken) == "instead"


async def test_options_of_run_are_passed_on(flow):
    with pytest.raises(ConnectionError):
        await run_unit(
            flow, "length", {"fetch": ""}, faults=Faults().fail("length", error=ConnectionError)
        )
    with pytest.raises(RunTimeoutError):
        await run_unit(flow, "fetch", INPUT, faults=Faults().hang("fetch"), timeout=0.01)


async def test_an_input_that_is_no_mapping():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="above")
    flow.add_unit(lambda ctx: ctx["above"] + ctx.input, ["above"], "unit")
    assert await run_unit(flow, "unit", {"above": 1}, context=5) == 6
    with pytest.raises(PlanError, match="'key' is no dependency of the unit, and beside context="):
        await run_unit(flow, "unit", {"above": 1, "key": 2}, context=5)


async def test_dependencies_that_are_not_given_are_named(flow):
    with pytest.raises(MissingInputError, match="depends on 'fetch', 'length'; give what these"):
        await run_unit(flow, "report")
    with pytest.raises(MissingInputError, match="'fetsh' is no unit; did you mean 'fetch'"):
        await run_unit(flow, "length", {"fetsh": ""})


async def test_what_it_only_comes_after_need_not_be_given():
    flow = QuantumPartitioner()

    @flow.unit
    async def first():
        raise AssertionError("it must not run")

    @flow.unit(after=[first])
    async def blind():
        return "done"

    @flow.unit(after=[first])
    async def sees(ctx):
        return ctx["first"]

    exact = flow.add_unit(lambda: 1, [first], "exact", args=[])
    assert await run_unit(flow, blind) == "done"
    assert await run_unit(flow, exact) == 1
    with pytest.raises(MissingInputError):
        await run_unit(flow, sees)
    assert await run_unit(flow, sees, {first: 3}) == 3


async def test_results_of_other_units_are_refused(flow):
    with pytest.raises(PlanError, match="'length' is no dependency of the unit; it has none"):
        await run_unit(flow, "fetch", {"url": "x", "length": 1})
    with pytest.raises(PlanError, match="'report' is no dependency of the unit; it depends on 'fe"):
        await run_unit(flow, "length", {"fetch": "", flow.units["report"]: 1})
    stranger = QuantumPartitioner().add_unit(print, name="fetch")
    with pytest.raises(PlanError, match="'fetch' is no dependency"):
        await run_unit(flow, "length", {stranger: ""})


async def test_an_unknown_unit_is_refused(flow):
    with pytest.raises(PlanError, match=r"run_unit names 'lenght'.*did you mean 'length'"):
        await run_unit(flow, "lenght", {})


async def test_a_unit_that_was_cancelled_from_outside_is_an_error_of_the_run():
    flow = QuantumPartitioner()

    @flow.unit
    async def unit():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with pytest.raises(ExecutionError, match="'unit' is canceled: cancelled from outside") as error:
        await run_unit(flow, unit)
    assert error.value.result.states == {"unit": UnitState.CANCELED}


# -- in worker processes ---------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_double_of_a_cpu_bound_unit_runs_in_a_worker():
    flow = QuantumPartitioner()

    @flow.unit(mode="process")
    def pid(ctx):
        return os.getpid()

    @flow.unit(mode="process")
    async def pid_by_a_loop(ctx):
        return os.getpid()

    async def elsewhere(ctx):
        return "stub", os.getpid()

    for double in (lambda ctx: ("stub", os.getpid()), elsewhere):
        with flow.override({"pid": double, "pid_by_a_loop": double}):
            result = await flow.run()
        for unit in (pid, pid_by_a_loop):
            assert result[unit] == ("stub", result[unit][1])
            assert result[unit][1] != os.getpid()
            assert_run(result).ran_on(unit, "process")
    assert await run_unit(flow, pid) != os.getpid()


async def test_a_double_that_cannot_travel_is_refused_before_anything_runs():
    flow = QuantumPartitioner()

    @flow.unit(mode="process")
    def unit(): ...

    lock = threading.Lock()
    with flow.override({"unit": lambda: lock}):
        with pytest.raises(UnpicklableUnitError, match=r"'unit'.*variable 'lock'"):
            await flow.run()
        assert flow.last_result is None
        await flow.run(mode="sequential")
