"""A run in Chrome's trace event format, for ui.perfetto.dev and chrome://tracing.

Process 1 has a lane for each slot of each place, one for each worker process, and the critical path
on top; process 2 has the waits. Arrows go from each dependency's end to its dependent's start.
"""

import os
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

from quantum_async.account import (
    DEPENDENCIES,
    RUNNING,
    Recorded,
    Slice,
    busy_at,
    every_unit,
    printable,
    slices_of,
)
from quantum_async.core.errors import described
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState
from quantum_async.jsonable import write_json

Event = dict[str, Any]

RUN, WAITING = 1, 2  # the processes of the picture
_CRITICAL = "critical path"
_BAD = (UnitState.FAILED, UnitState.TIMEOUT, UnitState.CANCELED)
# Names of the format's own palette; viewers that do not know them choose by name.
_COLOURS = {"bad": "terrible", "critical": "thread_state_iowait", "again": "bad"}
_WAIT_COLOUR = "grey"
_TITLES = {DEPENDENCIES: "for dependencies", "slot": "for a slot", "limit": "for a limit"}


def save_trace(result: Recorded, path: str | os.PathLike[str]) -> None:
    """Write a run's trace; see `RunResult.save_trace`."""
    write_json(path, trace(result))


def trace(result: Recorded) -> dict[str, Any]:
    """Return a run as trace events. Times in them are microseconds since the run began."""
    picture = _Picture(result)
    picture.draw()
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "run_id": printable(result.run_id),
            "started_at": result._ledger.wall,
            "duration": result.duration,
            "ok": result.ok,
        },
        "traceEvents": picture.events,
    }


