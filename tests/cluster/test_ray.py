"""Units on a Ray cluster: one on this machine with two CPUs, which all tests of this file share."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from quantum_async import (  # noqa: E402
    ClusterError,
    ExecutionError,
    PlanError,
    QuantumPartitioner,
    RemoteError,
    Runtime,
    UnitState,
    UnitTimeoutError,
    WorkerCrashedError,
)
from quantum_async.executors import RemoteValue, RemoteWarning  # noqa: E402
from quantum_async.executors.ray import RayExecutor  # noqa: E402
from quantum_async.executors.ray_thread import THREAD  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, resources={"license": 1}, **QUIET)
    yield
    ray.shutdown()


def big(kilobytes: int) -> bytes:
    return bytes(1000 * kilobytes)


async def until(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.005)


async def nothing_is_left() -> None:
    """Wait until no reference is alive, no CPU is taken and our thread is gone."""
    counts = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    for _ in range(500):
        free = ray.available_resources().get("CPU") == 2
        if free and not counts() and not THREAD.references and not THREAD._turn:
            return
        await asyncio.sleep(0.02)  # releases travel: there is nothing here to wait for
    raise AssertionError((counts(), len(THREAD.references), ray.available_resources()))


# -- where units run -------------------------------------------------------------------------------


async def test_one_graph_has_units_here_and_there() -> None:
    flow = QuantumPartitioner()
    here = os.getpid()

    @flow.unit(mode="remote")
    def numbers(count: int) -> tuple[int, list[int]]:
        return os.getpid(), list(range(count))

    @flow.unit(mode="process")
    def doubled(numbers: Any) -> tuple[int, list[int]]:
        return os.getpid(), [2 * n for n in numbers[1]]

    @flow.unit(mode="remote")
    async def total(doubled: Any) -> tuple[int, int]:
        await asyncio.sleep(0)
        return os.getpid(), sum(doubled[1])

    @flow.unit
    async def local(numbers: Any, total: Any) -> tuple[int, int]:
        return os.getpid(), len(numbers[1]) + total[1]

    @flow.unit(mode="remote")
    def last(local: Any) -> tuple[int, int]:
        return os.getpid(), local[1] + 1

    result = await flow.run({"count": 10}, executor=RayExecutor())
    assert result["last"][1] == 101
    assert result["local"] == (here, 100)
    assert here not in {result[name][0] for name in ("numbers", "doubled", "total", "last")}
    ran_on = [result.units[name].ran_on for name in ("numbers", "doubled", "total", "local")]
    assert ran_on == ["remote", "remote", "remote", "loop"]
    usage = result.units["numbers"].usage
    assert usage is not None
    assert usage.host == socket.gethostname()
    assert usage.pid != here


async def test_a_map_over_what_is_there_has_its_children_there() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: list(range(5)), name="items", mode="remote")
    flow.map(lambda n: (n * n, os.getpid()), "items", name="squares", mode="remote")
    async with Runtime(executor=RayExecutor()):
        result = await flow.run()
    assert [square for square, _ in result["squares"]] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {pid for _, pid in result["squares"]}


async def test_a_unit_with_the_context_there_sees_what_it_declared() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: big(100), name="data", mode="remote")

    def reads(ctx: Any) -> tuple[int, str]:
        ctx.record_metric("seen", ctx.unit_id)
        return len(ctx["data"]) + ctx["more"], ctx.run_id

    flow.add_unit(reads, ["data"], name="reads", mode="remote")
    result = await flow.run({"more": 1}, executor=RayExecutor())
    assert result["reads"] == (100_001, result.run_id)
    assert result.metrics["seen"] == "reads"


def test_scripts_read_what_stayed_there_from_the_result() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(100), args=[], name="made", mode="remote")
    flow.add_unit(len, args=[flow.units["made"]], name="read", mode="remote")
    assert flow.execute(executor=RayExecutor())["read"] == 100_000
    assert flow.last_result is not None
    assert flow.last_result["made"] == big(100)


# -- what is refused -------------------------------------------------------------------------------


async def test_what_is_no_cluster_is_refused() -> None:
    with pytest.raises(PlanError, match="address of a cluster, not 3"):
        RayExecutor(3)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="Ray Client"):
        RayExecutor("ray://host:10001")
    with pytest.raises(PlanError, match="keep_remote must be"):
        RayExecutor(keep_remote=-1)
    with pytest.raises(PlanError, match="connect_timeout"):
        RayExecutor(connect_timeout=-1)


async def test_what_cannot_be_pickled_is_refused_by_name() -> None:
    flow = QuantumPartitioner()
    lock = threading.Lock()
    flow.add_unit(lambda ctx: lock, name="locked", mode="remote")
    with pytest.raises(PlanError, match=r"'locked'.*'lock'"):
        await flow.run(executor=RayExecutor())


async def test_resources_of_the_cluster_are_asked_for() -> None:
    flow = QuantumPartitioner()

    def assigned() -> dict[str, float]:
        found: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
        return found

    flow.add_unit(assigned, args=[], name="one", mode="remote", uses={"license": 1})
    flow.add_unit(assigned, args=[], name="two", mode="remote", uses={"cpu": 2})
    result = await flow.run(executor=RayExecutor())
    assert result["one"] == {"CPU": 1, "license": 1}
    assert result["two"] == {"CPU": 2}
    flow.add_unit(lambda: 1, args=[], name="odd", mode="remote", uses={"licence": 1})
    with pytest.raises(PlanError, match=r"'odd' uses 'licence'.*'cpu'.*did you mean 'license'"):
        await flow.run(executor=RayExecutor())


# -- what goes ahead, and what stays ---------------------------------------------------------------


async def test_a_chain_goes_at_once_and_its_results_stay() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(100), args=[], name="u0", mode="remote")
    for n in range(1, 6):
        flow.add_unit(
            lambda data: data + b"1", args=[flow.units[f"u{n - 1}"]], name=f"u{n}", mode="remote"
        )
    executor = RayExecutor()
    batches: list[int] = []
    submit = executor.submit
    executor.submit = lambda calls, hearer: (batches.append(len(calls)), submit(calls, hearer))[1]  # type: ignore[method-assign]
    result = await flow.run(executor=executor)
    assert batches == [6]
    assert result["u5"] == big(100) + b"1" * 5
    assert isinstance(result.units["u2"].result, RemoteValue)
    assert await result.fetch("u2", "u1") == [big(100) + b"11", big(100) + b"1"]
    assert result["u3"] == big(100) + b"111"
    result.release()
    del result
    flow.last_result = None
    await nothing_is_left()


async def test_large_results_stay_until_they_are_asked_for() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(100), args=[], name="large", mode="remote")
    flow.add_unit(len, args=[flow.units["large"]], name="reads")
    executor = RayExecutor(keep_remote=1000)
    with pytest.warns(RemoteWarning, match=r"'large' \(0.1 MB\).*read by unit 'reads'"):
        result = await flow.run(executor=executor)
    assert result["reads"] == 100_000


async def test_fifty_megabytes_made_and_read_there_do_not_come_here() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(50_000), args=[], name="made", mode="remote")
    flow.add_unit(lambda data: len(data), args=[flow.units["made"]], name="read", mode="remote")
    fetched: list[Any] = []
    deserialize = ray._private.serialization.SerializationContext.deserialize_objects

    def counted(context: Any, data: Any, *others: Any) -> Any:
        fetched.extend(len(it.data or b"") for it in data)
        return deserialize(context, data, *others)

    with pytest.MonkeyPatch.context() as patch:
        context = ray._private.serialization.SerializationContext
        patch.setattr(context, "deserialize_objects", counted)
        result = await flow.run(executor=RayExecutor())
    assert result["read"] == 50_000_000
    assert fetched
    assert sum(fetched) < 10_000


async def test_a_value_that_was_put_there_is_passed_on() -> None:
    executor = RayExecutor()
    await executor.attach()
    reference = await executor.put([1, 2])
    assert await executor.fetch([reference]) == [[1, 2]]
    assert executor.fetch_now(reference) == [1, 2]
    del reference
    await executor.detach()


async def test_the_thread_holds_on_to_nothing_that_it_has_done() -> None:
    executor = RayExecutor()
    await executor.attach()
    reference = await executor.put([1])
    THREAD.do(partial(list, [reference]))
    await executor.detach()
    THREAD.do(partial(list, [reference]))
    del reference
    await nothing_is_left()


# -- what goes wrong -------------------------------------------------------------------------------


class OddError(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def raises() -> None:
    raise ValueError("nope")


class Odd:
    """Comes home as a call that raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return raises, ()


