"""The laws of behaviour (docs/design.md), one after the other, on the real loop."""

import asyncio
import contextvars
import threading
import time

import anyio
import pytest
import tenacity

from quantum_async import (
    ExecutionError,
    QuantumPartitioner,
    RetryPolicy,
    RunTimeoutError,
    UndeclaredDependencyError,
    UnitState,
    UnitTimeoutError,
)
from quantum_async.core.events import UnitCompleted, UnitReady, UnitStarted

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED, TIMEOUT = UnitState.CANCELED, UnitState.TIMEOUT
QUICK = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


# -- 1 and 2: launch at readiness, work conserving --------------------


async def test_a_unit_starts_in_the_turn_after_its_last_dependency_ended(flow):
    turns, ended, started = 0, 0, 0
    loop = asyncio.get_running_loop()

    def tick():
        nonlocal turns
        turns += 1
        ticker[0] = loop.call_soon(tick)

    ticker = [loop.call_soon(tick)]

    @flow.unit
    async def first():
        nonlocal ended
        await asyncio.sleep(0.01)
        ended = turns

    @flow.unit
    async def second(first):
        nonlocal started
        started = turns

    await flow.run()
    ticker[0].cancel()
    assert started - ended <= 2  # 1 where tasks start eagerly


async def test_nothing_waits_for_a_level(flow):
    order = []

    def step(name, event=None, sets=None):
        async def run(ctx):
            if event:
                await event.wait()
            order.append(name)
            if sets:
                sets.set()

        return run

    gate = asyncio.Event()
    # The slow root ends only after the chain beside it went three levels deep.
    flow.add_unit(step("slow", gate), name="slow")
    flow.add_unit(step("a"), name="a")
    flow.add_unit(step("b"), ["a"], name="b")
    flow.add_unit(step("c", sets=gate), ["b"], name="c")
    await flow.run()
    assert order == ["a", "b", "c", "slow"]


async def test_a_full_pool_of_threads_does_not_hold_back_coroutines():
    flow = QuantumPartitioner()
    gate = threading.Event()
    for number in range(40):  # more than there are threads
        flow.add_unit(lambda ctx: gate.wait(5), name=f"t{number}")

    @flow.unit
    async def opens():
        gate.set()

    result = await flow.run()
    assert result.ok


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 11])
async def test_no_more_units_run_at_once_than_max_workers(workers):
    flow = QuantumPartitioner(max_workers=workers)
    running = most = 0

    async def unit(ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    for number in range(30):
        flow.add_unit(unit, [f"unit_{number - 12}"] if number >= 12 else [])
    assert (await flow.run()).ok
    assert most == min(workers, 12)


# -- 3 and 4: every unit ends once; failure policies --------------------


def failing_diamond(flow):
    #  bad → below → bottom        good beside them
    @flow.unit
    async def bad():
        raise ValueError("broken")

    @flow.unit
    async def good():
        await asyncio.sleep(0.01)
        return "fine"

    @flow.unit
    async def below(bad): ...

    @flow.unit
    async def bottom(below, good): ...


async def test_what_does_not_depend_on_a_failure_runs_to_its_end(flow):
    failing_diamond(flow)
    result = await flow.run()
    assert result.states == {"bad": FAILED, "good": COMPLETED, "below": SKIPPED, "bottom": SKIPPED}
    assert dict(result) == {"good": "fine"}
    assert not result.ok


async def test_a_skipped_unit_names_the_root_that_failed(flow):
    failing_diamond(flow)
    result = await flow.run()
    assert result.units["bottom"].cause == "'bad' failed"
    assert "bad" in result.explain("bottom")


async def test_continue_raises_one_readable_error_with_the_units_own_exception_as_cause(flow):
    failing_diamond(flow)
    with pytest.raises(ExecutionError, match="1 unit of 4 failed, 2 skipped") as caught:
        await flow.run(failure_policy="continue")
    error = caught.value
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__ is error.errors["bad"]
    assert error.__cause__.__notes__ == ["in unit 'bad', attempt 1, on the event loop"]
    assert error.result["good"] == "fine"
    assert flow.last_result is error.result
    assert flow.get_failed_units() == [flow.units["bad"]]


async def test_the_traceback_of_a_failure_begins_in_the_users_code(flow):
    failing_diamond(flow)
    flow.add_unit(lambda ctx: 1 / 0, name="threaded")
    result = await flow.run()
    for name in ("bad", "threaded"):
        frame = result.errors[name].__traceback__.tb_frame
        assert frame.f_code.co_filename == __file__


async def test_fail_fast_cancels_the_rest(flow):
    cleaned = []

    @flow.unit
    async def long():
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append("long")

    @flow.unit
    async def bad():
        await asyncio.sleep(0)
        raise ValueError

    @flow.unit
    async def after(long): ...

    with pytest.raises(ExecutionError):
        await flow.run(failure_policy="fail_fast")
    assert flow.last_result.states == {"long": CANCELED, "bad": FAILED, "after": CANCELED}
    assert cleaned == ["long"]
    assert "fail_fast" in flow.last_result.units["after"].cause


async def test_many_failures_are_all_named(flow):
    for number in range(12):
        flow.add_unit(lambda ctx: 1 / 0, name=f"u{number}")
    with pytest.raises(ExecutionError, match=r"(?s)12 units of 12.*and 2 more") as caught:
        await flow.run(failure_policy="continue")
    assert len(caught.value.errors) == 12


# -- 5: time limits --------------------


async def test_a_timeout_stops_a_coroutine(flow):
    stopped = []

    @flow.unit(timeout=0.02)
    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)

    result = await flow.run()
    assert result.states["slow"] is TIMEOUT
    error = result.errors["slow"]
    assert isinstance(error, UnitTimeoutError)
    assert (error.unit, error.attempt, error.limit, error.which) == ("slow", 1, 0.02, "timeout")
    assert stopped == [True]