class _Lanes:
    """Rows of a process, each of which has one thing at a time."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, int], int] = {}  # the row of each lane, from 1
        self._free: dict[str, list[int]] = {}
        self._busy: dict[str, list[tuple[float, int]]] = {}

    def take(self, kind: str, start: float, end: float) -> int:
        """Return a row for a slice; slices of a kind come in the order of their starts."""
        free, busy = self._free.setdefault(kind, []), self._busy.setdefault(kind, [])
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        number = heappop(free) if free else len(busy) + 1
        heappush(busy, (end, number))
        return self.names.setdefault((kind, number), len(self.names) + 1)


class _Picture:
    """The events of one run, as they are drawn.

    Args:
        result: The run.
    """

    def __init__(self, result: Recorded) -> None:
        self._result = result
        self._critical = set(result.critical_path)
        self._lanes, self._waits = _Lanes(), _Lanes()
        self._attempts: dict[str, list[tuple[int, Slice]]] = {}  # rows and slices, by unit
        self.events: list[Event] = []

    def draw(self) -> None:
        attempts: list[tuple[Slice, int, UnitRecord]] = []
        waits: list[tuple[Slice, UnitRecord]] = []
        for name in every_unit(self._result):
            record, count = self._result.units[name], 0
            for part in slices_of(self._result, name):
                if part.kind != RUNNING:
                    waits.append((part, record))
                    continue
                count += 1
                attempts.append((part, count, record))
        attempts.sort(key=lambda it: it[0][1:3])  # by start, then end
        waits.sort(key=lambda it: it[0][1:3])
        for part, attempt, record in attempts:
            self._draw_attempt(part, attempt, record)
        for part, record in waits:
            if part.duration > 0:
                self._draw_wait(part, record)
        self._draw_arrows()
        self._draw_counter([(part.start, part.end) for part, _, it in attempts if _runs(it)])
        self.events.sort(key=lambda event: event["ts"])
        self.events[:0] = self._titles()

    def _add(self, ph: str, name: str, ts: float, pid: int, tid: int, **more: Any) -> None:
        event = {"ph": ph, "name": printable(name), "ts": _us(ts), "pid": pid, "tid": tid}
        self.events.append(event | more)

    # -- slices -----------------------------------------------------------------------------

    def _draw_attempt(self, part: Slice, attempt: int, record: UnitRecord) -> None:
        tid = self._lanes.take(_lane_of(record, attempt), part.start, part.end)
        self._attempts.setdefault(record.name, []).append((tid, part))
        last = attempt == record.attempts
        critical = record.name in self._critical
        title = record.name if attempt == 1 else f"{record.name} (attempt {attempt})"
        told = {
            "unit": printable(record.name),
            "attempt": attempt,
            "state": record.state.value if last else "tried again",
            "ran on": record.ran_on,
            "critical": critical,
        }
        if last and record.error is not None:
            told["error"] = printable(described(record.error))
        if last and record.cause is not None:
            told["cause"] = printable(record.cause)
        colour = "again" if not last else "bad" if record.state in _BAD else "critical"
        shown = {} if colour == "critical" and not critical else {"cname": _COLOURS[colour]}
        category = "unit,critical" if critical else "unit"
        length = round(_us(part.end) - _us(part.start), 3)
        self._add("X", title, part.start, RUN, tid, dur=length, cat=category, args=told, **shown)
        if critical:
            tid = self._lanes.take(_CRITICAL, part.start, part.end)
            self._add("X", title, part.start, RUN, tid, dur=length, cat=_CRITICAL, args={}, **shown)
        if not last:
            self._mark("retry", part.end, self._attempts[record.name][-1][0], record)
        elif record.state is UnitState.TIMEOUT:
            self._mark("timeout", part.end, self._attempts[record.name][-1][0], record)

    def _mark(self, what: str, moment: float, tid: int, record: UnitRecord) -> None:
        self._add("i", f"{what}: {record.name}", moment, RUN, tid, s="t", cat=what, args={})

    def _draw_wait(self, part: Slice, record: UnitRecord) -> None:
        title = _TITLES.get(part.kind, "backing off")
        tid = self._waits.take(title, part.start, part.end)
        told = {"unit": printable(record.name), "for": printable(part.note)}
        self._add(
            "X",
            f"{record.name} waits {title}" if part.kind in _TITLES else f"{record.name} backs off",
            part.start,
            WAITING,
            tid,
            dur=round(_us(part.end) - _us(part.start), 3),
            cat=f"wait,{part.kind}",
            cname=_WAIT_COLOUR,
            args=told,
        )

    # -- between and above them -------------------------------------------------------------

    def _draw_arrows(self) -> None:
        number = 0
        for above, below in _edges(self._result):
            if above not in self._attempts or below not in self._attempts:
                continue
            tid, part = self._attempts[above][-1]
            to, first = self._attempts[below][0]
            # An arrow begins inside its slice, else it would belong to the one that follows.
            inside = min(part.end, max(part.start, part.end - 1e-7))
            if first.start < inside:
                continue  # it takes what the other one gives while that runs
            number += 1
            both = {"cat": "dependency", "id": number}
            self._add("s", "dependency", inside, RUN, tid, **both)
            self._add("f", "dependency", first.start, RUN, to, bp="e", **both)

    def _draw_counter(self, spans: list[tuple[float, float]]) -> None:
        for moment, level in busy_at(spans):
            self._add("C", "running units", moment, RUN, 0, args={"units": level})

    def _titles(self) -> Iterator[Event]:
        run = f"run {self._result.run_id}"
        for pid, title, lanes in ((RUN, run, self._lanes), (WAITING, "waiting", self._waits)):
            yield _title("process_name", pid, 0, name=printable(title))
            yield _title("process_sort_index", pid, 0, sort_index=pid)
            for order, ((kind, number), tid) in enumerate(sorted(lanes.names.items())):
                alone = kind == _CRITICAL or (number == 1 and (kind, 2) not in lanes.names)
                yield _title("thread_name", pid, tid, name=kind if alone else f"{kind} {number}")
                place = 0 if kind == _CRITICAL else order + 1
                yield _title("thread_sort_index", pid, tid, sort_index=place)


def _title(what: str, pid: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": what, "ts": 0, "pid": pid, "tid": tid, "args": args}


def _runs(record: UnitRecord) -> bool:
    return record.ran_on not in ("map", "run", "race")


def _lane_of(record: UnitRecord, attempt: int) -> str:
    # Of earlier attempts it is not known which worker had them.
    if record.usage is not None and attempt == record.attempts:
        return f"process {record.usage.pid}"
    return record.ran_on or "loop"


def _edges(result: Recorded, prefix: str = "") -> Iterable[tuple[str, str]]:
    plan = result.plan
    for unit, name in enumerate(plan.names):
        for above in plan.edges_up[unit]:
            yield prefix + plan.names[above], prefix + name
        if name not in result.units:
            continue
        for count, run in enumerate(result.nested(name), 1):
            inner = f"{prefix}{name}/" if count == 1 else f"{prefix}{name}/{count}/"
            yield from _edges(run, inner)


def _us(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e6, 3)
