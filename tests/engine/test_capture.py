"""What a worker process writes comes out in this one. Real processes and pipes; no pool."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog
import uvloop

from quantum_async.engine.executors import outlet as outlet_module
from quantum_async.engine.executors.capture import HEADER, LOG, MAGIC, STDOUT
from quantum_async.engine.executors.outlet import Outlet, WorkerRecord
from quantum_async.observe import relay as relay_module
from quantum_async.observe.relay import relay, wanted
from tests.support.processes import until

ROOT = Path(__file__).parents[2]
EVERYTHING = json.dumps({"levels": {"": 1}})
WITH_STRUCTLOG = json.dumps(
    {"levels": {"": 1}, "structlog": 0, "hooks": ["quantum_async.observe.relay:forward_structlog"]}
)
PREAMBLE = """
import logging, os, signal, subprocess, sys, threading, time
from quantum_async.engine.executors import capture

path, settings = sys.argv[1:3]
nowhere = os.open(os.devnull, os.O_RDWR)
os.dup2(nowhere, 1)
os.dup2(nowhere, 2)
capture.install(path, settings)
"""


@dataclass
class Worked:
    """What came of a worker."""

    records: list[WorkerRecord] = field(default_factory=list)
    code: int | None = None
    seconds: float = 0.0

    def of(self, *kinds):
        return [one.message for one in self.records if one.kind in kinds]

    @property
    def messages(self):
        return [one.message for one in self.records]

    @property
    def dropped(self):
        return sum(one.fields["bytes"] for one in self.records if one.kind == "dropped")


@pytest.fixture
async def outlet():
    outlet = Outlet.open(asyncio.get_running_loop())
    yield outlet
    outlet.close()


async def start(outlet, code, settings=EVERYTHING):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PREAMBLE + code, outlet.path, settings),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
    )


async def work(outlet, body, *, number=1, settings=EVERYTHING):
    """Run one call in a worker of its own and return what it wrote."""
    worked = Worked()
    outlet.expect(number, worked.records.append)
    began = time.monotonic()
    process = await start(
        outlet, f"capture.begin({number}, settings)\n{body}\ncapture.end()\n", settings
    )
    worked.code = await process.wait()
    await outlet.finish(number, process.pid)
    worked.seconds = time.monotonic() - began
    return worked


# -- what comes, and in which order ------------------------------------------------------------


async def test_prints_and_log_records_come_in_order(outlet):
    worked = await work(
        outlet,
        """
print("one")
logging.getLogger("app").warning("two %s", "2")
print("three", file=sys.stderr)
print("four\\nfive")
logging.getLogger("app").debug("six")
""",
    )
    assert [(one.kind, one.message) for one in worked.records] == [
        ("stdout", "one"),
        ("logging", "two 2"),
        ("stderr", "three"),
        ("stdout", "four"),
        ("stdout", "five"),
        ("logging", "six"),
    ]
    assert worked.code == 0


async def test_it_comes_while_the_call_runs(outlet, tmp_path):
    worked, go_on = Worked(), tmp_path / "go_on"
    outlet.expect(1, worked.records.append)
    process = await start(
        outlet,
        f"""
capture.begin(1)
print("printed")
os.write(1, b"written\\n")
while not os.path.exists({str(go_on)!r}):
    time.sleep(0.005)