async def test_a_thread_that_times_out_ends_its_unit_at_once_and_keeps_its_slot():
    flow = QuantumPartitioner(max_workers=1, failure_policy="collect")
    gate, returned = threading.Event(), []

    def stuck(ctx):
        gate.wait(5)
        returned.append(True)

    async def opens(ctx):
        gate.set()

    flow.add_unit(stuck, name="stuck", timeout=0.02, priority=1)
    flow.add_unit(lambda ctx: returned.copy(), name="next")
    asyncio.get_running_loop().call_later(0.1, gate.set)
    result = await flow.run()
    assert result.states["stuck"] is TIMEOUT
    assert result.units["stuck"].cause == "its thread could not be stopped, and returned later"
    assert result["next"] == [True]  # the one slot was free only then
    assert result.units["stuck"].duration < 0.09


async def test_the_run_does_not_wait_for_a_thread_that_timed_out(flow):
    gate = threading.Event()
    flow.add_unit(lambda ctx: gate.wait(5), name="stuck", timeout=0.02)
    started = time.perf_counter()
    result = await flow.run()
    assert time.perf_counter() - started < 2
    assert result.states["stuck"] is TIMEOUT
    gate.set()


async def test_a_units_own_timeout_error_is_a_failure(flow):
    @flow.unit(timeout=5)
    async def own():
        raise TimeoutError("mine")

    assert (await flow.run()).states["own"] is FAILED


async def test_a_timeout_leads_to_a_retry_if_one_is_left(flow):
    attempts = []

    @flow.unit(timeout=0.02, retry=QUICK)
    async def slow_once(ctx):
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            await asyncio.sleep(60)
        return "there"

    result = await flow.run()
    assert result["slow_once"] == "there"
    assert attempts == [1, 2]
    assert result.units["slow_once"].error is None


