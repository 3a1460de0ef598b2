"""Maps whose items, or sources, fail."""

import asyncio
import os
import pickle

import pytest
import tenacity

from quantum_async import (
    ExecutionError,
    QuantumPartitioner,
    RetryPolicy,
    UnitState,
)
from quantum_async.core import events

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED, TIMEOUT = UnitState.CANCELED, UnitState.TIMEOUT


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


async def double(item):
    return item * 2


def pid_and(item):
    return os.getpid(), item


# -- failures --------------------


async def inverse(item):
    return 1 / item


async def test_a_failed_item_fails_the_map_when_the_others_have_ended(flow, virtual_clock):
    ended = []

    async def check(item):
        await asyncio.sleep(item)
        ended.append(item)
        if item == 1:
            raise ValueError("one")
        return item

    flow.map(check, [1, 2, 3], name="m")

    @flow.unit
    async def after(m): ...

    result = await flow.run()
    assert ended == [1, 2, 3]
    assert result.states == {
        "m": FAILED, "m[0]": FAILED, "m[1]": COMPLETED, "m[2]": COMPLETED, "after": SKIPPED,
    }  # fmt: skip
    error = result.errors["m"]
    assert isinstance(error, ExceptionGroup)
    assert "1 item of 'm' failed" in str(error)
    assert error.exceptions == (result.errors["m[0]"],)
    assert result.units["after"].cause == "'m' failed"
    assert not result.ok


async def test_the_error_of_the_run_names_map_and_children(flow):
    flow.map(inverse, [0, 1, 0], name="m")
    with pytest.raises(ExecutionError) as caught:
        await flow.run(failure_policy="continue")
    assert set(caught.value.errors) == {"m", "m[0]", "m[2]"}
    assert "m[2]" in str(caught.value)
    assert caught.value.result["m[1]"] == 1


async def test_fail_fast_fails_the_map_at_once(flow, virtual_clock):
    async def check(item):
        await asyncio.sleep(item)
        raise ValueError(item)

    flow.map(check, [1, 60], name="m")
    with pytest.raises(ExecutionError):
        await flow.run(failure_policy="fail_fast")
    assert virtual_clock.time() < 2
    states = flow.last_result.states
    assert states == {"m": FAILED, "m[0]": FAILED, "m[1]": CANCELED}


@pytest.mark.parametrize("policy", ["collect", "continue", "fail_fast"])
async def test_collected_exceptions_stand_in_the_list(flow, policy):
    flow.map(inverse, [1, 0, 2], name="m", on_item_error="collect")

    @flow.unit
    async def after(m):
        return [type(one).__name__ for one in m]

    result = await flow.run(failure_policy=policy)
    assert result.ok
    assert result["after"] == ["float", "ZeroDivisionError", "float"]
    assert result["m"][1] is result.errors["m[1]"]
    assert result.states["m[1]"] is FAILED


async def test_collected_exceptions_go_past_the_next_map(flow):
    seen = []

    async def look(item):
        seen.append(item)
        return item

    flow.map(look, flow.map(inverse, [1, 0, 2], name="a", on_item_error="collect"), name="b")
    result = await flow.run()
    assert seen == [1, 0.5]
    assert isinstance(result["b"][1], ZeroDivisionError)
    assert "b[1]" not in result.units


async def test_a_generator_that_raises_in_the_middle_fails_the_map(flow):
    def broken():
        yield 1
        yield 2
        raise LookupError("no more")

    async def broken_async():
        for item in broken():
            yield item

    for made in (broken(), broken_async()):
        partitioner = QuantumPartitioner(failure_policy="collect")
        partitioner.map(double, "items", name="m")
        result = await partitioner.run({"items": made})
        assert result.states == {"m": FAILED, "m[0]": COMPLETED, "m[1]": COMPLETED}
        with pytest.raises(LookupError, match="no more"):
            raise result.errors["m"]


async def test_items_and_their_source_may_fail_together(flow):
    def broken():
        yield 0
        raise LookupError("no more")

    flow.map(inverse, "items", name="m")
    error = (await flow.run({"items": broken()})).errors["m"]
    assert [type(one) for one in error.exceptions] == [ZeroDivisionError, LookupError]
    assert "1 item of 'm' failed, and so did what it goes over" in str(error)


async def test_a_map_over_a_unit_that_failed_is_skipped(flow):
    @flow.unit
    async def source():
        raise ValueError

    flow.map(double, source, name="m")
    flow.map(double, "m", name="n")
    result = await flow.run()
    assert result.states == {"source": FAILED, "m": SKIPPED, "n": SKIPPED}
    assert result.units["n"].cause == "'source' failed"


async def test_a_condition_is_of_the_map_as_a_whole(flow):
    flow.map(double, [1], name="m", when=lambda ctx: ctx["on"])
    result = await flow.run({"on": False})
    assert result.ok
    assert result.states == {"m": SKIPPED}
    assert result.units["m"].cause == "condition"
    assert (await flow.run({"on": True}))["m"] == [2]


async def test_what_a_child_uses_is_asked_for_each_item_and_may_fail(flow):
    flow = QuantumPartitioner(failure_policy="collect", limits={"api": 1})

    def uses(ctx):
        raise ValueError("no tokens")

    flow.map(double, range(500), name="m", uses=uses)
    result = await flow.run()
    assert result.states["m"] is result.states["m[499]"] is FAILED
    assert len(result.errors["m"].exceptions) == 500


def test_results_with_maps_can_be_read_after_their_loop_and_their_values_pickled(flow):
    flow.map(inverse, [1, 0], name="m", on_item_error="collect")
    result = asyncio.run(flow.run())
    one, error = pickle.loads(pickle.dumps(dict(result)))["m"]
    assert one == 1
    assert isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize("policy", ["collect", "continue", "fail_fast"])
async def test_children_that_could_not_start_or_whose_deadline_passed_are_collected(
    policy, virtual_clock
):
    flow = QuantumPartitioner(failure_policy=policy, limits={"api": 1})

    def uses(ctx):
        raise LookupError("no tokens")

    wait = RetryPolicy(wait=tenacity.wait_fixed(5), stop=tenacity.stop_after_delay(60))
    flow.map(inverse, [1, 2], name="unstarted", uses=uses, on_item_error="collect")
    flow.map(inverse, [0, 1], name="late", retry=wait, deadline=7, on_item_error="collect")
    result = await flow.run()
    assert result.ok
    assert [type(one) for one in result["unstarted"]] == [LookupError, LookupError]
    assert [type(one) for one in result["late"]] == [ZeroDivisionError, float]


async def test_what_is_skipped_is_told_after_what_it_is_skipped_for(flow):
    log = []

    @flow.unit
    async def source():
        yield 1
        raise LookupError

    flow.map(double, source, name="m")
    flow.map(double, "m", name="n")
    await flow.run(observers=[log.append])
    ends = (events.UnitFailed, events.UnitSkipped)
    assert [e.unit for e in log if isinstance(e, ends)] == ["source", "m", "n"]


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
async def test_a_keyboard_interrupt_in_a_source_ends_the_run(flow, kind, virtual_clock):
    def plain():
        yield 60
        raise KeyboardInterrupt

    async def asynchronous():
        for item in plain():
            yield item

    flow.map(asyncio.sleep, "items", name="m")
    made = {"plain": plain, "asynchronous": asynchronous}[kind]
    with pytest.raises(KeyboardInterrupt):
        await flow.run({"items": made()})
    assert flow.last_result.states == {"m": FAILED, "m[0]": CANCELED}
