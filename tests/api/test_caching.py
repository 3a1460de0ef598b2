"""A partitioner that remembers results: in every mode, computed once, under stable keys."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from quantum_async import CachingQuantumPartitioner, ExecutionError, UnitState
from quantum_async.caching import stable_hash

CACHEABLE = {"cacheable": True}
BY_X = {"cacheable": True, "cache_keys": ["x"]}


@pytest.fixture
def flow():
    return CachingQuantumPartitioner()


def counted():
    calls: list[Any] = []

    async def unit(ctx):
        calls.append(ctx["x"])
        await asyncio.sleep(0)
        return ctx["x"] * 2

    return unit, calls


def square(ctx):
    return ctx["x"] ** 2, os.getpid()


@pytest.mark.parametrize("mode", ["auto", "async", "thread", "sequential", "process"])
async def test_a_plain_function_is_remembered_in_every_mode(flow, mode):
    flow.add_unit(square, name="square", metadata=BY_X)
    first = await flow.run({"x": 3}, mode=mode)
    second = await flow.run({"x": 3}, mode=mode)
    third = await flow.run({"x": 4}, mode=mode)
    assert first["square"] == second["square"]
    assert third["square"][0] == 16
    assert (flow.cache_hits, flow.cache_misses) == (1, 2)
    assert (first["square"][1] != os.getpid()) == (mode == "process")


async def test_a_hit_is_recorded_as_one(flow):
    flow.add_unit(square, name="square", metadata=BY_X)
    assert (await flow.run({"x": 3})).units["square"].ran_on == "thread"
    assert (await flow.run({"x": 3})).units["square"].ran_on == "cache"


@pytest.mark.parametrize("options", [{}, {"timeout": 5}])
async def test_a_coroutine_function_is_remembered(flow, options):
    unit, calls = counted()
    flow.add_unit(unit, name="unit", metadata=CACHEABLE, **options)
    assert [(await flow.run({"x": 2}))["unit"] for _ in range(3)] == [4, 4, 4]
    assert calls == [2]


async def test_decorated_units_are_remembered(flow):
    calls = []

    @flow.unit(metadata=CACHEABLE)
    async def double(x):
        calls.append(x)
        return 2 * x

    for x in (1, 1, 2):
        await flow.run({"x": x})
    assert calls == [1, 2]


async def test_what_is_not_cacheable_is_computed_each_time(flow):
    unit, calls = counted()
    flow.add_unit(unit, name="unit")
    await flow.run({"x": 1})
    await flow.run({"x": 1})
    assert calls == [1, 1]
    assert (flow.cache_hits, flow.cache_misses) == (0, 0)


async def test_by_default_everything_that_a_unit_sees_is_its_key(flow):
    unit, calls = counted()
    flow.add_unit(lambda ctx: ctx["base"], name="above")
    flow.add_unit(unit, ["above"], name="unit", metadata=CACHEABLE)
    await flow.run({"x": 1, "base": 1})
    await flow.run({"base": 1, "x": 1})  # order does not matter
    await flow.run({"x": 1, "base": 2})
    assert calls == [1, 1]


async def test_an_input_that_is_no_mapping_is_the_key(flow):
    calls = []

    async def unit(ctx):
        calls.append(ctx.input)

    flow.add_unit(unit, name="unit", metadata=CACHEABLE)
    for value in (1, 1, 2, [1], [1], None, None):
        await flow.run(value)
    assert calls == [1, 2, [1], None]


async def test_results_that_are_named_are_part_of_the_key(flow):
    unit, calls = counted()
    flow.add_unit(lambda ctx: ctx["base"], name="above")
    meta = {"cacheable": True, "cache_keys": ["above"]}
    flow.add_unit(unit, ["above"], name="unit", metadata=meta)
    await flow.run({"x": 1, "base": 1})
    await flow.run({"x": 2, "base": 1})
    await flow.run({"x": 3, "base": 2})
    assert calls == [1, 3]


async def test_a_key_that_is_a_string_is_one_name_and_not_its_letters(flow):
    unit, calls = counted()
    meta = {"cacheable": True, "cache_keys": "xyz"}
    try:
        flow.add_unit(unit, name="unit", metadata=meta)
        for value in (1, 2):
            await flow.run({"x": 0, "xyz": value})
    except (ValueError, ExecutionError):  # a refusal would do
        calls = [0, 0]
    assert calls == [0, 0]


async def test_keys_that_the_unit_never_sees_do_not_make_all_values_equal(flow):
    """A misspelt name among the keys must not give one input's result for another."""
    unit, _ = counted()
    flow.add_unit(unit, name="unit", metadata={"cacheable": True, "cache_keys": ["xs"]})
    results = []
    for x in (1, 2):
        try:
            results.append((await flow.run({"x": x}))["unit"])
        except ValueError:  # a refusal (PlanError) would do
            results.append("refused")
        except ExecutionError:
            results.append("refused")
    assert results in ([2, 4], ["refused", "refused"])


async def test_runs_at_once_compute_equal_keys_once(flow):
    unit, calls = counted()
    flow.add_unit(unit, name="unit", metadata=CACHEABLE)
    results = await asyncio.gather(*(flow.run({"x": 1 + n % 2}) for n in range(10)))
    assert [result["unit"] for result in results] == [2, 4] * 5
    assert sorted(calls) == [1, 2]
    assert (flow.cache_hits, flow.cache_misses) == (8, 2)


async def test_units_of_one_run_do_not_share_results(flow):
    unit, calls = counted()
    flow.add_unit(unit, name="a", metadata=CACHEABLE)
    flow.add_unit(unit, name="b", metadata=CACHEABLE)
    assert dict(await flow.run({"x": 1})) == {"a": 2, "b": 2}
    assert calls == [1, 1]