def fails(n: int) -> int:
    raise ValueError(f"no {n}")


async def test_an_error_comes_with_its_traceback_and_dependents_never_run(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    ran = str(tmp_path / "ran")

    def odd(n: int) -> int:
        raise OddError("odd", n)

    flow.add_unit(fails, args=[3], name="fails", mode="remote")
    flow.add_unit(
        lambda x: Path(ran).touch(), args=[flow.units["fails"]], name="below", mode="remote"
    )
    flow.add_unit(odd, args=[3], name="odd", mode="remote")
    flow.add_unit(threading.Lock, args=[], name="unsendable", mode="remote")
    flow.add_unit(lambda: [big(100), threading.Lock()], args=[], name="large", mode="remote")
    flow.add_unit(lambda: 1, args=[], name="well", mode="remote")
    result = await flow.run(executor=RayExecutor(), failure_policy="collect")
    assert result["well"] == 1
    assert result.units["below"].state is UnitState.SKIPPED
    assert not Path(ran).exists()
    error = result.errors["fails"]
    assert str(error) == "no 3"
    notes = "\n".join(error.__notes__)
    assert "in fails" in notes
    assert "ray worker on" in notes
    assert "in unit 'fails', attempt 1, on the cluster" in notes
    assert "OddError: odd" in str(result.errors["odd"])
    for name in ("unsendable", "large"):
        assert isinstance(result.errors[name], TypeError)
        assert "return plain data" in "\n".join(result.errors[name].__notes__)


async def test_what_cannot_be_unpickled_here_is_an_error_that_names_its_unit() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: [Odd(), big(100)], args=[], name="large", mode="remote")
    flow.add_unit(lambda large: large, args=[flow.units["large"]], name="reads", mode="remote")
    result = await flow.run(executor=RayExecutor(), failure_policy="collect")
    assert "reads" in result.errors
    flow = QuantumPartitioner()
    flow.add_unit(lambda: [Odd(), big(100)], args=[], name="large", mode="remote")
    result = await flow.run(executor=RayExecutor(), failure_policy="collect")
    error = result.errors["large"]
    assert isinstance(error, RemoteError)
    assert "the result of unit 'large' cannot be unpickled here" in str(error)
    assert "nope" in str(error)


