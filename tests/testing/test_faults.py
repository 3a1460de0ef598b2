"""Faults that units meet: inside the attempt, on the engine's own ways."""

import asyncio
import gc
import os
import signal
import threading
import weakref

import pytest
import tenacity

from quantum_async import (
    CachingQuantumPartitioner,
    ExecutionError,
    PlanError,
    QuantumPartitioner,
    RetryPolicy,
    RunTimeoutError,
    UnitTimeoutError,
    WorkerCrashedError,
)
from quantum_async.core.binding import CONTEXT
from quantum_async.core.context import ExecutionContext
from quantum_async.engine.attempt import bound
from quantum_async.engine.executors import Job
from quantum_async.request import interventions
from quantum_async.testing import Faults, Fired, InjectedError, assert_run, run_unit
from quantum_async.testing.clock import VirtualClock
from quantum_async.testing.faults import kill_this_process
from tests.support.processes import alive, until

THRICE = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())


@pytest.fixture
def flow():
    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit(retry=THRICE)
    async def fetch(ctx):
        return ctx.attempt

    @flow.unit
    def rank(fetch):
        return fetch + 1

    return flow


@pytest.fixture(autouse=True)
def no_block_is_left():
    yield
    assert interventions.get() == ()


# -- fail ------------------------------------------------------------------------------------------


async def test_attempts_fail_and_are_retried_as_the_units_own_would_be(flow):
    error = ConnectionError("no line")
    faults = Faults().fail("fetch", attempts=[1, 2], error=error)
    run = assert_run(await flow.run(faults=faults))
    run.attempts("fetch", 3).result("fetch", 3).result("rank", 4).ok()
    assert faults.fired == [Fired("fetch", 1, "fail"), ("fetch", 2, "fail")]


async def test_without_a_list_every_attempt_fails(flow):
    faults = Faults().fail(flow.units["fetch"])
    run = assert_run(await flow.run(faults=faults))
    run.failed("fetch", InjectedError, match="'fetch' was told to fail in attempt 3")
    run.attempts("fetch", 3).skipped("rank", because="fetch")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError("down"), OSError, "^down$"),
        (ConnectionError, ConnectionError, "^$"),
        (lambda ctx: KeyError(ctx.unit_id, ctx.attempt), KeyError, r"^\('fetch', 3\)$"),
        (SystemExit(3), SystemExit, "^3$"),
        (asyncio.CancelledError, asyncio.CancelledError, ""),
        (lambda ctx: "no error", TypeError, "must return an exception, not 'no error'"),
    ],
)
async def test_the_error_is_an_exception_a_class_or_a_function(flow, error, kind, message):
    faults = Faults().fail("fetch", error=error)
    assert_run(await flow.run(faults=faults)).failed("fetch", kind, match=message)


async def test_an_interrupt_ends_the_run_as_ever(flow):
    with pytest.raises(KeyboardInterrupt):
        await flow.run(faults=Faults().fail("fetch", error=KeyboardInterrupt))
    assert_run(flow.last_result).failed("fetch", KeyboardInterrupt).not_started("rank")


async def test_the_very_exception_is_raised_with_the_engines_note(flow):
    error = OSError("down")
    with pytest.raises(ExecutionError) as caught:
        await flow.run(faults=Faults().fail("rank", error=error), failure_policy="continue")
    assert caught.value.__cause__ is error
    assert error.__notes__ == ["in unit 'rank', attempt 1, in a thread"]


async def test_the_work_is_not_done_and_other_units_do_not_notice():
    flow = QuantumPartitioner(failure_policy="collect")
    done = []

    @flow.unit
    async def a():
        done.append("a")

    @flow.unit
    def b():
        done.append("b")

    run = assert_run(await flow.run(faults=Faults().fail(b, error=OSError)))
    run.completed(a).failed(b, OSError).ran_on(b, "thread")
    assert done == ["a"]


async def test_a_fallback_stands_in_for_it():
    flow = QuantumPartitioner()

    @flow.unit(fallback="instead")
    async def unit(): ...

    assert_run(await flow.run(faults=Faults().fail(unit))).fallback_used(unit, "instead")


# -- delay and hang --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "sequential"])
async def test_a_delay_is_part_of_the_attempt_in_every_mode(flow, mode):
    faults = Faults().delay("fetch", 0.02).delay("rank", 0.02)
    run = assert_run(await flow.run(mode=mode, faults=faults))
    run.ok().took("fetch", at_least=0.02).took("rank", at_least=0.02)
    assert faults.fired == [("fetch", 1, "delay"), ("rank", 1, "delay")]


