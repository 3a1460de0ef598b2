"""Units on a Dask cluster: two worker processes, which all tests of this file share."""

import asyncio
import logging
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

distributed = pytest.importorskip("distributed")

from distributed import Client, LocalCluster  # noqa: E402

from examples.search_index import __main__ as search_index  # noqa: E402
from quantum_async import (  # noqa: E402
    ClusterError,
    PlanError,
    QuantumPartitioner,
    RemoteError,
    Runtime,
    StaysRemoteError,
    UnitState,
    UnitTimeoutError,
    WorkerCrashedError,
)
from quantum_async.core.events import UnitEmitted  # noqa: E402
from quantum_async.executors import RemoteValue, RemoteWarning  # noqa: E402
from quantum_async.executors.dask import DaskExecutor  # noqa: E402
from quantum_async.executors.dask_worker import compare  # noqa: E402
from tests.support import carried  # noqa: E402
from tests.support.clusters import left_on, local_cluster  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(resources={"gpu": 1}) as made:
        yield made


@pytest.fixture
async def client(cluster: LocalCluster) -> AsyncIterator[Client]:
    async with Client(cluster.scheduler_address, asynchronous=True, set_as_default=False) as made:
        yield made


def big(kilobytes: int) -> bytes:
    return bytes(1000 * kilobytes)


# -- where units run -------------------------------------------------------------------------------


async def test_one_graph_has_units_here_and_there(client: Client) -> None:
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

    @flow.unit
    def in_thread(doubled: Any) -> int:
        return threading.get_ident() and os.getpid()

    @flow.unit(mode="remote")
    def last(local: Any) -> tuple[int, int]:
        return os.getpid(), local[1] + 1

    result = await flow.run({"count": 10}, executor=DaskExecutor(client))
    assert result["last"][1] == 101
    assert result["local"] == (here, 100)
    assert result["in_thread"] == here
    assert here not in {result[name][0] for name in ("numbers", "doubled", "total", "last")}
    assert {name: record.ran_on for name, record in result.units.items()} == {
        "numbers": "remote",
        "doubled": "remote",
        "total": "remote",
        "local": "loop",
        "in_thread": "thread",
        "last": "remote",
    }
    usage = result.units["numbers"].usage
    assert usage is not None
    assert usage.host
    assert usage.pid != here


async def test_a_run_in_mode_remote_sends_its_plain_functions(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: os.getpid(), name="plain")

    @flow.unit
    async def coroutine() -> int:
        return os.getpid()

    result = await flow.run(mode="remote", executor=DaskExecutor(client))
    assert result["plain"] != os.getpid()
    assert result["coroutine"] == os.getpid()


async def test_a_runtime_has_a_cluster_for_its_runs(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: os.getpid(), name="there", mode="remote")
    async with Runtime(executor=DaskExecutor(client)):
        result = await flow.run()
    assert result["there"] != os.getpid()


async def test_a_run_inside_a_run_uses_its_cluster(client: Client) -> None:
    inner = QuantumPartitioner()
    inner.add_unit(lambda ctx: os.getpid(), name="there", mode="remote")
    flow = QuantumPartitioner()
    flow.include(inner, "inner")
    result = await flow.run(executor=DaskExecutor(client))
    assert result["inner/there"] != os.getpid()


async def test_a_map_over_what_is_there_has_its_children_there(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: list(range(5)), name="items", mode="remote")
    flow.map(lambda n: (n * n, os.getpid()), "items", name="squares", mode="remote")
    result = await flow.run(executor=DaskExecutor(client))
    assert [square for square, _ in result["squares"]] == [0, 1, 4, 9, 16]
    assert os.getpid() not in {pid for _, pid in result["squares"]}


async def test_a_unit_with_the_context_there_sees_what_it_declared(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: big(100), name="data", mode="remote")

    def reads(ctx: Any) -> tuple[int, str]:
        ctx.record_metric("seen", ctx.unit_id)
        return len(ctx["data"]) + ctx["more"], ctx.run_id

    flow.add_unit(reads, ["data"], name="reads", mode="remote")
    result = await flow.run({"more": 1}, executor=DaskExecutor(client))
    assert result["reads"] == (100_001, result.run_id)
    assert result.metrics["seen"] == "reads"


