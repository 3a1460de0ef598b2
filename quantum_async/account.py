"""The account of a run's time: what each unit did, and what it waited for, from when to when.

Traces, explanations, comparisons and what-if all read a run through this.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.record import UnitRecord
from quantum_async.engine.ledger import Ledger

DEPENDENCIES, SLOT, LIMIT, BACK_OFF, RUNNING = (
    "dependencies",
    "slot",
    "limit",
    "back-off",
    "running",
)
WAITS = (SLOT, LIMIT, BACK_OFF)  # those that a unit would be spared in a better run
OPENED = ("map", "run", "race")  # units that hold no slot: others run for them


class Recorded(Protocol):
    """A run that is over, or goes on: a `RunResult`."""

    _ledger: Ledger

    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def plan(self) -> ExecutionPlan: ...  # noqa: D102
    @property
    def units(self) -> Mapping[str, UnitRecord]: ...  # noqa: D102
    @property
    def ok(self) -> bool: ...  # noqa: D102
    @property
    def duration(self) -> float: ...  # noqa: D102
    @property
    def critical_path(self) -> list[str]: ...  # noqa: D102
    def nested(self, unit: str) -> Sequence[Any]: ...  # noqa: D102
    def _located(self, name: str) -> "tuple[Recorded, int, float]": ...
    def _spans(self, number: int) -> list[tuple[float, float]]: ...


class Slice(NamedTuple):
    """A part of a unit's time.

    Attributes:
        kind: ``"dependencies"``, ``"slot"``, ``"limit"`` and ``"back-off"`` are waits;
            ``"running"`` is an attempt.
        start: Seconds since the run began.
        end: The same.
        note: The dependency that ended last, the limit's name, or why the attempt before failed.
    """

    kind: str
    start: float
    end: float
    note: str = ""

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


def slices_of(result: Recorded, unit: str) -> list[Slice]:
    """Return what a unit did with its time, from the run's start to its own end, in order.

    Raises:
        KeyError: If there is no such unit in the run.
    """
    inner, number, offset = result._located(unit)
    ledger = inner._ledger
    ended = ledger.moment(ledger.ends[number])
    spans = inner._spans(number)
    ready = max(0.0, ledger.ready_at(number) - ledger.began)
    if spans:
        ready = min(ready, spans[0][0])  # who takes a stream starts before its source has ended
    found = []
    if ready > 0 or not spans:
        until = ready if spans or ended is None else ended
        found.append(Slice(DEPENDENCIES, 0.0, until, _last_to_end(ledger, number)))
    limit = ledger.held_by.get(number)
    if spans and spans[0][0] > ready:
        found.append(Slice(SLOT if limit is None else LIMIT, ready, spans[0][0], limit or ""))
    retries = ledger.retries.get(number, [])
    for attempt, (start, end) in enumerate(spans):
        if attempt:
            found += _between(spans[attempt - 1][1], start, *_retry(retries, attempt - 1))
        found.append(Slice(RUNNING, start, end))
    if spans and ended is not None and ended > spans[-1][1]:
        found += _between(spans[-1][1], ended, *_retry(retries, len(spans) - 1))
    if not offset:
        return found
    return [part._replace(start=part.start + offset, end=part.end + offset) for part in found]


def _between(start: float, end: float, wait: float, why: str) -> Iterator[Slice]:
    """Yield what lies between two attempts: the back-off, then perhaps a wait for a slot."""
    over = min(end, start + wait)
    yield Slice(BACK_OFF, start, over, why)
    if end - over > 0.001:  # less is the timer's
        yield Slice(SLOT, over, end)


def _retry(retries: list[tuple[float, str]], number: int) -> tuple[float, str]:
    return retries[number] if number < len(retries) else (float("inf"), "")


def _last_to_end(ledger: Ledger, unit: int) -> str:
    if unit >= ledger.rows.count:
        return ledger.rows.names[ledger.rows.parent(unit)]
    above = [it for it in ledger.plan.edges_up[unit] if ledger.moment(ledger.ends[it]) is not None]
    return ledger.plan.names[max(above, key=ledger.ends.__getitem__)] if above else ""


def spent(slices: Iterable[Slice]) -> Counter[str]:
    """Return how many seconds went to each kind."""
    seconds: Counter[str] = Counter()
    for part in slices:
        seconds[part.kind] += part.duration  # type: ignore[assignment]
    return seconds


def every_unit(result: Recorded, prefix: str = "") -> Iterator[str]:
    """Yield the name of each unit of a run, each before those of the runs inside it."""
    for name in result.units:
        yield prefix + name
        for count, run in enumerate(result.nested(name), 1):
            inner = f"{prefix}{name}/" if count == 1 else f"{prefix}{name}/{count}/"
            yield from every_unit(run, inner)


def busy_at(spans: Iterable[tuple[float, float]]) -> list[tuple[float, int]]:
    """Return how many of the spans overlap from each moment on, moments ascending."""
    changes: Counter[float] = Counter()
    for start, end in spans:
        if end > start:
            changes[start] += 1
            changes[end] -= 1
    level, steps = 0, []
    for moment in sorted(changes):
        level += changes[moment]
        steps.append((moment, level))
    return steps


def averages(steps: list[tuple[float, int]], duration: float, buckets: int) -> list[float]:
    """Return the average of `busy_at` in each of so many equal parts of the run."""
    if duration <= 0:
        return []
    width = duration / buckets
    sums = [0.0] * buckets
    for (start, level), (end, _) in pairwise(steps):
        if not level:
            continue
        first = min(buckets - 1, int(start / width))
        last = min(buckets - 1, int(end / width))
        for bucket in range(first, last + 1):
            overlap = min(end, (bucket + 1) * width) - max(start, bucket * width)
            sums[bucket] += level * max(0.0, overlap)
    return [total / width for total in sums]


def printable(text: str) -> str:
    """Return a text that stays on its line, and tells a terminal nothing: controls are escaped."""
    if text.isprintable():
        return text
    return "".join(it if it.isprintable() else repr(it)[1:-1] for it in text)
