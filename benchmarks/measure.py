"""Fair comparisons, and the tables that tell of them.

Three rules:

1. Contenders are timed in turn, round by round, and a figure is the median of the rounds' ratios:
   what slows the machine for a while slows both sides of a round.
2. Each contender finds the heap as if it were alone: what others left is collected and frozen, so
   that the collector does not walk through it. What a contender itself made before (a plan of
   100,000 units) is not frozen: the collector walks through that in real life too.
3. The collector stays on, as it is where people run this.
"""

import gc
import os
import platform
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from time import perf_counter
from typing import Any, Final

from quantum_async.tuning import usable_cpus

#: From 3.12 on a task can start eagerly; before that every unit costs one more turn of the loop.
EAGER: Final = sys.version_info >= (3, 12)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        quick: Whether only to show that it works: figures mean nothing then.
        graphs: The folder of real task graphs.
    """

    quick: bool = False
    graphs: str = "../shared/graphs"

    def pick(self, full: int, quick: int) -> int:
        """Return a number for this size."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is to be reached."""

    limit: float
    at_least: bool = False
    unit: str = ""

    def reached(self, figure: float) -> bool:
        """Return whether `figure` is good enough."""
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {shown(self.limit)}{self.unit}"


def doubled_before_eager(limit: float) -> Target:
    """Return a target for overhead, which is twice as high on a Python without eager tasks."""
    return Target(limit if EAGER else 2 * limit)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured: the median of some rounds, and the lowest and highest of them."""

    middle: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def of(cls, values: Iterable[float], unit: str = "") -> "Figure":
        """Sum up some rounds."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values), unit)

    def __str__(self) -> str:
        return f"{shown(self.middle)}{self.unit}"

    @property
    def spread(self) -> str:
        """Return lowest and highest as text."""
        return "" if self.low == self.high else f"{shown(self.low)} – {shown(self.high)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        what: What was measured.
        against: What it is compared with.
        figure: The outcome; None if it was not measured.
        target: What is to be reached.
        detail: Both sides of the ratio, or why there is none.
    """

    what: str
    against: str
    figure: Figure | None
    target: Target | None = None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """Return whether the target is reached, in a word."""
        if self.target is None or self.figure is None:
            return ""
        return "yes" if self.target.reached(self.figure.middle) else "**no**"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        figure, target = self.figure, self.target
        return {
            "what": self.what,
            "against": self.against,
            "figure": None if figure is None else figure.middle,
            "low": None if figure is None else figure.low,
            "high": None if figure is None else figure.high,
            "unit": "" if figure is None else figure.unit.strip(),
            "target": None if target is None else target.limit,
            "at_least": None if target is None else target.at_least,
            "reached": (self.verdict == "yes") if self.verdict else None,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """The outcome of a section."""

    title: str
    rows: Sequence[Row]
    remarks: Sequence[str] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"## {self.title}",
            "",
            "| what | against | figure | lowest – highest | target | reached | in numbers |",
            "| --- | --- | ---: | ---: | ---: | --- | --- |",
        ]
        for row in self.rows:
            figure, target = row.figure, row.target
            cells = (
                row.what,
                row.against,
                "skipped" if figure is None else str(figure),
                "" if figure is None else figure.spread,
                "" if target is None else str(target),
                row.verdict,
                row.detail,
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, *(f"\n{remark}" for remark in self.remarks), ""])


def skipped(what: str, against: str, why: str) -> Row:
    """Return the row of something that could not be measured."""
    return Row(what, against, None, detail=why)


# -- timing ---------------------------------------------------------------------------------------


def _nothing() -> None:
    """There is nothing to prepare."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Something to be timed.

    Attributes:
        work: What is timed; it gets what `prepare` made.
        prepare: What is not.
    """

    work: Callable[[Any], Awaitable[object]]
    prepare: Callable[[], Any] = _nothing


Times = Mapping[str, Sequence[float]]


async def in_turn(contenders: Mapping[str, Contender], rounds: int) -> Times:
    """Time contenders in turn, round by round.

    Returns:
        Seconds of each round by contender. Every round begins with another one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(await _timed(contenders[name]))
    return times


async def _timed(contender: Contender) -> float:
    gc.collect()
    gc.freeze()
    gc.disable()  # making a big plan is not what is timed
    try:
        given = contender.prepare()
        gc.collect()
        gc.enable()
        began = perf_counter()
        await contender.work(given)
        return perf_counter() - began
    finally:
        gc.enable()
        gc.unfreeze()


def ratio(times: Times, ours: str, theirs: str) -> Figure:
    """Return how many times as long the first took, round by round."""
    return Figure.of(a / b for a, b in zip(times[ours], times[theirs], strict=True))


def compared(
    times: Times,
    ours: str,
    theirs: str,
    *,
    count: int,
    target: Target | None = None,
    detail: str = "",
) -> Row:
    """Return the row of two contenders that did `count` units each."""
    each = [statistics.median(times[name]) / count * 1e6 for name in (ours, theirs)]
    sides = f"{shown(each[0])} / {shown(each[1])} µs a unit"
    return Row(
        ours, theirs, ratio(times, ours, theirs), target, f"{sides}; {detail}" if detail else sides
    )


# -- words ----------------------------------------------------------------------------------------


def shown(value: float) -> str:
    """Return a number as one reads it.

    >>> shown(0.8), shown(12.345), shown(1234.5), shown(1.0022)
    ('0.80', '12.3', '1,234', '1.0022')
    """
    if 0 < abs(value - 1) < 0.005:
        return f"{value:.4f}"
    if abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def environment() -> dict[str, str]:
    """Say on what all this was measured."""
    facts = {
        "machine": f"{_processor()}, {usable_cpus()} CPUs usable, {platform.system()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in ("quantum-async", "anyio", "uvloop", "tenacity", "cloudpickle"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    if hasattr(os, "getloadavg"):
        facts["load at the start"] = f"{os.getloadavg()[0]:.1f}"
    return facts


def others_work_too() -> bool:
    """Return whether the machine was busy already: figures are rough then."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > usable_cpus() / 2


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()
