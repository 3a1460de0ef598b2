"""What worker processes may use, what they are given, and what units may do to them."""

import asyncio
import contextlib
import contextvars
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from anyio import to_process

from quantum_async import (
    PlanError,
    QuantumPartitioner,
    UnitState,
    WorkerCrashedError,
)
from quantum_async.core.events import UnitFailed
from tests.support import carried
from tests.support.processes import alive

COMPLETED, FAILED, TIMEOUT = UnitState.COMPLETED, UnitState.FAILED, UnitState.TIMEOUT


@pytest.fixture
def flow():
    return QuantumPartitioner(default_execution_mode="process", failure_policy="collect")


def pid_of(_):
    return os.getpid()


async def test_a_function_sent_by_value_keeps_the_name_of_its_file(flow):
    flow.add_unit(lambda _: sys._getframe().f_code.co_filename, name="file")
    assert (await flow.run({}))["file"] == __file__


async def test_worker_processes_are_refused_where_there_are_none(flow, monkeypatch):
    monkeypatch.delattr(os, "mkfifo")
    flow.add_unit(pid_of, name="unit")
    with pytest.raises(PlanError, match=r"unit 'unit' .* need Linux or macOS"):
        await flow.run({})


# -- grace ----------------------------------------------------------------------------------------


def tidy(ctx):
    try:
        Path(ctx["folder"], "began").touch()
        time.sleep(60)
    finally:
        Path(ctx["folder"], "tidied").write_text(str(os.getpid()))


async def tidy_async(ctx):
    try:
        Path(ctx["folder"], "began").touch()
        await anyio.sleep(60)
    finally:
        Path(ctx["folder"], "tidied").write_text(str(os.getpid()))


@pytest.mark.slow
@pytest.mark.parametrize("unit", [tidy, tidy_async])
@pytest.mark.parametrize("grace", [None, 10])
async def test_a_unit_with_a_grace_may_clean_up_before_its_worker_is_gone(
    flow, unit, grace, tmp_path
):
    flow.add_unit(unit, name="unit", mode="process", timeout=1.5, grace=grace)
    result = await flow.run({"folder": str(tmp_path)})
    assert result.states["unit"] is TIMEOUT
    assert result.units["unit"].duration < 5
    assert (tmp_path / "tidied").exists() == (grace is not None)
    if grace:
        assert not alive(int((tmp_path / "tidied").read_text()))


def deaf(ctx):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(ctx["folder"], "pid").write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.slow
async def test_a_grace_is_not_longer_than_it_says(flow, tmp_path):
    flow.add_unit(deaf, name="unit", timeout=1.5, grace=0.2)
    began = time.monotonic()
    result = await flow.run({"folder": str(tmp_path)})
    assert result.states["unit"] is TIMEOUT
    assert time.monotonic() - began < 5
    assert not alive(int((tmp_path / "pid").read_text()))


# -- started ahead, used again, used up -----------------------------------------------------------


@pytest.mark.slow
async def test_workers_can_be_started_ahead_of_time(flow):
    await flow.warm(2)
    before = {one.pid for one in to_process._process_pool_workers.get()}
    assert len(before) == 2
    tasks = asyncio.all_tasks()
    flow.add_unit(pid_of, name="unit")
    result = await flow.run({})
    assert result["unit"] in before
    assert asyncio.all_tasks() == tasks


async def test_warm_takes_a_number_of_workers(flow):
    with pytest.raises(PlanError, match="whole number"):
        await flow.warm(0)


@pytest.mark.slow
async def test_a_worker_makes_room_after_so_many_uses():
    flow = QuantumPartitioner(default_execution_mode="process", max_workers=1, max_uses=2)
    units = [flow.add_unit(pid_of) for _ in range(6)]
    pids = [(await flow.run({}))[unit] for unit in units[:1]]
    result = await flow.run({})
    pids = list(result.values())
    assert len(set(pids)) >= 3
    assert max(map(pids.count, pids)) <= 2


def hold(_):
    hold.memory = b"x" * 60_000_000  # kept by the worker's module
    return os.getpid()


