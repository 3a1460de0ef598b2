"""What a run used is free when it is not needed any more: the collector has nothing to do."""

import asyncio
import concurrent.futures
import contextlib
import gc
import logging
import os
import subprocess
import sys
import textwrap
import tracemalloc
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tenacity import stop_after_attempt, wait_none

from quantum_async import ExecutionError, QuantumPartitioner, RetryPolicy, RunTimeoutError
from quantum_async.core.events import UnitCompleted, UnitFailed
from quantum_async.engine.engine import Engine


class Data:
    """Something that can be watched."""


class WatchedError(Exception):
    """An error that can be watched: those of C cannot."""


class Watch:
    """Weak references to what a run makes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, weakref.ref[Any]]] = []

    def __call__(self, what: str, thing: Any) -> Any:
        self.seen.append((what, weakref.ref(thing)))
        return thing

    def alive(self) -> list[str]:
        return sorted({what for what, reference in self.seen if reference() is not None})


@pytest.fixture
def watch() -> Iterator[Watch]:
    gc.collect()
    gc.disable()
    yield Watch()
    gc.enable()


def make_flow(watch: Watch, end: str, place: str, **options: Any) -> QuantumPartitioner[Any, Any]:
    """make → use; `use` ends as it is told."""
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(failure_policy="collect")

    async def make(ctx):
        return watch("result", Data())

    async def on_loop(ctx):
        watch("task", asyncio.current_task())
        local = watch("local", Data())
        if end == "raises":
            raise watch("error", WatchedError("x"))
        if end in ("hangs", "messy"):
            try:
                await asyncio.Event().wait()
            finally:
                if end == "messy":
                    raise watch("error", WatchedError("in clean-up"))
        return watch("result", [local] and Data())

    def elsewhere(ctx):
        local = watch("local", Data())
        if end == "raises":
            raise watch("error", WatchedError("x"))
        return watch("result", [local] and Data())

    flow.add_unit(make, name="make")
    flow.add_unit(
        on_loop if place == "loop" else elsewhere,
        ["make"],
        name="use",
        mode="custom" if place == "custom" else None,
        **options,
    )
    return flow


@pytest.fixture(autouse=True)
def no_log_records(caplog):
    """Keep pytest from holding on to errors in the log records that it collects."""
    caplog.set_level(logging.CRITICAL, "quantum_async")


@pytest.fixture
def engines(monkeypatch, watch):
    """Watch each engine too."""
    original = Engine.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        watch("engine", self)

    monkeypatch.setattr(Engine, "__init__", init)


async def settle():
    """Let tasks and idle worker threads leave their last frames."""
    for _ in range(5):
        await asyncio.sleep(0.002)  # lets go of the interpreter lock, which a sleep of 0 does not


ENDS = [
    ("returns", "loop", {}),
    ("returns", "loop", {"timeout": 60}),
    ("returns", "thread", {}),
    ("returns", "custom", {}),
    ("raises", "loop", {}),
    ("raises", "loop", {"timeout": 60}),
    ("raises", "loop", {"fallback": 1}),
    ("raises", "thread", {}),
    ("raises", "custom", {}),
    ("hangs", "loop", {"timeout": 0.01}),
    ("hangs", "loop", {"deadline": 0.01, "fallback": 1}),
    ("messy", "loop", {"timeout": 0.01}),
]


@pytest.mark.parametrize(("end", "place", "options"), ENDS)
async def test_a_dropped_result_takes_everything_with_it(watch, engines, end, place, options):
    flow = make_flow(watch, end, place, **options)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        await flow.run(custom_executor=pool)
    flow.last_result = None
    await settle()
    assert watch.alive() == []


@pytest.mark.parametrize(("end", "place", "options"), ENDS)
async def test_a_kept_result_keeps_no_engine_task_or_frame(watch, engines, end, place, options):
    flow = make_flow(watch, end, place, **options)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        result = await flow.run(custom_executor=pool)
    await settle()
    allowed = {"result", "error"} | ({"local"} if end in ("raises", "messy") else set())
    assert set(watch.alive()) <= allowed
    assert result["make"] is not None


@pytest.mark.parametrize("options", [{}, {"timeout": 60}])
@pytest.mark.parametrize("end", ["hangs", "messy"])
@pytest.mark.parametrize("by", ["cancel", "timeout"])
async def test_a_run_that_was_stopped_leaves_nothing(watch, engines, options, end, by):
    flow = make_flow(watch, end, "loop", **options)
    if by == "cancel":
        task = asyncio.create_task(flow.run())
        while not any(what == "local" for what, _ in watch.seen):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
    else:
        with contextlib.suppress(RunTimeoutError):
            await flow.run(timeout=0.01)
    flow.last_result = None
    await settle()
    assert watch.alive() == []


async def test_the_error_of_a_run_is_freed_with_what_it_holds(watch, engines):
    flow = make_flow(watch, "raises", "loop")
    try:
        await flow.run(failure_policy="continue")
    except ExecutionError as error:
        watch("execution error", error)
    flow.last_result = None
    await settle()
    assert watch.alive() == []


async def test_the_next_run_frees_the_one_before(watch, engines):
    flow = make_flow(watch, "returns", "loop")
    await flow.run()
    before = len(watch.seen)
    await flow.run()
    await settle()
    assert [what for what, reference in watch.seen[:before] if reference() is not None] == []


async def test_errors_of_attempts_that_were_repeated_are_freed(watch):
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()

    async def flaky(ctx):
        local = watch("local", Data())
        if ctx.attempt < 3:
            raise watch("error", WatchedError(id(local)))
        return watch.alive()

    flow.add_unit(flaky, name="flaky", retry=RetryPolicy(wait=wait_none()))
    result = await flow.run()
    # The last attempt's own local, and at most the error that the record would show.
    assert result["flaky"] in (["local"], ["error", "local"])
    await settle()
    assert watch.alive() == []


async def test_a_stream_that_is_dropped_takes_its_run_with_it(watch, engines):
    flow = make_flow(watch, "returns", "loop")
    async with flow.stream() as events:
        async for _ in events:
            pass
    del events, _
    flow.last_result = None
    await settle()
    assert watch.alive() == []


async def test_many_runs_leave_no_garbage(watch):
    flow = make_flow(watch, "returns", "loop", timeout=60)
    await flow.run()
    await settle()
    gc.collect()
    for _ in range(50):
        await flow.run()
    flow.last_result = None
    await settle()
    assert gc.collect() < 50  # nothing that grows with the runs


CANCELLED_AGAIN = """
    import asyncio, time
    import psutil
    from quantum_async import QuantumPartitioner

    flow = QuantumPartitioner()
    for number in range(4):
        flow.add_unit(time.sleep, name=f"p{number}", mode="process", args=(5,))

    async def main():
        for turns in range(6):
            task = asyncio.create_task(flow.run())
            await asyncio.sleep(0.01 * turns)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.002)
            try:
                await task
            except asyncio.CancelledError:
                pass
            if turns:
                assert 0 <= flow.last_result.duration < 5, flow.last_result.duration
        await asyncio.sleep(1)
        children = len(psutil.Process().children())
        # No more than the pool of the loop is meant to have.
        from quantum_async.tuning import usable_cpus
        assert children <= usable_cpus(), f"{children} worker processes"

    asyncio.run(main())
    print("done")