# -- what is refused -------------------------------------------------------------------------------


async def test_without_a_cluster_remote_units_are_refused() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="there", mode="remote")
    with pytest.raises(PlanError, match=r"'there' in mode 'remote'.*executor=DaskExecutor"):
        await flow.run()


async def test_what_is_no_cluster_is_refused(client: Client) -> None:
    flow = QuantumPartitioner()
    with pytest.raises(PlanError, match="executor must be a cluster"):
        await flow.run(executor=DaskExecutor)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"takes a distributed\.Client"):
        DaskExecutor(3)
    with pytest.raises(PlanError, match="keep_remote must be"):
        DaskExecutor(client, keep_remote=-1)


async def test_what_cannot_be_pickled_is_refused_by_name(client: Client) -> None:
    flow = QuantumPartitioner()
    lock = threading.Lock()
    flow.add_unit(lambda ctx: lock, name="locked", mode="remote")
    with pytest.raises(PlanError, match=r"'locked'.*'lock'"):
        await flow.run(executor=DaskExecutor(client))


async def test_a_scheduler_that_is_not_there_is_named() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="there", mode="remote")
    executor = DaskExecutor("tcp://127.0.0.1:9", connect_timeout=0.2)
    with pytest.raises(ClusterError, match=r"'tcp://127.0.0.1:9' cannot be reached"):
        await flow.run(executor=executor)


async def test_resources_of_the_cluster_are_asked_for(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="heavy", mode="remote", uses={"gpu": 1})
    result = await flow.run(executor=DaskExecutor(client))
    assert result["heavy"] == 1
    flow.add_unit(lambda ctx: 1, name="odd", mode="remote", uses={"gpus": 1})
    with pytest.raises(PlanError, match=r"'odd' uses 'gpus'.*has: 'gpu'.*did you mean 'gpu'"):
        await flow.run(executor=DaskExecutor(client))


# -- what goes ahead, and what stays ---------------------------------------------------------------


async def test_a_chain_goes_at_once_and_its_results_stay(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(100), args=[], name="u0", mode="remote")
    for n in range(1, 6):
        flow.add_unit(
            lambda data: data + b"1", args=[flow.units[f"u{n - 1}"]], name=f"u{n}", mode="remote"
        )
    executor = DaskExecutor(client)
    batches: list[int] = []
    submit = executor.submit
    executor.submit = lambda calls, hearer: (batches.append(len(calls)), submit(calls, hearer))[1]  # type: ignore[method-assign]
    result = await flow.run(executor=executor)
    assert batches == [6]
    assert result["u5"] == big(100) + b"1" * 5
    with pytest.raises(StaysRemoteError, match=r"'u2' \(0.1 MB\).*await result.fetch\('u2'\)"):
        result["u2"]
    assert await result.fetch("u2") == big(100) + b"11"
    assert result["u2"] == big(100) + b"11"
    assert await result.fetch("u1", "u5") == [big(100) + b"1", result["u5"]]
    assert isinstance(result.units["u3"].result, RemoteValue)
    result.release()
    with pytest.raises(StaysRemoteError, match="was released"):
        result["u3"]
    assert await left_on(client) == []


async def test_a_result_that_is_dropped_leaves_nothing_there(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(100), args=[], name="made", mode="remote")
    flow.add_unit(len, args=[flow.units["made"]], name="read", mode="remote")
    result = await flow.run(executor=DaskExecutor(client))
    assert result["read"] == 100_000
    [left] = await left_on(client, 1)
    assert left.startswith("made-")
    del result
    flow.last_result = None
    assert await left_on(client) == []


async def test_large_results_stay_until_they_are_asked_for(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(100), args=[], name="large", mode="remote")
    flow.add_unit(len, args=[flow.units["large"]], name="reads")
    executor = DaskExecutor(client, keep_remote=1000)
    with pytest.warns(RemoteWarning, match=r"'large' \(0.1 MB\).*read by unit 'reads'"):
        result = await flow.run(executor=executor)
    assert result["reads"] == 100_000
    sink = QuantumPartitioner()
    sink.add_unit(lambda: big(100), args=[], name="sink", mode="remote")
    result = await sink.run(executor=executor)
    assert isinstance(result.units["sink"].result, RemoteValue)
    assert len(await result.fetch("sink")) == 100_000