async def test_retries_are_ours_and_what_is_below_is_submitted_again(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "tried")

    def flaky() -> str:
        with open(path, "a") as file:
            file.write("x")
        if len(Path(path).read_text()) < 3:
            raise ValueError("not yet")
        return "done"

    flow.add_unit(flaky, args=[], name="flaky", mode="remote", retries=5)
    flow.add_unit(str.upper, args=[flow.units["flaky"]], name="below", mode="remote")
    result = await flow.run(executor=RayExecutor())
    assert result["below"] == "DONE"
    assert result.units["flaky"].attempts == 3
    assert Path(path).read_text() == "xxx"


def beats(path: str, *, cleans_up: bool = False) -> None:
    try:
        while True:
            Path(path).write_text(str(time.time()))
            time.sleep(0.002)
    finally:
        if cleans_up:
            Path(path + ".cleaned").touch()


async def still(path: str) -> bool:
    """Return whether what beats has stopped."""
    before = Path(path).read_text()
    await asyncio.sleep(0.1)
    return Path(path).read_text() == before


def two_workers() -> None:
    """Have two workers ready: time limits count from the moment that a unit is submitted."""

    @ray.remote(num_cpus=1)
    def pid() -> int:
        time.sleep(0.05)
        return os.getpid()

    while len(set(ray.get([pid.remote() for _ in range(2)]))) < 2:
        pass