async def test_a_delay_is_under_the_units_timeout_and_may_be_for_one_attempt():
    flow = QuantumPartitioner()
    threads = []

    @flow.unit(timeout=0.01, retry=THRICE)
    def unit():
        threads.append(threading.current_thread())

    faults = Faults().delay(unit, 60, attempts=[1, 2])
    run = assert_run(await flow.run(timeout=30, faults=faults))
    run.attempts(unit, 3).completed(unit)
    assert len(threads) == 1


async def test_a_hanging_unit_is_ended_by_its_time_limits():
    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit(timeout=0.01)
    async def limited(): ...

    @flow.unit(deadline=0.02, retry=THRICE)
    def overdue(): ...

    run = assert_run(await flow.run(faults=Faults().hang(limited).hang("overdue")))
    run.timed_out(limited, overdue)
    for error in run.run.errors.values():
        assert isinstance(error, UnitTimeoutError)


async def test_a_hanging_unit_is_ended_by_the_runs_time_limit_and_by_fail_fast(flow):
    with pytest.raises(RunTimeoutError):
        await flow.run(faults=Faults().hang("rank"), timeout=0.01)
    assert_run(flow.last_result).completed("fetch").canceled("rank", match="time limit")

    @flow.unit
    async def hangs(): ...

    with pytest.raises(ExecutionError, match="1 unit of 3 failed, 1 canceled"):
        await flow.run(faults=Faults().hang(hangs).fail("rank"), failure_policy="fail_fast")


@pytest.mark.parametrize("mode", ["auto", "sequential"])
def test_on_a_virtual_clock_delays_take_no_time_in_any_mode(mode):
    flow = QuantumPartitioner()

    @flow.unit
    async def a(): ...

    @flow.unit
    def b(a): ...

    @flow.unit(timeout=10)
    def c(b): ...

    faults = Faults().delay(a, 3600).delay(b, 60).hang(c)
    run = flow.run(mode=mode, faults=faults, failure_policy="collect")
    result = VirtualClock().run(run)
    assert [result.spans(unit) for unit in (a, b, c)] == [
        [(0, 3600)],
        [(3600, 3660)],
        [(3660, 3670)],
    ]
    assert_run(result).timed_out(c)


# -- cancel_run_at ---------------------------------------------------------------------------------


async def test_the_run_is_cancelled_as_its_caller_would_when_a_unit_starts():
    flow = QuantumPartitioner()
    said = []

    @flow.unit
    async def first(): ...

    @flow.unit
    async def rank(first):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            said.append("clean-up")
            raise

    @flow.unit
    async def last(rank): ...

    faults = Faults().cancel_run_at(rank)
    task = asyncio.create_task(flow.run(faults=faults))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert said == ["clean-up"]
    run = assert_run(flow.last_result)
    run.completed(first).canceled(rank, last, match="the caller was cancelled").not_started(last)
    assert faults.fired == [("rank", 1, "cancel_run_at")]


async def test_at_another_attempt(flow):
    faults = Faults().fail("fetch").cancel_run_at("fetch", attempts=[2])
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(flow.run(faults=faults))
    assert [it for it in faults.fired if it.fault == "cancel_run_at"] == [
        ("fetch", 2, "cancel_run_at")
    ]


async def test_only_the_task_that_awaits_the_run_is_cancelled(flow):
    victim = asyncio.create_task(flow.run(faults=Faults().cancel_run_at("fetch")))
    other = asyncio.create_task(flow.run())
    await asyncio.wait([victim, other])
    assert victim.cancelled()
    assert other.result().ok


def test_a_blocking_run_can_be_cancelled(flow):
    with pytest.raises(asyncio.CancelledError):
        flow.execute(faults=Faults().cancel_run_at("fetch").hang("fetch"))


# -- several faults of one unit --------------------------------------------------------------------


async def test_a_unit_that_is_to_do_several_things_is_delayed_first_and_fails_then():
    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit
    async def unit(): ...

    faults = Faults().fail(unit).delay(unit, 0.01)
    assert_run(await flow.run(faults=faults)).failed(unit).took(unit, at_least=0.01)
    assert [it.fault for it in faults.fired] == ["delay", "fail"]


# -- blocks ----------------------------------------------------------------------------------------


async def test_faults_as_a_block(flow):
    with Faults().fail("rank") as faults:
        assert_run(await flow.run()).failed("rank")
        with Faults().fail("fetch"):
            assert_run(await flow.run()).failed("fetch")
    assert_run(await flow.run()).ok()
    assert faults.fired == [("rank", 1, "fail")]


async def test_a_block_and_an_argument_add_up(flow):
    with Faults().delay("fetch", 0):
        run = await flow.run(faults=Faults().fail("rank"))
    assert_run(run).completed("fetch").failed("rank")


