"""What a run gives back: results, records, metrics, an account; and what handles show of it."""

import asyncio
import concurrent.futures
import dataclasses
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from quantum_async import ExecutionError, QuantumPartitioner, RetryPolicy, UnitState

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED, PENDING = UnitState.CANCELED, UnitState.PENDING


@pytest.fixture
def flow():
    """last → (first, bad); declared in another order than they run in."""
    flow = QuantumPartitioner(failure_policy="collect", name="mine")

    @flow.unit
    async def last(first, bad): ...

    @flow.unit
    async def first(ctx):
        ctx.record_metric("rows", 7)
        await asyncio.sleep(0.01)
        return 1

    @flow.unit
    async def bad():
        raise ValueError("broken")

    @flow.unit
    def after(first):
        return first + 1

    @flow.unit(fallback="instead")
    async def weak():
        raise OSError("weak")

    return flow


async def test_a_result_is_a_mapping_in_plan_order(flow):
    result = await flow.run()
    assert list(result) == ["first", "after", "weak"]
    assert list(result.values()) == [1, 2, "instead"]
    assert dict(result) == {"first": 1, "after": 2, "weak": "instead"}
    assert len(result) == 3
    assert "first" in result
    assert flow.units["first"] in result
    assert "last" not in result
    assert result == dict(result)
    assert result.get("last", "none") == "none"


async def test_a_handle_is_as_good_as_a_name(flow):
    result = await flow.run()
    first = flow.units["first"]
    assert result[first] == result["first"] == 1
    assert result.units[first] == result.units["first"]
    assert result.explain(first) == result.explain("first")
    assert {first: "as a key"}[first] == "as a key"


async def test_a_unit_without_a_result_says_why(flow):
    result = await flow.run()
    with pytest.raises(KeyError, match="'bad' has no result: it is failed"):
        result["bad"]
    with pytest.raises(KeyError, match=r"skipped.*'bad' failed"):
        result["last"]


async def test_states_and_errors_are_by_name(flow):
    result = await flow.run()
    assert result.states == {
        "first": COMPLETED, "bad": FAILED, "last": SKIPPED, "after": COMPLETED, "weak": COMPLETED
    }  # fmt: skip
    assert list(result.errors) == ["bad"]
    assert isinstance(result.errors["bad"], ValueError)
    assert not result.ok


async def test_records_tell_plausible_times(flow):
    before = time.time()
    result = await flow.run()
    after = time.time()
    assert list(result.units) == list(result.states)
    assert len(result.units) == 5
    first, last, bad = (result.units[name] for name in ("first", "last", "bad"))
    assert before - 0.05 <= first.started_at <= first.ended_at <= after + 0.05
    assert first.duration == pytest.approx(first.ended_at - first.started_at, abs=1e-3)
    assert 0.009 <= first.duration <= after - before + 0.05
    assert 0 <= first.waited < 0.5
    assert (first.attempts, first.ran_on, first.error, first.cause) == (1, "loop", None, None)
    assert (last.attempts, last.started_at, last.duration, last.waited) == (0, None, None, None)
    assert last.ran_on is None
    assert last.cause == "'bad' failed"
    assert last.ended_at >= bad.ended_at
    assert isinstance(bad.error, ValueError)
    assert result.duration >= first.duration


async def test_waiting_for_a_slot_is_counted():
    flow = QuantumPartitioner(max_workers=1)

    async def unit(ctx):
        await asyncio.sleep(0.02)

    flow.add_unit(unit, name="a", priority=1)
    flow.add_unit(unit, name="b")
    flow.add_unit(unit, ["b"], name="c")
    result = await flow.run()
    assert result.units["a"].waited < 0.01
    assert result.units["b"].waited >= 0.019
    assert result.units["c"].waited < 0.01
    assert "waited longest for a slot: b" in result.explain()


async def test_a_fallback_is_recorded_with_the_error_it_stands_for(flow):
    record = (await flow.run()).units["weak"]
    assert (record.state, record.result, record.fallback_used) == (COMPLETED, "instead", True)
    assert isinstance(record.error, OSError)


