"""A scheduler for Dask's collections: ``x.compute(scheduler=get)``, and ``await aget(dsk, keys)``.

Needs the extra ``dask``. Delayed, bag, array and dataframe graphs run on the ready queue of this
library, in threads or in worker processes of this machine. Which ready task goes first is what
`dask.order` says: it keeps few results in memory at a time, and each is let go when the last task
that needs it has ended.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

from anyio import CancelScope

from quantum_async.blocking import run_blocking
from quantum_async.core import graph
from quantum_async.core.checks import check_count
from quantum_async.core.errors import ExecutionError, PlanError
from quantum_async.core.events import Event, UnitCompleted, UnitStarted
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.engine.attempt import release_frames, traceback_of, users_part
from quantum_async.engine.loops import in_thread, new_task, running_loop
from quantum_async.engine.threads import Spawn, ThreadDriver
from quantum_async.partitioner import QuantumPartitioner

try:
    from dask import config
    from dask._task_spec import Alias
    from dask.callbacks import local_callbacks
    from dask.system import CPU_COUNT

    from quantum_async.dask_graph import (
        Graph,
        Key,
        Task,
        Told,
        UnknownKeyError,
        compile_graph,
        tasks_of,
        values_of,
    )
except ImportError:
    raise ImportError(
        "quantum_async.dask_scheduler runs graphs of Dask, which is not installed: "
        "pip install 'quantum-async[dask]'"
    ) from None

__all__ = ["UnknownKeyError", "aget", "get"]


def get(
    dsk: Any,
    keys: Any,
    cache: MutableMapping[Key, Any] | None = None,
    num_workers: int | None = None,
    pool: ThreadPoolExecutor | ThreadPool | None = None,
    *,
    mode: str = "thread",
    callbacks: Any = None,
    rerun_exceptions_locally: bool | None = None,
    **others: Any,
) -> Any:
    """Compute keys of a Dask graph, and block until they are there.

    ``dask.compute(x, scheduler=get)`` and ``dask.config.set(scheduler=get)`` call it, and pass the
    options of ``compute`` on. It may be called from any thread, inside a running event loop (which
    stands still meanwhile: there, `aget` is better), and from a task that it runs.

    Args:
        dsk: The graph, in any of Dask's forms.
        keys: A key, or a list of keys and lists.
        cache: Results that are known, by key. What was asked for is added to it.
        num_workers: How many tasks run at once; by default as many as CPUs may be used, or what
            Dask's configuration says.
        pool: A pool of threads to run tasks in, instead of threads that end with the call.
        mode: ``"thread"``, or ``"process"`` for worker processes.
        callbacks: Dask's callbacks for this call alone; by default those that are registered.
        rerun_exceptions_locally: Whether a task that failed is called again in the calling thread,
            for a debugger.
        others: What other schedulers of Dask take; nothing here.

    Returns:
        The result of the key, or a tuple of results in the form of the list.

    Raises:
        UnknownKeyError: If there is no such key; it is a `KeyError` too.
        PlanError: If the graph or an option cannot be meant; nothing has run then.
        Exception: What a task raised, as it was raised. Nothing of the graph runs any more then.

    Example:
        >>> get({"x": 1, "y": (sum, ["x", 10])}, "y")
        11
    """
    computation = _Computation(
        dsk, keys, cache, num_workers, pool, mode, callbacks, rerun_exceptions_locally
    )
    return computation.compute()


async def aget(
    dsk: Any,
    keys: Any,
    cache: MutableMapping[Key, Any] | None = None,
    num_workers: int | None = None,
    pool: ThreadPoolExecutor | ThreadPool | None = None,
    *,
    mode: str = "thread",
    callbacks: Any = None,
    rerun_exceptions_locally: bool | None = None,
    **others: Any,
) -> Any:
    """Compute keys of a Dask graph while the event loop goes on; see `get`.

    When the caller is cancelled, no task starts any more, worker processes are killed, and the
    cancellation goes on when the threads have returned. Worker processes stay for the next call in
    this loop.

    Args:
        dsk: The graph, in any of Dask's forms.
        keys: A key, or a list of keys and lists.
        cache: Results that are known, by key. What was asked for is added to it.
        num_workers: How many tasks run at once.
        pool: A pool of threads to run tasks in.
        mode: ``"thread"`` or ``"process"``.
        callbacks: Dask's callbacks for this call alone.
        rerun_exceptions_locally: Whether a task that failed is called again, in a thread.
        others: What other schedulers of Dask take; nothing here.

    Returns:
        The result of the key, or a tuple of results in the form of the list.

    Raises:
        UnknownKeyError: If there is no such key.
        PlanError: If the graph or an option cannot be meant.
        Exception: What a task raised, as it was raised.

    Example:
        >>> import asyncio
        >>> asyncio.run(aget({"x": 1, "y": (sum, ["x", 10])}, ["x", "y"]))
        (1, 11)
    """
    computation = _Computation(
        dsk, keys, cache, num_workers, pool, mode, callbacks, rerun_exceptions_locally
    )
    return await computation.computed()


class _Computation:
    """One call of `get` or `aget`; see there for the arguments."""

    def __init__(
        self,
        dsk: Any,
        keys: Any,
        cache: MutableMapping[Key, Any] | None,
        num_workers: int | None,
        pool: Any,
        mode: str,
        callbacks: Any,
        reruns: bool | None,
    ) -> None:
        if mode not in ("thread", "process"):
            raise PlanError(f"mode must be 'thread' or 'process', not {mode!r}")
        if num_workers is None:
            num_workers = config.get("num_workers", None)
        check_count("num_workers", num_workers)
        if reruns is None:
            reruns = config.get("rerun_exceptions_locally", False)
        self._dsk, self._keys, self._mode = dsk, keys, mode
        self._cache = config.get("cache", None) if cache is None else cache
        self._spawn, most = _spawn(pool if pool is not None else config.get("pool", None), mode)
        self._workers = min(num_workers or most, most) if most else num_workers or CPU_COUNT
        self._callbacks = callbacks
        self._reruns = reruns
        self._lock = threading.Lock()
        self._driver: ThreadDriver | None = None
        self._stopped = False
        self._values: MutableMapping[Key, Any] = {}

    def compute(self) -> Any:
        """Compute the keys, and block meanwhile."""
        if self._mode == "process":
            return _blocking(self.computed)
        with self._told() as told:
            found = self._prepared(told)
            self._run_in_threads(found, told)
        return self._result(found)

    async def computed(self) -> Any:
        """Compute the keys while the loop goes on."""
        if self._mode == "thread":
            return await self._in_thread()
        with self._told() as told:
            found = await in_thread(partial(self._prepared, told))
            await self._run_in_processes(found, told)
        return self._result(found)

    @contextmanager
    def _told(self) -> Iterator[Told]:
        """Have Dask's callbacks around a block, but not around computations inside of it."""
        with local_callbacks(self._callbacks) as callbacks:
            told = Told(callbacks)
            try:
                yield told
            except BaseException:
                told.finish(failed=True)
                self._values.clear()  # or the error's traceback would hold them
                raise
            told.finish(failed=False)

    def _prepared(self, told: Told) -> Graph:
        known = {} if self._cache is None else self._cache
        tasks = tasks_of(self._dsk, known)
        if told.listens:
            told.start(tasks)
            tasks = tasks_of(tasks, known)  # they may have put plain values into it
        found = compile_graph(tasks, self._keys, known)
        self._values.update(found.data)
        told.compiled(found, self._values)
        return found

    def _result(self, found: Graph) -> Any:
        if self._cache is not None:
            self._cache.update((key, self._values[key]) for key in found.wanted)
        return values_of(self._keys, self._values)

    # -- in threads -------------------------------------------------------------------------

    def _run_in_threads(self, found: Graph, told: Told) -> None:
        run = _Run(found, self._values, told)
        scheduler = Scheduler(found, ranking_of(found.order, found.edges_up))
        driver = ThreadDriver(scheduler, run, self._workers, self._spawn)
        with self._lock:
            self._driver = driver
            if self._stopped:
                driver.stop()
        if found.tasks:
            driver.run()
        failed, driver.failed = driver.failed, None
        if failed is not None:
            unit, error = failed
            if unit != NOBODY and self._reruns:
                run.begin(unit)()
            try:
                raise error if unit == NOBODY else _noted(error, found.keys[unit])
            finally:
                del failed, error  # whose frames hold this one

    async def _in_thread(self) -> Any:
        """Compute in threads; when cancelled, wait until they have returned."""
        work = new_task(in_thread(partial(_outcome, self.compute)), copy_context())
        try:
            value, error = await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop()
            with CancelScope(shield=True):
                await asyncio.wait([work])
            raise
        if error is None:
            return value
        try:
            raise error
        finally:
            del error, work

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._driver is not None:
                self._driver.stop()

    # -- in worker processes ----------------------------------------------------------------

    async def _run_in_processes(self, found: Graph, told: Told) -> None:
        names = found.names
        flow = await in_thread(partial(_flow_of, found, names, self._workers))
        observer = _Observer(dict(zip(names, found.keys, strict=True)), told)
        wanted = [name for name, key in observer.keys.items() if key in found.wanted]
        error: BaseException | None = None
        try:
            result = await flow.run(
                failure_policy="fail_fast",
                keep=wanted,
                observers=[observer] if told.listens else [],
            )
        except ExecutionError as failed:
            error = failed.__cause__ or failed
        if error is None:
            error = observer.error
        if error is None:
            self._values.update((observer.keys[name], result[name]) for name in wanted)
            return
        try:
            raise error
        finally:
            del error