async def test_large_values_of_the_input_go_there_once(client: Client) -> None:
    flow = QuantumPartitioner()
    for n in range(5):
        flow.unit(lambda data, n: len(data) + n, name=f"u{n}", mode="remote")
    flow.add_unit(lambda ctx: len(ctx["data"]), name="whole", mode="remote")
    executor = DaskExecutor(client)
    sizes: list[int] = []
    submit = executor.submit

    def counted(calls: Any, hearer: Any) -> Any:
        sizes.extend(len(call.blob) for call in calls)
        return submit(calls, hearer)

    executor.submit = counted  # type: ignore[method-assign]
    result = await flow.run({"data": big(500), "n": 7}, executor=executor)
    assert [result[f"u{n}"] for n in range(5)] == [500_000 + 7] * 5
    assert result["whole"] == 500_000
    assert max(sizes) < 100_000
    del result
    flow.last_result = None
    assert await left_on(client) == []


async def test_a_large_value_made_and_read_there_does_not_pass_through_here(
    client: Client,
) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: big(50_000), args=[], name="made", mode="remote")
    flow.add_unit(len, args=[flow.units["made"]], name="read", mode="remote")
    tracemalloc.start()
    try:
        result = await flow.run(executor=DaskExecutor(client))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result["read"] == 50_000_000
    assert peak < 10_000_000


async def test_a_run_goes_on_with_what_is_there_of_another_one(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: (os.getpid(), big(100)), args=[], name="made", mode="remote")
    flow.add_unit(lambda pair: pair[0], args=[flow.units["made"]], name="read", mode="remote")
    flow.add_unit(lambda pair: len(pair[1]), args=[flow.units["made"]], name="here")
    executor = DaskExecutor(client)
    first = await flow.run(executor=executor, targets=["read"])
    again = await flow.run(executor=executor, resume_from=first, targets=["read", "here"])
    assert again["here"] == 100_000
    assert again["read"] == first["read"]
    assert again.units["made"].ran_on == "given"
    first = await flow.run(executor=executor, targets=["read"])
    first.release()
    third = await flow.run(executor=executor, resume_from=first, targets=["here"])
    assert third["here"] == 100_000
    assert third.units["made"].ran_on == "remote"


# -- other clients ---------------------------------------------------------------------------------


def chained() -> QuantumPartitioner[Any, Any]:
    flow = QuantumPartitioner[Any, Any]()
    flow.add_unit(lambda: big(100), args=[], name="made", mode="remote")
    flow.add_unit(len, args=[flow.units["made"]], name="read", mode="remote")
    flow.add_unit(lambda n: n + 1, args=[flow.units["read"]], name="here")
    return flow


def test_a_synchronous_client_serves_scripts(cluster: LocalCluster) -> None:
    flow = chained()
    with Client(cluster, set_as_default=False) as client:
        results = flow.execute(executor=DaskExecutor(client))
        assert (results["read"], results["here"]) == (100_000, 100_001)
        assert results["made"].here() == big(100)
        assert flow.last_result is not None
        assert flow.last_result["made"] == big(100)
        assert client.status == "running"


def test_an_address_will_do(cluster: LocalCluster) -> None:
    flow = chained()
    with DaskExecutor(cluster.scheduler_address) as executor:
        results = flow.execute(executor=executor)
        made = results["made"]
    with pytest.raises(StaysRemoteError, match="client is gone"):
        made.here()
    assert flow.execute(executor=DaskExecutor(cluster), keep="targets")["here"] == 100_001


async def test_runs_at_once_and_one_after_the_other_share_an_executor(
    cluster: LocalCluster,
) -> None:
    with DaskExecutor(cluster.scheduler_address) as executor:
        for _ in range(3):
            flows = [chained() for _ in range(4)]
            results = await asyncio.gather(*(flow.run(executor=executor) for flow in flows))
            assert {result["here"] for result in results} == {100_001}
            assert all(result.units["read"].usage.host for result in results)  # type: ignore[union-attr]


