"""Bad input is refused before anything runs, in words that help; nothing is lost by it."""

import asyncio
import concurrent.futures
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from quantum_async import (
    CircularDependencyError,
    DuplicateUnitError,
    MissingInputError,
    PlanError,
    QuantumPartitioner,
    UnknownDependencyError,
    UnpicklableUnitError,
)

NAN = math.nan


class Flow:
    """A partitioner whose units take down that they ran."""

    def __init__(self, **options: Any) -> None:
        self.ran: list[str] = []
        self.it: QuantumPartitioner[Any, Any] = QuantumPartitioner(**options)
        for name, after in (("load", ()), ("parse", ("load",)), ("report", ("parse",))):
            self.it.add_unit(self.take_down, after, name=name)

    async def take_down(self, ctx: Any) -> str:
        self.ran.append(ctx.unit_id)
        return str(ctx.unit_id)


@pytest.fixture
def flow():
    return Flow()


async def refused(
    flow: Flow, match: str, error: type[Exception] = PlanError, **options: Any
) -> Any:
    """Run with bad options; see that nothing ran and that the partitioner is as good as before."""
    with pytest.raises(error, match=match) as caught:
        await flow.it.run(**options)
    assert flow.ran == []
    assert flow.it.last_result is None
    assert list(await flow.it.run()) == ["load", "parse", "report"]
    return caught.value


def not_declared(flow: Flow, match: str, declare: Callable[[], object]) -> None:
    with pytest.raises(PlanError, match=match):
        declare()
    assert list(flow.it.units) == ["load", "parse", "report"]
    assert list(flow.it.execute()) == ["load", "parse", "report"]


# -- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [None, 5, "load", [], object()])
def test_what_cannot_be_called_is_no_unit(flow, fn):
    not_declared(flow, "'new'.*cannot be called", lambda: flow.it.add_unit(fn, name="new"))


@pytest.mark.parametrize("name", ["", 5, b"x", ("a",), False])
def test_a_name_is_a_string_that_is_not_empty(flow, name):
    not_declared(flow, "name must be a string", lambda: flow.it.add_unit(print, name=name))


def test_a_name_is_given_once(flow):
    with pytest.raises(DuplicateUnitError, match="'load'"):
        flow.it.add_unit(print, name="load")


def test_an_asynchronous_generator_runs_on_the_loop_only(flow):
    async def items(ctx):
        yield 1

    for mode in ("process", "thread"):
        not_declared(
            flow,
            "asynchronous generator",
            lambda mode=mode: flow.it.add_unit(items, name="items", mode=mode),
        )


def test_a_child_of_a_map_gives_one_result(flow):
    async def items(item):
        yield item

    not_declared(flow, "asynchronous generator", lambda: flow.it.map(items, [1], name="items"))


@pytest.mark.parametrize("after", ["load", 5, [5], [None], [["load"]]])
def test_a_dependency_is_a_name_or_a_handle_in_a_list(flow, after):
    not_declared(flow, "'new'.*dependenc", lambda: flow.it.add_unit(print, after, name="new"))


def test_dependencies_may_come_out_of_a_generator(flow):
    unit = flow.it.add_unit(flow.take_down, (name for name in ["report"]), name="new")
    assert unit.dependencies == ["report"]


def test_a_handle_of_another_partitioner_is_named_as_such(flow):
    stranger = QuantumPartitioner().add_unit(print, name="load")
    not_declared(
        flow, "'load'.*another partitioner", lambda: flow.it.add_unit(print, [stranger], name="new")
    )


@pytest.mark.parametrize("options", [{"args": 5}, {"kwargs": 5}, {"kwargs": ["x"]}])
def test_arguments_that_are_none_are_refused(flow, options):
    not_declared(flow, "'new'", lambda: flow.it.add_unit(print, name="new", **options))


async def test_a_handle_of_another_partitioner_among_arguments_is_named_as_such():
    flow = QuantumPartitioner()
    stranger = QuantumPartitioner().add_unit(print, name="x")
    with pytest.raises(PlanError, match="another partitioner"):  # noqa: PT012 - whichever of the two refuses
        flow.add_unit(print, args=[{"deep": [stranger]}], name="new")
        await flow.run()