capture.end()
""",
    )
    await until(lambda: sorted(worked.messages) == ["printed", "written"])
    assert process.returncode is None
    go_on.touch()
    await process.wait()


async def test_a_line_without_an_end_comes_at_the_end_of_the_call(outlet):
    worked = await work(
        outlet, 'sys.stdout.write("no "); sys.stdout.write("end"); os.write(1, b"nor here")'
    )
    assert sorted(worked.messages) == ["no end", "nor here"]


async def test_a_progress_bar_comes_as_a_terminal_would_show_it_last(outlet):
    worked = await work(outlet, r'print("\r10 %\r50 %\r100 %"); print("dos line\r"); print()')
    assert worked.messages == ["100 %", "dos line"]


async def test_text_survives_the_cuts_between_frames(outlet):
    text = "€🎈ä" * 5000
    worked = await work(outlet, f'print("{"€🎈ä"}" * 5000); os.write(1, ("€🎈ä" * 5000).encode())')
    assert worked.messages == [text, text]


async def test_bytes_that_are_no_text_are_replaced(outlet):
    worked = await work(outlet, r'sys.stdout.buffer.write(b"a\xffb\n"); print("\ud800")')
    assert worked.messages == ["a\ufffdb", r"\ud800"]


async def test_the_streams_are_whole_text_streams(outlet):
    worked = await work(
        outlet,
        """
assert sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2 and not sys.stdout.isatty()
assert sys.stdout.encoding == "utf-8" and sys.__stdout__ is sys.stdout
print(sys.stdout.write("x"), flush=True)
""",
    )
    assert worked.messages == ["x1"]


async def test_long_lines_of_several_threads_do_not_mix(outlet):
    worked = await work(
        outlet,
        """
def write(letter):
    for size in (10, 5000, 70_000):
        sys.stdout.write(letter * size + "\\n")
threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
for thread in threads: thread.start()
for thread in threads: thread.join()
""",
    )
    assert sorted(worked.messages) == sorted(
        letter * size for letter in "abcd" for size in (10, 5000, 70_000)
    )


@pytest.mark.slow
async def test_long_lines_of_several_workers_do_not_mix(outlet):
    async def one(number):
        letter = "abcd"[number - 1]
        body = f'for size in (10, 5000, 70_000, 10): print("{letter}" * size)'
        return letter, await work(outlet, body, number=number)

    for letter, worked in await asyncio.gather(*map(one, (1, 2, 3, 4))):
        assert worked.messages == [letter * size for size in (10, 5000, 70_000, 10)]


async def test_what_c_code_and_subprocesses_write_comes_too(outlet):
    worked = await work(
        outlet,
        """
os.write(1, b"from C\\n")
os.write(2, b"an error\\n")
subprocess.run(["sh", "-c", "echo child; echo oops >&2"])
subprocess.run(["echo", "given"], stdout=sys.stdout)
""",
    )
    assert worked.of("stdout") == ["from C", "child", "given"]
    assert worked.of("stderr") == ["an error", "oops"]


async def test_a_print_does_not_overtake_a_subprocess(outlet):
    worked = await work(
        outlet,
        'print("before"); subprocess.run(["echo", "between"]); print("after")',
    )
    assert worked.messages == ["before", "between", "after"]


async def test_a_forked_child_prints_as_its_parent_does(outlet):
    worked = await work(
        outlet,
        """
pid = os.fork()
if not pid:
    print("child " * 2000)
    os._exit(0)
os.waitpid(pid, 0)
print("parent")
""",
    )
    assert worked.messages == ["child " * 2000, "parent"]


# -- log records -------------------------------------------------------------------------------


async def test_a_log_record_comes_with_all_that_is_known_of_it(outlet):
    before = time.time()
    worked = await work(
        outlet,
        """
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("a.b").exception(
        "failed", extra={"count": 3, "huge": 10**5000, "thing": [1, {"x": None}], "flag": True}
    )
