"""Where the engine itself fails, and what seldom happens to a run."""

import asyncio
import copy
import pickle
import threading
import types
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest

from quantum_async import ExecutionError, QuantumPartitioner, UndeclaredDependencyError, UnitState
from quantum_async.core.errors import InternalError
from quantum_async.core.events import UnitStarted
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.engine import attempts, view
from quantum_async.engine.attempt import release_frames
from quantum_async.engine.attempts import Attempts
from quantum_async.engine.engine import Engine
from quantum_async.engine.executors.base import Job
from quantum_async.engine.ledger import NOTHING
from quantum_async.engine.outcomes import Outcomes
from quantum_async.testing import VirtualClock

CANCELED, COMPLETED, FAILED = UnitState.CANCELED, UnitState.COMPLETED, UnitState.FAILED


class BugError(Exception):
    """Stands for one of ours."""


def buggy(*_, **__):
    raise BugError


@pytest.fixture
def flow():
    return QuantumPartitioner()


# -- our own bugs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"timeout": 60}, {"mode": "thread"}], ids=str)
async def test_a_bug_at_the_end_of_an_attempt_ends_the_run_and_is_raised(
    flow, monkeypatch, options
):
    async def returns(ctx):
        await asyncio.sleep(0)
        return 1

    async def returns_when_it_is_cancelled(ctx):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return 2

    flow.add_unit((lambda ctx: 1) if options.get("mode") else returns, name="unit", **options)
    flow.add_unit(returns_when_it_is_cancelled, name="other")  # the same bug once more
    monkeypatch.setattr(Outcomes, "completed", buggy)
    with pytest.raises(BugError):
        await flow.run({})
    assert len(asyncio.all_tasks()) == 1


async def test_a_bug_of_the_scheduler_ends_the_run_and_is_raised(flow, monkeypatch):
    flow.add_unit(lambda ctx: 1, name="unit")
    monkeypatch.setattr(Scheduler, "next_start", buggy)
    with pytest.raises(BugError):
        await flow.run({})


async def test_a_run_that_is_stuck_tells_its_story(flow, monkeypatch):
    flow.add_unit(lambda ctx: 1, name="unit")
    monkeypatch.setattr(Scheduler, "next_start", lambda self: NOBODY)
    with pytest.raises(InternalError, match="the run is stuck: <Scheduler 1 ready"):
        await flow.run({})


# -- cancellations --------------------------------------------------------------------------------


async def test_an_interrupt_in_the_clean_up_of_a_late_unit_is_raised(flow):
    async def unit(ctx):
        try:
            await asyncio.sleep(60)
        finally:
            raise KeyboardInterrupt

    flow.add_unit(unit, name="unit", timeout=0.01)
    with pytest.raises(KeyboardInterrupt):
        await flow.run({})
    assert flow.last_result.states["unit"] is FAILED


async def test_what_a_unit_returns_instead_of_being_cancelled_counts(flow):
    began = asyncio.Event()

    async def swallows(ctx):
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "mine"

    flow.add_unit(swallows, name="swallows", timeout=60)
    run = asyncio.ensure_future(flow.run({}))
    await began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert flow.last_result["swallows"] == "mine"


async def test_a_fallback_is_cancelled_with_its_run(flow):
    reached = asyncio.Event()

    async def fallback(ctx, error):
        reached.set()
        await asyncio.sleep(60)

    flow.add_unit(lambda ctx: 1 / 0, name="unit", fallback=fallback)
    run = asyncio.ensure_future(flow.run({}))
    await reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert flow.last_result.states["unit"] is CANCELED


