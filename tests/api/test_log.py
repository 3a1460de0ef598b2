"""Runs in the log: through structlog, never configured by us, and silent by default."""

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap

import pytest
import structlog
import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy, RunTimeoutError
from quantum_async.core.events import (
    RunFinished,
    RunStarted,
    UnitCompleted,
    UnitFailed,
    UnitReady,
    UnitRetrying,
    UnitStarted,
    UnitTimedOut,
)
from quantum_async.observe.log import LogObserver

LOGGER = "quantum_async"


@pytest.fixture
def flow():
    flow = QuantumPartitioner(failure_policy="collect", name="mine")

    @flow.unit
    async def good(): ...

    return flow


@pytest.fixture
def all_kinds(flow):
    @flow.unit
    async def bad():
        raise ValueError("broken")

    @flow.unit
    async def skipped(bad): ...

    @flow.unit(timeout=0.01)
    async def slow():
        await asyncio.Event().wait()

    @flow.unit(retry=RetryPolicy(wait=tenacity.wait_none()))
    async def flaky(ctx):
        if ctx.attempt == 1:
            raise OSError("once")

    return flow


@pytest.fixture
def users_structlog():
    """Configure structlog as a user would, and collect what it gets."""
    written = []

    def collect(logger, method, event):
        written.append((method, dict(event)))
        raise structlog.DropEvent

    def configure(**options):
        structlog.configure(processors=[collect], **options)
        return written

    yield configure
    structlog.reset_defaults()


async def test_a_good_run_writes_nothing_at_warning(flow, caplog):
    caplog.set_level(logging.WARNING)
    await flow.run()
    assert caplog.records == []


async def test_a_run_whose_time_was_up_is_an_error_although_no_unit_failed(caplog):
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: asyncio.Event().wait(), name="hangs")
    with pytest.raises(RunTimeoutError):
        await flow.run(timeout=0.01, run_id="r1")
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith("run finished run=r1 state=timeout")


@pytest.mark.parametrize(
    ("level", "heard", "not_heard"),
    [
        (logging.DEBUG, {RunStarted, UnitStarted, UnitCompleted, RunFinished}, {UnitReady}),
        (logging.INFO, {RunStarted, RunFinished, UnitFailed}, {UnitStarted, UnitCompleted}),
        (logging.WARNING, {UnitRetrying, UnitFailed, UnitTimedOut}, {RunStarted, UnitStarted}),
        (logging.CRITICAL, set(), {UnitFailed, UnitRetrying, RunStarted}),
    ],
)
def test_what_the_level_drops_is_not_listened_to(caplog, level, heard, not_heard):
    caplog.set_level(level, LOGGER)
    types = set(LogObserver().event_types)
    assert heard <= types
    assert not not_heard & types


async def test_each_fact_has_its_level_and_its_fields(all_kinds, caplog):
    caplog.set_level(logging.DEBUG, LOGGER)
    await all_kinds.run(run_id="r1")
    lines = {}
    for record in caplog.records:
        event = record.message.partition(" run=")[0]
        lines.setdefault((event, getattr(record, "quantum_unit", None)), record)
    levels = {key: record.levelname for key, record in lines.items()}
    assert levels == {
        ("run started", None): "INFO",
        **{("unit started", u): "DEBUG" for u in ("good", "bad", "slow", "flaky")},
        **{("unit completed", u): "DEBUG" for u in ("good", "flaky")},
        ("unit failed", "bad"): "ERROR",
        ("unit skipped", "skipped"): "INFO",
        ("unit timed out", "slow"): "ERROR",
        ("unit retrying", "flaky"): "WARNING",
        ("run finished", None): "ERROR",
    }
    assert {record.quantum_run for record in caplog.records} == {"r1"}
    failed = lines["unit failed", "bad"]
    assert (failed.quantum_attempt, failed.name) == (1, LOGGER)
    assert "broken" in failed.message
    assert failed.quantum_duration >= 0
    assert lines["run started", None].quantum_units == 5
    assert lines["run finished", None].quantum_state == "failed"
    assert "'bad'" in repr(lines["unit skipped", "skipped"].quantum_root)