@pytest.mark.slow
async def test_a_worker_makes_room_when_it_holds_too_much():
    flow = QuantumPartitioner(
        default_execution_mode="process", max_workers=1, max_memory=1_000_000_000
    )
    flow.add_unit(hold, name="a")
    flow.add_unit(pid_of, ["a"], name="b")
    same = await flow.run({})
    assert same["a"] == same["b"]
    tight = QuantumPartitioner(
        default_execution_mode="process", max_workers=1, max_memory=60_000_000
    )
    tight.add_unit(hold, name="a")
    tight.add_unit(pid_of, ["a"], name="b")
    other = await tight.run({})
    assert other["a"] != other["b"]


def grow(ctx):
    kept = b"x" * ctx["size"]
    return len(kept)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process inherits its peak")
async def test_the_peak_of_memory_is_that_of_the_worker_not_that_of_its_parent(flow):
    before = b"x" * 300_000_000  # a process that is started now would take this for its own
    flow.add_unit(pid_of, name="small")
    flow.add_unit(grow, ["small"], name="big")
    units = (await flow.run({"size": 100_000_000})).units
    assert len(before) > units["big"].usage.peak_memory > 100_000_000
    assert units["small"].usage.peak_memory < 100_000_000


@pytest.mark.parametrize("option", ["max_uses", "max_memory", "max_result_bytes"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
def test_limits_that_cannot_be_meant_are_refused(option, value):
    with pytest.raises(PlanError, match=option):
        QuantumPartitioner(**{option: value})


@pytest.mark.parametrize("value", [-1, float("nan"), "long"])
def test_a_grace_that_cannot_be_meant_is_refused(flow, value):
    with pytest.raises(PlanError, match="grace"):
        flow.add_unit(pid_of, grace=value)


# -- big results ----------------------------------------------------------------------------------


def much(ctx):
    return b"x" * ctx["size"]


@pytest.mark.parametrize("size", [2_000, 2_000_000])
async def test_a_result_over_the_limit_is_that_units_error(size):
    flow = QuantumPartitioner(
        default_execution_mode="process", failure_policy="collect", max_result_bytes=1_000
    )
    flow.add_unit(much, name="limited")
    flow.add_unit(much, name="own", max_result_bytes=3_000_000)
    flow.add_unit(pid_of, name="small")
    result = await flow.run({"size": size})
    error = result.errors["limited"]
    assert "1,000" in str(error)
    assert any("limited" in note for note in error.__notes__)
    assert len(result["own"]) == size
    assert result.states["small"] is COMPLETED


def fails_then_dies(ctx):
    if ctx.attempt == 1:
        raise OSError
    os._exit(3)


async def test_an_attempt_that_did_not_come_back_has_not_the_cost_of_the_one_before():
    flow, ends = QuantumPartitioner(default_execution_mode="process"), []

    def observer(event):
        ends.append(event)

    observer.event_types = (UnitFailed,)
    flow.add_unit(fails_then_dies, name="unit", retries=1)
    result = await flow.run({}, failure_policy="collect", observers=[observer])
    assert result.units["unit"].usage is None
    assert [event.usage for event in ends] == [None]


# -- context variables ----------------------------------------------------------------------------


def read(_):
    return carried.request.get(), carried.secret.get()


async def test_context_variables_travel_if_they_are_named():
    flow = QuantumPartitioner(default_execution_mode="process", contextvars=[carried.request])
    flow.add_unit(read, name="unit")
    carried.request.set({"id": 7})
    carried.secret.set("no")
    assert (await flow.run({}))["unit"] == ({"id": 7}, None)


async def test_context_variables_reach_short_units_too():
    flow = QuantumPartitioner(
        default_execution_mode="process", max_workers=1, contextvars=[carried.request]
    )
    for number in range(300):  # as many as travel together, if nothing goes with each
        flow.add_unit(read, name=f"unit {number}")
    carried.request.set(7)
    assert set((await flow.run({})).values()) == {(7, None)}


async def test_each_unit_has_context_variables_of_its_own():
    flow = QuantumPartitioner(
        default_execution_mode="process",
        max_workers=1,
        contextvars=["tests.support.carried:secret"],
    )
    flow.add_unit(lambda _: carried.request.set("left behind") and None, name="writes")
    flow.add_unit(read, ["writes"], name="reads")
    assert (await flow.run({}))["reads"] == (None, None)


async def test_a_value_that_cannot_travel_is_left_out_and_told_of_once(caplog):
    flow = QuantumPartitioner(
        default_execution_mode="process", contextvars=[carried.request, carried.secret]
    )
    flow.add_unit(read, name="a")
    flow.add_unit(read, name="b")
    carried.request.set(sys._getframe())
    carried.secret.set("yes")
    with caplog.at_level(logging.WARNING, "quantum_async"):
        result = await flow.run({})
    assert list(result.values()) == [(None, "yes")] * 2
    assert caplog.text.count("carried:request cannot travel") == 1


LOCAL = [contextvars.ContextVar("hidden")]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (LOCAL, "hidden"),
        (["no.such:thing"], "no.such"),
        (["os:getcwd"], "no ContextVar"),
        ([3], "ContextVars or"),
        ("os:path", "list"),
        (3, "list"),
    ],
)
def test_context_variables_that_cannot_travel_are_refused(given, why):
    with pytest.raises(PlanError, match=why):
        QuantumPartitioner(contextvars=given)