async def test_a_deadline_holds_over_all_attempts(flow):
    @flow.unit(deadline=0.05, retry=RetryPolicy(tenacity.stop_never, tenacity.wait_none()))
    async def hopeless():
        await asyncio.sleep(0.02)
        raise OSError

    @flow.unit(deadline=0.05)
    async def stuck():
        await asyncio.sleep(60)

    result = await flow.run()
    assert result.states["stuck"] is TIMEOUT
    assert result.errors["stuck"].which == "deadline"
    assert result.states["hopeless"] is TIMEOUT
    assert 2 <= result.units["hopeless"].attempts <= 3


async def test_a_wait_that_would_pass_the_deadline_ends_the_retries(flow):
    @flow.unit(deadline=0.5, retry=RetryPolicy(wait=tenacity.wait_fixed(60)))
    async def bad():
        raise OSError

    result = await flow.run()
    assert result.states["bad"] is FAILED
    assert result.units["bad"].attempts == 1


async def test_a_deadline_passes_while_a_unit_waits_for_a_slot():
    flow = QuantumPartitioner(max_workers=1, failure_policy="collect")

    @flow.unit(deadline=0.05, retry=QUICK, priority=1)
    async def unlucky():
        raise OSError

    @flow.unit
    async def hog():
        await asyncio.sleep(0.15)

    # The hog takes the one slot while the other backs off.
    result = await flow.run()
    assert result.states == {"unlucky": TIMEOUT, "hog": COMPLETED}
    assert result.units["unlucky"].duration < 0.12


async def test_a_result_in_the_same_tick_as_the_timeout_wins(flow):
    loop = asyncio.get_running_loop()

    @flow.unit(timeout=0.05)
    async def close():
        future = loop.create_future()
        ends = anyio.current_effective_deadline()
        # The loop stands still over the moment, so that both are due in its next turn.
        loop.call_at(ends - 0.005, lambda: (time.sleep(0.02), future.set_result("won")))
        return await future

    assert (await flow.run())["close"] == "won"


async def test_a_unit_that_swallows_its_timeout_is_late_all_the_same(flow):
    @flow.unit(timeout=0.02)
    async def stubborn():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "late"

    assert (await flow.run()).states["stubborn"] is TIMEOUT


async def test_an_error_in_clean_up_does_not_hide_the_timeout(flow, caplog):
    @flow.unit(timeout=0.02)
    async def messy():
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("in clean-up")

    result = await flow.run()
    assert result.states["messy"] is TIMEOUT
    assert isinstance(result.errors["messy"].__context__, RuntimeError)
    assert "messy" in caplog.text


async def test_when_the_runs_time_is_up_the_rest_is_canceled(flow):
    @flow.unit
    async def quick():
        return 1

    @flow.unit
    async def slow(quick):
        await asyncio.sleep(60)

    @flow.unit
    async def after(slow): ...

    with pytest.raises(RunTimeoutError, match=r"0\.05 s passed: 1 of 3") as caught:
        await flow.run(timeout=0.05)
    result = caught.value.result
    assert caught.value.limit == 0.05
    assert result.states == {"quick": COMPLETED, "slow": CANCELED, "after": CANCELED}
    assert "time limit" in result.units["after"].cause
    assert isinstance(caught.value, TimeoutError)


async def test_a_run_timeout_does_not_wait_for_threads(flow):
    gate = threading.Event()
    flow.add_unit(lambda ctx: gate.wait(5), name="stuck")
    started = time.perf_counter()
    with pytest.raises(RunTimeoutError):
        await flow.run(timeout=0.05)
    assert time.perf_counter() - started < 2
    assert "still running" in flow.last_result.units["stuck"].cause
    gate.set()


async def test_remaining_tells_the_nearest_deadline(flow):
    @flow.unit(timeout=5)
    async def limited(ctx):
        return ctx.remaining

    @flow.unit
    async def free(ctx):
        return ctx.remaining

    result = await flow.run()
    assert 4 < result["limited"] <= 5
    assert result["free"] == float("inf")
    with anyio.move_on_after(2):
        assert 1 < (await flow.run())["free"] <= 2
    assert 0 < (await flow.run(timeout=1))["limited"] <= 1


