"""The TaskMap vocabulary: tasks with dependencies in one dictionary, and functions that run them.

The same engine under other names: a task is a unit, and every function here is a few lines over
`QuantumPartitioner`. All of them give plain dictionaries, and block; `run_async` alone can also
be awaited.
"""

import asyncio
import functools
from collections.abc import Callable, Iterable, Mapping
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, Generic, TypeVar

from quantum_async.blocking import run_blocking
from quantum_async.core.checks import check_number
from quantum_async.core.errors import CircularDependencyError, ExecutionError, PlanError
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.states import ExecutionMode
from quantum_async.observe.hooks import hooks
from quantum_async.partitioner import QuantumPartitioner

X = TypeVar("X")

Results = dict[str, Any]

#: What `build_graph` and `TaskMap` raise when tasks wait for each other in a circle.
CircularDependency = CircularDependencyError


class TaskError(ExecutionError):
    """Tasks failed. `__cause__` is the first failed task's own exception object.

    Attributes:
        errors: Each failed task's exception, by name.
        failed_tasks: Names of the failed tasks.
        partial_results: Results of the tasks that completed, by name; yours to change.
        result: The `RunResult`.
    """

    def __init__(self, message: str, errors: Mapping[str, BaseException], result: Any) -> None:
        super().__init__(message, errors, result)
        self.failed_tasks = set(errors)
        self.partial_results: Results = dict(result or {})


class TaskMap:
    """Tasks with their dependencies, and what is called when one starts or ends.

    A task's function is called with the `ExecutionContext`: a mapping of the results of its
    dependencies and of the keys of the context given to the run.

    Args:
        tasks: By name a function and the names that it depends on, or a function alone.

    Raises:
        CircularDependency: If tasks wait for each other in a circle, with the path.
        UnknownDependencyError: If a task depends on a name that is not there.
        PlanError: For anything else that could not be meant.

    Example:
        >>> tasks = TaskMap({
        ...     "numbers": lambda ctx: list(range(ctx["count"])),
        ...     "total": (lambda ctx: sum(ctx["numbers"]), ["numbers"]),
        ... })
        >>> tasks.on_task_complete = lambda name, result: print(name, "is there")
        >>> tasks.run({"count": 5})
        numbers is there
        total is there
        {'numbers': [0, 1, 2, 3, 4], 'total': 10}
    """

    #: Called with a task's name when it starts. Assign it, or override it.
    on_task_start: Callable[[str], object] | None = None
    #: Called with a task's name and result when it has completed.
    on_task_complete: Callable[[str, Any], object] | None = None
    #: Called with a task's name and exception when it has failed.
    on_task_error: Callable[[str, BaseException], object] | None = None

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self.tasks = {name: _function_and_names(name, task) for name, task in tasks.items()}
        self._flow = _declared(self.tasks)
        _checked_plan(self._flow)

    def run(self, context: Any = None) -> Results:
        """Run the tasks one at a time; see `run_tasks`."""
        return run_tasks(self, context)

    async def _run(
        self, context: Any, mode: ExecutionMode, max_workers: int | None, executor: Any = None
    ) -> Results:
        try:
            result = await self._flow.run(
                context,
                mode=mode,
                max_workers=max_workers,
                custom_executor=executor,
                observers=hooks(self.on_task_start, self.on_task_complete, self.on_task_error),
            )
        except ExecutionError as error:
            # The message's last line says where a partitioner has the results.
            what = str(error).rpartition("\n")[0]
            message = f"{what}\nresults of the others are in .partial_results"
            raise TaskError(message, error.errors, error.result) from error.__cause__
        return dict(result)

    def __repr__(self) -> str:
        return f"<TaskMap: {len(self.tasks)} tasks>"