async def test_a_record_says_where_its_unit_ran():
    flow = QuantumPartitioner()

    async def loop(ctx): ...

    flow.add_unit(loop, name="loop")
    flow.add_unit(lambda ctx: 0, name="thread")
    flow.add_unit(lambda ctx: 0, name="process", mode="process")
    flow.add_unit(lambda ctx: 0, name="custom", mode="custom")
    flow.add_unit(lambda ctx: 0, name="given")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = await flow.run(custom_executor=pool, overrides={"given": 1})
    assert {name: record.ran_on for name, record in result.units.items()} == {
        name: name for name in flow.units
    }
    result = await flow.run(mode="sequential", targets=["thread"])
    assert result.units["thread"].ran_on == "inline"


async def test_metrics_have_the_seeds_keys_and_those_of_units(flow):
    result = await flow.run()
    metrics = result.metrics
    assert metrics["rows"] == 7
    assert metrics["total_units"] == 5
    assert metrics["completed_units"] == 3
    assert metrics["failed_units"] == 1
    assert metrics["end_time"] - metrics["start_time"] == pytest.approx(
        metrics["total_duration"], abs=1e-4
    )
    assert metrics["total_duration"] == result.duration
    assert set(metrics["unit_times"]) == {"first", "bad", "after", "weak"}
    times = metrics["unit_times"]["bad"]
    assert times["error"] == "broken"
    assert times["start"] <= times["end"]
    assert flow.last_execution_metrics == metrics


async def test_the_trace_has_each_start_and_end_in_order_of_time(flow):
    trace = (await flow.run()).metrics["execution_trace"]
    assert [entry["time"] for entry in trace] == sorted(entry["time"] for entry in trace)
    events = [(entry["event"], entry["unit"]) for entry in trace]
    assert events.index(("complete", "first")) < events.index(("start", "after"))
    assert ("error", "bad") in events
    assert not [unit for _, unit in events if unit == "last"]


async def test_the_measured_critical_path_is_what_decided_the_end():
    flow = QuantumPartitioner()

    @flow.unit
    async def quick(): ...

    @flow.unit
    async def slow():
        await asyncio.sleep(0.02)

    @flow.unit
    async def end(quick, slow): ...

    result = await flow.run()
    assert result.critical_path == ["slow", "end"]
    text = result.explain()
    assert "critical path" in text
    assert "slow" in text
    assert "slow was the last to end" in result.explain("end")


async def test_explain_names_failures_and_what_they_cost(flow):
    text = (await flow.run()).explain()
    assert "bad failed: ValueError: broken" in text
    assert "1 skipped because 'bad' failed" in text
    assert "fallbacks stand in for: weak" in text


async def test_repr_tells_the_state_in_one_line(flow):
    assert "not run yet" in repr(flow)
    result = await flow.run(run_id="r1")
    for text in (repr(result), repr(flow), repr(result.units)):
        assert "\n" not in text
    assert "r1" in repr(result)
    assert "3 completed" in repr(result)
    assert "mine" in repr(flow)
    assert "completed" in repr(flow.units["first"])
    assert repr(flow.build_execution_plan()) == "<ExecutionPlan 5 units, 3 dependencies, 2 levels>"


# -- handles and the partitioner show the last run that ended --------------------------------------


async def test_before_any_run_a_handle_is_pending(flow):
    first = flow.units["first"]
    assert (first.state, first.result, first.error, first.attempt) == (PENDING, None, None, 0)
    assert (first.start_time, first.end_time, first.get_execution_time()) == (None, None, None)
    assert flow.get_partial_results() == {}
    assert flow.get_failed_units() == []
    assert (flow.completed_units, flow.failed_units) == (set(), set())
    assert flow.last_execution_metrics == {}


