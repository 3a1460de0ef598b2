"""The options of `run`: what runs, in which order, where, and what is kept."""

import asyncio
import concurrent.futures
import gc
import os
import sys
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

from quantum_async import (
    ExecutionError,
    ExecutionMode,
    QuantumPartitioner,
    RunTimeoutError,
    Strategy,
    UnitState,
    blocking,
)
from quantum_async.core.events import UnitCompleted, UnitReady, UnitStarted

MODES = ["auto", "async", "thread", "sequential", "process"]


class Chain:
    """load → clean → report, and one beside it; each takes down that it ran."""

    def __init__(self, **options: Any) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()
        self.hanging: set[str] = set()
        self.flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(**options)
        for name, after in (("load", []), ("clean", ["load"]), ("report", ["clean"]), ("side", [])):
            self.flow.add_unit(self.unit, after, name=name)

    async def unit(self, ctx: Any) -> str:
        self.ran.append(ctx.unit_id)
        if ctx.unit_id in self.failing:
            raise ValueError(ctx.unit_id)
        if ctx.unit_id in self.hanging:
            await asyncio.Event().wait()
        return "+".join([*ctx.unit_results.values(), ctx.unit_id])


@pytest.fixture
def chain():
    return Chain()


# -- targets, overrides, resume_from ---------------------------------------------------------------


async def test_targets_run_with_what_they_need_and_nothing_else(chain):
    result = await chain.flow.run(targets=["clean"])
    assert chain.ran == ["load", "clean"]
    assert dict(result) == {"load": "load", "clean": "load+clean"}
    assert list(result.states) == ["load", "clean"]
    assert result.metrics["total_units"] == 2
    with pytest.raises(KeyError):
        result.units["side"]


@pytest.mark.parametrize("form", ["name", "handle", "handles", "iterator"])
async def test_targets_are_named_in_any_form(chain, form):
    unit = chain.flow.units["side"]
    targets = {"name": "side", "handle": unit, "handles": [unit], "iterator": iter(["side"])}[form]
    assert list(await chain.flow.run(targets=targets)) == ["side"]


async def test_no_targets_at_all_run_nothing(chain):
    result = await chain.flow.run(targets=[])
    assert (dict(result), chain.ran, result.ok) == ({}, [], True)


async def test_overrides_stand_in_for_units_and_for_what_only_they_need(chain):
    clean = chain.flow.units["clean"]
    result = await chain.flow.run(overrides={clean: "given"}, targets=["report"])
    assert chain.ran == ["report"]
    assert dict(result) == {"clean": "given", "report": "given+report"}
    assert result.units["clean"].ran_on == "given"
    assert result.units["clean"].state is UnitState.COMPLETED


@pytest.mark.parametrize("value", [None, False, NotImplemented])
async def test_any_value_overrides(chain, value):
    result = await chain.flow.run(overrides={"clean": value}, targets=["clean"])
    assert result["clean"] is value
    assert chain.ran == []


async def test_a_run_goes_on_from_a_failed_one(chain):
    chain.failing = {"clean"}
    with pytest.raises(ExecutionError) as caught:
        await chain.flow.run()
    chain.failing, chain.ran = set(), []
    result = await chain.flow.run(resume_from=caught.value.result)
    assert chain.ran == ["clean", "report"]
    assert result["report"] == "load+clean+report"
    assert set(result) == {"load", "clean", "report", "side"}


async def test_a_run_goes_on_from_one_whose_time_was_up(chain):
    chain.hanging = {"report"}
    with pytest.raises(RunTimeoutError) as caught:
        await chain.flow.run(timeout=0.02)
    chain.hanging, chain.ran = set(), []
    assert (await chain.flow.run(resume_from=caught.value.result)).ok
    assert chain.ran == ["report"]


async def test_a_run_goes_on_from_a_cancelled_one(chain):
    chain.hanging = {"report"}
    task = asyncio.create_task(chain.flow.run())
    while "report" not in chain.ran:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    chain.hanging, chain.ran = set(), []
    assert (await chain.flow.run(resume_from=chain.flow.last_result)).ok
    assert chain.ran == ["report"]


async def test_what_was_dropped_is_only_computed_again_if_it_is_needed(chain):
    earlier = await chain.flow.run(keep=["clean", "side"])
    assert set(earlier) == {"clean", "side"}
    chain.ran = []
    result = await chain.flow.run(resume_from=earlier)
    assert chain.ran == ["report"]
    assert result["report"] == "load+clean+report"