def test_arguments_that_contain_themselves_are_refused(flow):
    circle: list[Any] = []
    circle.append(circle)
    not_declared(flow, "'new'", lambda: flow.it.add_unit(print, name="new", args=(circle,)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("timeout", bad) for bad in (-1, -0.1, NAN, True, "5", [])),
        *(("deadline", bad) for bad in (-1, NAN, False, "5")),
        *(("cost", bad) for bad in (-1, NAN, True, "5")),
        *(("priority", bad) for bad in (NAN, True, False, "high")),
        *(("retries", bad) for bad in (-1, NAN, 1.0, 0.0, True, False, "3")),
        *(("mode", bad) for bad in ("threads", "", 5)),
        *(("retry", bad) for bad in (3, "twice", object())),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused_by_name(flow, option, value):
    not_declared(
        flow, f"'new'.*{option}", lambda: flow.it.add_unit(print, name="new", **{option: value})
    )


def test_retries_and_retry_exclude_each_other(flow):
    import tenacity

    not_declared(
        flow,
        "both retries= and retry=",
        lambda: flow.it.add_unit(print, name="n", retries=1, retry=tenacity.Retrying()),
    )


@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"mode": "proces"}, "'process'"),
        ({"strategy": "critical-path"}, "'critical_path'"),
        ({"failure_policy": "fail-fast"}, "'fail_fast'"),
    ],
)
async def test_an_unknown_word_is_refused_with_the_nearest(flow, options, near):
    await refused(flow, f"did you mean {near}", **options)
    name = "default_execution_mode" if "mode" in options else next(iter(options))
    with pytest.raises(PlanError, match=near):
        QuantumPartitioner(**{name: next(iter(options.values()))})


@pytest.mark.parametrize("option", ["mode", "strategy", "failure_policy"])
async def test_an_empty_word_is_no_word(flow, option):
    await refused(flow, option, **{option: ""})


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [None, {}, {"x": 1}, 7])
async def test_an_empty_partitioner_gives_an_empty_result(context):
    flow = QuantumPartitioner()
    result = await flow.run(context)
    assert result.ok
    assert (dict(result), result.states, result.errors, result.critical_path) == ({}, {}, {}, [])
    assert result.metrics["total_units"] == 0
    assert "0 units" in result.explain()
    async with flow.stream(context) as events:
        assert [type(event).__name__ async for event in events] == ["RunStarted", "RunFinished"]


@pytest.mark.parametrize("option", ["targets", "overrides", "keep", "resume_from"])
async def test_a_name_that_no_unit_has_is_refused_with_the_nearest(flow, option):
    names: Any = {"prase": 1} if option in ("overrides", "resume_from") else ["prase"]
    await refused(flow, f"{option} names 'prase'.*did you mean 'parse'", **{option: names})


@pytest.mark.parametrize("option", ["targets", "overrides", "keep", "resume_from"])
async def test_a_foreign_handle_is_refused_wherever_units_are_named(flow, option):
    other = QuantumPartitioner().add_unit(print, name="load")
    names: Any = {other: 1} if option in ("overrides", "resume_from") else [other]
    await refused(flow, option, **{option: names})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("targets", bad) for bad in (5, [5], [["load"]])),
        *(("keep", bad) for bad in (5, None, [5])),
        *(("overrides", bad) for bad in (5, ["load"])),
        *(("resume_from", bad) for bad in (5, "load")),
        *(("observers", bad) for bad in (5, [5])),
        *(("timeout", bad) for bad in (-1, NAN, True, "5")),
        *(("max_workers", bad) for bad in (0, -1, 1.5, NAN, True, "5")),
    ],
)
async def test_a_run_option_that_cannot_be_meant_is_refused_by_name(flow, option, value):
    await refused(flow, option, **{option: value})


@pytest.mark.parametrize("workers", [0, -1, 1.5, NAN, True, "5"])
def test_max_workers_of_a_partitioner_is_a_whole_number_from_1_up(workers):
    with pytest.raises(PlanError, match="max_workers"):
        QuantumPartitioner(max_workers=workers)