def run_tasks(task_map: TaskMap, context: Any = None) -> Results:
    """Run the tasks one at a time, in this thread, each after its dependencies.

    Args:
        task_map: The tasks.
        context: The input, of any type; the keys of a mapping are seen by the tasks.

    Returns:
        Results by name.

    Raises:
        TaskError: If tasks failed; those that did not depend on them have run.
        RuntimeError: If an event loop is running in this thread.

    Example:
        >>> run_tasks(TaskMap({"twice": lambda ctx: 2 * ctx["n"]}), {"n": 21})
        {'twice': 42}
    """
    return _blocking("run_tasks", task_map, context, ExecutionMode.SEQUENTIAL, None)


def run_parallel(
    task_map: TaskMap, context: Any = None, executor: Any = None, max_workers: int | None = None
) -> Results:
    """Run the tasks in worker processes; coroutine functions run in this thread.

    Args:
        task_map: The tasks.
        context: The input; what a task sees of it is sent to its process.
        executor: A ``concurrent.futures.Executor`` to run them in instead, of any kind. It is
            not shut down, and what it cannot pickle it cannot run.
        max_workers: How many tasks run at once; by default as many as there are usable CPUs.

    Returns:
        Results by name.

    Raises:
        TaskError: If tasks failed; those that did not depend on them have run.
        PlanError: If a task cannot be sent to a process, before any has started.
        RuntimeError: If an event loop is running in this thread.
    """
    mode = ExecutionMode.PROCESS if executor is None else ExecutionMode.CUSTOM
    return _blocking("run_parallel", task_map, context, mode, max_workers, executor)


def run_parallel_threads(
    task_map: TaskMap, context: Any = None, executor: Any = None, max_workers: int | None = None
) -> Results:
    """Run the tasks in threads; coroutine functions run in this one.

    Args:
        task_map: The tasks.
        context: The input, of any type; the keys of a mapping are seen by the tasks.
        executor: A ``concurrent.futures.Executor`` to run them in instead. It is not shut down.
        max_workers: How many tasks run at once; by default ``min(32, cpus + 4)``.

    Returns:
        Results by name.

    Raises:
        TaskError: If tasks failed; those that did not depend on them have run.
        RuntimeError: If an event loop is running in this thread.

    Example:
        >>> run_parallel_threads(TaskMap({"twice": lambda ctx: 2 * ctx["n"]}), {"n": 21})
        {'twice': 42}
    """
    mode = ExecutionMode.THREAD if executor is None else ExecutionMode.CUSTOM
    return _blocking("run_parallel_threads", task_map, context, mode, max_workers, executor)


def run_async(task_map: TaskMap, context: Any = None, max_workers: int | None = None) -> Any:
    """Run the tasks on an event loop: coroutine functions there, plain functions in threads.

    Where no event loop is running in this thread, it blocks and returns the results. Inside a
    running loop it returns at once something to await, which gives them:
    ``results = await run_async(task_map, context)``.

    Args:
        task_map: The tasks.
        context: The input, of any type; the keys of a mapping are seen by the tasks.
        max_workers: How many tasks run at once; by default there is no limit.

    Returns:
        Results by name, or inside a running loop an awaitable of them.

    Raises:
        TaskError: If tasks failed; those that did not depend on them have run.

    Example:
        >>> async def twice(ctx):
        ...     return 2 * ctx["n"]
        >>> run_async(TaskMap({"twice": twice}), {"n": 21})
        {'twice': 42}
    """
    run = functools.partial(task_map._run, context, ExecutionMode.ASYNC, max_workers)
    return run() if _in_loop() else run_blocking(run)