async def test_a_synchronous_client_serves_an_event_loop(cluster: LocalCluster) -> None:
    flow = chained()
    with Client(cluster, set_as_default=False) as client:
        result = await flow.run(executor=DaskExecutor(client))
        assert result["here"] == 100_001
        assert await result.fetch("made") == result["made"] == big(100)


# -- what comes along ------------------------------------------------------------------------------


async def test_prints_logs_metrics_and_emitted_values_come_here(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    flow = QuantumPartitioner()

    def talks(ctx: Any) -> None:
        sys.stdout.write("said")
        logging.getLogger("of.the.unit").warning("odd: %s", 3, extra={"size": 5})
        ctx.record_metric("rows", 7)
        ctx.emit("half")

    flow.add_unit(talks, name="talks", mode="remote")
    emitted: list[Any] = []

    def hear(event: Any) -> None:
        if isinstance(event, UnitEmitted):
            emitted.append(event.value)

    with caplog.at_level(logging.INFO):
        result = await flow.run(executor=DaskExecutor(client), observers=[hear])
    assert result.metrics["rows"] == 7
    assert emitted == ["half"]
    records = {record.getMessage(): record for record in caplog.records}
    assert records["odd: 3"].name == "of.the.unit"
    assert records["odd: 3"].quantum_unit == "talks"  # type: ignore[attr-defined]
    assert records["odd: 3"].size == 5  # type: ignore[attr-defined]
    [said] = [record for message, record in records.items() if message.startswith("said")]
    assert said.levelno == logging.INFO
    assert said.name == "quantum_async.worker.stdout"


async def test_context_variables_that_are_named_travel(client: Client) -> None:
    flow = QuantumPartitioner(contextvars=[carried.request])
    flow.add_unit(lambda: carried.request.get(), args=[], name="reads", mode="remote")
    carried.request.set("acme")
    assert (await flow.run(executor=DaskExecutor(client)))["reads"] == "acme"


# -- what goes wrong -------------------------------------------------------------------------------


class OddError(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


async def test_an_error_comes_with_its_traceback_and_dependents_never_run(
    client: Client, tmp_path: Path
) -> None:
    flow = QuantumPartitioner()
    ran = str(tmp_path / "ran")

    def fails(n: int) -> int:
        raise ValueError(f"no {n}")

    def odd(n: int) -> int:
        raise OddError("odd", n)

    flow.add_unit(fails, args=[3], name="fails", mode="remote")
    flow.add_unit(
        lambda x: Path(ran).touch(), args=[flow.units["fails"]], name="below", mode="remote"
    )
    flow.add_unit(odd, args=[3], name="odd", mode="remote")
    flow.add_unit(lambda: threading.Lock(), args=[], name="unsendable", mode="remote")
    flow.add_unit(lambda: 1, args=[], name="well", mode="remote")
    result = await flow.run(executor=DaskExecutor(client), failure_policy="collect")
    assert result["well"] == 1
    assert result.units["below"].state is UnitState.SKIPPED
    assert not Path(ran).exists()
    error = result.errors["fails"]
    assert str(error) == "no 3"
    notes = "\n".join(error.__notes__)
    assert "in fails" in notes
    assert "dask worker on" in notes
    assert "in unit 'fails', attempt 1, on the cluster" in notes
    assert "OddError: odd" in str(result.errors["odd"])
    assert "return plain data" in "\n".join(result.errors["unsendable"].__notes__)
    del result, error
    flow.last_result = None
    assert await left_on(client) == []


async def test_a_result_that_cannot_be_unpickled_here_fails_who_reads_it_here(
    client: Client,
) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: [carried.RaisesHere()], args=[], name="odd", mode="remote")
    flow.add_unit(len, args=[flow.units["odd"]], name="there", mode="remote")
    flow.add_unit(len, args=[flow.units["odd"]], name="here")
    executor = DaskExecutor(client)
    result = await flow.run(executor=executor, failure_policy="collect")
    assert result.states["odd"] is UnitState.COMPLETED
    assert isinstance(result.errors["here"], RemoteError)
    assert "the result of unit 'odd' cannot be unpickled here" in str(result.errors["here"])


async def test_retries_are_ours_and_what_is_below_is_submitted_again(
    client: Client, tmp_path: Path
) -> None:
    flow = QuantumPartitioner()
    attempts = str(tmp_path / "attempts")

    def flaky() -> int:
        with open(attempts, "a") as file:
            file.write("x")
        if len(Path(attempts).read_text()) < 3:
            raise OSError("not yet")
        return 7

    flow.add_unit(flaky, args=[], name="flaky", mode="remote", retries=5)
    flow.add_unit(lambda n: n + 1, args=[flow.units["flaky"]], name="below", mode="remote")
    flow.add_unit(lambda n: n + 1, args=[flow.units["below"]], name="last", mode="remote")
    result = await flow.run(executor=DaskExecutor(client))
    assert result["last"] == 9
    assert {name: it.attempts for name, it in result.units.items()} == {
        "flaky": 3,
        "below": 1,
        "last": 1,
    }


async def test_a_fallback_takes_the_place_of_what_failed_there(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: 1 / 0, args=[], name="fails", mode="remote", fallback=5)
    flow.add_unit(lambda n: n + 1, args=[flow.units["fails"]], name="below", mode="remote")
    result = await flow.run(executor=DaskExecutor(client))
    assert result["below"] == 6


def waits_for(path: str) -> str:
    Path(path + ".began").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    return "went on"


async def until_there(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.01)


@pytest.mark.filterwarnings("ignore::quantum_async.executors.RemoteWarning")
async def test_a_timeout_ends_the_unit_and_says_that_the_function_runs_on(
    client: Client, tmp_path: Path
) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "go")
    flow.add_unit(waits_for, args=[path], name="slow", mode="remote", timeout=0.3)
    flow.add_unit(len, args=[flow.units["slow"]], name="below", mode="remote")
    executor = DaskExecutor(client)
    result = await flow.run(executor=executor, failure_policy="collect")
    record = result.units["slow"]
    assert record.state is UnitState.TIMEOUT
    assert isinstance(record.error, UnitTimeoutError)
    assert record.cause is not None
    assert "still running remotely" in record.cause
    assert result.units["below"].state is UnitState.SKIPPED
    Path(path).touch()
    while "ended there later" not in str(result.units["slow"].cause):
        await asyncio.sleep(0.01)
    del result, record
    flow.last_result = None
    assert await left_on(client) == []