"""


@pytest.mark.slow
def test_a_run_that_is_cancelled_again_and_again_ends_in_good_order():
    pytest.importorskip("psutil")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CANCELLED_AGAIN)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env=os.environ,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["side by side", "chain"])
async def test_a_unit_takes_less_than_a_kilobyte_and_a_half(shape):
    count = 20_000

    async def noop(ctx): ...

    async def spent(count: int) -> int:
        flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
        tracemalloc.start()
        try:
            before: list[str] = []
            for number in range(count):
                flow.add_unit(noop, before, name=f"u{number}")
                before = [f"u{number}"] if shape == "chain" else []
            await flow.run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await spent(10)
    assert await spent(count) / count < 1536


@pytest.mark.parametrize("end", ["returns", "retries", "raises", "falls back"])
@pytest.mark.parametrize(
    "place",
    ["loop", "limited", "thread", pytest.param("process", marks=pytest.mark.slow), "custom"],
)
async def test_a_result_that_nobody_keeps_is_freed_with_its_last_consumer(watch, place, end):
    """While the run goes on, and without the collector."""
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(failure_policy="collect")
    seen = []

    async def make(ctx):
        return watch("result", Data())

    async def consume_on_loop(ctx):
        return _consume(ctx, end)

    async def look(ctx):
        await settle()
        seen.append(watch.alive())

    flow.add_unit(make, name="make")
    flow.add_unit(
        consume_on_loop if place in ("loop", "limited") else partial(_consume, end=end),
        ["make"],
        name="use",
        mode=place if place in ("thread", "process", "custom") else None,
        timeout=60 if place == "limited" else None,
        retry=RetryPolicy(stop=stop_after_attempt(2), wait=wait_none()),
        **{"fallback": 1} if end == "falls back" else {},
    )
    # It starts when the consumer has ended, however that was.
    gate = asyncio.Event()
    flow.add_unit(lambda ctx: gate.wait(), name="gate")
    flow.add_unit(look, ["gate"], name="look")

    def on_end(event):
        if event.unit == "use":
            gate.set()

    on_end.event_types = (UnitCompleted, UnitFailed)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        await flow.run(custom_executor=pool, keep=["look"], observers=[on_end])
    assert seen == [[]]


def _consume(ctx, end):
    assert type(ctx["make"]).__name__ == "Data"
    if end == "raises" or end == "falls back" or (end == "retries" and ctx.attempt == 1):
        raise WatchedError("x")
    return 1