""",
    )
    [record] = worked.records
    assert (record.kind, record.level, record.logger) == ("logging", logging.ERROR, "a.b")
    assert record.message == "failed"
    assert record.fields == {
        "count": 3,
        "huge": "<int without a text>",
        "thing": "[1, {'x': None}]",
        "flag": True,
    }
    assert record.exception.startswith("Traceback (most recent call last):")
    assert record.exception.endswith("ZeroDivisionError: division by zero")
    assert before <= record.created <= time.time()
    assert record.place[0] == "<string>"


async def test_a_log_record_brings_the_stack_that_was_asked_for(outlet):
    worked = await work(outlet, 'logging.warning("here", stack_info=True)')
    assert worked.records[0].exception.startswith("Stack (most recent call last):")


async def test_what_is_logged_between_calls_is_nobodys(outlet):
    worked = await work(outlet, 'capture.end(); logging.warning("lost"); print("lost too")')
    assert worked.records == []


async def test_a_log_record_may_be_longer_than_a_frame_but_not_endless(outlet):
    worked = await work(
        outlet,
        'logging.error("x" * 100_000); logging.error("y" * 10_000_000, extra={"z": "z" * 10**6})',
    )
    first, second = worked.records
    assert first.message == "x" * 100_000
    assert second.message.endswith("… (10000000 characters)")
    assert len(second.message) < 300_000
    assert len(second.fields["z"]) < 20_000


async def test_only_levels_that_are_wanted_come(outlet):
    settings = json.dumps({"levels": {"": 30, "loud": 10, "quiet": 50}})
    worked = await work(
        outlet,
        """
for name in ("loud", "quiet", "other"):
    for level in (10, 20, 30, 50):
        logging.getLogger(name).log(level, f"{name} {level}")
""",
        settings=settings,
    )
    assert worked.messages == [
        *("loud 10", "loud 20", "loud 30", "loud 50", "quiet 50", "other 30", "other 50"),
    ]


async def test_levels_may_change_between_calls(outlet):
    calls = [Worked(), Worked(), Worked()]
    for number, worked in enumerate(calls, 1):
        outlet.expect(number, worked.records.append)
    process = await start(
        outlet,
        """
import json
for number, levels in enumerate(({"": 30, "app": 10}, {"": 20}, {"": 50}), 1):
    capture.begin(number, json.dumps({"levels": levels, "stdout": number != 2}))
    for level in (10, 20, 30, 50):
        logging.getLogger("app").log(level, level)
    print("out")
    os.write(1, b"raw\\n")
    os.write(2, b"raw 2\\n")
    capture.end()
    time.sleep(0.2)
""",
    )
    await process.wait()
    for number in (1, 2, 3):
        await outlet.finish(number, process.pid)
    assert [worked.of("logging") for worked in calls] == [
        ["10", "20", "30", "50"],
        ["20", "30", "50"],
        ["50"],
    ]
    assert [worked.of("stdout", "stderr") for worked in calls] == [
        ["out", "raw", "raw 2"],
        ["raw 2"],
        ["out", "raw", "raw 2"],
    ]


@pytest.mark.slow
async def test_structlog_events_come_with_their_values(outlet):
    worked = await work(
        outlet,
        """
import structlog
from structlog.contextvars import bound_contextvars
print("first")
log = structlog.get_logger("shop").bind(user="u1")
with bound_contextvars(request=7):
    log.info("sold", price=2.5, item=object)
structlog.get_logger().warning("no name %d", 5)
try:
    {}["k"]
except KeyError:
    log.exception("broke")
""",
        settings=WITH_STRUCTLOG,
    )
    first, sold, nameless, broke = worked.records
    assert first.message == "first"
    assert (sold.kind, sold.level, sold.logger) == ("structlog", logging.INFO, "shop")
    assert sold.message == "sold"
    assert sold.fields == {"user": "u1", "request": 7, "price": 2.5, "item": "<class 'object'>"}
    assert (nameless.level, nameless.logger, nameless.message) == (30, "", "no name 5")
    assert broke.level == logging.ERROR
    assert broke.exception.endswith("KeyError: 'k'")
    assert broke.fields == {"user": "u1"}


async def test_what_breaks_while_it_is_logged_is_told_and_nothing_more(outlet):
    worked = await work(
        outlet,
        """
class Bad:
    def __repr__(self): raise RuntimeError("no repr")
