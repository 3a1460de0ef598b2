"""A million units: memory, cost a unit, and how long the loop is held.

The measuring is done in fresh processes: ``python -m benchmarks.scale memory SHAPE COUNT`` and
``python -m benchmarks.scale big COUNT ROUNDS`` print JSON.
"""

import asyncio
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

from benchmarks import flows, shapes
from benchmarks.flows import Flow
from benchmarks.measure import Figure, Row, Size, Table, Target, shown, skipped
from benchmarks.overhead import noop

_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")
_SMALL = 10_000
_REPEATS = 10  # of the small run, for each run of the big one


def measure(size: Size) -> Table:
    """Measure it all."""
    count = size.pick(1_000_000, 20_000)
    rows = [*_memory_rows(count), *_big_rows(count, size)]
    return Table("A million units" if not size.quick else f"{count:,} units", rows)


def _in_fresh_process(*task: object) -> Any:
    command = [sys.executable, "-m", "benchmarks.scale", *map(str, task)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(answer.stdout)


# -- memory ---------------------------------------------------------------------------------------


def _memory_rows(count: int) -> list[Row]:
    against = "the process before them"
    wide = f"memory of {count:,} no-op units side by side"
    layered = f"memory of {count // 4:,} no-op units with 4 dependencies each"
    if not _STATM.exists():
        return [skipped(what, against, "needs Linux's /proc") for what in (wide, layered)]
    return [
        *_memory_row(wide, against, "wide", count, Target(1.0, unit=" KB a unit")),
        *_memory_row(layered, against, "layered", count // 4, None),
    ]


def _memory_row(
    what: str, against: str, shape: str, count: int, target: Target | None
) -> list[Row]:
    found = _in_fresh_process("memory", shape, count)
    parts = {name: found[name] / count for name in ("declare", "plan", "run")}
    detail = ", ".join(f"{name} {value:,.0f} B" for name, value in parts.items())
    in_all = Figure.of([sum(parts.values()) / 1000], " KB a unit")
    peak = Figure.of([found["peak"] / count / 1000], " KB a unit")
    return [
        Row(f"{what}, results kept", against, in_all, target, f"{detail} a unit"),
        Row("the same at its peak", against, peak, target),
    ]


def _memory(shape: str, count: int) -> dict[str, int]:
    asyncio.run(flows.declare(shapes.wide(100), noop).run())  # what only a first time costs
    graph = shapes.wide(count) if shape == "wide" else shapes.layered(count // 100, 100)
    steps = [_resident()]
    flow = flows.declare(graph, noop)
    steps.append(_resident())
    flow.build_execution_plan()
    steps.append(_resident())
    result = asyncio.run(flow.run())
    steps.append(_resident())
    assert len(result) == len(graph)
    names = ("declare", "plan", "run")
    parts = {name: steps[at + 1] - steps[at] for at, name in enumerate(names)}
    return {**parts, "peak": _peak() - steps[0]}


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    gc.collect()
    return int(_STATM.read_text().split()[1]) * 4096


def _peak() -> int:
    """Return the most bytes of memory that this process ever held."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


# -- cost and hold --------------------------------------------------------------------------------


@dataclass(slots=True)
class Ticker:
    """Called on every turn of the loop: how long was the longest turn?

    Attributes:
        phase: 0 before the first unit, 1 from then on, 2 after the last.
        longest: The longest turn of each phase: seconds by the clock, and of this thread's CPU.
    """

    phase: int = 0
    longest: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)] * 3)
    _phase_before: int = 0
    _last: tuple[float, float] = (0.0, 0.0)
    _stopped: bool = False

    def start(self) -> None:
        """Begin to tick."""
        self._last = perf_counter(), thread_time()
        asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> None:
        """Tick no more."""
        self._stopped = True

    def _tick(self) -> None:
        if self._stopped:
            return
        now = perf_counter(), thread_time()
        took = now[0] - self._last[0], now[1] - self._last[1]
        # The turn in which the first unit ran is of the run, and that of the last one too.
        phase = 1 if self._phase_before < self.phase else self.phase
        if took > self.longest[phase]:
            self.longest[phase] = took
        self._last, self._phase_before = now, self.phase
        asyncio.get_running_loop().call_soon(self._tick)


def _ticked(count: int) -> tuple[Flow, list[Ticker]]:
    """Return a flow of no-op units whose first and last unit tell the ticker in the list."""
    tickers: list[Ticker] = []

    async def first(ctx: Any) -> None:
        tickers[-1].phase = 1

    async def last(ctx: Any) -> None:
        tickers[-1].phase = 2

    units = [first, *[noop] * (count - 2), last]
    return flows.planned(shapes.wide(count), units), tickers


async def _big(count: int, rounds: int) -> dict[str, list[float]]:
    small = flows.planned(shapes.wide(_SMALL), noop)
    tiny = flows.planned(shapes.wide(100), noop)
    big, tickers = _ticked(count)
    await small.run()
    await tiny.run()
    gc.collect()
    gc.disable()
    found: dict[str, list[float]] = {name: [] for name in ("tiny", "small", "big")}
    for _ in range(rounds):
        found["tiny"].append(await _seconds_a_unit(tiny, 10 * _REPEATS))
        found["small"].append(await _seconds_a_unit(small, _REPEATS))
        tickers.append(ticker := Ticker())
        ticker.start()
        found["big"].append(await _seconds_a_unit(big, 1))
        await asyncio.sleep(0)
        ticker.stop()
        gc.collect()
    for at, phase in enumerate(("prepare", "hold", "wind_up")):
        found[phase] = [ticker.longest[at][0] for ticker in tickers]
        found[f"{phase}_cpu"] = [ticker.longest[at][1] for ticker in tickers]
    return found


async def _seconds_a_unit(flow: Flow, repeats: int) -> float:
    units = len(flow.units) * repeats
    began = perf_counter()
    for _ in range(repeats):
        await flow.run()
    return (perf_counter() - began) / units


def _big_rows(count: int, size: Size) -> list[Row]:
    found = _in_fresh_process("big", count, size.pick(3, 1))
    rows = [
        _cost_row(found, "big", f"cost a unit at {count:,} units", Target(1.3)),
        _cost_row(found, "tiny", "cost a unit at 100 units", None),
        _hold_row(found, "hold", f"longest hold of the loop while {count:,} ready units run", 15),
    ]
    for phase, what in (("prepare", "before the first unit runs"), ("wind_up", "after the last")):
        rows.append(_hold_row(found, phase, f"longest hold of the loop {what}", None))
    return rows


def _cost_row(
    found: dict[str, Sequence[float]], ours: str, what: str, target: Target | None
) -> Row:
    figure = Figure.of(a / b for a, b in zip(found[ours], found["small"], strict=True))
    each = [shown(statistics.median(found[name]) * 1e6) for name in (ours, "small")]
    detail = f"{' / '.join(each)} µs a unit; collector off"
    return Row(what, f"at {_SMALL:,} units", figure, target, detail)


def _hold_row(found: dict[str, Sequence[float]], phase: str, what: str, limit: float | None) -> Row:
    figure = Figure.of((1000 * one for one in found[phase]), " ms")
    own = shown(1000 * statistics.median(found[f"{phase}_cpu"]))
    target = None if limit is None else Target(limit, unit=" ms")
    detail = f"{own} ms of it this thread's CPU time; collector off"
    return Row(what, "the clock, on every turn of the loop", figure, target, detail)


def _main(task: str, *arguments: str) -> None:
    if task == "memory":
        shape, count = arguments
        print(json.dumps(_memory(shape, int(count))))
    else:
        print(json.dumps(asyncio.run(_big(*map(int, arguments)))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
