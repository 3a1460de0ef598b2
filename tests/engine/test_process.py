"""CPU-bound units in worker processes, on real processes."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from quantum_async import (
    PlanError,
    QuantumPartitioner,
    RemoteError,
    UnitState,
    UnitTimeoutError,
    UnpicklableUnitError,
    WorkerCrashedError,
)
from tests.support.processes import alive, until

FAILED, TIMEOUT = UnitState.FAILED, UnitState.TIMEOUT


def hanging(noted):
    """Return a script whose one unit notes its worker's process id, and hangs."""
    return (
        "import os, time\n"
        "from quantum_async import QuantumPartitioner\n"
        "flow = QuantumPartitioner(default_execution_mode='process')\n"
        "def hang(ctx):\n"
        f"    open({str(noted)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "flow.add_unit(hang)\n"
        "flow.execute({})\n"
    )


@pytest.fixture
def flow():
    return QuantumPartitioner(default_execution_mode="process", failure_policy="collect")


class OddError(Exception):
    """An exception that pickle turns into a TypeError."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Point:
    """A class of a test module, which a worker cannot import."""

    def __init__(self, x):
        self.x = x

    def double(self, ctx):
        return self.x * 2


def module_function(ctx):
    return ("module", ctx["n"])


async def test_any_function_can_travel(flow):
    n = 20
    flow.add_unit(lambda ctx: n + ctx["n"], name="closure")
    flow.add_unit(module_function, name="by_name")
    flow.add_unit(Point(21).double, name="method")
    flow.add_unit(len, name="builtin", args=["four"])

    @flow.unit
    def decorated(closure, n=0):
        return closure + n

    @flow.unit(mode="process")
    async def coroutine(decorated):
        await asyncio.sleep(0)
        return decorated, os.getpid()

    flow.add_unit(lambda ctx: Point(ctx["n"]), name="own_class")
    result = await flow.run({"n": 1})
    assert result["closure"] == 21
    assert result["by_name"] == ("module", 1)
    assert result["method"] == 42
    assert result["builtin"] == 4
    assert result["decorated"] == 22
    assert result["coroutine"][0] == 22
    assert result["coroutine"][1] != os.getpid()
    assert isinstance(result["own_class"], Point)
    assert {r.ran_on for r in result.units.values()} == {"process"}


async def test_what_cannot_travel_is_found_before_anything_runs(flow):
    lock = threading.Lock()
    ran = []
    flow.add_unit(lambda ctx: lock, name="locked")
    flow.add_unit(lambda ctx: ran.append(1), name="other", mode="thread")
    with pytest.raises(UnpicklableUnitError, match=r"'locked'.*variable 'lock'.*mode='thread'"):
        flow.build_execution_plan()
    with pytest.raises(PlanError):
        await flow.run()
    assert not ran


async def test_an_exception_arrives_as_it_was_raised_with_the_workers_traceback(flow):
    def bad(ctx):
        raise ValueError("broken", 7)

    flow.add_unit(bad, name="bad")
    error = (await flow.run()).errors["bad"]
    assert type(error) is ValueError
    assert error.args == ("broken", 7)
    assert any("in bad" in note and "worker process" in note for note in error.__notes__)


async def test_an_exception_that_cannot_travel_becomes_a_remote_error(flow):
    def odd(ctx):
        raise OddError(1, 2)

    flow.add_unit(odd, name="odd")
    error = (await flow.run()).errors["odd"]
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith("OddError")
    assert error.remote_message == "1 and 2"
    assert "raise OddError" in error.traceback


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_a_base_exception_in_a_worker_does_not_tear_down_the_loop(flow, error):
    def bad(ctx):
        raise error("from the worker")

    flow.add_unit(bad, name="bad")
    flow.add_unit(lambda ctx: 1, name="good")
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            await flow.run()
    else:
        result = await flow.run()
        assert isinstance(result.errors["bad"], error)
        assert result["good"] == 1
    assert flow.last_result.states["bad"] is FAILED


async def test_what_cannot_be_pickled_on_the_way_back_is_that_units_error(flow):
    flow.add_unit(lambda ctx: threading.Lock(), name="bad")
    flow.add_unit(lambda ctx: 1, name="good")
    result = await flow.run()
    assert isinstance(result.errors["bad"], TypeError)
    assert any("result of unit 'bad'" in note for note in result.errors["bad"].__notes__)
    assert result["good"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "busy",
    [
        pytest.param("while True: pass", id="pure Python loop"),
        pytest.param("sum(range(10**12))", id="C call that holds the GIL"),
        pytest.param("time.sleep(60)", id="sleeping"),
        pytest.param(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", id="ignores SIGTERM"
        ),
        pytest.param("subprocess.run(['sleep', '60'])", id="waits for a subprocess"),
    ],
)
async def test_a_timeout_kills_the_worker_and_its_children(flow, busy, tmp_path):
    noted = tmp_path / "pid"

    def run(ctx):
        noted.write_text(str(os.getpid()))
        exec(busy, {"time": time, "signal": signal, "subprocess": subprocess})

    # The one worker has imported what the unit needs before the unit's clock starts.
    flow.add_unit(lambda ctx: (noted.name, signal, subprocess)[0], name="imports")
    flow.add_unit(run, ["imports"], name="busy", timeout=0.3)
    flow.add_unit(lambda ctx: "fine", ["imports"], name="other")
    started = time.perf_counter()
    result = await flow.run(max_workers=1)
    assert isinstance(result.errors["busy"], UnitTimeoutError)
    assert result.states["busy"] is TIMEOUT
    assert result["other"] == "fine"
    assert time.perf_counter() - started < 3
    pid = int(noted.read_text())
    assert not alive(pid)
    assert not [p for p in os.listdir("/proc") if p.isdigit() and _group(p) == pid]


def _group(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[2]) if fields[0] != "Z" else None


@pytest.mark.slow
async def test_cancelling_the_run_kills_the_worker(flow, tmp_path):
    noted = tmp_path / "pid"

    def hang(ctx):
        noted.write_text(str(os.getpid()))
        time.sleep(60)

    flow.add_unit(hang, name="hang")
    task = asyncio.create_task(flow.run())
    await until(lambda: noted.exists() and noted.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(int(noted.read_text()))


@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.03, 0.06])
async def test_cancelling_while_workers_start_leaves_nothing_half_started(flow, delay):
    flow.add_unit(lambda ctx: time.sleep(60), name="hang")
    task = asyncio.create_task(flow.run())
    await asyncio.sleep(delay)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The workers that there are serve the next run.
    flow = QuantumPartitioner(default_execution_mode="process")
    flow.add_unit(lambda ctx: "fine", name="next")
    assert (await flow.run())["next"] == "fine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "how"),
    [
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
async def test_a_crash_says_how_the_worker_died_and_others_do_not_notice(flow, death, how):
    def die(ctx):
        exec(death, {"os": os, "signal": signal})

    flow.add_unit(die, name="dies")
    for number in range(6):
        flow.add_unit(lambda ctx, n=number: n * n, name=f"fine{number}")
    result = await flow.run()
    error = result.errors["dies"]
    assert isinstance(error, WorkerCrashedError)
    assert error.how == how
    assert error.unit == "dies"
    assert [result[f"fine{number}"] for number in range(6)] == [0, 1, 4, 9, 16, 25]


@pytest.mark.slow
async def test_a_crash_is_retried_like_any_failure(flow, tmp_path):
    def die_once(ctx):
        if ctx.attempt == 1:
            os._exit(1)
        return ctx.attempt

    flow.add_unit(die_once, name="dies", retries=1)
    assert (await flow.run())["dies"] == 2


async def test_units_cannot_break_the_protocol(flow):
    def noisy(ctx):
        sys.stdout.write("to sys.stdout")
        sys.stdout.flush()
        os.write(1, b"x" * 400_000)
        os.write(2, b"x" * 400_000)
        sys.stdin.read()
        return "fine"

    flow.add_unit(noisy, name="noisy", timeout=10)
    flow.add_unit(lambda ctx: [os.close(n) for n in (0, 1, 2)], ["noisy"], name="closes")
    flow.add_unit(
        lambda ctx: subprocess.run(["cat"], check=True).returncode, ["closes"], name="cat"
    )
    flow.add_unit(lambda ctx: os.getpid(), ["closes"], name="after")
    result = await flow.run()
    assert result["noisy"] == "fine"
    assert result["after"] != os.getpid()


@pytest.mark.slow
async def test_a_stray_interrupt_never_makes_a_wrong_value(flow):
    def slow_square(ctx):
        number = int(ctx.unit_id.removeprefix("unit_"))
        time.sleep(0.002)
        return number * number, os.getpid()

    for _ in range(200):
        flow.add_unit(slow_square)
    pids = set()

    def interrupt(event):
        if type(event).__name__ == "UnitCompleted":
            pids.add(event.result[1])
            for pid in pids:
                os.kill(pid, signal.SIGINT)

    result = await flow.run(observers=[interrupt])
    assert {name: value[0] for name, value in result.items()} == {
        f"unit_{number}": number * number for number in range(200)
    }


@pytest.mark.slow
async def test_idle_workers_that_were_killed_are_replaced_without_a_word(flow):
    flow.add_unit(lambda ctx: os.getpid(), name="pid")
    for _ in range(3):
        pid = (await flow.run())["pid"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: not alive(pid))
    assert (await flow.run()).ok


@pytest.mark.slow
def test_every_loop_has_its_own_workers_and_they_end_with_it(flow):
    flow.add_unit(lambda ctx: os.getpid(), name="pid")
    pids = {asyncio.run(flow.run())["pid"] for _ in range(2)}
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_a_second_run_on_the_same_runner_works(flow):
    flow.add_unit(lambda ctx: os.getpid(), name="pid")
    with asyncio.Runner() as runner:
        assert runner.run(flow.run()).ok
        assert runner.run(flow.run()).ok


@pytest.mark.slow
def test_two_loops_in_two_threads_do_not_disturb_each_other(flow):
    flow.add_unit(lambda ctx: (time.sleep(0.05), os.getpid())[1], name="pid")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(flow.run()))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.ok for r in results] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_script_without_a_guard_is_not_run_again(tmp_path, loop):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, asyncio\n"
        "from quantum_async import QuantumPartitioner\n"
        "print('once', sys.argv[1])\n"
        "class Mine:\n"
        "    def __init__(self, x): self.x = x\n"
        "flow = QuantumPartitioner(default_execution_mode='process')\n"
        "helper = lambda x: Mine(x + 1)\n"
        "flow.add_unit(lambda ctx: helper(ctx['x']), name='mine')\n"
        + (
            "result = asyncio.run(flow.run({'x': 1}))\n"
            if loop == "asyncio"
            else "result = flow.execute({'x': 1})\n"
        )
        + "assert isinstance(result['mine'], Mine)\n"
        "print(result['mine'].x, __file__)\n"
    )
    ran = subprocess.run(
        [sys.executable, str(script), "arg"], capture_output=True, text=True, timeout=60
    )
    # asyncio of 3.12 and 3.11 says this of processes that anyio kills twice when its loop ends,
    # with or without us: the second time it collects the exit status that asyncio waits for.
    known = ("exit status already read", "Unknown child process pid")
    errors = [line for line in ran.stderr.splitlines() if not any(one in line for one in known)]
    assert not errors
    assert ran.stdout.split() == ["once", "arg", "2", str(script)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
async def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path):
    noted = tmp_path / "pid"
    script = tmp_path / "script.py"
    script.write_text(hanging(noted))
    parent = subprocess.Popen([sys.executable, str(script)])
    await until(lambda: noted.exists() and noted.read_text(), 20)
    parent.kill()
    parent.wait()
    pid = int(noted.read_text())
    await until(lambda: not alive(pid))


@pytest.mark.slow
def test_ctrl_c_ends_the_script_and_its_workers(tmp_path):
    noted = tmp_path / "pid"
    script = tmp_path / "script.py"
    script.write_text(hanging(noted))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    asyncio.run(until(lambda: noted.exists() and noted.read_text(), 20))
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode in (130, -signal.SIGINT)
    assert errors.count("Traceback") <= 2
    assert "KeyboardInterrupt" in errors
    assert not alive(int(noted.read_text()))


async def test_context_metrics_and_emitted_values_come_back_from_a_worker(flow):
    def tells(ctx):
        ctx.record_metric("rows", 3)
        ctx.emit("half way")
        return ctx.attempt, ctx.run_id, 0 < ctx.remaining <= 30

    flow.add_unit(tells, name="tells", timeout=30)
    events = []
    result = await flow.run(observers=[events.append], run_id="r9")
    assert result["tells"] == (1, "r9", True)
    assert result.metrics["rows"] == 3
    assert [e.value for e in events if type(e).__name__ == "UnitEmitted"] == ["half way"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_big_values_travel_through_shared_memory_and_leave_none_behind(flow, kind):
    def grow(ctx):
        return kind(ctx["seed"]) * 2

    flow.add_unit(grow, name="big")
    flow.add_unit(lambda ctx: (len(ctx["big"]), ctx["big"][-1]), ["big"], name="measure")
    flow.add_unit(lambda ctx: os._exit(len(ctx["big"]) and 3), ["big"], name="dies")
    flow.add_unit(lambda ctx: [ctx["big"], threading.Lock()], ["big"], name="unsendable")
    result = await flow.run({"seed": b"x" * 5_000_000})
    assert type(result["big"]) is kind
    assert result["measure"] == (10_000_000, ord("x"))
    assert result.errors["dies"].how == "exit code 3"
    assert isinstance(result.errors["unsendable"], TypeError)
    if sys.platform == "linux":
        assert not [link for link in open_files() if "quantum_async-segment" in link]


def open_files():
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return links


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="output is captured on Linux only")
async def test_what_a_worker_prints_and_logs_is_logged_here_also_before_a_crash(flow, caplog):
    caplog.set_level(logging.INFO)

    def talks(ctx):
        sys.stdout.write("printed\n")
        logging.getLogger("mine").info("logged %d", 3)
        os.write(1, b"raw\n")

    def dies(ctx):
        sys.stdout.write("last words\n")
        os._exit(3)

    flow.add_unit(talks, name="talks")
    flow.add_unit(dies, ["talks"], name="dies")
    result = await flow.run(run_id="r5")
    assert isinstance(result.errors["dies"], WorkerCrashedError)
    told = [r.getMessage() for r in caplog.records if r.name != "quantum_async"]
    assert told[:2] == ["printed run=r5 unit=talks attempt=1", "logged 3"]
    assert "raw run=r5 unit=talks attempt=1" in told
    assert "last words run=r5 unit=dies attempt=1" in told
    mine = next(record for record in caplog.records if record.name == "mine")
    assert (mine.quantum_run, mine.quantum_unit) == ("r5", "talks")


@pytest.mark.slow
async def test_a_run_that_is_cancelled_while_it_packs_leaves_the_next_one_its_own_arguments(flow):
    def first_and_size(data):
        return data[0], len(data)

    for number in range(12):
        again = QuantumPartitioner(default_execution_mode="process")
        again.add_unit(first_and_size, args=[bytes([number]) * 4_000_000], name="it")
        task = asyncio.create_task(again.run())
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again.units.clear()
        again.add_unit(first_and_size, args=[bytes([100 + number]) * 3_000_000], name="it")
        assert (await again.run())["it"] == (100 + number, 3_000_000)
