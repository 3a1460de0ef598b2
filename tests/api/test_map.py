"""Maps: one unit for each item, known only at run time."""

import asyncio
import os

import pytest

from quantum_async import (
    ExecutionError,
    PlanError,
    QuantumPartitioner,
    UnitState,
    UnitTimeoutError,
)
from quantum_async.core import events
from quantum_async.engine.streams import BOUND

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED, TIMEOUT = UnitState.CANCELED, UnitState.TIMEOUT


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


async def double(item):
    return item * 2


def pid_and(item):
    return os.getpid(), item


# -- what it goes over --------------------


@pytest.mark.parametrize("make", [list, tuple, iter, lambda items: (i for i in items)])
async def test_a_map_goes_over_a_units_result(flow, make):
    @flow.unit
    async def numbers():
        return make([3, 1, 2])

    doubled = flow.map(double, numbers)
    result = await flow.run()
    assert result[doubled] == result["double"] == [6, 2, 4]


async def test_a_map_goes_over_a_key_of_the_input(flow):
    flow.map(double, "numbers")
    assert (await flow.run({"numbers": [1, 2]}))["double"] == [2, 4]


async def test_a_map_goes_over_an_iterable(flow):
    flow.map(double, range(3))
    for _ in range(2):
        assert (await flow.run())["double"] == [0, 2, 4]


async def test_a_map_goes_over_a_unit_by_name(flow):
    flow.map(double, "later")
    flow.add_unit(lambda ctx: [1], name="later")
    assert (await flow.run())["double"] == [2]


@pytest.mark.parametrize("empty", [[], (), {}, "", iter(())])
async def test_a_map_over_nothing_is_an_empty_list(flow, empty):
    doubled = flow.map(double, "given")

    @flow.unit
    async def after(double):
        return double

    result = await flow.run({"given": empty})
    assert result.ok
    assert result[doubled] == result["after"] == []


async def test_a_map_over_an_asynchronous_generator_that_gives_nothing(flow):
    async def nothing():
        return
        yield

    flow.map(double, "given")
    assert (await flow.run({"given": nothing()}))["double"] == []


async def test_what_cannot_be_iterated_is_named_with_its_type(flow):
    @flow.unit
    async def number():
        return 3

    flow.map(double, number, name="doubled")
    result = await flow.run()
    assert result.states == {"number": COMPLETED, "doubled": FAILED}
    with pytest.raises(TypeError, match="'doubled' maps over a value of type int"):
        raise result.errors["doubled"]
    with pytest.raises(PlanError, match="'m' maps over 3 of type int"):
        flow.map(double, 3, name="m")


async def test_a_key_that_the_input_does_not_have_is_refused_before_anything_runs(flow):
    flow.map(double, "numbers")
    with pytest.raises(PlanError, match="numbers"):
        await flow.run({"number": [1]})


# -- children are units in full --------------------


async def test_children_have_names_records_and_events(flow):
    log = []
    flow.map(double, [5, 6], name="m")
    result = await flow.run(observers=[log.append])
    assert result.states == dict.fromkeys(["m", "m[0]", "m[1]"], COMPLETED)
    assert list(result.units) == ["m", "m[0]", "m[1]"]
    assert result["m[1]"] == result.units["m[1]"].result == 12
    assert result.units["m[1]"].ran_on == "loop"
    assert list(result) == ["m"]
    assert len(result) == 1
    told = [
        (type(e), e.unit) for e in log if isinstance(e, (events.UnitStarted, events.UnitCompleted))
    ]
    assert told.index((events.UnitStarted, "m")) < told.index((events.UnitStarted, "m[0]"))
    assert told[-1] == (events.UnitCompleted, "m")
    for child in ("m[0]", "m[1]"):
        assert (events.UnitCompleted, child) in told


async def test_children_that_do_not_exist_are_none(flow):
    flow.map(double, [5], name="m")
    result = await flow.run()
    for name in ("m[1]", "m[-1]", "m[x]", "m[]", "n[0]", "m[0", "m[0][0]"):
        assert name not in result
        with pytest.raises(KeyError):
            result.units[name]


async def test_children_are_tried_again_one_by_one(flow, virtual_clock):
    tries = []

    async def flaky(ctx, item):
        tries.append((item, ctx.attempt))
        if item and ctx.attempt < 3:
            raise ConnectionError
        return item

    flow.map(flaky, [0, 1], name="m", retries=2)
    result = await flow.run()
    assert result["m"] == [0, 1]
    assert tries == [(0, 1), (1, 1), (1, 2), (1, 3)]
    assert result.units["m[1]"].attempts == 3
    assert result.units["m"].attempts == 1