async def test_handles_show_the_run_also_when_it_raised(flow):
    with pytest.raises(ExecutionError):
        await flow.run(failure_policy="continue")
    first, bad, last = (flow.units[name] for name in ("first", "bad", "last"))
    assert (first.state, first.result, first.attempt) == (COMPLETED, 1, 1)
    assert (
        first.execution_time
        == first.get_execution_time()
        == pytest.approx(first.end_time - first.start_time, abs=1e-3)
    )
    assert (bad.state, type(bad.error)) == (FAILED, ValueError)
    assert last.state is SKIPPED
    assert flow.get_partial_results() == {"first": 1, "after": 2, "weak": "instead"}
    assert flow.get_failed_units() == [bad]
    assert flow.completed_units == {"first", "after", "weak"}
    assert flow.failed_units == {"bad"}


async def test_handles_show_the_run_also_when_it_was_cancelled():
    flow = QuantumPartitioner()
    started = asyncio.Event()

    @flow.unit
    async def done():
        return 1

    @flow.unit
    async def hang(done):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(flow.run())
    await started.wait()
    assert done.state is PENDING  # the run has not ended
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (done.state, done.result, hang.state) == (COMPLETED, 1, CANCELED)
    assert flow.get_partial_results() == {"done": 1}


async def test_a_unit_that_cancels_its_own_run_is_cancelled_with_it():
    flow = QuantumPartitioner()
    tasks: list[asyncio.Task[Any]] = []

    @flow.unit
    async def traitor():
        tasks[0].cancel()
        await asyncio.Event().wait()

    tasks.append(asyncio.create_task(flow.run()))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert traitor.state is CANCELED


async def test_a_unit_outside_the_last_run_is_pending(flow):
    await flow.run()
    await flow.run(targets=["first"])
    assert flow.units["first"].state is COMPLETED
    assert flow.units["after"].state is PENDING


# -- values and errors that are hard to handle -----------------------------------------------------


class Ambiguous:
    """Like an array: it has no truth, and compares element by element."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    def __eq__(self, other: object) -> Any:
        return self

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "value", [NotImplemented, ..., None, ValueError("a result"), Ambiguous(), float("nan"), type]
)
@pytest.mark.parametrize("options", [{}, {"timeout": 9}, {"retry": RetryPolicy()}])
async def test_any_value_can_be_a_result(value, options):
    flow = QuantumPartitioner()

    async def give(ctx):
        return value

    flow.add_unit(give, name="async", **options)
    flow.add_unit(lambda ctx: value, name="plain", **options)

    @flow.unit
    async def take(ctx):
        return None

    flow.add_unit(lambda a, b: a, ["take"], name="args", args=["x", [flow.units["async"]]])
    flow.add_unit(give, name="over")
    result = await flow.run(overrides={"over": value}, keep=["async", "plain", "over"])
    assert result["async"] is result["plain"] is result["over"] is value
    assert result.metrics["completed_units"] == 5
    assert isinstance(repr(result) + result.explain() + repr(flow.units["async"]), str)


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("its __str__ raised")

    __repr__ = __str__


class UntruthfulError(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("its __bool__ raised")


class IncomparableError(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("its __eq__ raised")

    __hash__ = None  # type: ignore[assignment]


class TwoArgumentsError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


class StubbornError(Exception):
    __notes__ = None  # type: ignore[assignment]

    def add_note(self, note: str) -> None:
        raise RuntimeError("it takes no notes")


ODD = [SilentError(), UntruthfulError(), IncomparableError(), TwoArgumentsError(1, "x")]


@pytest.mark.parametrize("error", [*ODD, StubbornError(), ExceptionGroup("g", [ValueError()])])
@pytest.mark.parametrize("options", [{}, {"timeout": 9, "retries": 0}])
async def test_any_exception_is_an_ordinary_failure(error, options):
    flow = QuantumPartitioner()

    async def bad(ctx):
        raise error

    flow.add_unit(bad, name="bad", **options)
    flow.add_unit(lambda ctx: 1, name="good")
    async with asyncio.timeout(5):
        with pytest.raises(ExecutionError, match="bad: ") as caught:
            await flow.run()
    assert caught.value.__cause__ is error
    assert caught.value.result["good"] == 1
    result = caught.value.result
    assert result.metrics["failed_units"] == 1
    assert "bad failed" in result.explain()
    assert "bad" in result.explain("bad")


def test_a_frozen_exception_does_not_hang_the_run():
    # In a process of its own: a run that hangs here cannot even be cancelled.
    script = """
        import asyncio, dataclasses
        from quantum_async import QuantumPartitioner

        @dataclasses.dataclass(frozen=True)
        class FrozenError(Exception):
            code: int

        async def bad(ctx):
            raise FrozenError(3)

        def worse(ctx):
            raise FrozenError(4)

        flow = QuantumPartitioner(failure_policy="collect")
        flow.add_unit(bad, name="bad")
        flow.add_unit(bad, name="limited", timeout=9)
        flow.add_unit(worse, name="thread")
        flow.add_unit(bad, name="weak", fallback=1)
        print(sorted(flow.execute()), flow.last_result.errors["bad"].code)
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail("the run hangs")
    assert done.stdout == "['weak'] 3\n", done.stderr


