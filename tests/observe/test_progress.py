"""How far a run is: in a terminal, a notebook, a pipe; whatever names and errors hold."""

import asyncio
import io
import sys
import types

import pytest

from quantum_async import Progress, QuantumPartitioner
from quantum_async.core.events import UnitStarted
from quantum_async.observe.tally import Tally

rich_console = pytest.importorskip("rich.console", reason="rich is not installed")
Console = rich_console.Console

NASTY = "a[bold]\x1b[2J\r\n<b>"


@pytest.fixture
def flow():
    flow = QuantumPartitioner(name="job")
    flow.add_unit(lambda ctx: 1, name="good")
    flow.add_unit(lambda ctx: 1 / 0, name=NASTY)
    flow.add_unit(lambda ctx: 1, [NASTY], name="skipped")
    return flow


def pipe():
    return Console(file=io.StringIO())


def terminal(**options):
    given = {
        "force_terminal": True,
        "width": 100,
        "color_system": "truecolor",
        "legacy_windows": False,
    }
    return Console(file=io.StringIO(), **(given | options))


async def collect(flow, console, **options):
    progress = Progress(console)
    await flow.run(observers=[progress], failure_policy="collect", run_id="r1", **options)
    return console.file.getvalue()


async def test_in_a_pipe_there_are_plain_lines(flow):
    lines = (await collect(flow, pipe())).splitlines()
    assert lines[0] == "job r1: 3 units"
    assert r"job r1: a[bold]\x1b[2J\r\n<b> failed: ZeroDivisionError: division by zero" in lines
    assert "job r1: 3 of 3 units (100%), 1 failed, 1 skipped, failed after " in lines[-1]
    assert all(line.isprintable() for line in lines)


async def test_in_a_pipe_there_are_no_more_lines_than_tenths():
    flow = QuantumPartitioner()
    for number in range(200):
        flow.add_unit(lambda ctx: 1, name=f"u{number}")
    console = pipe()
    assert len((await collect(flow, console)).splitlines()) == 11


async def test_a_terminal_shows_a_bar_and_rows_and_is_given_back(flow):
    told = await collect(flow, terminal())
    assert "3 of 3 units (100%), 1 failed, 1 skipped, failed after" in told
    assert "━" in told
    assert "\x1b[2J" not in told
    assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l")  # the cursor is shown again


async def test_running_units_have_rows_with_age_and_attempt():
    flow, go_on = QuantumPartitioner(name="job"), asyncio.Event()

    @flow.unit(retries=1)
    async def flaky(ctx):
        if ctx.attempt == 1:
            raise OSError
        await go_on.wait()

    flow.map(lambda item: item, [1], name="each", after=["flaky"])
    console = terminal()
    progress = Progress(console)
    async with flow.stream(observers=[progress]) as events:
        async for event in events:
            if isinstance(event, UnitStarted) and event.attempt == 2:
                progress._tick()
                go_on.set()
    told = console.file.getvalue()
    assert "flaky" in told
    assert "attempt 2" in told
    assert "1 retried, 1 running" in told
    assert "3 of 3 units (100%), 1 retried, completed after" in told


async def test_only_so_many_units_have_rows():
    flow, go_on = QuantumPartitioner(), asyncio.Event()

    async def wait(ctx):
        await go_on.wait()

    for number in range(9):
        flow.add_unit(wait, name=f"u{number}")
    console = terminal()
    progress = Progress(console, rows=2)
    async with flow.stream(observers=[progress]) as events:
        async for event in events:
            if isinstance(event, UnitStarted) and event.unit == "u8":
                progress._tick()
                go_on.set()
    assert "… and 7 more" in console.file.getvalue()


async def test_prints_appear_above_the_picture(flow, monkeypatch):
    console = terminal()
    monkeypatch.setattr(console.file, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", console.file)

    @flow.unit
    async def prints(ctx):
        print("hello from a unit")  # noqa: T201 - what is tested

    told = await collect(flow, console)
    assert "hello from a unit\n" in told
    assert sys.stdout is console.file


async def test_a_notebook_shows_html_that_changes_in_place(flow, monkeypatch):
    shown = []

    class Handle:
        def update(self, bundle, raw):
            shown.append(bundle)

    module = types.ModuleType("IPython.display")
    module.display = lambda *_, **__: Handle()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    console = Console(file=io.StringIO(), force_jupyter=True)
    await collect(flow, console)
    assert "3 of 3 units (100%)" in shown[-1]["text/plain"]
    assert "<pre" in shown[-1]["text/html"]
    assert "\x1b" not in shown[-1]["text/plain"] + shown[-1]["text/html"]
    assert console.file.getvalue() == ""


async def test_one_progress_serves_runs_at_once_and_again(flow):
    console = pipe()
    progress = Progress(console)
    options = {"observers": [progress], "failure_policy": "collect"}
    await asyncio.gather(flow.run(run_id="a", **options), flow.run(run_id="b", **options))
    await flow.run(run_id="c", **options)
    lines = console.file.getvalue().splitlines()
    for run in "abc":
        assert sum(line.startswith(f"job {run}: 3 units") for line in lines) == 1
        assert sum(f"job {run}: 3 of 3 units (100%)" in line for line in lines) == 1
    assert repr(progress) == "<Progress of 0 runs>"


async def test_a_nested_run_adds_its_units(flow):
    outer = QuantumPartitioner(name="outer")
    outer.include(flow, "inside")
    told = await collect(outer, pipe())
    assert "4 of 4 units (100%), 2 failed, 1 skipped, failed" in told


async def test_a_pipe_that_is_closed_breaks_no_run_and_is_left_alone(flow, caplog):
    console = pipe()
    console.file.close()
    progress = Progress(console)
    result = await flow.run(observers=[progress], failure_policy="collect")
    assert "good" in result
    assert progress._timer is None
    assert "hears no more" in caplog.text


async def test_a_cancelled_run_gives_the_terminal_back():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: asyncio.Event().wait(), name="hangs")
    console = terminal()
    async with flow.stream(observers=[Progress(console)]) as events:
        async for event in events:
            if isinstance(event, UnitStarted):
                break
    assert "1 canceled, canceled after" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[?25h")


def test_on_a_virtual_clock_only_events_are_told(virtual_clock):
    flow = QuantumPartitioner(name="job")

    async def sleep(ctx):
        await asyncio.sleep(3600)

    flow.add_unit(sleep, name="a")
    flow.add_unit(sleep, ["a"], name="b")
    told = asyncio.run(collect(flow, pipe()))
    assert "job r1: 2 of 2 units (100%), completed after 2 h 00 min" in told
    assert len(virtual_clock.jumps) == 2


def test_without_rich_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'quantum-async\[progress\]'"):
        Progress()


def test_the_time_left_is_estimated_from_measured_times():
    tally = Tally("r", began=0.0, total=10)
    assert tally.seconds_left(1.0) is None
    from quantum_async.core.events import UnitCompleted, UnitStarted

    for number in range(4):  # two at once, 10 s each
        start = number // 2 * 10.0
        at = ("r", number, start, 0.0, f"u{number}", 1)
        tally.take(UnitStarted(*at, "loop"))
        end = ("r", number, start + 10.0, 0.0, f"u{number}", 1)
        tally.take(UnitCompleted(*end, None, "loop", 10.0, None))
    assert tally.seconds_left(20.0) == pytest.approx(30.0)