logging.error("%d", "not a number")
logging.error("fine", extra={"bad": Bad()})
""",
    )
    assert "--- Logging error ---" in worked.of("stderr")
    assert worked.records[-1].message == "fine"
    assert worked.records[-1].fields == {"bad": "<Bad without a text>"}


# -- crashes and floods ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", -signal.SIGSEGV),
    ],
)
async def test_what_was_written_before_a_crash_comes(outlet, end, code):
    worked = await work(
        outlet,
        f"""
for number in range(300): print("line", number)
logging.error("logged")
os.write(1, b"raw\\n")
{end}
""",
    )
    assert worked.code == code
    assert worked.messages[:301] == [*(f"line {number}" for number in range(300)), "logged"]
    assert "raw" in worked.of("stdout")
    if code == -signal.SIGSEGV:
        assert any("Segmentation fault" in line for line in worked.of("stderr"))


FLOODS = {
    "lines": "for _ in range(500_000): print('x' * 99)",
    "one": "print('x' * 50_000_000)",
    "descriptor": "for _ in range(5000): os.write(1, b'x' * 9_999 + b'\\n')",
    "empty lines": "for _ in range(100): os.write(2, b'x\\n' * 250_000)",
    "subprocess": "subprocess.run(['sh', '-c', 'yes xxxxxxxxx | head -c 50000000'])",
    # C code that keeps the interpreter lock while it writes.
    "C": (
        "import ctypes\nlibc = ctypes.PyDLL(None)\n"
        "for _ in range(500): libc.write(1, b'x' * 99_999 + b'\\n', 100_000)"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_is_cut_off_and_told(outlet, flood):
    gaps, stop = [], asyncio.Event()

    async def watch():
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0)
            gaps.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    worked = await work(outlet, flood + "\nlogging.error('still here')")
    stop.set()
    await watching
    assert worked.code == 0
    assert worked.seconds < 20
    assert worked.of("logging") == ["still here"]
    passed = sum(len(one) + 1 for one in worked.of("stdout", "stderr"))
    assert passed < 1.5 * 1024 * 1024 + 64 * 1024 * worked.seconds
    assert abs(passed + worked.dropped - 50_000_000) < 100_000
    gaps.sort()
    # Some 2 ms; the rest is for machines that do other things too.
    assert gaps[int(len(gaps) * 0.9)] < 0.1


async def test_a_worker_is_not_held_by_a_pool_that_does_not_read(outlet):
    # The loop is blocked while the worker writes much more than the pipe takes.
    worked = Worked()
    outlet.expect(1, worked.records.append)
    code = """
time.sleep(0.1)
capture.begin(1)
for number in range(4000): logging.error('x' * 4000)
capture.end()
"""
    command = [sys.executable, "-c", PREAMBLE + code, outlet.path, EVERYTHING]
    with subprocess.Popen(command, cwd=ROOT) as process:
        await until(lambda: process.pid in outlet._workers)
        assert process.wait(10) == 0
    await outlet.finish(1)
    came = len(worked.of("logging"))
    assert 100 < came < 3000
    assert worked.dropped > (4000 - came) * 4000


async def test_logging_for_ever_is_slowed_down_and_nothing_is_lost_in_silence(outlet):
    worked = await work(
        outlet, "for number in range(10_000): logging.error('%s %d', 'x' * 200, number)"
    )
    logged = [int(r.message.split()[1]) for r in worked.records if r.kind == "logging"]
    assert logged == sorted(set(logged))
    # A reader that gets no time for 50 ms misses some, and is told so.
    assert len(logged) == 10_000 or any(r.kind == "dropped" for r in worked.records)


async def test_rubbish_in_the_pipe_costs_only_itself(outlet):
    worked = Worked()
    outlet.expect(1, worked.records.append)

    def frame(payload, kind=STDOUT, part=3):
        return HEADER.pack(MAGIC, kind, part, 7, 1, len(payload)) + payload

    for piece in (
        frame(b"one\n"),
        b"rubbish" * 1000,
        frame(b"two\n"),
        frame(b"{no json", LOG),
        frame(b'["too", "short"]', LOG),
        frame(b"", LOG, 2),
        frame(b"?", 77),
        frame(b"three\n"),
        MAGIC,
    ):
        os.write(outlet._writer, piece)
    await asyncio.wait_for(outlet.finish(1), 5)
    assert worked.messages == ["one", "two", "three"]


async def test_a_call_leaves_the_next_one_in_order(outlet):
    first, second = Worked(), Worked()
    outlet.expect(1, first.records.append)
    outlet.expect(2, second.records.append)
    process = await start(
        outlet,
        """
