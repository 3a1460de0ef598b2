"""The TaskMap vocabulary, as the seed's code uses it, over the engine."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import operator
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from graphlib import TopologicalSorter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_async.core.errors import (
    CircularDependencyError,
    ExecutionError,
    PlanError,
    UnknownDependencyError,
    UnpicklableUnitError,
)
from quantum_async.taskmap import (
    CircularDependency,
    PriorityTaskQueue,
    TaskError,
    TaskMap,
    build_graph,
    run_async,
    run_parallel,
    run_parallel_threads,
    run_tasks,
)

Runner = Callable[..., dict[str, Any]]
RUNNERS: list[Runner] = [run_tasks, run_parallel_threads, run_async]


def chain() -> dict[str, Any]:
    """Return three tasks, the last one declared first."""
    return {
        "report": (lambda ctx: f"{ctx['total']} of {ctx['count']}", ["total"]),
        "numbers": lambda ctx: list(range(ctx["count"])),
        "total": (lambda ctx: sum(ctx["numbers"]), ["numbers"]),
    }


GIVEN = {"count": 4}
EXPECTED = {"numbers": [0, 1, 2, 3], "total": 6, "report": "6 of 4"}


def failing() -> dict[str, Any]:
    """Return tasks of which one fails, one is skipped, and two are neither."""

    def bad(ctx: Any) -> None:
        raise ValueError("no luck")

    return {
        "good": lambda ctx: 1,
        "bad": (bad, ["good"]),
        "behind": (lambda ctx: 2, ["bad"]),
        "beside": (lambda ctx: 3, ["good"]),
    }


# --- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNNERS)
def test_every_runner_gives_a_plain_dictionary_of_results(run: Runner) -> None:
    results = run(TaskMap(chain()), GIVEN)
    assert type(results) is dict
    assert results == EXPECTED


@pytest.mark.slow
def test_worker_processes_give_the_same_results() -> None:
    results = run_parallel(TaskMap({**chain(), "process": lambda ctx: os.getpid()}), GIVEN)
    assert results.pop("process") != os.getpid()
    assert results == EXPECTED


def test_a_task_map_runs_its_tasks_one_at_a_time_by_itself() -> None:
    assert TaskMap(chain()).run(GIVEN) == EXPECTED


def test_one_task_map_runs_any_number_of_times() -> None:
    task_map = TaskMap(chain())
    assert [task_map.run({"count": n})["total"] for n in (2, 3, 4)] == [1, 3, 6]
    assert run_async(task_map, {"count": 5})["total"] == 10


@pytest.mark.parametrize("run", RUNNERS)
def test_a_task_map_without_tasks_has_no_results(run: Runner) -> None:
    assert run(TaskMap({}), None) == {}


@pytest.mark.parametrize("run", RUNNERS)
def test_the_context_may_be_any_object_or_missing(run: Runner) -> None:
    given_ = object()
    assert run(TaskMap({"it": lambda ctx: ctx.input}), given_)["it"] is given_
    assert run(TaskMap({"it": lambda ctx: ctx.input})) == {"it": None}


def test_tasks_run_sequentially_in_this_thread_in_the_order_of_their_dependencies() -> None:
    seen: list[Any] = []

    def note(name: str) -> Callable[[Any], None]:
        return lambda ctx: seen.append((name, threading.get_ident()))

    run_tasks(TaskMap({"c": (note("c"), ["a", "b"]), "a": note("a"), "b": (note("b"), ["a"])}))
    here = threading.get_ident()
    assert seen == [("a", here), ("b", here), ("c", here)]


def test_threads_run_beside_each_other() -> None:
    both = threading.Barrier(2, timeout=30)
    results = run_parallel_threads(
        TaskMap({"a": lambda ctx: both.wait(), "b": lambda ctx: both.wait()})
    )
    assert sorted(results.values()) == [0, 1]


def test_the_number_of_workers_is_kept() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def task(ctx: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    run_parallel_threads(TaskMap(dict.fromkeys("abcdefgh", task)), max_workers=2)
    assert 1 <= most <= 2


@pytest.mark.parametrize("run", [run_parallel, run_parallel_threads])
def test_a_users_executor_is_used_and_not_shut_down(run: Runner) -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as executor:
        task_map = TaskMap({"where": lambda ctx: threading.current_thread().name})
        assert run(task_map, None, executor=executor)["where"].startswith("mine")
        assert run(TaskMap(chain()), GIVEN, executor) == EXPECTED
        assert executor.submit(int).result() == 0


@pytest.mark.slow
def test_a_users_process_pool_is_used_for_what_it_can_pickle() -> None:
    tasks = {"n": operator.itemgetter("count"), "keys": (list, ["n"])}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        results = run_parallel(TaskMap(tasks), GIVEN, executor=executor)
    assert results == {"n": 4, "keys": ["n", "count"]}


def test_an_executor_that_was_shut_down_is_refused_before_anything_runs() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    seen: list[Any] = []
    with pytest.raises(PlanError, match="custom_executor takes no work"):
        run_parallel_threads(TaskMap({"a": seen.append}), None, executor)
    assert seen == []


def test_a_task_that_cannot_go_to_a_process_is_refused_before_anything_runs() -> None:
    lock = threading.Lock()
    with pytest.raises(UnpicklableUnitError, match="'a'"):
        run_parallel(TaskMap({"a": lambda ctx: lock}))


@pytest.mark.parametrize("run", RUNNERS)
def test_coroutine_functions_and_plain_ones_may_be_mixed(run: Runner) -> None:
    async def numbers(ctx: Any) -> list[int]:
        await asyncio.sleep(0)
        return list(range(ctx["count"]))

    assert run(TaskMap({**chain(), "numbers": numbers}), GIVEN) == EXPECTED


def test_coroutine_functions_run_beside_each_other_on_one_loop() -> None:
    async def meet(ctx: Any) -> int:
        await both.wait()
        return threading.get_ident()

    both = asyncio.Barrier(2)
    results = run_async(TaskMap({"a": meet, "b": meet}))
    assert set(results.values()) == {threading.get_ident()}


def test_without_workers_to_spare_coroutines_take_turns() -> None:
    running, most = 0, 0

    async def task(ctx: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    run_async(TaskMap(dict.fromkeys("abcdef", task)), max_workers=2)
    assert most == 2


# --- inside a running loop ------------------------------------------------------------------------


async def test_inside_a_running_loop_run_async_is_awaited() -> None:
    pending = run_async(TaskMap(chain()), GIVEN)
    assert inspect.isawaitable(pending)
    assert await pending == EXPECTED


async def test_inside_a_running_loop_one_task_map_runs_many_times_at_once() -> None:
    task_map = TaskMap(chain())
    results = await asyncio.gather(*(run_async(task_map, {"count": n}) for n in range(20)))
    assert [result["total"] for result in results] == [sum(range(n)) for n in range(20)]


async def test_inside_a_running_loop_failures_are_task_errors_too() -> None:
    with pytest.raises(TaskError) as caught:
        await run_async(TaskMap(failing()))
    assert caught.value.failed_tasks == {"bad"}


@pytest.mark.parametrize("run", [run_tasks, run_parallel, run_parallel_threads])
async def test_what_blocks_refuses_to_run_inside_a_loop_and_says_what_to_use(run: Runner) -> None:
    with pytest.raises(RuntimeError, match=rf"{run.__name__}\(\) blocks.*`await run_async") as no:
        run(TaskMap(chain()), GIVEN)
    assert "event loop is running" in str(no.value)


# --- failing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNNERS)
def test_a_failure_is_raised_when_the_rest_has_run(run: Runner) -> None:
    with pytest.raises(TaskError) as caught:
        run(TaskMap(failing()), {})
    error = caught.value
    assert isinstance(error, ExecutionError)
    assert error.failed_tasks == {"bad"}
    assert error.partial_results == {"good": 1, "beside": 3}
    assert type(error.partial_results) is dict
    assert list(error.errors) == ["bad"]
    assert error.__cause__ is error.errors["bad"]
    assert isinstance(error.__cause__, ValueError)
    assert error.result.states["behind"].value == "skipped"


def test_the_message_names_what_failed_and_where_the_rest_is() -> None:
    with pytest.raises(TaskError) as caught:
        run_tasks(TaskMap(failing()))
    assert str(caught.value) == (
        "1 unit of 4 failed, 1 skipped:\n"
        "  bad: ValueError: no luck\n"
        "results of the others are in .partial_results"
    )


def test_partial_results_can_be_filled_up_as_the_seed_does() -> None:
    with pytest.raises(TaskError) as caught:
        run_parallel_threads(TaskMap(failing()))
    error = caught.value
    for name in error.failed_tasks:
        error.partial_results[name] = "fallback"
    assert error.partial_results == {"good": 1, "beside": 3, "bad": "fallback"}


def test_every_task_that_failed_is_named() -> None:
    def bad(ctx: Any) -> None:
        raise OSError(f"{ctx.unit_id} is broken")

    with pytest.raises(TaskError) as caught:
        run_tasks(TaskMap({"a": bad, "b": bad, "c": (bad, ["a"])}))
    assert caught.value.failed_tasks == {"a", "b"}
    assert {name: str(error) for name, error in caught.value.errors.items()} == {
        "a": "a is broken",
        "b": "b is broken",
    }
    assert caught.value.partial_results == {}


@pytest.mark.slow
def test_a_failure_in_a_process_is_the_tasks_own_exception() -> None:
    with pytest.raises(TaskError) as caught:
        run_parallel(TaskMap({"bad": lambda ctx: 1 / ctx["zero"]}), {"zero": 0})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_keyboard_interrupt_is_no_task_error() -> None:
    def interrupt(ctx: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(TaskMap({"a": interrupt}))


def test_a_task_error_travels() -> None:
    error = pickle.loads(pickle.dumps(TaskError("m", {"a": ValueError("x")}, {"b": 1})))
    assert (error.failed_tasks, error.partial_results) == ({"a"}, {"b": 1})
    assert str(error) == "m"


# --- what is called -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNNERS)
def test_callbacks_hear_of_starts_results_and_errors(run: Runner) -> None:
    heard: list[Any] = []
    task_map = TaskMap(failing())
    task_map.on_task_start = lambda name: heard.append(("start", name))
    task_map.on_task_complete = lambda name, result: heard.append(("complete", name, result))
    task_map.on_task_error = lambda name, error: heard.append(("error", name, str(error)))
    with pytest.raises(TaskError):
        run(task_map, {})
    assert heard[:2] == [("start", "good"), ("complete", "good", 1)]
    assert sorted(heard[2:]) == [
        ("complete", "beside", 3),
        ("error", "bad", "no luck"),
        ("start", "bad"),
        ("start", "beside"),
    ]


def test_a_callback_may_be_assigned_alone_and_taken_away_again() -> None:
    heard: list[str] = []
    task_map = TaskMap(chain())
    task_map.on_task_start = heard.append
    task_map.run(GIVEN)
    task_map.on_task_start = None
    task_map.run(GIVEN)
    assert heard == ["numbers", "total", "report"]


def test_callbacks_may_be_methods_of_a_subclass() -> None:
    class Counting(TaskMap):
        done = 0

        def on_task_complete(self, name: str, result: Any) -> None:
            self.done += 1

    task_map = Counting(chain())
    task_map.run(GIVEN)
    assert task_map.done == 3


def test_a_callback_that_raises_does_not_break_the_run() -> None:
    def broken(name: str) -> None:
        raise ValueError("not my day")

    task_map = TaskMap(chain())
    task_map.on_task_start = broken
    assert task_map.run(GIVEN) == EXPECTED


def test_the_seeds_monitoring_works_as_it_stands() -> None:
    metrics: dict[str, Any] = {
        "start_time": time.time(), "end_time": None, "unit_times": {},
        "completed_units": 0, "failed_units": 0, "execution_trace": [],
    }  # fmt: skip

    def on_start(task_name: str) -> None:
        metrics["unit_times"][task_name] = {"start": time.time()}
        metrics["execution_trace"].append({"event": "start", "unit": task_name})

    def on_complete(task_name: str, result: Any) -> None:
        metrics["unit_times"][task_name]["end"] = time.time()
        metrics["completed_units"] += 1
        metrics["execution_trace"].append({"event": "complete", "unit": task_name})

    def on_error(task_name: str, error: BaseException) -> None:
        metrics["unit_times"][task_name]["error"] = str(error)
        metrics["failed_units"] += 1
        metrics["execution_trace"].append({"event": "error", "unit": task_name})

    task_map = TaskMap(failing())
    task_map.on_task_start = on_start
    task_map.on_task_complete = on_complete
    task_map.on_task_error = on_error
    with pytest.raises(TaskError):
        run_parallel_threads(task_map, {}, max_workers=2)
    assert (metrics["completed_units"], metrics["failed_units"]) == (2, 1)
    assert metrics["unit_times"]["bad"]["error"] == "no luck"
    assert len(metrics["execution_trace"]) == 6


# --- what is refused ------------------------------------------------------------------------------


def test_a_circle_is_refused_with_its_path_when_the_map_is_made() -> None:
    with pytest.raises(CircularDependency, match="a → b → a") as caught:
        TaskMap({"a": (len, ["b"]), "b": (len, ["a"])})
    assert caught.value.cycle == ("a", "b", "a")


def test_an_unknown_name_is_refused_with_the_nearest_when_the_map_is_made() -> None:
    with pytest.raises(UnknownDependencyError, match=r"did you mean 'load'\?"):
        TaskMap({"load": len, "save": (len, ["laod"])})


@pytest.mark.parametrize(
    "task", [3, None, "fn", (len,), (len, [], []), [], {"fn": len}], ids=lambda task: repr(task)
)
def test_a_task_that_is_neither_function_nor_pair_is_refused_by_name(task: Any) -> None:
    with pytest.raises(PlanError, match=r"task 'a' must be a function, or a pair"):
        TaskMap({"a": task})


def test_a_pair_without_a_function_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"'a'.*cannot be called"):
        TaskMap({"a": (3, [])})


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(PlanError, match="name must be a string"):
        TaskMap({name: len, "b": len})


def test_a_lone_name_instead_of_a_list_is_refused_with_the_right_spelling() -> None:
    with pytest.raises(PlanError, match=r"\['load'\]"):
        TaskMap({"load": len, "save": (len, "load")})


@pytest.mark.parametrize("names", [["a"], ("a",), {"a"}, frozenset("a"), {"a": 1}, iter(["a"])])
def test_dependencies_may_be_any_collection_of_names(names: Any) -> None:
    task_map = TaskMap({"a": lambda ctx: 1, "b": (lambda ctx: ctx["a"] + 1, names)})
    assert task_map.run() == {"a": 1, "b": 2}


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_no_dependencies_may_be_said_in_any_way(nothing: Any) -> None:
    assert TaskMap({"a": (lambda ctx: 1, nothing)}).run() == {"a": 1}


def test_a_pair_may_be_a_list() -> None:
    assert TaskMap({"a": [lambda ctx: 1, []]}).run() == {"a": 1}


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_workers_that_are_no_whole_number_are_refused(workers: Any) -> None:
    with pytest.raises(PlanError, match="max_workers"):
        run_parallel_threads(TaskMap(chain()), GIVEN, max_workers=workers)


def test_the_repr_tells_the_size() -> None:
    assert repr(TaskMap(chain())) == "<TaskMap: 3 tasks>"


# --- graphs ---------------------------------------------------------------------------------------


def test_a_graph_is_a_dictionary_in_an_order_that_can_run() -> None:
    graph = build_graph({"store": ["process", "validate"], "process": ["load"],
                         "validate": ["load"], "load": []})  # fmt: skip
    assert list(graph) == ["load", "process", "validate", "store"]
    assert graph["store"] == frozenset({"process", "validate"})
    assert all(isinstance(names, frozenset) for names in graph.values())


def test_an_empty_graph_is_empty() -> None:
    assert build_graph({}) == {}


@pytest.mark.slow
@given(st.permutations("abcdef"), st.data())
def test_every_name_comes_after_those_that_it_depends_on(
    order: list[str], data: st.DataObject
) -> None:
    before = {name: order[:number] for number, name in enumerate(order)}
    given_ = {
        name: data.draw(st.sets(st.sampled_from(before[name]))) if before[name] else []
        for name in "abcdef"
    }
    graph = build_graph(given_)
    assert graph == {name: frozenset(names) for name, names in given_.items()}
    seen: set[str] = set()
    for name, names in graph.items():
        assert names <= seen
        seen.add(name)
    assert set(TopologicalSorter(graph).static_order()) == set(graph)


def test_circular_dependency_is_the_engines_error() -> None:
    assert CircularDependency is CircularDependencyError


def test_a_circular_graph_is_refused_with_the_path() -> None:
    with pytest.raises(CircularDependency, match="a → b → c → a") as caught:
        build_graph({"a": ["c"], "b": ["a"], "c": ["b"], "d": ["a"]})
    assert caught.value.cycle == ("a", "b", "c", "a")
    assert caught.value.__cause__ is None


def test_a_name_that_depends_on_itself_is_refused() -> None:
    with pytest.raises(CircularDependency, match="a → a"):
        build_graph({"a": ["a"]})


def test_an_unknown_name_in_a_graph_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownDependencyError, match=r"'laod'.*did you mean 'load'\?"):
        build_graph({"load": [], "save": ["laod"]})


def test_several_problems_are_told_by_one_and_its_cause_and_a_circle_goes_first() -> None:
    with pytest.raises(CircularDependency) as caught:
        build_graph({"x": ["nowhere"], "a": ["b"], "b": ["a"], "c": ["c"]})
    cause = caught.value.__cause__
    assert isinstance(cause, PlanError)
    assert len(cause.problems) == 3
    assert "'nowhere'" in str(cause)


def test_several_unknown_names_are_told_by_the_first_and_its_cause() -> None:
    with pytest.raises(UnknownDependencyError, match="'x'") as caught:
        build_graph({"a": ["x"], "b": ["y"]})
    assert "'y'" in str(caught.value.__cause__)


@pytest.mark.slow
def test_a_chain_of_many_thousand_names_needs_no_recursion() -> None:
    names = [f"u{number}" for number in range(20_000)]
    graph = build_graph({names[0]: [], **dict(zip(names[1:], ([n] for n in names), strict=False))})
    assert list(graph) == names


# --- a queue --------------------------------------------------------------------------------------


def test_the_highest_priority_comes_out_first_and_the_oldest_among_equals() -> None:
    queue: PriorityTaskQueue[str] = PriorityTaskQueue()
    queue.put("a")
    queue.put("b", priority=5)
    queue.push("c", 5)
    queue.push("d", -1)
    queue.put("e", 0.5)
    assert len(queue) == 5
    assert [queue.get(), queue.pop(), queue.get(), queue.get(), queue.get()] == list("bcead")
    assert not queue


def test_peeking_leaves_the_task_where_it_is() -> None:
    queue: PriorityTaskQueue[str] = PriorityTaskQueue()
    queue.put("a")
    queue.put("b", 1)
    assert queue.peek() == queue.peek() == "b"
    assert len(queue) == 2
    assert queue


def test_tasks_themselves_are_never_compared() -> None:
    queue: PriorityTaskQueue[Any] = PriorityTaskQueue()
    for task in (object(), {}, len):
        queue.put(task)
    assert queue.pop() is not queue.pop()


@pytest.mark.parametrize("take", ["get", "pop", "peek"])
def test_an_empty_queue_says_so(take: str) -> None:
    queue: PriorityTaskQueue[str] = PriorityTaskQueue()
    with pytest.raises(IndexError, match="the task queue is empty"):
        getattr(queue, take)()
    queue.put("a")
    queue.get()
    with pytest.raises(IndexError, match="the task queue is empty"):
        getattr(queue, take)()


@pytest.mark.parametrize("priority", [float("nan"), "high", None, True])
def test_a_priority_that_is_no_number_is_refused_and_nothing_is_added(priority: Any) -> None:
    queue: PriorityTaskQueue[str] = PriorityTaskQueue()
    with pytest.raises(PlanError, match="priority"):
        queue.put("a", priority)
    assert len(queue) == 0


def test_the_repr_of_a_queue_tells_its_size() -> None:
    queue: PriorityTaskQueue[str] = PriorityTaskQueue()
    queue.put("a")
    assert repr(queue) == "<PriorityTaskQueue: 1 tasks>"


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=40))
def test_the_queue_is_a_stable_sort(steps: list[tuple[int, bool]]) -> None:
    queue: PriorityTaskQueue[int] = PriorityTaskQueue()
    inside: list[tuple[int, int]] = []
    for number, (priority, take) in enumerate(steps):
        queue.put(number, priority)
        inside.append((-priority, number))
        if take:
            inside.sort()
            assert queue.get() == inside.pop(0)[1]
    assert [queue.pop() for _ in range(len(queue))] == [number for _, number in sorted(inside)]