@dataclasses.dataclass(eq=False)
class Observer:
    error: BaseException
    shown: str = "an observer"

    def __call__(self, event: Any) -> None:
        raise self.error

    def __repr__(self) -> str:
        if not self.shown:
            raise RuntimeError("its __repr__ raised")
        return self.shown


@pytest.mark.parametrize("shown", ["an observer", ""])
@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), GeneratorExit()])
async def test_no_observer_breaks_a_run(error, shown, caplog):
    flow = QuantumPartitioner()

    @flow.unit
    async def one():
        return 1

    @flow.unit
    def two(one):
        return 2

    heard: list[Any] = []
    async with asyncio.timeout(5):
        result = await flow.run(observers=[Observer(error, shown), heard.append])
    assert dict(result) == {"one": 1, "two": 2}
    assert type(heard[-1]).__name__ == "RunFinished"
    assert len(caplog.records) == 1


def test_an_observer_that_raises_in_the_middle_of_an_attempt_does_not_hang_the_run():
    # `pytest.fail` and `pytest.skip` raise what is no Exception; so does a cancelled wait.
    script = """
        import asyncio
        from quantum_async import QuantumPartitioner

        class Outcome(BaseException):
            pass

        def observer(event):
            if type(event).__name__ == "UnitCompleted":
                raise Outcome

        async def unit(ctx):
            await asyncio.sleep(0)

        flow = QuantumPartitioner()
        flow.add_unit(unit, name="a")
        flow.add_unit(unit, ["a"], name="b")
        try:
            flow.execute(observers=[observer])
        except Outcome:
            pass
        print("ended")
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.fail("the run hangs")
    assert done.stdout == "ended\n", done.stderr


async def test_an_observer_that_equals_another_is_not_dropped_in_its_place():
    @dataclasses.dataclass
    class Equal:
        def __call__(self, event: Any) -> None:
            if self is broken:
                raise ValueError
            heard.append(event)

    heard: list[Any] = []
    good, broken = Equal(), Equal()
    flow = QuantumPartitioner()

    @flow.unit
    async def one(): ...

    await flow.run(observers=[good, broken])
    assert type(heard[-1]).__name__ == "RunFinished"


async def test_a_handle_of_another_partitioner_has_no_result_here(flow):
    result = await flow.run()
    other = QuantumPartitioner()
    stranger = other.add_unit(lambda ctx: 1, name="first")
    with pytest.raises(KeyError, match="the handle 'first' is of another partitioner"):
        result[stranger]


async def test_costs_are_measured_in_the_run_that_is_given():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: asyncio.sleep(0.001), name="short", mode="async")
    flow.use_measured_costs()  # there was no run yet
    first = await flow.run({})
    await flow.run({})
    flow.use_measured_costs(first)
    assert flow.build_execution_plan().simulate().makespan == first.units["short"].duration


async def test_items_of_a_map_can_be_the_first_failure_and_are_explained():
    flow = QuantumPartitioner()

    async def half(number):
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    flow.map(half, over=[2, 3])
    with pytest.raises(ExecutionError) as caught:
        await flow.run()
    assert str(caught.value.__cause__) == "3 is odd"
    result = caught.value.result
    assert result.explain("half[1]").startswith("half[1] failed: ValueError: 3 is odd\n")
    assert "half[0] completed" in result.explain("half[0]")