# -- 6 and 7: retries and fallbacks --------------------


async def test_retries_are_tenacitys_and_a_backing_off_unit_holds_no_slot():
    flow = QuantumPartitioner(max_workers=1)
    order = []

    @flow.unit(retry=RetryPolicy(wait=tenacity.wait_fixed(0.05)), priority=1)
    async def flaky(ctx):
        order.append(f"flaky {ctx.attempt}")
        if ctx.attempt < 3:
            raise OSError

    @flow.unit
    async def other():
        order.append("other")

    result = await flow.run()
    assert order == ["flaky 1", "other", "flaky 2", "flaky 3"]
    assert result.units["flaky"].attempts == 3


async def test_retries_n_means_n_further_attempts(flow):
    @flow.unit(retries=1)
    async def bad():
        raise OSError("no")

    result = await flow.run()
    assert result.units["bad"].attempts == 2
    assert 0.05 < result.units["bad"].duration < 1


async def test_only_what_the_predicate_wants_is_tried_again(flow):
    @flow.unit(retry=RetryPolicy(retry=tenacity.retry_if_exception_type(OSError)))
    async def bad():
        raise ValueError

    assert (await flow.run()).units["bad"].attempts == 1


async def test_a_value_can_be_turned_down(flow):
    policy = RetryPolicy(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_result(lambda value: value < 2),
    )
    flow.add_unit(lambda ctx: ctx.attempt, name="counts", retry=policy)
    flow.add_unit(lambda ctx: 0, name="never", retry=policy)
    result = await flow.run()
    assert result["counts"] == 2
    assert isinstance(result.errors["never"], tenacity.RetryError)


async def test_a_predicate_that_raises_is_that_units_failure(flow, caplog):
    policy = RetryPolicy(retry=lambda state: 1 / 0)
    flow.add_unit(lambda ctx: 1, name="good", retry=policy)

    @flow.unit(retry=policy)
    async def bad():
        raise OSError

    result = await flow.run()
    assert result.states == {"good": FAILED, "bad": FAILED}
    assert isinstance(result.errors["bad"], OSError)
    assert "retry policy" in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, GeneratorExit])
async def test_no_predicate_is_ever_shown_anything_but_an_exception(flow, error):
    asked = []
    policy = RetryPolicy(retry=lambda state: asked.append(state) or True)

    @flow.unit(retry=policy)
    async def bad():
        raise error

    result = await flow.run()
    assert result.states["bad"] is FAILED
    assert isinstance(result.errors["bad"], error)
    assert not asked


@pytest.mark.parametrize("value", [None, {}, 7])
async def test_a_fallback_value_stands_in_and_the_run_is_ok(flow, value):
    @flow.unit(fallback=value)
    async def bad():
        raise OSError("down")

    @flow.unit
    async def user(bad):
        return ("got", bad)

    result = await flow.run()
    record = result.units["bad"]
    assert result["user"] == ("got", value)
    assert result.ok
    assert record.state is COMPLETED
    assert record.fallback_used
    assert isinstance(record.error, OSError)


async def test_a_fallback_may_be_a_function_of_context_and_error(flow):
    async def stand_in(ctx, error):
        return ctx["n"], str(error)

    def in_a_thread(ctx, error):
        return threading.current_thread() is threading.main_thread()

    async def bad(ctx):
        raise OSError("down")

    flow.add_unit(bad, name="a", fallback=stand_in)
    flow.add_unit(bad, name="b", fallback=in_a_thread)
    flow.add_unit(bad, name="c", fallback=lambda ctx, error: 1 / 0)
    flow.add_unit(bad, name="d", metadata={"fallback_value": "seed"})
    result = await flow.run({"n": 3})
    assert result["a"] == (3, "down")
    assert result["b"] is False
    assert isinstance(result.errors["c"], ZeroDivisionError)
    assert result["d"] == "seed"