async def test_a_run_goes_on_from_a_mapping(chain):
    chain.flow.add_unit(chain.unit, ["report"], name="last")
    result = await chain.flow.run(resume_from={"report": "r", "side": "s"})
    assert chain.ran == ["last"]
    assert result["last"] == "r+last"


async def test_an_override_goes_over_what_is_resumed(chain):
    result = await chain.flow.run(
        resume_from={"clean": "old"}, overrides={"clean": "new"}, targets=["report"]
    )
    assert result["report"] == "new+report"


async def test_units_that_are_gone_since_do_not_matter(chain):
    other = Chain()
    other.flow.add_unit(other.unit, name="extra")
    earlier = await other.flow.run()
    assert (await chain.flow.run(resume_from=earlier)).ok
    assert chain.ran == []


# -- keep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("all", {"load", "clean", "report", "side"}),
        ("targets", {"report", "side"}),
        (["load"], {"load"}),
        ("clean", {"clean"}),
        ([], set()),
    ],
)
async def test_keep_says_whose_results_stay(chain, keep, kept):
    result = await chain.flow.run(keep=keep)
    assert set(result) == kept
    assert result.ok
    assert set(result.states.values()) == {UnitState.COMPLETED}


async def test_a_dropped_result_says_so_when_asked_for(chain):
    result = await chain.flow.run(keep=[])
    with pytest.raises(KeyError, match="keep="):
        result["load"]


async def test_only_targets_are_kept_although_others_depend_on_the_same_unit(chain):
    chain.flow.add_unit(chain.unit, ["load"], name="outside")
    result = await chain.flow.run(targets=["clean"], keep="targets")
    assert set(result) == {"clean"}


async def test_given_results_are_dropped_like_others(chain):
    result = await chain.flow.run(overrides={"load": "given"}, keep="targets")
    assert set(result) == {"report", "side"}


class Data:
    """Something that can be watched."""


@pytest.mark.parametrize("form", ["context", "wired", "limited", "thread"])
async def test_what_is_not_kept_is_freed_while_the_run_goes_on(form):
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    seen: list[Any] = []

    async def make(ctx):
        data = Data()
        seen.append(weakref.ref(data))
        return data

    async def use(ctx):
        assert ctx["make"] is not None

    flow.add_unit(make, name="make")
    if form == "wired":

        @flow.unit(name="use")
        async def use_wired(make):
            assert make is not None

    elif form == "thread":
        flow.add_unit(lambda data: None, name="use", args=[flow.units["make"]])
    else:
        flow.add_unit(use, ["make"], name="use", timeout=60 if form == "limited" else None)

    async def look(ctx):
        # The loop turns until the attempt before has left its last frame.
        for _ in range(3):
            await asyncio.sleep(0)
        return seen[0]()

    flow.add_unit(look, ["use"], name="look")
    gc.collect()
    gc.disable()
    try:
        result = await flow.run(keep=["look"])
    finally:
        gc.enable()
    assert result["look"] is None


# -- strategies ------------------------------------------------------------------------------------


def started(flow, **options):
    order: list[str] = []

    def take(event):
        if isinstance(event, UnitStarted):
            order.append(event.unit)

    flow.execute(observers=[take], max_workers=1, **options)
    return order


def noop(ctx): ...


async def anoop(ctx): ...


@pytest.fixture
def ranked():
    flow = QuantumPartitioner()
    flow.add_unit(anoop, name="leaf")
    flow.add_unit(anoop, name="root")
    flow.add_unit(anoop, ["root"], name="child")
    flow.add_unit(anoop, name="costly", cost=1.5)
    flow.add_unit(anoop, name="urgent", priority=1)
    return flow


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("critical_path", ["urgent", "root", "costly", "leaf", "child"]),
        ("priority", ["urgent", "leaf", "root", "child", "costly"]),
        ("fifo", ["leaf", "root", "costly", "urgent", "child"]),
        ("resource_balanced", ["urgent", "root", "costly", "leaf", "child"]),
        (Strategy.CRITICAL_PATH, ["urgent", "root", "costly", "leaf", "child"]),
    ],
)
def test_a_strategy_orders_the_ready_queue(ranked, strategy, order):
    assert started(ranked, strategy=strategy) == order
    assert started(ranked, strategy=strategy) == order
    assert ranked.build_execution_plan() is ranked.build_execution_plan()


def test_the_partitioners_strategy_is_the_default():
    flow = QuantumPartitioner(strategy="fifo")
    flow.add_unit(anoop, name="a")
    flow.add_unit(anoop, name="b", priority=1)
    assert started(flow) == ["a", "b"]
    assert started(flow, strategy="priority") == ["b", "a"]
    flow.execute_with_strategy({}, "priority")