class _Run:
    """The tasks of a graph as units of a `ThreadDriver`, and their results while needed."""

    def __init__(self, found: Graph, values: MutableMapping[Key, Any], told: Told) -> None:
        self._found = found
        self._values = values
        self._told = told
        self._consumers = [len(below) for below in found.edges_down]

    def begin(self, unit: int) -> Callable[[], Any]:
        """Return the call that is the task's work."""
        task, values = self._found.tasks[unit], self._values
        needs = {key: values[key] for key in task.dependencies}
        self._told.begins(self._found.keys[unit])
        return partial(task, needs)

    def completed(self, unit: int, value: Any) -> None:
        """Keep the result, and let go of those that nobody needs any more."""
        found, consumers = self._found, self._consumers
        key = found.keys[unit]
        self._values[key] = value
        for above in found.edges_up[unit]:
            consumers[above] -= 1
            if not consumers[above] and found.keys[above] not in found.wanted:
                del self._values[found.keys[above]]
                self._told.released(found.keys[above])
        self._told.ended(key, value, threading.get_ident())


class _Observer:
    """Passes the events of a run on to Dask's callbacks.

    Args:
        keys: The keys of the tasks by the names of their units.
        told: The callbacks.

    Attributes:
        error: What a callback raised.
    """

    event_types = (UnitStarted, UnitCompleted)

    def __init__(self, keys: dict[str, Key], told: Told) -> None:
        self.keys = keys
        self._told = told
        self.error: BaseException | None = None

    def __call__(self, event: Event) -> None:
        try:
            if isinstance(event, UnitStarted):
                self._told.begins(self.keys[event.unit])
            elif isinstance(event, UnitCompleted):
                worker = None if event.usage is None else event.usage.pid
                self._told.ended(self.keys[event.unit], event.result, worker)
        except BaseException as error:
            self.error = error
            raise  # it is told nothing any more