async def test_a_block_of_one_partitioner(flow):
    other = QuantumPartitioner()
    other.add_unit(lambda ctx: 1, name="other")
    faults = Faults().fail("rank")
    with faults.on(flow):
        assert_run(await other.run()).ok()
        assert_run(await flow.run()).failed("rank")
    with faults, pytest.raises(PlanError, match=r"faults\.fail names 'rank'"):
        await other.run()


async def test_tasks_do_not_meet_each_others_faults(flow):
    all_inside = asyncio.Barrier(3)

    async def run(*names):
        faults = Faults()
        for name in names:
            faults.fail(name)
        with faults:
            await all_inside.wait()
            result = await flow.run()
            await all_inside.wait()
        return set(result.errors), {it.unit for it in faults.fired}, (await flow.run()).ok

    found = await asyncio.gather(run("fetch"), run("rank"), run())
    assert found == [({"fetch"}, {"fetch"}, True), ({"rank"}, {"rank"}, True), (set(), set(), True)]


async def test_one_object_may_serve_runs_at_the_same_time(flow):
    faults = Faults().fail("fetch", attempts=[1])
    results = await asyncio.gather(*(flow.run(faults=faults) for _ in range(3)))
    assert [result.units["fetch"].attempts for result in results] == [2, 2, 2]
    assert faults.fired == [("fetch", 1, "fail")] * 3


async def test_streams_and_single_units_meet_them_too(flow):
    with Faults().fail("rank", error=OSError):
        async with flow.stream() as events:
            async for _ in events:
                pass
        assert_run(events.result).failed("rank", OSError)
        with pytest.raises(OSError):
            await run_unit(flow, "rank", {"fetch": 1})


# -- caches and doubles ----------------------------------------------------------------------------


async def test_a_unit_whose_result_is_in_the_cache_meets_faults_too():
    flow = CachingQuantumPartitioner(failure_policy="collect")

    @flow.unit(metadata={"cacheable": True})
    async def square(x):
        return x * x

    faults = Faults().fail(square)
    assert_run(await flow.run({"x": 3})).result(square, 9)
    assert_run(await flow.run({"x": 3}, faults=faults)).failed(square).ran_on(square, "loop")
    assert_run(await flow.run({"x": 4}, faults=faults)).failed(square)
    assert flow.cache_misses == 1
    waits = Faults().delay(square, 0)
    assert_run(await flow.run({"x": 3}, faults=waits)).result(square, 9).ran_on(square, "cache")
    assert_run(await flow.run({"x": 5}, faults=waits)).result(square, 25).ran_on(square, "loop")


async def test_a_double_meets_them_too_whichever_block_is_the_inner_one(flow):
    faults = Faults().fail("fetch", attempts=[1])
    override = flow.override({"fetch": lambda ctx: 10 * ctx.attempt})
    for first, second in ((faults, override), (override, faults)):
        with first, second:
            assert_run(await flow.run()).attempts("fetch", 2).result("rank", 21)


async def test_a_given_result_meets_none(flow):
    faults = Faults().fail("fetch")
    assert_run(await flow.run(overrides={"fetch": 1}, faults=faults)).ok()
    assert faults.fired == []
    assert faults.unfired == ["fail('fetch')"]


# -- what is refused -------------------------------------------------------------------------------


async def test_unknown_units_are_refused_all_at_once_before_anything_runs(flow):
    stranger = QuantumPartitioner().add_unit(print, name="fetch")
    faults = Faults().fail("fetsh").hang(stranger).delay("rank", 1)
    for attempt in (lambda: flow.run(faults=faults), lambda: _in_block(faults, flow)):
        with pytest.raises(PlanError) as refused:
            await attempt()
        first, second = map(str, refused.value.problems)
        assert first.startswith("faults.fail names 'fetsh', and there is no such unit")
        assert first.endswith("did you mean 'fetch'?")
        assert second.startswith("faults.hang names 'fetch'")
    assert flow.last_result is None
    with pytest.raises(PlanError, match="2 problems"):
        faults.on(flow)