async def test_the_trace_context_travels_by_itself(flow):
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")

    def current(_):
        from opentelemetry import trace

        return trace.get_current_span().get_span_context().trace_id

    flow.add_unit(current, name="unit")
    with sdk.TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        result = await flow.run({})
    assert result["unit"] == span.get_span_context().trace_id != 0
    assert (await flow.run({}))["unit"] == trace.INVALID_TRACE_ID


# -- sub-interpreters -----------------------------------------------------------------------------

needs_interpreters = pytest.mark.skipif(sys.version_info < (3, 13), reason="Python 3.13 and later")


INTERPRETERS = """
import asyncio, os, pathlib, sys, time
from quantum_async import QuantumPartitioner

def slow(ctx):
    from pathlib import Path
    import time
    Path(ctx["noted"]).touch()
    time.sleep(0.3)
    Path(ctx["noted"]).unlink()

async def main(noted):
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(lambda _: 2**100, name="big", mode="interpreter")
    flow.unit(lambda big: (big + 1, os.getpid()), name="more", mode="interpreter")
    flow.add_unit(lambda _: 1 / 0, name="fails", mode="interpreter")
    result = await flow.run({})
    assert result["more"] == (2**100 + 1, os.getpid())
    assert result.units["big"].ran_on == "interpreter"
    assert isinstance(result.errors["fails"], ZeroDivisionError)
    assert any("sub-interpreter" in note for note in result.errors["fails"].__notes__)

    # It cannot be stopped: it is waited for when the run is cancelled.
    waited = QuantumPartitioner(default_execution_mode="interpreter")
    waited.add_unit(slow)
    running = asyncio.ensure_future(waited.run({"noted": str(noted)}))
    while not noted.exists():
        await asyncio.sleep(0.005)
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        assert not noted.exists()

if __name__ == "__main__":
    asyncio.run(main(pathlib.Path(sys.argv[1])))
    # uvloop cannot start processes once there are sub-interpreters: `execute` knows.
    both = QuantumPartitioner()
    both.add_unit(lambda _: 1, mode="interpreter")
    both.add_unit(lambda _: 2, ["unit_0"], mode="process")
    print(both.execute({}))
    print(QuantumPartitioner(default_execution_mode="interpreter").execute({}))
"""


@needs_interpreters
@pytest.mark.slow
def test_units_run_in_sub_interpreters(tmp_path):
    # In a process of its own: each event loop leaves an interpreter behind.
    script = tmp_path / "script.py"
    script.write_text(INTERPRETERS)
    command = [sys.executable, str(script), str(tmp_path / "noted")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.returncode) == ("{'unit_0': 1, 'unit_1': 2}\n{}\n", 0), ran.stderr


@needs_interpreters
@pytest.mark.parametrize("limit", ["timeout", "deadline"])
async def test_a_limit_that_would_need_to_kill_is_refused_in_a_sub_interpreter(limit):
    flow = QuantumPartitioner()
    with pytest.raises(PlanError, match=f"cannot be stopped, so {limit}="):
        flow.add_unit(pid_of, mode="interpreter", **{limit: 1})
    flow.add_unit(pid_of, **{limit: 1})
    with pytest.raises(PlanError, match=f"cannot be stopped, so {limit}="):
        await flow.run({}, mode="interpreter")