class _Call:
    """A task and those of its inputs that are known from the start.

    In an object of its own: the library looks for units inside lists and dictionaries.
    """

    def __init__(self, task: Task, data: dict[Key, Any], needs: list[Key]) -> None:
        self.task, self.data, self.needs = task, data, needs


def _call(call: _Call, *results: Any) -> Any:
    """Do a task's work, in a worker process."""
    return call.task({**call.data, **dict(zip(call.needs, results, strict=True))})


def _flow_of(found: Graph, names: list[str], workers: int) -> QuantumPartitioner[Any, Any]:
    """Return the tasks of a graph as units for worker processes."""
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(workers, name="dask")
    handles: dict[int, Any] = {}
    ranks = {unit: rank for rank, unit in enumerate(found.order)}
    for unit in graph.topological_order(found.edges_up, found.edges_down):
        task = found.tasks[unit]
        needs = [found.keys[above] for above in found.edges_up[unit]]
        data = {key: found.data[key] for key in task.dependencies if key in found.data}
        handles[unit] = flow.add_unit(
            _call,
            name=names[unit],
            args=[_Call(task, data, needs), *(handles[above] for above in found.edges_up[unit])],
            priority=-ranks[unit],
            # Another name for a result need not see a worker.
            mode="thread" if isinstance(task, Alias) else "process",
        )
    flow.build_execution_plan()
    return flow


def _blocking(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine to its end, in a loop of its own; in another thread if one runs here."""
    if running_loop() is None:
        return run_blocking(make)
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(copy_context().run, run_blocking, make).result()


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what work returned, and what it raised: SystemExit is not for the loop's ears."""
    try:
        return work(), None
    except BaseException as error:
        return None, error


def _spawn(pool: Any, mode: str) -> tuple[Spawn | None, int | None]:
    """Return how a pool of threads has functions called, and how many at once."""
    if pool is None:
        return None, None
    if mode == "process":
        raise PlanError("pool is for threads: with mode='process' the worker processes are our own")
    if isinstance(pool, ThreadPool):
        return pool.apply_async, pool._processes  # type: ignore[attr-defined]
    if isinstance(pool, ThreadPoolExecutor):
        return pool.submit, pool._max_workers
    raise PlanError(
        f"pool must be a ThreadPoolExecutor or a ThreadPool, not {pool!r}; for worker processes "
        "leave it out and say mode='process'"
    )


def _noted(error: BaseException, key: Key) -> BaseException:
    """Return a task's exception, with its traceback cut to the task's part and a note on it."""
    BaseException.with_traceback(error, users_part(traceback_of(error)))
    release_frames(error)
    with suppress(Exception):  # an exception may be frozen
        error.add_note(f"in task {key!r} of the Dask graph")
    return error