capture.begin(1)
sys.stdout.close()
sys.stderr = None
os.close(1)
os.close(2)
os.closerange(3, 200)
capture.end()
capture.begin(2)
print("out"); print("err", file=sys.stderr); os.write(1, b"one\\n"); os.write(2, b"two\\n")
capture.end()
""",
    )
    assert await process.wait() == 0
    await outlet.finish(1, process.pid)
    await outlet.finish(2, process.pid)
    assert first.messages == []
    assert sorted(second.messages) == ["err", "one", "out", "two"]


async def test_a_background_process_that_floods_holds_nobody(outlet):
    first, second = Worked(), Worked()
    outlet.expect(1, first.records.append)
    outlet.expect(2, second.records.append)
    process = await start(
        outlet,
        """
capture.begin(1)
background = subprocess.Popen(["yes"])
capture.end()
time.sleep(0.1)
capture.begin(2)
print("second")
background.kill()
background.wait()
capture.end()
""",
    )
    assert await asyncio.wait_for(process.wait(), 10) == 0
    await outlet.finish(1, process.pid)
    await outlet.finish(2, process.pid)
    assert "second" in second.messages
    assert len(first.records) + len(second.records) < 200_000


async def test_no_descriptor_left_is_no_error_of_ours(outlet):
    worked = await work(
        outlet,
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
held = []
try:
    while True: held.append(os.dup(0))
except OSError: pass
os.close(1)
capture.begin(1)
print("goes on")
""",
    )
    assert (worked.code, worked.messages) == (0, ["goes on"])


# -- whose it is -------------------------------------------------------------------------------


async def test_each_call_has_its_own_sink(outlet):
    calls = {number: Worked() for number in (1, 2, 3)}
    for number in (1, 3):
        outlet.expect(number, calls[number].records.append)
    process = await start(
        outlet,
        """
print("before"); os.write(1, b"before\\n")
for number in (1, 2, 3):
    capture.begin(number)
    print("call", number)
    os.write(1, b"raw %d\\n" % number)
    time.sleep(0.1)
    capture.end()
    print("outside")
    os.write(2, b"late\\n")
    time.sleep(0.1)
""",
    )
    await until(lambda: len(calls[1].records) == 2)
    await outlet.finish(1, process.pid)
    await process.wait()
    await outlet.finish(3, process.pid)
    assert calls[1].messages == ["call 1", "raw 1"]
    assert calls[2].messages == []
    assert calls[3].messages[:2] == ["call 3", "raw 3"]


async def test_a_finished_call_gets_nothing_more(outlet, tmp_path):
    go, done = tmp_path / "go", tmp_path / "done"
    os.mkfifo(go)
    os.mkfifo(done)
    told = f"cat {go}; echo late; echo > {done}"
    worked = await work(outlet, f"subprocess.Popen(['sh', '-c', {told!r}])")
    await asyncio.to_thread(go.write_text, "")
    await asyncio.to_thread(done.read_text)  # what was late is in the pipe now
    for _ in range(3):
        await asyncio.sleep(0)  # and would be read now
    assert worked.messages == []


async def test_a_sink_that_raises_is_told_once_and_dropped(outlet):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    seen = []

    def sink(record):
        seen.append(record)
        raise RuntimeError("broken sink")

    outlet.expect(1, sink)
    process = await start(outlet, "capture.begin(1); print(1); print(2); capture.end()")
    await process.wait()
    await outlet.finish(1)
    assert len(seen) == 1
    assert [str(context["exception"]) for context in told] == ["broken sink"]