async def test_a_unit_that_is_timed_out_has_stopped(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "beat")
    flow.add_unit(beats, args=[path], name="slow", mode="remote", timeout=2)
    two_workers()
    flow.add_unit(len, args=[flow.units["slow"]], name="below", mode="remote")
    flow.add_unit(lambda: 1, args=[], name="well", mode="remote")
    result = await flow.run(executor=RayExecutor(), failure_policy="collect")
    record = result.units["slow"]
    assert record.state is UnitState.TIMEOUT
    assert isinstance(record.error, UnitTimeoutError)
    assert result.units["below"].state is UnitState.SKIPPED
    assert result["well"] == 1
    assert await still(path)
    assert not Path(path + ".cleaned").exists()
    del result, record
    flow.last_result = None
    await nothing_is_left()


def will_not_stop(path: str) -> None:
    while True:
        try:
            beats(path)
        except KeyboardInterrupt:
            Path(path + ".asked").touch()


async def test_a_unit_with_a_grace_may_clean_up_and_is_killed_after_that(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "beat")
    flow.add_unit(
        beats, args=[path], kwargs={"cleans_up": True}, name="a", mode="remote", timeout=2, grace=5
    )
    flow.add_unit(will_not_stop, args=[path + "2"], name="b", mode="remote", timeout=2, grace=0.2)
    two_workers()
    began = time.monotonic()
    result = await flow.run(executor=RayExecutor(), failure_policy="collect")
    assert time.monotonic() - began < 6
    assert {it.state for it in result.units.values()} == {UnitState.TIMEOUT}
    assert Path(path + ".cleaned").exists()
    assert Path(path + "2.asked").exists()
    assert await still(path)
    assert await still(path + "2")


async def test_a_canceled_run_leaves_nothing_there(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "beat")
    flow.add_unit(beats, args=[path], name="busy0", mode="remote", priority=1)
    flow.add_unit(beats, args=[path + "1"], name="busy1", mode="remote", priority=1)
    for n in range(1000):
        flow.add_unit(lambda p: Path(p).touch(), args=[path + ".late"], name=f"q{n}", mode="remote")
    run = asyncio.create_task(flow.run(executor=RayExecutor()))
    await until(path)
    await until(path + "1")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await still(path)
    assert await still(path + "1")
    result = flow.last_result
    assert result is not None
    assert set(result.states.values()) == {UnitState.CANCELED}
    assert not Path(path + ".late").exists()
    del result
    flow.last_result = None
    await nothing_is_left()


async def test_a_task_that_is_cancelled_there_ends_as_canceled_and_is_not_retried(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "beat")
    for force in (False, True):
        flow = QuantumPartitioner()
        executor = RayExecutor()
        flow.add_unit(beats, args=[path], name="busy", mode="remote", retries=5)
        run = asyncio.create_task(flow.run(executor=executor, failure_policy="collect"))
        await until(path)
        [call] = executor._calls.values()
        ray.cancel(call.answer, force=force)
        result = await run
        assert result.units["busy"].state is UnitState.CANCELED
        assert result.units["busy"].cause == "it was cancelled on the ray cluster"
        assert result.units["busy"].attempts == 1
        Path(path).unlink()


async def test_a_worker_that_dies_is_named_and_the_unit_is_tried_again(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "died")

    def dies_once() -> str:
        if not Path(path).exists():
            Path(path).touch()
            os._exit(3)
        return "went on"

    def dies(length: int) -> None:
        with open(path + ".times", "a") as file:
            file.write("x")
        os._exit(3)

    flow.add_unit(dies_once, args=[], name="once", mode="remote", retries=1)
    flow.add_unit(len, args=[flow.units["once"]], name="below", mode="remote")
    flow.add_unit(dies, args=[flow.units["below"]], name="dies", mode="remote")
    with pytest.raises(ExecutionError) as caught:
        await flow.run(executor=RayExecutor())
    result = caught.value.result
    assert result["once"] == "went on"
    assert result.units["once"].attempts == 2
    error = result.errors["dies"]
    assert isinstance(error, WorkerCrashedError)
    assert f"the Ray worker on {socket.gethostname()} of unit 'dies' died" in str(error)
    assert Path(path + ".times").read_text() == "x"


