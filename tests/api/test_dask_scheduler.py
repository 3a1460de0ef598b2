"""`quantum_async.dask_scheduler`: Dask's collections on our ready queue."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from multiprocessing.pool import ThreadPool
from operator import add
from pathlib import Path
from typing import Any
from weakref import ref

import dask
import pytest
from dask._task_spec import Alias, DataNode, Task, TaskRef
from dask.callbacks import Callback
from dask.delayed import delayed
from dask.utils_test import GetFunctionTestMixin, inc

from quantum_async.core.errors import (
    CircularDependencyError,
    PlanError,
    UnknownDependencyError,
    WorkerCrashedError,
)
from quantum_async.dask_graph import compile_graph, tasks_of
from quantum_async.dask_scheduler import UnknownKeyError, aget, get


class TestConformance(GetFunctionTestMixin):  # type: ignore[misc]
    """What Dask asks of every scheduler."""

    get = staticmethod(get)


class TestConformanceOfOneWorker(GetFunctionTestMixin):  # type: ignore[misc]
    get = staticmethod(partial(get, num_workers=1))


class TestConformanceOnALoop(GetFunctionTestMixin):  # type: ignore[misc]
    @staticmethod
    def get(dsk: Any, keys: Any) -> Any:
        return asyncio.run(aget(dsk, keys))


@pytest.mark.slow
class TestConformanceOfProcesses(GetFunctionTestMixin):  # type: ignore[misc]
    get = staticmethod(partial(get, mode="process", num_workers=1))

    def test_get_stack_limit(self) -> None:
        # Dask's has ten times as many links, which takes half a minute on a busy machine.
        dsk = {f"x{n + 1}": (inc, f"x{n}") for n in range(1_000)} | {"x0": 0}
        assert get(dsk, "x1000", mode="process", num_workers=1) == 1_000


# -- forms of graphs ---------------------------------------------------------------------------


def test_nothing_is_asked_for() -> None:
    assert get({}, []) == ()
    assert get({"x": (inc, 1)}, []) == ()
    assert get({}, [[], [[]]]) == ((), ((),))


def test_keys_of_all_kinds() -> None:
    keys = [1, "1", ("1", 0), "('1', 0)", ""]
    dsk = {key: (inc, number / 2) for number, key in enumerate(keys)}
    assert get(dsk, [keys]) == ((1, 1.5, 2, 2.5, 3),)
    names = compile_graph(tasks_of(dsk), keys, {}).names
    assert len(set(names)) == 5
    assert all(names)


def test_tasks_of_the_new_form() -> None:
    dsk = {
        "data": DataNode("data", [1, 2, 3]),
        "sum": Task("sum", sum, TaskRef("data")),
        "same": Alias("same", "sum"),
        "again": Alias("again", "same"),
        "all": Task("all", add, TaskRef("again"), TaskRef("sum")),
    }
    assert get(dsk, ["all", "again", "data"]) == (12, 6, [1, 2, 3])


def test_a_task_that_returns_a_task_returns_it_as_a_value() -> None:
    assert get({"x": (tuple, [inc, 1])}, "x") == (inc, 1)


def test_only_what_is_needed_runs() -> None:
    assert get({"x": (inc, 1), "y": (int, "no number")}, "x") == 2


def test_what_has_a_graph_is_one() -> None:
    total = delayed(sum)([delayed(inc)(n) for n in range(10)])
    assert get(total, total.key) == 55
    assert total.compute(scheduler=get) == 55
    with dask.config.set(scheduler=get):
        assert dask.compute(total, total + 1) == (55, 56)


def test_results_that_are_known_are_not_computed() -> None:
    cache: dict[Any, Any] = {"x": 10}
    assert get({"x": (int, "no number"), "y": (inc, "x"), "z": (inc, "y")}, "z", cache=cache) == 12
    assert cache == {"x": 10, "z": 12}
    with dask.config.set(cache={"x": 20}):
        assert get({"y": (inc, "x")}, ["y", "x"]) == (21, 20)


# -- where tasks run ---------------------------------------------------------------------------


def all_at_once(workers: int) -> dict[Any, Any]:
    """Return a graph that only ends if so many tasks run at once."""
    barrier = threading.Barrier(workers, timeout=10)

    def meet(number: int) -> int:
        barrier.wait()
        return threading.get_ident()

    return {("meet", number): (meet, number) for number in range(workers)}


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_so_many_tasks_run_at_once(workers: int) -> None:
    dsk = all_at_once(workers)
    assert len(set(get(dsk, list(dsk), num_workers=workers))) == workers
    with dask.config.set(num_workers=workers):
        dsk = all_at_once(workers)
        assert threading.get_ident() not in get(dsk, list(dsk))


def test_more_workers_than_tasks_are_no_more_threads() -> None:
    threads = {f"t{number}": (threading.get_ident,) for number in range(3)}
    assert len(set(get(threads, list(threads), num_workers=100))) <= 3


@pytest.mark.parametrize("kind", [ThreadPool, ThreadPoolExecutor])
def test_a_pool_of_threads(kind: Callable[[int], Any]) -> None:
    with kind(3) as pool:
        dsk = all_at_once(3)
        threads = set(get(dsk, list(dsk), pool=pool))
        with dask.config.set(pool=pool):
            dsk = all_at_once(3)
            assert set(get(dsk, list(dsk))) == threads


def test_a_computation_inside_another() -> None:
    def nested(depth: int) -> int:
        if not depth:
            return 0
        below = [delayed(nested)(depth - 1), delayed(nested)(depth - 1)]
        return 1 + max(dask.compute(*below, scheduler=get))

    assert delayed(nested)(4).compute(scheduler=get, num_workers=2) == 4


def test_a_computation_inside_another_in_a_pool_that_is_full() -> None:
    with ThreadPoolExecutor(1) as pool, dask.config.set(pool=pool):
        outer = {"x": (lambda: get({"a": (inc, 1), "b": (inc, "a")}, "b"),)}
        assert get(outer, "x") == 3


def test_from_several_threads() -> None:
    dsk = {f"x{number}": (inc, f"x{number - 1}") for number in range(1, 200)} | {"x0": 0}
    with ThreadPoolExecutor(4) as callers:
        results = [callers.submit(get, dsk, "x199") for _ in range(20)]
        assert [result.result() for result in results] == [199] * 20


async def test_inside_a_loop() -> None:
    assert get({"x": (inc, 1)}, "x") == 2
    assert get({"x": (asyncio.run, (asyncio.sleep, 0, 7))}, "x") == 7


COLOUR: ContextVar[str] = ContextVar("colour")


async def test_context_variables_go_in_and_not_out() -> None:
    def paint(colour: str) -> str:
        before = COLOUR.get()
        COLOUR.set(colour)
        return before

    COLOUR.set("red")
    dsk = {"x": (paint, "blue"), "y": (paint, "green")}
    assert get(dsk, ["x", "y"], num_workers=1) == ("red", "red")
    assert await aget(dsk, ["x", "y"]) == ("red", "red")
    assert COLOUR.get() == "red"


# -- order and memory --------------------------------------------------------------------------


class Value:
    """Something that one can see the end of."""


def test_results_are_let_go_when_nobody_needs_them() -> None:
    alive: list[ref[Value]] = []
    most = 0

    def make(*_: Value) -> Value:
        nonlocal most
        value = Value()
        alive.append(ref(value))
        most = max(most, sum(one() is not None for one in alive))
        return value

    dsk: dict[Any, Any] = {("x", 0): (make,)}
    for number in range(1, 100):
        dsk["x", number] = (make, ("x", number - 1))
    assert isinstance(get(dsk, ("x", 99), num_workers=4), Value)
    assert most == 2


def test_pairs_are_reduced_before_the_next_ones_are_made() -> None:
    ran: list[str] = []

    def note(name: str, *_: Any) -> None:
        ran.append(name)

    dsk: dict[Any, Any] = {f"a{n}": (note, f"a{n}_") for n in range(4)}
    dsk |= {f"b{n}": (note, f"b{n}_", f"a{2 * n}", f"a{2 * n + 1}") for n in range(2)}
    dsk["c"] = (note, "c_", "b0", "b1")
    get(dsk, "c", num_workers=1)
    assert [name[0] for name in ran] == list("aabaabc")


# -- failures ----------------------------------------------------------------------------------


class OddError(Exception):
    """One with more arguments than a message."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.code = code