def test_adaptive_runs_everything():
    flow = QuantumPartitioner(strategy="adaptive")
    for number in range(100):
        flow.add_unit(anoop, name=f"u{number}")
    assert len(flow.execute()) == 100


def test_measured_costs_order_later_runs(ranked):
    gate = threading.Event()
    threading.Timer(0.02, gate.set).start()
    flow = QuantumPartitioner()
    flow.add_unit(noop, name="short")
    flow.add_unit(lambda ctx: gate.wait(5), name="long")
    assert started(flow) == ["short", "long"]
    assert started(flow) == ["short", "long"]
    gate.clear()
    threading.Timer(0.02, gate.set).start()
    flow.execute()
    flow.use_measured_costs()
    assert started(flow) == ["long", "short"]


def test_use_measured_costs_before_any_run_changes_nothing(ranked):
    plan = ranked.build_execution_plan()
    ranked.use_measured_costs()
    assert ranked.build_execution_plan().costs == plan.costs


# -- modes -----------------------------------------------------------------------------------------


def where(ctx):
    return os.getpid(), threading.get_ident()


async def awhere(ctx):
    return os.getpid(), threading.get_ident()


@pytest.mark.parametrize("mode", [*MODES, *(m for m in ExecutionMode if m.value in MODES)])
async def test_a_mode_says_where_plain_functions_run(mode):
    flow = QuantumPartitioner()
    flow.add_unit(where, name="plain")
    flow.add_unit(awhere, name="coroutine")
    result = await flow.run(mode=mode)
    here = (os.getpid(), threading.get_ident())
    assert result["coroutine"] == here
    ran_on = result.units["plain"].ran_on
    mode = ExecutionMode(mode)
    if mode is ExecutionMode.SEQUENTIAL:
        assert (ran_on, result["plain"]) == ("inline", here)
    elif mode is ExecutionMode.PROCESS:
        assert ran_on == "process"
        assert result["plain"][0] != here[0]
    else:
        assert ran_on == "thread"
        assert result["plain"][0] == here[0]
        assert result["plain"][1] != here[1]


async def test_sequential_goes_one_at_a_time_in_plan_order():
    flow = QuantumPartitioner()
    running, order = 0, []

    async def unit(ctx):
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        order.append(ctx.unit_id)
        running -= 1

    flow.add_unit(unit, ["c"], name="a")
    flow.add_unit(unit, name="b")
    flow.add_unit(unit, name="c", priority=5)
    flow.add_unit(lambda ctx: order.append("d"), name="d", mode="process")
    await flow.run(mode="sequential", max_workers=8)
    assert order == ["b", "c", "a", "d"]


async def test_custom_runs_plain_functions_in_the_users_threads():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: threading.current_thread().name, name="plain")
    flow.add_unit(lambda ctx: threading.current_thread().name, name="own", mode="thread")
    with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
        result = await flow.run(mode="custom", custom_executor=pool)
        assert pool.submit(int).result() == 0  # it is not shut down
    assert result["plain"].startswith("mine")
    assert not result["own"].startswith("mine")
    assert result.units["plain"].ran_on == "custom"


async def test_units_in_the_users_threads_have_context_variables_of_their_own():
    flow, seen, request = QuantumPartitioner(), [], ContextVar("request", default=None)

    def sets(ctx):
        seen.append(request.get())
        request.set(ctx.unit_id)

    flow.add_unit(sets, name="one")
    flow.add_unit(sets, ["one"], name="two")
    request.set("the caller's")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        await flow.run(mode="custom", custom_executor=pool)
        assert pool.submit(request.get).result() is None
    assert seen == ["the caller's", "the caller's"]


async def test_custom_runs_plain_functions_in_the_users_processes():
    import multiprocessing

    flow = QuantumPartitioner()
    flow.add_unit(os.getpid, name="plain", args=[])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        result = await flow.run(mode=ExecutionMode.CUSTOM, custom_executor=pool)
    assert result["plain"] != os.getpid()


async def test_a_run_that_needs_no_custom_unit_needs_no_executor():
    flow = QuantumPartitioner()
    flow.add_unit(noop, name="custom", mode="custom")
    flow.add_unit(anoop, name="other")
    assert (await flow.run(targets=["other"])).ok
    assert (await flow.run(overrides={"custom": 1})).ok


@pytest.mark.parametrize("mode", ["thread", "process", "sequential", "custom"])
async def test_stop_iteration_is_an_error_like_any_other(mode):
    flow = QuantumPartitioner(failure_policy="collect")

    def bad(ctx):
        raise StopIteration("over")

    flow.add_unit(bad, name="bad")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        async with asyncio.timeout(20):
            result = await flow.run(mode=mode, custom_executor=pool)
    assert result.states == {"bad": UnitState.FAILED}