def test_sub_interpreters_are_refused_with_the_reason_where_there_are_none(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))
    with pytest.raises(PlanError, match=r"needs Python 3\.13, and this is 3\.12"):
        QuantumPartitioner().add_unit(pid_of, mode="interpreter")


# -- what units do to their workers ---------------------------------------------------------------


def changes_folder(_):
    os.chdir("/")


def sets_handlers(_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def forks(_):
    os.fork()
    return "forked"


def starts_a_thread(_):
    import threading

    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()


def closes_streams(_):
    sys.stdout.close()
    os.close(1)


def floods(_):
    for _ in range(3_000):
        print("x" * 1_000)  # noqa: T201


def exits(_):
    sys.exit(3)


def state(_):
    time.sleep(0.1)  # a timer that was left would go off
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    return os.getpid(), os.getcwd(), [int(handler) for handler in handlers]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rude", [changes_folder, sets_handlers, forks, starts_a_thread, closes_streams, floods, exits]
)
async def test_what_a_unit_does_to_its_worker_does_not_hit_the_next_unit(rude):
    flow = QuantumPartitioner(
        default_execution_mode="process", max_workers=1, failure_policy="collect"
    )
    flow.add_unit(state, name="before")
    flow.add_unit(rude, ["before"], name="rude", fallback="failed")
    flow.add_unit(state, ["rude"], name="after")
    result = await flow.run({})
    assert result["before"] == result["after"]
    assert result["rude"] == {forks: "forked", exits: "failed"}.get(rude)


def closes_everything(_):
    os.closerange(3, 4096)


def writes_rubbish(_):
    for number in range(3, 1024):
        with contextlib.suppress(OSError):
            os.write(number, (5).to_bytes(8, sys.byteorder) + b"hello")
    time.sleep(30)


@pytest.mark.slow
@pytest.mark.parametrize("rude", [closes_everything, writes_rubbish])
async def test_a_worker_that_cannot_answer_or_answers_rubbish_is_that_units_crash(rude):
    flow = QuantumPartitioner(
        default_execution_mode="process", max_workers=1, failure_policy="collect"
    )
    flow.add_unit(rude, name="rude", timeout=10)
    flow.add_unit(lambda _: "fine", name="next")
    result = await flow.run({})
    assert isinstance(result.errors["rude"], WorkerCrashedError)
    assert result["next"] == "fine"


def crashes_with_a_child(_):
    subprocess.Popen(["sleep", "60"])
    if os.fork() == 0:
        time.sleep(60)
    os._exit(9)


@pytest.mark.slow
async def test_a_crash_is_noticed_although_children_hold_the_workers_pipes(flow):
    flow.add_unit(crashes_with_a_child, name="unit")
    began = time.monotonic()
    result = await flow.run({})
    assert result.errors["unit"].how == "exit code 9"
    assert time.monotonic() - began < 10


@pytest.mark.slow
async def test_workers_that_die_at_start_up_fail_the_unit_after_a_few_tries(flow, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    flow.add_unit(pid_of, name="a")
    flow.add_unit(pid_of, name="b", retries=1)
    began = time.monotonic()
    result = await flow.run({})
    assert isinstance(result.errors["a"], WorkerCrashedError)
    assert "start-up" in str(result.errors["a"])
    assert result.units["b"].attempts == 2
    assert time.monotonic() - began < 20
    with pytest.raises(WorkerCrashedError, match="start-up"):
        await flow.warm(1)
    monkeypatch.undo()
    assert (await flow.run({})).ok


@pytest.mark.slow
async def test_a_result_that_raises_while_it_is_unpickled_here_is_that_units_error(flow):
    flow.add_unit(lambda _: carried.RaisesHere(), name="bad")
    flow.add_unit(lambda _: 1, name="good")
    result = await flow.run({})
    assert isinstance(result.errors["bad"], carried.NotHereError)
    assert result["good"] == 1