async def _in_block(faults, flow):
    with faults:
        await flow.run()


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda faults: faults.fail(3), "a unit is given by name or handle, not 3"),
        (lambda faults: faults.fail("a", error="no"), "error must be an exception, or a function"),
        (lambda faults: faults.fail("a", error=UnicodeDecodeError), "without arguments.*instance"),
        (lambda faults: faults.fail("a", attempts=2), r"write attempts=\[2\]"),
        (lambda faults: faults.hang("a", attempts=[0]), "counted from 1, and 0 is none"),
        (lambda faults: faults.hang("a", attempts=["1"]), "counted from 1, and '1' is none"),
        (lambda faults: faults.delay("a", -1), "'a': faults.delay must not be negative"),
        (lambda faults: faults.delay("a", None), "how many seconds"),
        (lambda faults: faults.delay("a", "1"), "must be a number, not '1'"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(declare, message):
    with pytest.raises(PlanError, match=message):
        declare(Faults())


async def test_only_faults_are_taken(flow):
    with pytest.raises(PlanError, match=r"must be quantum_async\.testing\.Faults, not \{'fetch'"):
        await flow.run(faults={"fetch": OSError})


async def test_only_workers_are_killed(flow):
    faults = Faults().kill_worker("fetch").kill_worker("rank")
    with pytest.raises(PlanError) as refused:
        await flow.run(faults=faults)
    loop, thread = map(str, refused.value.problems)
    assert "kill_worker('fetch'): in this run the unit's place is 'loop'" in loop
    assert "place is 'thread', and only a worker process can be killed" in thread


def test_what_faults_are():
    faults = Faults().fail("a", attempts=[2, 1]).hang("b")
    assert repr(faults) == "<Faults: fail('a', attempts=[1, 2]), hang('b'); 0 fired>"
    assert faults.unfired == ["fail('a', attempts=[1, 2])", "hang('b')"]
    assert repr(Faults()) == "<Faults: none; 0 fired>"
    flow = QuantumPartitioner(name="flow")
    assert repr(Faults().on(flow)) == "<Faults: none; 0 fired> on <flow: 0 units; not run yet>"


async def test_no_faults_change_nothing(flow):
    assert_run(await flow.run(faults=Faults())).ok()


# -- what must hold in the engine for it -----------------------------------------------------------


async def test_what_is_around_an_attempt_counts_against_the_timeout_and_a_workers_start_does_not():
    spent = []

    async def around(ctx, compute):
        await asyncio.sleep(0.01)
        return await compute()

    async def place(job):
        job.restart_clock()  # as the pool does when the worker is ready
        return "done"

    ctx = ExecutionContext()
    job = Job("unit", 1, print, ctx)
    job.restart_clock = spent.append
    assert await bound(place, CONTEXT, ctx, around, {}, 0)(job) == "done"
    assert 0.01 <= spent[0] < 1


async def test_a_run_with_faults_leaves_nothing_to_the_collector(flow):
    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)
    faults = Faults().fail("fetch", attempts=[1]).delay("rank", 0)
    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(flow.run({"big": big}, faults=faults))
        result = await task
        assert result.ok
        del big, result, task
        flow.last_result = None
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


# -- in worker processes ---------------------------------------------------------------------------


def test_what_a_worker_calls_kills_the_process_that_it_is_in(monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    kill_this_process("any", arguments=...)
    assert killed == [(os.getpid(), signal.SIGKILL)]


@pytest.fixture
def crunching():
    flow = QuantumPartitioner(max_workers=1, failure_policy="collect")

    @flow.unit(mode="process", retry=THRICE)
    def crunch(ctx):
        return os.getpid()

    return flow


@pytest.mark.slow
async def test_a_killed_worker_has_really_died(crunching):
    before = (await crunching.run())["crunch"]
    faults = Faults().kill_worker("crunch", attempts=[1])
    result = await crunching.run(faults=faults)
    assert_run(result).attempts("crunch", 2).completed("crunch").ran_on("crunch", "process")
    assert result["crunch"] not in (before, os.getpid())
    await until(lambda: not alive(before))
    assert faults.fired == [("crunch", 1, "kill_worker")]


@pytest.mark.slow
async def test_a_worker_that_is_killed_each_time_is_a_typed_crash(crunching):
    run = assert_run(await crunching.run(faults=Faults().kill_worker("crunch")))
    run.failed("crunch", WorkerCrashedError, match="SIGKILL").attempts("crunch", 3)
    assert_run(await crunching.run()).ok()


@pytest.mark.slow
async def test_a_double_in_a_worker_is_killed_too_and_a_cache_needs_no_worker():
    flow = CachingQuantumPartitioner(max_workers=1, failure_policy="collect")

    @flow.unit(mode="process", metadata={"cacheable": True})
    def crunch(x):
        return x

    faults = Faults().kill_worker(crunch)
    with flow.override({"crunch": lambda x: "stub"}):
        assert_run(await flow.run({"x": 1}, faults=faults)).failed(crunch, WorkerCrashedError)
    await flow.run({"x": 1})
    faults = Faults().kill_worker(crunch)
    assert_run(await flow.run({"x": 1}, faults=faults)).ran_on(crunch, "cache")
    assert faults.fired == []


@pytest.mark.slow
async def test_faults_without_a_kill_happen_on_this_side(crunching):
    faults = Faults().fail("crunch", attempts=[1]).delay("crunch", 0.01, attempts=[2])
    result = await crunching.run(faults=faults)
    assert_run(result).attempts("crunch", 2).ran_on("crunch", "process")
    assert result["crunch"] != os.getpid()