# -- the loop and the descriptors --------------------------------------------------------------


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_works_on_both_loops_and_leaves_no_descriptor(factory):
    async def main():
        outlet = Outlet.open(asyncio.get_running_loop())
        worked = await work(outlet, "print('hello'); os.write(1, b'raw\\n' * 20_000)")
        during = set(os.listdir("/proc/self/fd"))
        outlet.close()
        outlet.close()
        return worked, during

    before = set(os.listdir("/proc/self/fd"))
    with asyncio.Runner(loop_factory=factory) as runner:
        worked, during = runner.run(main())
    assert worked.messages == ["hello", *["raw"] * 20_000]
    assert set(os.listdir("/proc/self/fd")) == before
    assert during > before


async def test_closing_ends_a_wait_and_a_worker_goes_on(outlet):
    outlet.expect(1, lambda record: None)
    process = await start(
        outlet,
        "capture.begin(1)\nfor _ in range(100):\n  print('x'); time.sleep(0.01)\ncapture.end()",
    )
    os.write(outlet._writer, b"something to read")
    waiting = asyncio.create_task(outlet.finish(1, process.pid))
    await asyncio.sleep(0)
    outlet.close()
    await asyncio.wait_for(waiting, 5)
    assert await process.wait() == 0


async def test_a_silent_call_does_not_wait(outlet):
    process = await start(outlet, "capture.begin(1); time.sleep(60)")
    outlet.expect(1, lambda record: None)
    await until(lambda: process.pid in outlet._workers)
    await until(lambda: outlet._workers[process.pid].read(0) == 1)
    finishing = outlet.finish(1, process.pid)
    with pytest.raises(StopIteration):  # it never suspended
        finishing.send(None)
    process.kill()
    await process.wait()


async def test_where_it_cannot_be_had_nothing_is_captured(monkeypatch):
    monkeypatch.setattr(outlet_module.sys, "platform", "darwin")
    outlet = Outlet.open(asyncio.get_running_loop())
    assert outlet.path == ""
    worked = await work(outlet, "print('nowhere'); assert sys.stdout is not capture._streams")
    assert (worked.code, worked.records) == (0, [])
    outlet.close()


# -- relayed -----------------------------------------------------------------------------------