async def test_a_cancelled_run_says_so(flow, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    started = asyncio.Event()

    @flow.unit
    async def hang():
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(flow.run())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "unit canceled" in caplog.text
    assert "state=canceled" in caplog.text


async def test_a_configured_structlog_is_used(all_kinds, users_structlog, caplog):
    written = users_structlog()
    await all_kinds.run(run_id="r1")
    events = {(event["event"], event.get("unit")): method for method, event in written}
    assert events["unit failed", "bad"] == "error"
    assert events["unit retrying", "flaky"] == "warning"
    assert events["run finished", None] == "error"
    assert all(event["run"] == "r1" for _, event in written)
    assert caplog.records == []


async def test_a_configured_structlogs_level_is_respected(all_kinds, users_structlog):
    wrapper = structlog.make_filtering_bound_logger(logging.ERROR)
    written = users_structlog(wrapper_class=wrapper)
    assert set(LogObserver().event_types) == {UnitFailed, UnitTimedOut, RunFinished}
    await all_kinds.run()
    told = {event["event"] for _, event in written}
    assert told == {"unit failed", "unit timed out", "run finished"}


@pytest.mark.parametrize("wrapper", [structlog.stdlib.BoundLogger, structlog.BoundLogger])
async def test_any_logger_class_of_structlog_will_do(all_kinds, users_structlog, wrapper, caplog):
    factory = structlog.stdlib.LoggerFactory()
    written = users_structlog(wrapper_class=wrapper, logger_factory=factory)
    logging.getLogger(LOGGER).setLevel(logging.DEBUG)
    try:
        await all_kinds.run()
    finally:
        logging.getLogger(LOGGER).setLevel(logging.NOTSET)
    assert "unit failed" in [event["event"] for _, event in written]
    assert caplog.records == []


async def test_a_pipeline_that_raises_does_not_break_a_run(all_kinds):
    def broken(logger, method, event):
        raise RuntimeError("in the user's pipeline")

    structlog.configure(processors=[broken])
    try:
        async with asyncio.timeout(5):
            result = await all_kinds.run()
    finally:
        structlog.reset_defaults()
    assert sorted(result) == ["flaky", "good"]


async def test_a_filter_that_raises_does_not_break_a_run(all_kinds, caplog):
    class Broken(logging.Filter):
        def filter(self, record):
            raise RuntimeError("in the user's filter")

    broken = Broken()
    logging.getLogger(LOGGER).addFilter(broken)
    try:
        async with asyncio.timeout(5):
            result = await all_kinds.run()
    finally:
        logging.getLogger(LOGGER).removeFilter(broken)
    assert sorted(result) == ["flaky", "good"]
    del result
    gc.collect()  # where a task that died unseen would speak up
    assert "never retrieved" not in caplog.text


async def test_structlog_is_never_configured_by_us(all_kinds, caplog):
    caplog.set_level(logging.DEBUG)
    await all_kinds.run()
    assert not structlog.is_configured()


async def test_inside_a_unit_structlogs_context_carries_run_unit_and_attempt():
    flow = QuantumPartitioner()

    async def on_loop(ctx):
        if ctx.attempt == 1:
            raise OSError
        return structlog.contextvars.get_contextvars()

    def in_thread(ctx):
        return structlog.contextvars.get_contextvars()

    flow.add_unit(on_loop, name="loop", retry=RetryPolicy(wait=tenacity.wait_none()))
    flow.add_unit(in_thread, name="thread")
    with structlog.contextvars.bound_contextvars(request="q"):
        result = await flow.run(run_id="r1")
        assert structlog.contextvars.get_contextvars() == {"request": "q"}
    assert result["loop"] == {"request": "q", "run": "r1", "unit": "loop", "attempt": 2}
    assert result["thread"] == {"request": "q", "run": "r1", "unit": "thread", "attempt": 1}


@pytest.mark.parametrize("name", ["a\nERROR forged", "a\r\nb", "a\x1b[31mred", "a\u2028b", "a\x85"])
async def test_names_and_errors_cannot_write_lines_of_their_own(name, caplog):
    caplog.set_level(logging.DEBUG, LOGGER)
    flow = QuantumPartitioner(name=name, failure_policy="collect")

    class HostileError(Exception):
        def __repr__(self):
            return name

    async def bad(ctx):
        raise HostileError(name)

    flow.add_unit(bad, name=name)
    flow.add_unit(bad, [name], name=f"{name} after")
    await flow.run(run_id=name)
    assert len(caplog.records) >= 5
    for record in caplog.records:
        assert record.getMessage().isprintable()


SILENT = """
    import asyncio, sys
    from quantum_async import QuantumPartitioner

    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit
    async def bad():
        raise ValueError

    @flow.unit(timeout=0.01)
    async def slow():
        await asyncio.sleep(9)

    flow.add_unit(lambda ctx: 1, name="good")
    flow.execute(observers=[lambda event: 1 / 0])
"""


def test_nothing_is_printed_by_default():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SILENT)],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