def fails(*_: Any) -> None:
    raise OddError(7, "odd")


@pytest.mark.parametrize("options", [{}, pytest.param({"mode": "process"}, marks=pytest.mark.slow)])
def test_an_exception_is_raised_as_it_was(options: dict[str, Any]) -> None:
    dsk = {"a": 1, ("x", 0): (fails, "a"), "z": (inc, ("x", 0))}
    with pytest.raises(OddError) as caught:
        get(dsk, "z", num_workers=1, **options)
    assert caught.value.code == 7
    assert "('x', 0)" in caught.value.__notes__[-1]
    if not options:
        frames = [entry.name for entry in caught.traceback]
        assert frames[-1] == "fails"
        assert "_work_once" not in frames


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit])
def test_what_is_no_common_exception_is_raised_too(kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind("bye")

    with pytest.raises(kind, match="bye"):
        get({"x": (leave,)}, "x")


async def test_a_system_exit_of_a_task_does_not_end_the_loop() -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await aget({"x": (leave,)}, "x")
    assert await aget({"x": (inc, 1)}, "x") == 2


def test_after_a_failure_nothing_starts_and_nothing_runs() -> None:
    started, failed = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow() -> None:
        started.set()
        assert failed.wait(10)
        ended.append("slow")

    def fail() -> None:
        assert started.wait(10)
        try:
            raise ValueError("no")
        finally:
            failed.set()

    dsk = {"slow": (slow,), "fail": (fail,), "next": (ended.append, "slow")}
    with pytest.raises(ValueError, match="no"):
        get(dsk | {"after": (lambda _: ended.append("after"), "slow")}, ["after", "fail"])
    assert ended == ["slow"]


def test_an_error_holds_no_results() -> None:
    seen: list[ref[Value]] = []

    def make() -> Value:
        value = Value()
        seen.append(ref(value))
        return value

    dsk = {"value": (make,), "is there": (bool, "value"), "x": (fails, "is there")}
    with pytest.raises(OddError) as caught:
        get(dsk, ["value", "x"])
    assert caught.value.__traceback__ is not None
    assert seen[0]() is None


def test_a_failed_task_is_run_again_where_a_debugger_is() -> None:
    threads: list[int] = []

    def fail(x: int) -> None:
        threads.append(threading.get_ident())
        raise ValueError(x)

    with pytest.raises(ValueError, match="2"):
        get({"x": (inc, 1), "y": (fail, "x")}, "y", rerun_exceptions_locally=True)
    assert len(threads) == 2
    assert threads[1] == threading.get_ident()


# -- bad input ---------------------------------------------------------------------------------


def test_unknown_keys_are_named() -> None:
    dsk = {"total": (inc, 1), "other": 2}
    with pytest.raises(UnknownKeyError, match="no key 'totl' in the Dask graph; did you mean"):
        get(dsk, "totl")
    with pytest.raises(KeyError, match=r"no key 'a' and no key \('b', 1\) in the Dask graph$"):
        get(dsk, ["a", [("b", 1)], "other"])
    missing = {"x": Task("x", inc, TaskRef("totl")), "total": 1}
    with pytest.raises(UnknownDependencyError, match=r"task 'x' .* needs 'totl', .* 'total'"):
        get(missing, "x")


def test_circles_are_shown() -> None:
    with pytest.raises(CircularDependencyError, match=r"x → y → x|y → x → y"):
        get({"x": (inc, "y"), "y": (inc, "x"), "z": (inc, "y")}, "z")
    with pytest.raises(CircularDependencyError, match="x → x"):
        get({"x": (inc, "x")}, "x")


@pytest.mark.parametrize(
    ("dsk", "keys", "options", "says"),
    [
        ({"x": 1}, {"x"}, {}, "cannot be hashed; several keys"),
        ({"x": 1}, [{}], {}, "cannot be hashed"),
        (7, "x", {}, "a mapping of keys to tasks, not 7"),
        ({"x": 1}, "x", {"mode": "thraed"}, "'thread' or 'process', not 'thraed'"),
        ({"x": 1}, "x", {"num_workers": 0}, "num_workers must be a whole number"),
        ({"x": 1}, "x", {"pool": 3}, "pool must be a ThreadPoolExecutor"),
    ],
)
def test_what_cannot_be_meant(dsk: Any, keys: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        get(dsk, keys, **options)
    with pytest.raises(PlanError, match=says):
        asyncio.run(aget(dsk, keys, **options))


def test_pools_that_cannot_be_used() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(PlanError, match="say mode='process'"):
        get({"x": 1}, "x", pool=pool)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as threads, pytest.raises(PlanError, match="are our own"):
        get({"x": 1}, "x", pool=threads, mode="process")
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        get({"x": (inc, 1)}, "x", pool=threads)


# -- Dask's callbacks --------------------------------------------------------------------------


class Notes(Callback):  # type: ignore[misc]
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.most_waiting = 0

    def _start(self, dsk: Any) -> None:
        self.told.append(("start", len(dsk)))

    def _start_state(self, dsk: Any, state: Any) -> None:
        self.most_waiting = len(state["waiting"])

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        assert key in state["running"]
        self.told.append(("begins", key))

    def _posttask(self, key: Any, value: Any, dsk: Any, state: Any, worker: Any) -> None:
        assert key in state["finished"]
        self.told.append(("ended", key, value))

    def _finish(self, dsk: Any, state: Any, failed: bool) -> None:
        assert failed or not (state["waiting"] or state["ready"] or state["running"])
        self.told.append(("finish", failed))


OPTIONS = [{}, pytest.param({"mode": "process"}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("options", OPTIONS)
def test_callbacks_are_told(options: dict[str, Any]) -> None:
    dsk = {"a": 1, "x": (inc, "a"), "y": (inc, "x")}
    with Notes() as notes:
        assert get(dsk, "y", num_workers=1, **options) == 3
    assert notes.most_waiting == 1
    assert notes.told == [
        ("start", 3), ("begins", "x"), ("ended", "x", 2), ("begins", "y"), ("ended", "y", 3),
        ("finish", False),
    ]  # fmt: skip
    with Notes() as notes, pytest.raises(OddError):
        get({"x": (fails,)}, "x", num_workers=1, **options)
    assert notes.told[-1] == ("finish", True)
    assert get(dsk, "y", callbacks=[notes._callback], **options) == 3
    assert notes.told[-1] == ("finish", False)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_callback_that_raises_ends_the_computation(options: dict[str, Any]) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("not that")

    with Callback(pretask=refuse), pytest.raises(ValueError, match="not that"):
        get({"x": (inc, 1), "y": (inc, "x")}, "y", **options)


def test_the_callbacks_that_come_with_dask(capsys: pytest.CaptureFixture[str]) -> None:
    diagnostics = pytest.importorskip("dask.diagnostics")
    dsk = {f"x{n}": (inc, n) for n in range(10)} | {"y": (sum, [f"x{n}" for n in range(10)])}
    with diagnostics.ProgressBar(dt=0.01), diagnostics.Profiler() as profiler:
        assert get(dsk, "y") == 55
    assert "100% Completed" in capsys.readouterr().out
    assert {one.key for one in profiler.results} == set(dsk)


def test_a_callback_that_puts_results_into_the_graph() -> None:
    def put(dsk: dict[Any, Any]) -> None:
        dsk["x"] = 10

    with Callback(start=put):
        assert get({"x": (int, "no number"), "y": (inc, "x")}, "y") == 11


def test_inner_computations_are_not_told() -> None:
    with Notes() as notes:
        get({"x": (lambda: get({"inner": (inc, 1)}, "inner"),)}, "x")
    assert ("begins", "inner") not in notes.told


# -- on a loop ---------------------------------------------------------------------------------


async def test_the_loop_goes_on_meanwhile() -> None:
    opened = threading.Event()

    async def opens() -> None:
        opened.set()

    result, _ = await asyncio.gather(aget({"x": (opened.wait, 10)}, "x"), opens())
    assert result


async def test_a_cancelled_computation_starts_nothing_and_waits_for_its_threads() -> None:
    began, goes_on = asyncio.Event(), threading.Event()
    loop, ended = asyncio.get_running_loop(), list[str]()

    def slow() -> None:
        loop.call_soon_threadsafe(began.set)
        assert goes_on.wait(10)
        ended.append("slow")

    dsk = {"slow": (slow,), "after": (lambda _: ended.append("after"), "slow")}
    task = asyncio.create_task(aget(dsk, "after"))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["slow"]


async def test_a_computation_that_is_cancelled_at_once_runs_nothing() -> None:
    ran: list[int] = []
    task = asyncio.create_task(aget({"x": (ran.append, 1)}, "x"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ran == []


# -- worker processes --------------------------------------------------------------------------


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
async def test_worker_processes_of_the_loop() -> None:
    dsk = {"big": DataNode("big", b"x" * 2_000_000)}
    dsk |= {f"n{n}": Task(f"n{n}", len, TaskRef("big")) for n in range(4)}
    dsk |= {"pid": Task("pid", os.getpid), "same": Alias("same", "pid")}
    lengths = [f"n{n}" for n in range(4)]
    found, pid, same = await aget(dsk, [lengths, "pid", "same"], num_workers=2, mode="process")
    assert found == (2_000_000,) * 4
    assert pid == same != os.getpid()
    with pytest.raises(WorkerCrashedError, match="'dies'"):
        await aget({"dies": (dies,)}, "dies", num_workers=2, mode="process")


def begins(fifo: Path) -> None:
    fifo.write_text("I have begun")
    time.sleep(60)


@pytest.mark.slow
async def test_a_cancelled_computation_kills_its_worker_processes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    computing = asyncio.create_task(aget({"x": (begins, fifo)}, "x", num_workers=1, mode="process"))
    assert await asyncio.to_thread(fifo.read_text) == "I have begun"
    computing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(computing, 10)


@pytest.mark.slow
async def test_worker_processes_from_blocking_code_on_a_loop() -> None:
    assert get({"x": (inc, 1), "y": (inc, "x")}, ["x", "y"], num_workers=1, mode="process") == (
        2,
        3,
    )
    with pytest.raises(PlanError, match="'x'"):
        get({"x": (bool, threading.Lock())}, "x", num_workers=1, mode="process")


# -- large graphs ------------------------------------------------------------------------------


def layered(width: int, depth: int) -> dict[Any, Any]:
    """Return layers of tasks that need three of the layer above each."""
    dsk: dict[Any, Any] = {("x", 0, n): (inc, n) for n in range(width)}
    for layer in range(1, depth):
        for n in range(width):
            needs = [("x", layer - 1, (n + step) % width) for step in (-1, 0, 1)]
            dsk["x", layer, n] = (max, needs)
    return dsk


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 11])
def test_a_large_graph(workers: int) -> None:
    dsk = layered(100, 50)
    keys = [("x", 49, n) for n in range(100)]
    expected = dask.get(dsk, keys)
    assert get(dsk, keys, num_workers=workers) == expected


# -- collections -------------------------------------------------------------------------------


@pytest.fixture
def our_scheduler() -> Iterator[None]:
    with dask.config.set(scheduler=get):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("our_scheduler")
class TestCollections:
    def test_arrays(self) -> None:
        numpy = pytest.importorskip("numpy")
        array = pytest.importorskip("dask.array")
        plain = numpy.arange(400.0).reshape(20, 20)
        x = array.from_array(plain, chunks=(5, 7))
        assert x.sum().compute() == plain.sum()
        assert numpy.array_equal((x + x.T).compute(), plain + plain.T)
        assert numpy.array_equal(x.dot(x).compute(), plain.dot(plain))
        assert numpy.array_equal(x.rechunk((20, 3)).mean(axis=0).compute(), plain.mean(axis=0))

    def test_bags(self) -> None:
        bag = pytest.importorskip("dask.bag")
        numbers = bag.from_sequence(range(100), npartitions=7)
        assert numbers.filter(lambda n: n % 2).map(inc).sum().compute() == 2550
        folded = numbers.foldby(lambda n: n % 3, add).compute(mode="process", num_workers=1)
        assert dict(folded) == {0: 1683, 1: 1617, 2: 1650}

    def test_dataframes(self) -> None:
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        dataframe = pytest.importorskip("dask.dataframe")
        plain = pandas.DataFrame({"kind": list("abcab"), "size": [1, 2, 3, 4, 5]})
        frame = dataframe.from_pandas(plain, npartitions=2)
        sums = frame.groupby("kind")["size"].sum().compute().to_dict()
        assert sums == {"a": 5, "b": 7, "c": 3}
        assert len(frame.merge(frame, on="kind").compute()) == 9