def build_graph(task_dict: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
    """Check dependencies, and return them in an order in which the tasks can run.

    Args:
        task_dict: By name the names that it depends on.

    Returns:
        By name the names that it depends on, each name after all of those.

    Raises:
        CircularDependency: If names wait for each other in a circle, with the path. If that is
            not all that is wrong, its `__cause__` lists everything.
        UnknownDependencyError: If a name is depended on and not there; likewise.

    Example:
        >>> build_graph({"save": ["load"], "load": []})
        {'load': frozenset(), 'save': frozenset({'load'})}
    """
    tasks = {name: (_nothing, _names(dependencies)) for name, dependencies in task_dict.items()}
    plan = _checked_plan(_declared(tasks))
    return {plan.names[n]: plan.dependencies[plan.names[n]] for n in plan.order}


class PriorityTaskQueue(Generic[X]):
    """Tasks by priority: the highest comes out first, the oldest first among equals.

    Example:
        >>> queue = PriorityTaskQueue()
        >>> queue.put("tidy up")
        >>> queue.put("put out the fire", priority=10)
        >>> queue.get(), queue.get(), len(queue)
        ('put out the fire', 'tidy up', 0)
    """

    def __init__(self) -> None:
        # The number decides among equals, so that tasks themselves are never compared.
        self._heap: list[tuple[float, int, X]] = []
        self._numbers = count()

    def put(self, task: X, priority: float = 0) -> None:
        """Add a task; a larger `priority` is sooner.

        Raises:
            PlanError: If the priority is no number, or NaN.
        """
        # `check_number` takes None for "not given", which a priority cannot be.
        check_number("", "priority", "None" if priority is None else priority, least=-inf)
        heappush(self._heap, (-priority, next(self._numbers), task))

    def push(self, task: X, priority: float = 0) -> None:
        """Add a task; the same as `put`."""
        self.put(task, priority)

    def get(self) -> X:
        """Take the task out whose turn it is.

        Raises:
            IndexError: If the queue is empty.
        """
        self.peek()
        return heappop(self._heap)[2]

    def pop(self) -> X:
        """Take the task out whose turn it is; the same as `get`."""
        return self.get()

    def peek(self) -> X:
        """Return the task whose turn it is, and leave it in the queue.

        Raises:
            IndexError: If the queue is empty.
        """
        if not self._heap:
            raise IndexError(
                "the task queue is empty: put() a task first, or ask `if queue:` before taking one"
            )
        return self._heap[0][2]

    def __len__(self) -> int:
        return len(self._heap)

    def __repr__(self) -> str:
        return f"<PriorityTaskQueue: {len(self)} tasks>"


# -- helpers ------------------------------------------------------------------------------------


def _function_and_names(name: str, task: Any) -> tuple[Callable[..., Any], Any]:
    if callable(task):
        return task, ()
    if isinstance(task, tuple | list) and len(task) == 2:
        return task[0], _names(task[1])
    raise PlanError(
        f"task {name!r} must be a function, or a pair (function, [dependencies]), not {task!r}"
    )


def _names(dependencies: Any) -> Any:
    """Return names as a list; a lone name is left as it is, and refused where it is declared."""
    return dependencies if isinstance(dependencies, str) else list(dependencies or ())


def _declared(tasks: Mapping[str, tuple[Callable[..., Any], Any]]) -> QuantumPartitioner[Any, Any]:
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(name="TaskMap")
    for name, (function, dependencies) in tasks.items():
        if name is None:  # which would ask `add_unit` to make one up
            raise PlanError("a task's name must be a string that is not empty, not None")
        flow.add_unit(function, dependencies, name)
    return flow


def _checked_plan(flow: QuantumPartitioner[Any, Any]) -> ExecutionPlan:
    try:
        return flow.build_execution_plan()
    except PlanError as error:
        # `except CircularDependency` must catch a circle that is not the only problem, too.
        circles = [p for p in error.problems if isinstance(p, CircularDependencyError)]
        first = [*circles, *error.problems][0]
        if first is error:
            raise
        raise first from error


def _blocking(
    caller: str,
    task_map: TaskMap,
    context: Any,
    mode: ExecutionMode,
    max_workers: int | None,
    executor: Any = None,
) -> Results:
    if _in_loop():
        raise RuntimeError(
            f"{caller}() blocks, and an event loop is running here already: this is asynchronous "
            "code or a notebook, so use `await run_async(…)`, which runs plain functions in threads"
        )
    return run_blocking(functools.partial(task_map._run, context, mode, max_workers, executor))


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _nothing(ctx: Any) -> None:
    """Stand for a task of which only the dependencies are known."""