async def test_mode_custom_needs_an_executor():
    flow = QuantumPartitioner()
    ran: list[int] = []
    flow.add_unit(lambda ctx: ran.append(1), name="plain")
    with pytest.raises(PlanError, match="custom_executor"):
        await flow.run(mode="custom")
    with pytest.raises(PlanError, match="has no submit"):
        await flow.run(mode="custom", custom_executor=object())
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(PlanError, match="takes no work"):
        await flow.run(mode="custom", custom_executor=pool)
    assert ran == []
    await flow.run()
    assert ran == [1]


async def test_coroutine_functions_need_no_custom_executor(flow):
    assert (await flow.it.run(mode="custom")).ok


async def test_a_wrong_name_asked_of_a_result_is_a_key_error_with_the_nearest(flow):
    result = await flow.it.run()
    for ask in (result.__getitem__, result.units.__getitem__, result.explain):
        with pytest.raises(KeyError, match="did you mean 'report'"):
            ask("reprot")
    with pytest.raises(KeyError):
        result[5]
    assert result.get("reprot") is None
    assert "reprot" not in result


# -- plans -----------------------------------------------------------------------------------------


async def test_a_circle_is_refused_with_its_path():
    flow = QuantumPartitioner()
    for name, after in (("a", "c"), ("b", "a"), ("c", "b")):
        flow.add_unit(print, [after], name=name)
    with pytest.raises(CircularDependencyError, match="a → b → c → a") as caught:
        await flow.run()
    assert caught.value.cycle == ("a", "b", "c", "a")


async def test_a_unit_that_waits_for_itself_is_a_circle():
    flow = QuantumPartitioner()

    @flow.unit
    def echo(echo): ...

    with pytest.raises(CircularDependencyError, match="echo → echo"):
        await flow.run()


async def test_an_unknown_dependency_is_refused_and_can_still_be_declared():
    flow = QuantumPartitioner()
    ran: list[str] = []

    async def unit(ctx):
        ran.append(ctx.unit_id)

    flow.add_unit(unit, ["lod"], name="parse")
    flow.add_unit(unit, name="load")
    with pytest.raises(UnknownDependencyError, match=r"'lod'.*did you mean 'load'"):
        await flow.run()
    assert ran == []
    flow.add_unit(unit, name="lod")
    assert (await flow.run()).ok


async def test_all_problems_of_a_plan_come_in_one_error():
    flow = QuantumPartitioner()
    lock = threading.Lock()
    flow.add_unit(lambda ctx: lock, name="locked", mode="process")
    flow.add_unit(print, ["nowhere"], name="lost")
    flow.add_unit(print, ["ring2"], name="ring1")
    flow.add_unit(print, ["ring1"], name="ring2")
    with pytest.raises(PlanError, match="3 problems") as caught:
        await flow.run()
    assert {type(problem) for problem in caught.value.problems} == {
        UnpicklableUnitError,
        UnknownDependencyError,
        CircularDependencyError,
    }


async def test_all_problems_of_a_call_come_in_one_error():
    flow = QuantumPartitioner()

    @flow.unit
    def needs(thing): ...

    with pytest.raises(PlanError) as caught:
        await flow.run({"needs": 1}, targets=["x"], overrides={"y": 1}, keep=["z"])
    text = str(caught.value)
    assert all(word in text for word in ("targets names 'x'", "overrides names 'y'", "keep names"))


async def test_a_unit_that_cannot_be_pickled_names_the_culprit_and_what_to_do(flow):
    lock = threading.Lock()
    flow.it.add_unit(lambda ctx: lock, name="locked", mode="process")
    with pytest.raises(UnpicklableUnitError, match=r"'locked'.*'lock'.*mode='thread'"):
        await flow.it.run()
    assert flow.ran == []


async def test_an_argument_that_cannot_be_pickled_is_refused_too(flow):
    flow.it.add_unit(print, name="locked", mode="process", args=(threading.Lock(),))
    with pytest.raises(UnpicklableUnitError, match="'locked'"):
        await flow.it.run()
    assert flow.ran == []