async def test_timeouts_and_fallbacks_are_of_each_child(flow, virtual_clock):
    flow.map(asyncio.sleep, [1, 9], name="slow", timeout=5, fallback="late")
    flow.map(asyncio.sleep, [1, 9], name="late", timeout=5)
    result = await flow.run()
    assert result["slow"] == [None, "late"]
    assert result.units["slow[1]"].fallback_used
    assert result.states["late[1]"] is TIMEOUT
    assert result.states["late"] is FAILED
    assert isinstance(result.errors["late"].exceptions[0], UnitTimeoutError)
    assert virtual_clock.time() < 6


async def test_a_fallback_may_be_a_function(flow):
    async def inverse(item):
        return 1 / item

    async def instead(ctx, error):
        return f"{ctx.unit_id}: {type(error).__name__}"

    flow.map(inverse, [0, 1], name="m", fallback=instead)
    assert (await flow.run())["m"] == ["m[0]: ZeroDivisionError", 1.0]


async def test_plain_functions_run_in_threads(flow):
    flow.map(pid_and, [1, 2], name="m")
    result = await flow.run()
    assert result["m"] == [(os.getpid(), 1), (os.getpid(), 2)]
    assert result.units["m[0]"].ran_on == "thread"


@pytest.mark.slow
async def test_children_run_in_worker_processes(flow):
    flow.map(pid_and, [1, 2, 3], name="m", mode="process")
    result = await flow.run()
    assert [item for _, item in result["m"]] == [1, 2, 3]
    assert os.getpid() not in {pid for pid, _ in result["m"]}
    assert result.units["m[2]"].ran_on == "process"


async def test_everything_is_inline_in_a_sequential_run(flow):
    flow.map(pid_and, flow.map(double, [1, 2], name="a"), name="b")
    result = await flow.run(mode="sequential")
    assert [item for _, item in result["b"]] == [2, 4]


# -- what the function gets --------------------


async def test_the_function_gets_the_item_the_context_and_what_it_names(flow):
    @flow.unit
    async def factor():
        return 10

    async def scaled(item, ctx, factor, shift=0, *, scale):
        return ctx.unit_id, item * factor * scale + shift

    flow.map(scaled, [1, 2], name="m")
    result = await flow.run({"scale": 2, "shift": 1})
    assert result["m"] == [("m[0]", 21), ("m[1]", 41)]
    assert flow.units["m"].dependencies == ["factor"]


async def test_the_context_may_come_first(flow):
    async def told(ctx, item):
        ctx.record_metric(f"of {item}", ctx.attempt)
        return ctx.input["x"] + item

    flow.map(told, [1, 2], name="m")
    result = await flow.run({"x": 10})
    assert result["m"] == [11, 12]
    assert result.metrics["of 2"] == 1


async def test_the_item_may_be_none_or_an_exception(flow):
    async def same(item):
        return item

    items = [None, ValueError("as a value"), StopIteration(), (), {}]
    flow.map(same, "items")
    assert (await flow.run({"items": items}))["same"] == items


async def test_a_function_without_room_for_an_item_is_refused(flow):
    with pytest.raises(PlanError, match="takes no item"):
        flow.map(lambda: 1, [1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": -1}, "max_concurrency"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"on_item_error": "ignore"}, "on_item_error"),
        ({"args": [1]}, "args"),
        ({"timeout": -1}, "timeout"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_options_that_could_not_be_meant_are_refused(flow, options, words):
    with pytest.raises((PlanError, TypeError), match=words):
        flow.map(double, [1], **options)


# -- order and number --------------------


async def test_unordered_results_come_as_they_end(flow, virtual_clock):
    async def wait(item):
        await asyncio.sleep(item)
        return item

    flow.map(wait, [3, 1, 2], name="ordered")
    flow.map(wait, [3, 1, 2], name="unordered", ordered=False)
    result = await flow.run()
    assert result["ordered"] == [3, 1, 2]
    assert result["unordered"] == [1, 2, 3]
    assert result["unordered[0]"] == 3


@pytest.mark.parametrize("most", [1, 3])
async def test_max_concurrency_caps_the_children_of_this_map_alone(flow, virtual_clock, most):
    running = {"capped": 0, "free": 0}
    peak = dict(running)

    def counted(name):
        async def count(item):
            running[name] += 1
            peak[name] = max(peak[name], running[name])
            await asyncio.sleep(1)
            running[name] -= 1

        return count

    flow.map(counted("capped"), range(9), name="capped", max_concurrency=most)
    flow.map(counted("free"), range(9), name="free")
    await flow.run()
    assert peak == {"capped": most, "free": 9}
    assert virtual_clock.time() == pytest.approx(9 / most, abs=0.1)


async def test_a_million_items_are_taken_as_slots_come_free(flow):
    taken = []

    async def stops(item):
        await asyncio.sleep(0)
        if item == 5:
            raise ValueError

    def million():
        for number in range(1_000_000):
            taken.append(number)
            yield number

    flow.map(stops, "items", name="m")
    with pytest.raises(ExecutionError):
        await flow.run({"items": million()}, max_workers=2, failure_policy="fail_fast")
    assert len(taken) <= 5 + 2 + BOUND + 1