@pytest.fixture
def user_structlog():
    entries = []
    structlog.configure(
        processors=[lambda logger, method, event: entries.append((method, event)) or "done"],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    yield entries
    structlog.reset_defaults()


WHO = {"run": "r1", "unit": "words", "attempt": 2}


def test_output_is_logged_with_what_it_is_of(caplog):
    caplog.set_level(logging.INFO)
    relay(WorkerRecord("stdout", 20, "quantum_async.worker.stdout", "50 %"), **WHO)
    relay(WorkerRecord("stderr", 30, "quantum_async.worker.stderr", "oh"), **WHO)
    out, err = caplog.records
    assert (out.name, out.levelname) == ("quantum_async.worker.stdout", "INFO")
    assert out.getMessage() == "50 % run=r1 unit=words attempt=2"
    assert (out.quantum_run, out.quantum_unit, out.quantum_attempt) == ("r1", "words", 2)
    assert (err.name, err.levelname) == ("quantum_async.worker.stderr", "WARNING")


def test_a_log_record_is_logged_as_it_was(caplog):
    caplog.set_level(logging.INFO)
    record = WorkerRecord(
        *("logging", 30, "app.db", "slow 100%d"),
        fields={"query": "q", "msg": "forged", "quantum_unit": "forged"},
        exception="Traceback\n  KeyError: \x1b[31m",
        created=1000.25,
        place=("/x/app.py", 7, "ask"),
        pid=99,
    )
    relay(record, **WHO)
    [logged] = caplog.records
    assert (logged.name, logged.levelname, logged.getMessage()) == (
        *("app.db", "WARNING", "slow 100%d"),
    )
    assert (logged.query, logged.quantum_unit) == ("q", "words")
    assert (logged.filename, logged.lineno, logged.funcName, logged.process) == (
        *("app.py", 7, "ask", 99),
    )
    assert (logged.created, logged.msecs) == (1000.25, 250.0)
    text = logging.Formatter("%(message)s").format(logged)
    assert text == "slow 100%d\nTraceback\n  KeyError: \\x1b[31m"


def test_nobody_forges_a_line(caplog):
    caplog.set_level(logging.INFO)
    evil = "a\nCRITICAL:root:b\r\x1b[2K\u2028\x85\ttab"
    relay(WorkerRecord("stdout", 20, "quantum_async.worker.stdout", evil), **WHO)
    relay(WorkerRecord("logging", 30, "app\nx", evil), **WHO)
    relay(WorkerRecord("structlog", 30, "app", evil, {"k\n": "v\nw"}), **(WHO | {"unit": "a\nb"}))
    for record in caplog.records:
        line = logging.Formatter("%(name)s %(message)s").format(record)
        assert len(line.splitlines()) == 1
        assert "\\nCRITICAL:root:b\\r\\x1b[2K\\u2028\\x85\ttab" in line


def test_what_is_off_is_not_made(caplog, monkeypatch):
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(relay_module, "_log_record", None)
    relay(WorkerRecord("stdout", 20, "quantum_async.worker.stdout", "off"), **WHO)
    assert caplog.records == []


def test_structlog_of_the_user_gets_events_and_output(user_structlog, caplog):
    caplog.set_level(logging.DEBUG)
    relay(WorkerRecord("stdout", 20, "quantum_async.worker.stdout", "out %s"), **WHO)
    fields = {"unit": "kg", "self": 1, "event": 2, "level": 3}
    relay(WorkerRecord("structlog", 40, "", "weighed", fields, "Traceback…", pid=5), **WHO)
    relay(WorkerRecord("structlog", 10, "", "too low"), **WHO)
    relay(WorkerRecord("structlog", 25, "", "odd level"), **WHO)
    relay(WorkerRecord("logging", 30, "app", "plain"), **WHO)
    (_, out), (method, weighed), (odd, _) = user_structlog
    assert out == {"event": "out %s", "worker": 0, **WHO}
    assert method == "error"
    assert weighed == {
        "event": "weighed",
        "worker": 5,
        "run": "r1",
        "attempt": 2,
        "unit": "kg",
        "self_": 1,
        "event_": 2,
        "level": 3,
        "exception": "Traceback…",
    }
    assert odd == "info"
    assert [record.name for record in caplog.records] == ["app"]


def test_workers_send_what_would_be_written_here(caplog, user_structlog):
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.DEBUG, "test_capture.loud")
    answer = wanted()
    assert answer["levels"][""] == logging.WARNING
    assert answer["levels"]["test_capture.loud"] == logging.DEBUG
    assert (answer["structlog"], answer["stdout"], answer["stderr"]) == (logging.INFO, True, True)
    structlog.reset_defaults()
    answer = wanted()
    assert (answer["stdout"], answer["stderr"]) == (False, True)
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.slow
async def test_from_a_worker_into_the_log(outlet, caplog):
    caplog.set_level(logging.INFO)
    outlet.expect(1, lambda record: relay(record, **WHO))
    process = await start(
        outlet,
        """
import structlog
capture.begin(1, settings)
print("printed")
logging.getLogger("app").info("logged")
logging.getLogger("app").debug("not logged")
structlog.get_logger("shop").info("sold", price=3)
capture.end()
""",
        json.dumps(wanted()),
    )
    await process.wait()
    await outlet.finish(1, process.pid)
    assert [(one.name, one.getMessage()) for one in caplog.records if one.name != "asyncio"] == [
        ("quantum_async.worker.stdout", "printed run=r1 unit=words attempt=2"),
        ("app", "logged"),
        ("shop", "sold price=3 run=r1 unit=words attempt=2"),
    ]