@pytest.mark.filterwarnings("ignore::quantum_async.executors.RemoteWarning")
async def test_a_timeout_counts_from_the_beginning_of_the_work(
    client: Client, tmp_path: Path
) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "go")
    for n in range(2):  # both workers are busy
        flow.add_unit(waits_for, args=[path], name=f"busy{n}", mode="remote", priority=1)
    flow.add_unit(lambda: 1, args=[], name="queued", mode="remote", timeout=0.3)
    run = asyncio.create_task(flow.run(executor=DaskExecutor(client)))
    await until_there(path + ".began")
    await asyncio.sleep(0.5)  # longer than the timeout
    Path(path).touch()
    assert (await run)["queued"] == 1


async def test_a_plan_that_asks_for_what_dask_cannot_warns(client: Client) -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: 1, args=[], name="timed", mode="remote", timeout=5)
    with pytest.warns(RemoteWarning, match="dask cannot stop a function.*'timed'"):
        await flow.run(executor=DaskExecutor(client))


@pytest.mark.parametrize("waits", [False, True])
async def test_a_canceled_run_leaves_nothing_there(
    client: Client, tmp_path: Path, waits: bool
) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "go")
    flow.add_unit(waits_for, args=[path], name="busy0", mode="remote", priority=1)
    flow.add_unit(waits_for, args=[path + "1"], name="busy1", mode="remote", priority=1)
    for n in range(1000):
        flow.add_unit(lambda p: Path(p).touch(), args=[path + ".late"], name=f"q{n}", mode="remote")
    executor = DaskExecutor(client, wait_for_running=waits)
    run = asyncio.create_task(flow.run(executor=executor))
    await until_there(path + ".began")
    await until_there(path + "1.began")
    run.cancel()
    if waits:
        done, _ = await asyncio.wait([run], timeout=0.3)
        assert not done
        while len(executor._calls) > 2:  # until all that waited has been taken back
            await asyncio.sleep(0.01)
    else:
        with pytest.raises(asyncio.CancelledError):
            await run
    Path(path).touch()
    Path(path + "1").touch()
    if waits:
        with pytest.raises(asyncio.CancelledError):
            await run
    result = flow.last_result
    assert result is not None
    assert set(result.states.values()) == {UnitState.CANCELED}, result
    if not waits:
        assert "still running remotely" in str(result.units["busy0"].cause)
        while "ended there later" not in str(result.units["busy1"].cause):
            await asyncio.sleep(0.01)
    assert await left_on(client) == [], executor
    assert not Path(path + ".late").exists()


