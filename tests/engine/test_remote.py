"""What all clusters have in common, on one that is a thread pool."""

import asyncio
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import tenacity

from quantum_async import (
    CachingQuantumPartitioner,
    ClusterError,
    ExecutionError,
    PlanError,
    QuantumPartitioner,
    RemoteError,
    RetryPolicy,
    StaysRemoteError,
    UnitState,
)
from quantum_async.engine import engine
from quantum_async.engine.executors.overheard import overheard
from quantum_async.executors import Capabilities, RemoteValue, RemoteWarning
from tests.support import carried
from tests.support.faraway import Faraway, unheard

LARGE = 2_000  # bytes; more than comes along in any case


@pytest.fixture(autouse=True)
def _in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not cut a turn of the pump short: what goes together is asserted."""
    monkeypatch.setattr(engine, "_SLICE", 3600.0)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with unheard():
        yield


def chain(length: int, **options: Any) -> QuantumPartitioner[Any, Any]:
    flow = QuantumPartitioner[Any, Any](**options)
    flow.add_unit(lambda: bytes(LARGE), args=[], name="u0", mode="remote")
    for n in range(1, length):
        flow.add_unit(
            lambda it: it + b"1", args=[flow.units[f"u{n - 1}"]], name=f"u{n}", mode="remote"
        )
    return flow


# -- what goes ahead -------------------------------------------------------------------------------


async def test_a_unit_goes_with_its_last_dependency() -> None:
    flow = chain(3)
    flow.add_unit(lambda: 1, args=[], name="other", mode="remote")
    flow.add_unit(
        lambda a, b: len(a) + b,
        args=[flow.units["u2"], flow.units["other"]],
        name="both",
        mode="remote",
    )
    far = Faraway()
    result = await flow.run(executor=far)
    assert result["both"] == LARGE + 3
    assert sorted(far.batches[0]) == ["both", "other", "u0", "u1", "u2"]
    assert not far.attached


async def test_with_max_workers_only_links_of_chains_go_ahead() -> None:
    flow = chain(3, max_workers=2)
    for n in range(4):
        flow.add_unit(len, args=[flow.units["u2"]], name=f"read{n}", mode="remote")
    far = Faraway()
    result = await flow.run(executor=far)
    assert result["read3"] == LARGE + 2
    assert far.batches[0] == ["u0", "u1", "u2"]


@pytest.mark.parametrize(
    "options",
    [
        {"when": lambda ctx: len(ctx["u0"]) == LARGE},
        {"trigger": "all_done"},
        {"batch": False},
        {"uses": {"few": 1}},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_what_a_start_depends_on_is_not_decided_ahead(options: dict[str, Any]) -> None:
    flow = QuantumPartitioner(limits={"few": 1})
    flow.add_unit(lambda: bytes(LARGE), args=[], name="u0", mode="remote")
    flow.add_unit(len, args=[flow.units["u0"]], name="below", mode="remote", **options)
    far = Faraway()
    result = await flow.run(executor=far)
    assert result["below"] == LARGE
    assert far.batches == [["u0"], ["below"]]


async def test_a_policy_that_looks_at_results_gets_them() -> None:
    flow = QuantumPartitioner()
    seen: list[int] = []

    def too_few(value: Any) -> bool:
        seen.append(len(value))
        return len(seen) < 3  # it is asked twice about what it turns down

    policy = RetryPolicy(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_none(),
        retry=tenacity.retry_if_result(too_few),
    )
    flow.add_unit(lambda: bytes(LARGE), args=[], name="u0", mode="remote", retry=policy)
    flow.add_unit(len, args=[flow.units["u0"]], name="below", mode="remote")
    result = await flow.run(executor=Faraway())
    assert seen == [LARGE] * 3
    assert result["below"] == LARGE
    assert result.units["u0"].attempts == 2


async def test_what_went_ahead_of_a_failure_goes_again_after_its_retry() -> None:
    far = Faraway()
    failures = iter([ClusterError("lost"), None, None, None])
    far.spoils = lambda unit: next(failures) if unit == "u0" else None
    flow = QuantumPartitioner()
    flow.add_unit(
        lambda: bytes(LARGE),
        args=[],
        name="u0",
        mode="remote",
        retry=RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none()),
    )
    flow.add_unit(len, args=[flow.units["u0"]], name="u1", mode="remote")
    result = await flow.run(executor=far)
    assert result["u1"] == LARGE
    assert result.units["u0"].attempts == 2
    assert result.units["u1"].attempts == 1


# -- what is fetched -------------------------------------------------------------------------------


async def test_what_the_engine_looks_at_is_fetched() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: list(range(1000)), args=[], name="items", mode="remote")
    flow.map(lambda n: n, "items", name="each")
    flow.add_unit(lambda: bytes(LARGE), args=[], name="slow", mode="remote")
    flow.add_unit(lambda: bytes(LARGE), args=[], name="quick", mode="remote")
    flow.first("slow", "quick", name="won")
    flow.add_unit(
        lambda ctx: 1 / 0, ["slow"], name="fails", fallback=lambda ctx, error: len(ctx["slow"])
    )

    @flow.unit(name="stream")
    async def stream(items: Any) -> Any:
        for item in items[:2]:
            yield item

    @flow.unit(trigger="all_done")
    async def asks(ctx: Any, quick: Any) -> int:
        return len(ctx.outcome("quick").result)

    result = await flow.run(executor=Faraway(), failure_policy="collect")
    assert result["each"] == list(range(1000))
    assert len(result["won"]) == LARGE
    assert result["fails"] == LARGE
    assert result["stream"] == [0, 1]
    assert result["asks"] == LARGE


async def test_a_value_is_fetched_once_for_all_who_read_it_here() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: [bytes(LARGE * 10)], args=[], name="made", mode="remote")
    for n in range(3):
        flow.unit(lambda made: id(made), name=f"read{n}")
    result = await flow.run(executor=Faraway())
    assert len({result[f"read{n}"] for n in range(3)}) == 1


async def test_a_result_stays_until_it_is_fetched_or_released() -> None:
    flow = chain(3)
    result = await flow.run(executor=Faraway())
    with pytest.raises(StaysRemoteError, match=r"'u1' \(20.. bytes\).*far away.*fetch\('u1'\)"):
        result["u1"]
    assert repr(result.units["u1"].result).endswith("bytes, on faraway>")
    assert len(await result.fetch("u1")) == LARGE + 1
    with pytest.raises(KeyError):
        await result.fetch("nothing")
    result.release()
    with pytest.raises(StaysRemoteError, match="was released"):
        result["u0"]
    assert "released" in repr(result.units["u0"].result)


async def test_results_that_nobody_keeps_are_let_go() -> None:
    result = await chain(3).run(executor=Faraway(), keep="targets")
    assert list(result) == ["u2"]


async def test_large_sinks_stay_and_those_looked_at_warn() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(
        lambda: [bytes([n]) * 1_000 for n in range(30)], args=[], name="items", mode="remote"
    )
    far = Faraway(keep_remote=1_000)
    result = await flow.run(executor=far)
    assert isinstance(result.units["items"].result, RemoteValue)
    flow.map(lambda n: n, "items", name="each")
    with pytest.warns(RemoteWarning, match="'items'.*looked at by the engine"):
        await flow.run(executor=far)


async def test_what_cannot_be_unpickled_here_is_its_readers_error() -> None:
    flow = QuantumPartitioner()
    far = Faraway()
    flow.add_unit(lambda: [bytes(LARGE * 10)], args=[], name="made", mode="remote")
    flow.add_unit(len, args=[flow.units["made"]], name="here")
    fetch = far.fetch

    async def spoilt(references: Any) -> Any:
        for one in references:
            one.pickled = one.pickled[:-5]
        return await fetch(references)

    far.fetch = spoilt  # type: ignore[method-assign]
    result = await flow.run(executor=far, failure_policy="collect")
    assert result.states["made"] is UnitState.COMPLETED
    assert isinstance(result.errors["here"], RemoteError)
    with pytest.raises(RemoteError, match="'made' cannot be unpickled here"):
        await result.fetch("made")


async def test_a_cache_has_values_and_no_references() -> None:
    flow = CachingQuantumPartitioner()
    flow.add_unit(
        lambda ctx: bytes(LARGE * 10),
        name="made",
        mode="remote",
        metadata={"cacheable": True, "cache_keys": ["key"]},
    )
    flow.add_unit(lambda ctx: len(ctx["made"]), ["made"], name="read", mode="remote")
    for _ in range(2):
        result = await flow.run({"key": 1}, executor=Faraway())
        assert result["read"] == LARGE * 10
    assert result.units["made"].ran_on == "cache"


# -- what is refused, and what goes wrong ----------------------------------------------------------


async def test_what_a_cluster_cannot_do_is_refused_or_warned_of() -> None:
    flow = QuantumPartitioner()
    poor = Capabilities(False, False, True, max_payload=500)

    async def coroutine() -> None: ...

    flow.add_unit(coroutine, args=[], name="coroutine", mode="remote")
    with pytest.raises(PlanError, match="'coroutine' is a coroutine function, and faraway"):
        await flow.run(executor=Faraway(poor))
    flow = QuantumPartitioner()
    flow.add_unit(len, args=[bytes(1000)], name="long", mode="remote", max_result_bytes=900)
    with (
        pytest.warns(RemoteWarning, match="at most 500 bytes.*'long' allows more"),
        pytest.raises(ExecutionError, match="'long' is called with takes"),
    ):
        await flow.run(executor=Faraway(poor))
    flow = QuantumPartitioner()
    for n in range(5):
        flow.add_unit(lambda: 1, args=[], name=f"timed{n}", mode="remote", timeout=5)
    with pytest.warns(RemoteWarning, match="'timed0', 'timed1', 'timed2' and 2 more"):
        await flow.run(executor=Faraway())
    with warnings.catch_warnings(), pytest.raises(PlanError, match="'timed2' and 2 more in mode"):
        await flow.run()


async def test_resources_that_are_not_known_are_left_to_the_cluster() -> None:
    flow = QuantumPartitioner()
    flow.add_unit(lambda: 1, args=[], name="heavy", mode="remote", uses={"gpu": 1})
    assert (await flow.run(executor=Faraway()))["heavy"] == 1
    with pytest.raises(PlanError, match=r"'heavy' uses 'gpu'.*it has: 'cpu'"):
        await flow.run(executor=Faraway(names=["cpu"]))
    assert flow.build_execution_plan().simulate().makespan == 1


async def test_a_cluster_that_takes_nothing_fails_its_units_and_no_others() -> None:
    flow = chain(2)
    flow.add_unit(lambda ctx: 1, name="here")
    far = Faraway()
    far.refuses = ClusterError("closed")
    result = await flow.run(executor=far, failure_policy="collect")
    assert result["here"] == 1
    assert str(result.errors["u0"]) == "closed"
    assert result.states["u1"] is UnitState.SKIPPED


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("tells", [False, True])
async def test_what_runs_on_keeps_its_slot(waits: bool, tells: bool) -> None:
    flow = QuantumPartitioner()
    began, go_on = threading.Event(), threading.Event()
    held.update(began=began, go_on=go_on)
    flow.add_unit(holds, args=[], name="holds", mode="remote")
    far = Faraway(Capabilities(False, True, True, tells_start=tells), wait_for_running=waits)
    run = asyncio.create_task(flow.run(executor=far))
    await asyncio.to_thread(began.wait)
    await asyncio.sleep(0)
    run.cancel()
    if waits:
        done, _ = await asyncio.wait([run], timeout=0.05)
        assert not done
    else:
        # The pool of this cluster ends with the run, which has it wait for its threads.
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    go_on.set() if waits else None
    with pytest.raises(asyncio.CancelledError):
        await run
    assert flow.last_result is not None
    record = flow.last_result.units["holds"]
    assert record.state is UnitState.CANCELED
    assert ("remotely" in str(record.cause) or "later" in str(record.cause)) is not waits


held: dict[str, threading.Event] = {}


def holds() -> None:
    held["began"].set()
    held["go_on"].wait()


async def test_what_is_interrupted_has_ended_when_the_run_returns() -> None:
    flow = QuantumPartitioner()
    began, go_on = threading.Event(), threading.Event()
    held.update(began=began, go_on=go_on)
    flow.add_unit(holds, args=[], name="holds", mode="remote", grace=3)
    far = Faraway(Capabilities(True, True, True))
    graces: list[float] = []
    submit, cancel = far.submit, far.cancel

    def submitted(calls: Any, hearer: Any) -> Any:
        graces.extend(call.grace for call in calls)
        return submit(calls, hearer)

    def interrupted(keys: Any) -> None:
        cancel(keys)
        asyncio.get_running_loop().call_soon(go_on.set)

    far.submit, far.cancel = submitted, interrupted  # type: ignore[method-assign]
    run = asyncio.create_task(flow.run(executor=far))
    await asyncio.to_thread(began.wait)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert graces == [3]
    assert flow.last_result is not None
    record = flow.last_result.units["holds"]
    assert record.state is UnitState.CANCELED
    assert "remotely" not in str(record.cause)


async def test_streams_whose_write_returns_nothing_are_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stream:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    stream = Stream()
    monkeypatch.setattr("sys.stdout", stream)
    with overheard('{"stdout": true}') as records:
        print("in a call")  # noqa: T201
    print("outside")  # noqa: T201
    assert stream.text == "outside\n"
    assert [it.message for it in records.kept] == ["in a call"]


async def test_large_inputs_go_once_and_what_cannot_goes_with_each_call() -> None:
    given = {"data": bytes(200_000), "odd": b"bad" + bytes(200_000), "n": 1}
    flow = QuantumPartitioner()
    flow.unit(lambda data, n: len(data) + n, name="named", mode="remote")
    flow.unit(lambda odd: len(odd), name="odd_one", mode="remote")
    flow.map(lambda n, data: len(data) + n, [1, 2], name="each", mode="remote")
    result = await flow.run(given, executor=Faraway())
    assert result["named"] == 200_001
    assert result["odd_one"] == 200_003
    assert result["each"] == [200_001, 200_002]
    whole = QuantumPartitioner()
    whole.add_unit(lambda ctx: len(ctx["data"]), name="all", mode="remote")
    assert (await whole.run(given, executor=Faraway()))["all"] == 200_000
    whole = QuantumPartitioner()
    whole.add_unit(lambda ctx: len(ctx.input), name="all", mode="remote")
    assert (await whole.run(bytes(300_000), executor=Faraway()))["all"] == 300_000


async def test_context_variables_travel_and_hold_back_what_would_go_ahead() -> None:
    flow = QuantumPartitioner(contextvars=[carried.request])
    flow.add_unit(lambda: carried.request.get(), args=[], name="u0", mode="remote")
    flow.add_unit(lambda it: it, args=[flow.units["u0"]], name="u1", mode="remote")
    carried.request.set("acme")
    far = Faraway()
    assert (await flow.run(executor=far))["u1"] == "acme"
    assert far.batches == [["u0"], ["u1"]]