async def test_another_version_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantum_async.executors.ray_worker.installed", lambda: "0.0.1")
    flow = QuantumPartitioner()
    flow.add_unit(lambda: 1, args=[], name="there", mode="remote")
    with pytest.raises(ExecutionError) as caught:
        await flow.run(executor=RayExecutor())
    error = caught.value.errors["there"]
    assert isinstance(error, ClusterError)
    assert "'there' did not run: quantum_async is" in str(error)
    assert "0.0.1 where the run is" in str(error)


# -- connections of our own: in a process of their own, since Ray has one for each -----------------


def script(text: str, *, quiet: bool = True) -> str:
    """Run a script in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", text],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (quiet and done.stderr)
    return done.stdout


START = """
import asyncio, os, signal, threading, time
import ray
from quantum_async import ClusterError, QuantumPartitioner, StaysRemoteError
from quantum_async.executors.ray import RayExecutor

flow = QuantumPartitioner()
flow.add_unit(lambda: bytes(100_000), args=[], name="made", mode="remote")
flow.add_unit(len, args=[flow.units["made"]], name="read", mode="remote")
"""


def test_a_connection_of_ours_lives_as_long_as_it_is_needed() -> None:
    printed = script(
        START
        + """
async def main():
    executor = RayExecutor(init={"num_cpus": 1})
    result = await flow.run(executor=executor, keep="targets")
    print(result["read"], ray.is_initialized())
    async with executor:
        result = await flow.run(executor=executor)
        print(ray.is_initialized())
        result = await flow.run(executor=executor)
        print(len(result["made"]))
        kept = (await flow.run(executor=executor)).units["made"].result
    print(ray.is_initialized())
    try:
        kept.here()
    except ClusterError as error:
        print(error)
    print(ray.is_initialized())

asyncio.run(main())
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(5)
print(threading.active_count())
"""
    )
    assert printed.splitlines() == [
        "100000 False",
        "True",
        "100000",
        "False",
        "the connection to the Ray cluster was closed",
        "False",
        "1",
    ]


def test_an_address_where_nothing_answers_is_named_at_once() -> None:
    printed = script(
        START
        + """
for address in ("127.0.0.1:9", "nonsense"):
    try:
        flow.execute(executor=RayExecutor(address, connect_timeout=0.5))
    except ClusterError as error:
        print(error)
"""
    )
    one, other = printed.splitlines()
    assert "the Ray cluster '127.0.0.1:9' cannot be used: nothing answers there" in one
    assert "the Ray cluster 'nonsense' cannot be used: its address must be like" in other


def test_a_cluster_that_goes_away_fails_what_is_there_and_nothing_else() -> None:
    printed = script(
        START
        + """
import quantum_async.executors.ray_thread as ray_thread
ray_thread._GONE_AFTER = 1.0

async def main():
    flow = QuantumPartitioner()
    began = asyncio.Event()
    flow.add_unit(lambda: time.sleep(100), args=[], name="there", mode="remote")

    @flow.unit
    async def here():
        began.set()
        await asyncio.sleep(0.1)
        return "went on"

    run = asyncio.create_task(
        flow.run(executor=RayExecutor(init={"num_cpus": 1}), failure_policy="collect")
    )
    await began.wait()
    head = ray._private.worker._global_node.all_processes["gcs_server"][0].process
    os.kill(head.pid, signal.SIGKILL)
    result = await run
    print(result["here"])
    print(type(result.errors["there"]).__name__, result.errors["there"])

asyncio.run(main())
print(ray.is_initialized())
""",
        quiet=False,
    )
    assert printed.splitlines() == [
        "went on",
        "ClusterError unit 'there' has no answer: the Ray cluster does not answer any more",
        "False",
    ]