async def test_keys_that_decorated_units_miss_are_named_all_at_once():
    flow = QuantumPartitioner()
    ran: list[str] = []

    @flow.unit
    async def first(url, timeot): ...

    @flow.unit
    async def second(limit, known=5):
        ran.append("second")

    with pytest.raises(PlanError) as caught:
        await flow.run({"timeout": 1})
    problems = caught.value.problems
    assert all(isinstance(problem, MissingInputError) for problem in problems)
    assert len(problems) == 3
    assert "did you mean 'timeout'" in str(caught.value)
    assert ran == []
    with pytest.raises(MissingInputError, match="no mapping: int"):
        await flow.run(7, targets=["second"])
    assert (await flow.run({"limit": 1}, targets=["second"])).ok


async def test_a_name_that_is_both_a_unit_and_an_input_key_is_refused(flow):
    await refused(flow, "'load' is both a unit and a key", DuplicateUnitError, context={"load": 1})


# -- loops -----------------------------------------------------------------------------------------


def test_a_loop_that_is_not_asyncios_is_refused_at_once(flow):
    coroutine = flow.it.run()
    with pytest.raises(RuntimeError, match="asyncio"):
        coroutine.send(None)
    assert flow.ran == []
    assert flow.it.execute()["load"] == "load"


def test_trio_is_refused_at_once(flow):
    trio = pytest.importorskip("trio")
    with pytest.raises(RuntimeError, match="trio"):
        trio.run(flow.it.run)
    assert flow.ran == []


@pytest.mark.parametrize(
    "call",
    [
        lambda flow: flow.execute(),
        lambda flow: flow.execute_with_strategy({}, "fifo"),
        lambda flow: flow.execute_with_monitoring({}),
        lambda flow: flow.execute_with_recovery({}),
    ],
)
async def test_the_blocking_forms_refuse_a_running_loop_and_name_run(flow, call):
    with pytest.raises(RuntimeError, match=r"await partitioner\.run"):
        call(flow.it)
    assert flow.ran == []
    assert (await flow.it.run()).ok


async def test_a_refused_run_leaves_the_last_result_as_it_was(flow):
    result = await flow.it.run()
    with pytest.raises(PlanError):
        await flow.it.run(targets=["nobody"])
    assert flow.it.last_result is result


async def test_a_stream_refuses_bad_input_too(flow):
    with pytest.raises(PlanError, match="timeout"):
        async with flow.it.stream(timeout=-1):
            pass
    with pytest.raises(PlanError, match="'nobody'"):  # noqa: PT012 - the block is what is tested
        async with flow.it.stream(targets=["nobody"]) as events:
            async for _ in events:
                pass
    with pytest.raises(TypeError, match="colour"):
        async with flow.it.stream(colour="red"):
            pass
    await asyncio.sleep(0)
    assert flow.ran == []


async def coroutine_function(event: object) -> None:
    """An observer that would have to be awaited."""


@pytest.mark.parametrize(
    ("observers", "told"),
    [
        (7, "must be a list"),
        (["not me"], "must be callables"),
        ([coroutine_function], r"are called and not awaited.*stream\(\)"),
    ],
)
async def test_observers_that_cannot_be_called_are_refused(flow, observers, told):
    await refused(flow, told, observers=observers)


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda it: it.add_unit(lambda: 1), r"takes no argument: give it one, or args=\[\]"),
        (lambda it: it.unit("other"), r"for another name write unit\(name='other'\)"),
        (lambda it: it.add_unit(lambda ctx: 1, metadata=[1]), "metadata must be a dictionary"),
    ],
)
def test_what_cannot_be_a_unit_is_not_declared(flow, declare, told):
    not_declared(flow, told, lambda: declare(flow.it))


async def test_a_parameter_that_looks_like_the_context_is_told_how_it_is_spelt(flow):
    flow.it.unit(lambda context: context, name="extra")
    with pytest.raises(MissingInputError, match="for the ExecutionContext, name it 'ctx'"):
        await flow.it.run()
    assert flow.ran == []


def test_a_unit_without_a_name_gets_one_that_is_free():
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="unit_1")
    assert flow.add_unit(lambda ctx: 2).id == "unit_2"
    assert list(flow.units) == ["unit_1", "unit_2"]


def test_a_handle_is_declared_again_as_its_function():
    one: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    other: QuantumPartitioner[Any, Any] = QuantumPartitioner()
    handle = one.add_unit(lambda ctx: 7, name="seven")
    other.add_unit(handle, name="again")
    assert other.execute() == {"again": 7}