# -- the rest --------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_run", [False, True])
async def test_max_workers_of_the_run_goes_over_the_partitioners(of_run):
    flow = QuantumPartitioner(max_workers=7 if of_run else 2)
    running = most = 0

    async def unit(ctx):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    for number in range(9):
        flow.add_unit(unit, name=f"u{number}")
    await flow.run(max_workers=2 if of_run else None)
    assert most == 2


async def test_observers_of_partitioner_and_run_hear_the_same(chain):
    mine: list[Any] = []
    runs: list[Any] = []
    chain.flow.observers.append(mine.append)
    await chain.flow.run(observers=[runs.append], run_id="r")
    assert mine == runs
    assert {event.run_id for event in mine} == {"r"}
    assert any(isinstance(event, UnitReady) for event in mine)
    mine.clear()
    await chain.flow.run()
    assert mine
    assert mine[0].run_id != "r"


async def test_an_observer_hears_only_the_types_it_asks_for(chain):
    class Ends:
        event_types = (UnitCompleted,)

        def __init__(self):
            self.heard = []

        def __call__(self, event):
            self.heard.append(event)

    ends = Ends()
    await chain.flow.run(observers=[ends])
    assert [event.unit for event in ends.heard] == chain.ran
    assert {type(event) for event in ends.heard} == {UnitCompleted}


async def test_runs_of_one_partitioner_at_once_have_their_own_state():
    flow = QuantumPartitioner()
    gate = asyncio.Event()

    @flow.unit
    async def first(x):
        await gate.wait()
        return x

    @flow.unit
    async def second(ctx, first):
        ctx.record_metric("x", first)
        return first * 10, ctx.run_id

    runs = [asyncio.create_task(flow.run({"x": x}, run_id=f"r{x}")) for x in range(20)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*runs)
    for x, result in enumerate(results):
        assert dict(result) == {"first": x, "second": (x * 10, f"r{x}")}
        assert result.metrics["x"] == x
    assert flow.last_result in results


async def test_a_unit_may_run_its_own_partitioner():
    flow = QuantumPartitioner(max_workers=1)

    @flow.unit
    async def factorial(n):
        return 1 if n < 2 else n * (await flow.run({"n": n - 1}))["factorial"]

    assert (await flow.run({"n": 8}))["factorial"] == 40320


async def test_a_unit_may_declare_units_for_later_runs():
    flow = QuantumPartitioner()

    @flow.unit
    async def grow():
        flow.add_unit(anoop, ["grow"], name=f"new_{len(flow.units)}")

    assert list(await flow.run()) == ["grow"]
    assert list(await flow.run()) == ["grow", "new_1"]
    assert len(flow.units) == 3


# -- hooks -----------------------------------------------------------------------------------------


async def test_hooks_hear_of_starts_results_and_errors(chain):
    told: list[Any] = []
    flow = chain.flow
    flow.on_unit_start = lambda unit: told.append(("start", unit))
    flow.on_unit_complete = lambda unit, result: told.append(("complete", unit, result))
    flow.on_unit_error = lambda unit, error: told.append(("error", unit, type(error)))
    chain.failing = {"clean"}
    with pytest.raises(ExecutionError):
        await flow.run(targets=["report"])
    assert told == [
        ("start", "load"),
        ("complete", "load", "load"),
        ("start", "clean"),
        ("error", "clean", ValueError),
    ]


async def test_hooks_may_be_methods_of_a_subclass():
    class Mine(QuantumPartitioner):
        def on_unit_complete(self, unit_id, result):
            self.done = (unit_id, result)

    flow = Mine()
    flow.add_unit(lambda ctx: 5, name="five")
    await flow.run()
    assert flow.done == ("five", 5)


async def test_a_hook_that_raises_does_not_silence_the_others(chain, caplog):
    done: list[str] = []

    def broken(unit):
        raise RuntimeError("in a hook")

    chain.flow.on_unit_start = broken
    chain.flow.on_unit_complete = lambda unit, result: done.append(unit)
    result = await chain.flow.run()
    assert result.ok
    assert len(caplog.records) == 1
    assert len(done) == 4


def test_without_uvloop_execute_runs_in_a_loop_of_asyncios(monkeypatch):
    monkeypatch.delitem(sys.modules, blocking._INTERPRETERS, raising=False)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    flow = QuantumPartitioner()

    @flow.unit
    async def loop():
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]

    assert flow.execute() == {"loop": "asyncio"}