def leader_and_followers(flow):
    """The first attempt waits for `gate`; what it does then is set later."""
    gate, calls = asyncio.Event(), []

    async def unit(ctx):
        calls.append(ctx.run_id)
        if len(calls) == 1:
            await gate.wait()
            raise ValueError("the leader failed")
        return "computed"

    flow.add_unit(unit, name="unit", metadata=CACHEABLE)
    tasks = [asyncio.create_task(flow.run({"x": 1}, run_id=f"r{n}")) for n in range(4)]
    return gate, calls, tasks


async def test_the_failure_of_who_came_first_is_his_alone(flow):
    gate, calls, tasks = leader_and_followers(flow)
    await asyncio.sleep(0.01)
    assert len(calls) == 1
    gate.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(end, ExecutionError) for end in ends] == [True, False, False, False]
    assert [end["unit"] for end in ends[1:]] == ["computed"] * 3
    assert len(calls) == 2


async def test_the_cancellation_of_who_came_first_is_his_alone(flow):
    _, calls, tasks = leader_and_followers(flow)
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert [end["unit"] for end in ends[1:]] == ["computed"] * 3
    assert len(calls) == 2
    assert flow._in_flight == {}


async def test_a_follower_can_be_cancelled_without_harm(flow):
    gate, _, tasks = leader_and_followers(flow)
    await asyncio.sleep(0.01)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    gate.set()
    ends = await asyncio.gather(tasks[0], *tasks[2:], return_exceptions=True)
    assert isinstance(ends[0], ExecutionError)
    assert [end["unit"] for end in ends[1:]] == ["computed"] * 2


async def test_failures_and_fallbacks_are_not_remembered(flow):
    calls = []

    async def unit(ctx):
        calls.append(1)
        raise OSError

    flow.add_unit(unit, name="unit", metadata=CACHEABLE, fallback="instead")
    assert [(await flow.run({}))["unit"] for _ in range(2)] == ["instead"] * 2
    assert len(calls) == 2
    assert flow.cache == {}


async def test_clearing_the_cache_forgets(flow):
    unit, calls = counted()
    flow.add_unit(unit, name="unit", metadata=CACHEABLE)
    await flow.run({"x": 1})
    flow.cache.clear()
    await flow.run({"x": 1})
    assert calls == [1, 1]


async def test_what_can_be_no_key_is_the_units_failure_and_says_what_to_do(flow):
    unit, calls = counted()
    flow.add_unit(unit, name="unit", metadata=CACHEABLE)
    flow.add_unit(unit, name="named", metadata=BY_X)
    result = await flow.run({"x": 1, "lock": threading.Lock()}, failure_policy="collect")
    assert result.states == {"unit": UnitState.FAILED, "named": UnitState.COMPLETED}
    assert "cache_keys" in str(result.errors["unit"])
    assert calls == [1]


def test_two_event_loops_share_the_cache(flow):
    barrier = threading.Barrier(2, timeout=5)
    unit, calls = counted()

    async def meet(ctx):
        barrier.wait()
        return await unit(ctx)

    flow.add_unit(meet, name="unit", metadata=CACHEABLE)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(flow.execute({"x": 1}))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [{"unit": 2}] * 2
    assert flow.execute({"x": 1}) == {"unit": 2}
    assert calls == [1, 1]
    assert flow._in_flight == {}


# -- keys ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tagged:
    tags: frozenset[str]


VALUES = """
    None, True, 1, 1.0, "1", b"1", -0.0, (), [], {}, {1}, {"a": 1, "b": [1, {2, 3}]}, 1j,
    {"x", "y", "z", "long string", "another"}, frozenset("abcdef"), {("a", "b"): {"c"}},
"""


def test_keys_are_the_same_in_every_process_under_every_hash_seed():
    code = f"from quantum_async.caching import stable_hash as h; print([h(v) for v in ({VALUES})])"
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert told == {f"{[stable_hash(value) for value in eval(f'({VALUES})')]}\n"}


def test_keys_of_objects_that_hold_sets_are_stable_too():
    code = (
        "import dataclasses; from quantum_async.caching import stable_hash\n"
        "T = dataclasses.make_dataclass('T', ['tags'], namespace={'__module__': '__main__'})\n"
        "print(stable_hash(T(frozenset(['a', 'bc', 'def', 'ghij', 'klmno']))))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout
        for seed in "01234"
    }  # fmt: skip
    assert len(told) == 1


def test_different_values_have_different_keys():
    values = eval(f"({VALUES})")
    assert len({stable_hash(value) for value in values}) == len(values)
    assert stable_hash([1, [2]]) != stable_hash([[1], 2])
    assert stable_hash(["ab", "c"]) != stable_hash(["a", "bc"])


def test_the_order_of_dictionaries_and_sets_does_not_matter():
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
    assert stable_hash({"x", "y"}) == stable_hash({"y", "x"})
    assert stable_hash([1, 2]) != stable_hash([2, 1])


def test_equal_objects_have_equal_keys_whatever_they_share():
    text = "".join(["a", "b"])
    shared, separate = Tagged(frozenset([text])), Tagged(frozenset(["".join(["a", "b"])]))
    assert stable_hash([shared, shared]) == stable_hash([shared, separate])
    one = Pair(text, text)
    other = Pair("".join(["a", "b"]), "".join(["a", "b"]))
    assert stable_hash(one) == stable_hash(other)


@dataclasses.dataclass(frozen=True)
class Pair:
    left: str
    right: str


def test_a_value_that_contains_itself_has_no_key():
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="contains itself"):
        stable_hash(endless)


def test_an_object_that_is_known_by_its_name_has_that_for_a_key():
    assert stable_hash(Ellipsis) == stable_hash(Ellipsis) != stable_hash(NotImplemented)