async def test_a_key_that_is_cancelled_there_ends_as_canceled_and_is_not_retried(
    client: Client, tmp_path: Path
) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "go")
    flow.add_unit(waits_for, args=[path], name="busy", mode="remote", retries=5)
    run = asyncio.create_task(flow.run(executor=DaskExecutor(client), failure_policy="collect"))
    await until_there(path + ".began")
    await client.cancel([distributed.Future(key, client) for key in client.futures])
    result = await run
    Path(path).touch()
    assert result.units["busy"].state is UnitState.CANCELED
    assert result.units["busy"].cause == "it was cancelled on the dask cluster"
    assert result.units["busy"].attempts == 1


async def test_a_worker_that_dies_is_named_and_the_unit_is_tried_again(tmp_path: Path) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "died")

    def dies_once() -> str:
        if not Path(path).exists():
            Path(path).touch()
            os._exit(3)
        return "went on"

    def dies(_: int) -> None:
        os._exit(3)

    flow.add_unit(dies_once, args=[], name="once", mode="remote", retries=1)
    flow.add_unit(len, args=[flow.units["once"]], name="below", mode="remote")
    flow.add_unit(dies, args=[flow.units["below"]], name="dies", mode="remote")
    with local_cluster() as made:
        async with Client(
            made.scheduler_address, asynchronous=True, set_as_default=False
        ) as client:
            executor = DaskExecutor(client)
            result = await flow.run(executor=executor, failure_policy="collect")
    assert result["once"] == "went on"
    assert result["below"] == 7
    assert result.units["once"].attempts == 2
    error = result.errors["dies"]
    assert isinstance(error, WorkerCrashedError)
    assert "worker tcp://" in str(error)


async def test_a_connection_that_is_lost_fails_what_is_there_and_nothing_else(
    client: Client, tmp_path: Path
) -> None:
    flow = QuantumPartitioner()
    path = str(tmp_path / "go")
    flow.add_unit(waits_for, args=[path], name="there", mode="remote")

    @flow.unit
    async def here() -> str:
        await until_there(path + ".began")
        for state in client.futures.values():  # as the client does it, before it connects again
            state.cancel(reason="scheduler-connection-lost")
        await until_there(path)
        return "went on"

    @flow.unit(after=["there"], trigger="all_done")
    async def then() -> None:
        Path(path).touch()

    executor = DaskExecutor(client)
    result = await flow.run(executor=executor, failure_policy="collect")
    assert result["here"] == "went on"
    assert isinstance(result.errors["there"], ClusterError)
    assert "'there' was on the Dask cluster" in str(result.errors["there"])
    again = QuantumPartitioner()
    again.add_unit(lambda: 1, args=[], name="again", mode="remote")
    assert (await again.run(executor=executor))["again"] == 1


@pytest.mark.filterwarnings("ignore::quantum_async.executors.RemoteWarning")
def test_the_search_index_is_built_on_a_cluster(
    cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.py").write_text('"""Read the rows of a csv file."""')
    (tmp_path / "two.py").write_text('"""Write them."""')
    assert search_index.main([str(tmp_path), "--dask", cluster.scheduler_address]) == 0
    told = capsys.readouterr().out
    assert "2 documents" in told
    assert "(remote)" in told


def test_other_versions_are_named() -> None:
    mine = {"python": "3.13.0", "dask": "1", "distributed": "1", "quantum_async": "None"}
    same = {"packages": mine}
    compare({"client": same, "scheduler": same, "workers": {"tcp://a:1": same}})
    other = {"packages": mine | {"dask": "2"}}
    with pytest.raises(ClusterError, match="dask is 2 on tcp://a:1 and 1 here"):
        compare({"client": same, "scheduler": same, "workers": {"tcp://a:1": other}})