def test_units_that_ignore_their_cancellation_are_named(flow, caplog):
    clock = VirtualClock()

    async def ignores(ctx):
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(4)

    async def main():
        run = asyncio.ensure_future(flow.run({}))
        await asyncio.sleep(1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    flow.add_unit(ignores, name="deaf")
    clock.run(main())
    assert "cancelled 5 s ago and not ended yet: 'deaf'" in caplog.text


@pytest.mark.skipif(not attempts.EAGER, reason="tasks are never eager there")
async def test_without_eager_tasks_all_is_the_same(flow, monkeypatch):
    monkeypatch.setattr(attempts, "EAGER", False)

    async def unit(ctx):
        return ctx.unit_id

    flow.add_unit(unit, name="a")
    flow.add_unit(unit, ["a"], name="b")
    assert dict(await flow.run({})) == {"a": "a", "b": "b"}


async def test_a_unit_whose_task_was_cancelled_before_its_first_step_is_canceled(flow, monkeypatch):
    monkeypatch.setattr(attempts, "EAGER", False)
    began = []

    async def unit(ctx):
        began.append(ctx.unit_id)

    def interrupt(event):
        if event.unit == "b":
            raise KeyboardInterrupt

    interrupt.event_types = (UnitStarted,)
    flow.add_unit(unit, name="a")
    flow.add_unit(unit, name="b")
    with pytest.raises(KeyboardInterrupt):
        await flow.run({}, observers=[interrupt])
    assert flow.last_result.states["a"] is CANCELED
    assert began == []


def test_a_deadline_that_passes_while_a_unit_runs_is_that_of_its_attempt(flow):
    async def unit(ctx):
        if ctx.attempt == 1:
            raise OSError
        await asyncio.sleep(60)

    flow.add_unit(unit, name="unit", retries=1, deadline=5)
    VirtualClock().run(flow.run({}, failure_policy="collect"))
    record = flow.last_result.units["unit"]
    assert (record.state, record.attempts) == (UnitState.TIMEOUT, 2)
    assert record.error.which == "deadline"


def test_what_comes_too_late_for_a_run_or_a_unit_does_nothing():
    Engine.stop(SimpleNamespace(_stopped=True), "once more")
    Attempts.cancel(SimpleNamespace(_asked={0}), 0)


def test_work_that_returns_when_nothing_waits_for_its_slot_frees_none():
    job = Job("unit", 1, int, SimpleNamespace(), late=True)
    outcomes = SimpleNamespace(_late=set())
    outcomes.thread_returned = partial(Outcomes.thread_returned, outcomes)
    Attempts._slot_returned(SimpleNamespace(_outcomes=outcomes), job, 0)
    assert not job.late


@pytest.mark.parametrize("closed", [True, False])
def test_a_slot_comes_back_late_only_to_a_loop_that_is_closed(closed):
    loop = asyncio.new_event_loop()
    loop.close()
    if closed:
        Attempts._thread_returned(SimpleNamespace(_loop=loop, _slot_returned=None), 0, None)
    else:
        broken = SimpleNamespace(call_soon_threadsafe=loop.call_soon_threadsafe)
        broken.is_closed = lambda: False
        with pytest.raises(RuntimeError):
            Attempts._thread_returned(SimpleNamespace(_loop=broken, _slot_returned=None), 0, None)


# -- what else is rare ----------------------------------------------------------------------------


@pytest.mark.slow
async def test_in_a_big_plan_a_worker_does_not_know_the_names_and_we_say_it(flow, monkeypatch):
    monkeypatch.setattr(view, "_FEW", 1)
    flow.add_unit(lambda ctx: 1, name="a")
    flow.add_unit(lambda ctx: ctx["a"], name="b", mode="process")
    with pytest.raises(ExecutionError) as caught:
        await flow.run({})
    error = caught.value.errors["b"]
    assert isinstance(error, UndeclaredDependencyError)
    assert "add 'a' to its dependencies" in str(error)


def test_the_absence_of_a_result_is_one_thing_however_it_travels():
    assert repr(NOTHING) == "<no result>"
    assert pickle.loads(pickle.dumps(NOTHING)) is NOTHING
    assert copy.deepcopy(NOTHING) is NOTHING


def test_frames_that_still_run_are_left_alone():
    ours = types.FunctionType(
        (lambda function: function()).__code__, {"__name__": "quantum_async.played"}
    )
    seen = []

    def users():
        try:
            raise ValueError
        except ValueError as error:
            release_frames(error)
            seen.append(error.__traceback__.tb_frame.f_back)

    ours(users)
    assert seen[0].f_code is ours.__code__


async def test_an_interrupt_in_an_observer_is_no_fault_of_the_observers(flow):
    def observer(event):
        raise KeyboardInterrupt

    flow.add_unit(lambda ctx: 1, name="unit")
    with pytest.raises(KeyboardInterrupt):
        await flow.run({}, observers=[observer])


async def test_a_context_that_outlives_its_run_tells_nobody(flow):
    heard = []
    flow.add_unit(lambda ctx: ctx, name="unit")
    result = await flow.run({}, observers=[heard.append])
    count = len(heard)
    result["unit"].emit("too late")
    await asyncio.sleep(0)
    assert len(heard) == count


async def test_an_engine_shows_how_far_it_is(flow, monkeypatch):
    engines, run = [], Engine.run
    monkeypatch.setattr(Engine, "run", lambda self: engines.append(self) or run(self))
    flow.add_unit(lambda ctx: repr(engines[0]), name="unit")
    result = await flow.run({}, run_id="r1")
    assert result["unit"].startswith("<Engine r1 running: <Scheduler 1 running")
    assert repr(engines[0]).startswith("<Engine r1 done: <Scheduler 1 completed")


async def test_a_plain_fallback_is_waited_for_when_its_run_is_cancelled():
    reached, let_go, returned = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def fallback(ctx, error):
        loop.call_soon_threadsafe(reached.set)
        let_go.wait(10)
        returned.append(True)

    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1 / 0, name="unit", fallback=fallback)
    running = asyncio.create_task(flow.run())
    await reached.wait()
    running.cancel()
    await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert returned == [True]
    assert flow.last_result.states["unit"].value == "canceled"