async def test_a_timed_out_thread_can_have_a_fallback_and_keeps_its_slot():
    flow = QuantumPartitioner(max_workers=1)
    gate = threading.Event()
    flow.add_unit(lambda ctx: gate.wait(5), name="stuck", timeout=0.02, fallback=0, priority=1)
    flow.add_unit(lambda ctx: gate.is_set(), name="next")
    asyncio.get_running_loop().call_later(0.1, gate.set)
    result = await flow.run()
    assert result["stuck"] == 0
    assert result["next"] is True


# -- 9: isolation --------------------


async def test_each_attempt_has_its_own_copy_of_the_callers_context_variables(flow):
    var = contextvars.ContextVar("var", default="unset")
    var.set("caller")

    @flow.unit
    async def first():
        seen = var.get()
        var.set("first")
        return seen

    @flow.unit
    async def second(first):
        return var.get()

    flow.add_unit(lambda ctx: var.get(), name="threaded")
    result = await flow.run()
    assert dict(result) == {"first": "caller", "second": "caller", "threaded": "caller"}
    assert var.get() == "caller"


async def test_tasks_are_named_after_run_unit_and_attempt(flow):
    @flow.unit
    async def named():
        return asyncio.current_task().get_name()

    assert (await flow.run(run_id="r7"))["named"] == "r7/named#1"


async def test_a_unit_sees_only_what_it_declared(flow):
    async def nosy(ctx):
        return ctx["secret"]

    flow.add_unit(lambda ctx: 1, name="secret")
    flow.add_unit(nosy, name="nosy", dependencies=[])
    flow.add_unit(lambda ctx: ctx["secret"], name="nosy_thread")
    flow.add_unit(lambda ctx: ctx["secret"], name="nosy_process", mode="process")
    result = await flow.run()
    for name in ("nosy", "nosy_thread", "nosy_process"):
        assert isinstance(result.errors[name], UndeclaredDependencyError), name
        assert "add 'secret'" in str(result.errors[name])


# -- 10: the loop stays alive --------------------


async def test_the_loop_turns_while_many_units_run(flow):
    async def noop(ctx): ...

    for _ in range(20_000):
        flow.add_unit(noop)
    flow.build_execution_plan()
    turns = 0

    async def turn():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(turn())
    await flow.run()
    turning.cancel()
    assert turns >= 5


async def test_a_deep_chain_needs_no_recursion(flow):
    async def step(ctx): ...

    flow.add_unit(step)
    for number in range(5_000):
        flow.add_unit(step, [f"unit_{number}"])
    assert (await flow.run()).ok


# -- 12: observers --------------------


async def test_an_observer_that_raises_is_dropped_and_named_once(flow, caplog):
    calls = []

    def broken(event):
        calls.append(event)
        raise RuntimeError("observer")

    heard = []
    for _ in range(3):
        flow.add_unit(lambda ctx: 1)
    result = await flow.run(observers=[broken, heard.append])
    assert result.ok
    assert len(calls) == 1
    assert caplog.text.count("hears no more") == 1
    assert len(heard) == 2 + 3 * 3


async def test_events_come_in_order_and_tell_who_and_when(flow):
    failing_diamond(flow)
    events = []
    await flow.run(observers=[events.append], run_id="r1")
    assert [event.seq for event in events] == list(range(len(events)))
    assert {event.run_id for event in events} == {"r1"}
    kinds = [type(event).__name__ for event in events]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunFinished"
    of_good = [event for event in events if getattr(event, "unit", "") == "good"]
    assert [type(e) for e in of_good] == [UnitReady, UnitStarted, UnitCompleted]
    assert of_good[-1].result == "fine"


async def test_an_emitted_value_reaches_those_who_listen(flow):
    @flow.unit
    async def talks(ctx):
        ctx.emit("from the loop")

    flow.add_unit(lambda ctx: ctx.emit("from a thread"), ["talks"])
    events = []
    await flow.run(observers=[events.append])
    values = [event.value for event in events if type(event).__name__ == "UnitEmitted"]
    assert values == ["from the loop", "from a thread"]
