"""An engine and us, in turn: round by round, on the same graph."""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from benchmarks.measure import Figure
from benchmarks.peers.catalogue import OURS, Peer, Place
from benchmarks.peers.children import Child, started
from benchmarks.peers.environments import Unavailable, package, python_for
from benchmarks.peers.work import MAKESPAN, work

_ROUNDS = 5
_LEAST = 0.05  # seconds that are timed at a time: what is quicker is repeated, up to
_REPEATS = 20  # times
_MOST = 8.0  # seconds that the rounds of a case may take an engine


@dataclass(frozen=True, slots=True)
class Options:
    """How much is measured.

    Attributes:
        quick: Whether only to show that it works: figures mean nothing then.
        graphs: The folder of real task graphs, as seen from the root of the repository.
        folder: Where the environments are.
    """

    quick: bool
    graphs: str
    folder: Path

    def units(self, peer: Peer) -> int:
        """Return how many units a peer gets."""
        return min(peer.units, 12) if self.quick else peer.units


@dataclass(frozen=True)
class Times:
    """How long the rounds of a case took: seconds to build, and to run."""

    build: Sequence[float]
    run: Sequence[float]


@dataclass(frozen=True)
class Outcome:
    """One case of one engine.

    Attributes:
        case: Its name.
        units: How many units there were.
        bound: Seconds below which nobody can run it; 0 where units do nothing.
        theirs: What the engine took.
        ours: What we took in the same rounds, by where units ran.
        skipped: Why there are no times.
    """

    case: str
    units: int = 0
    bound: float = 0.0
    theirs: Times | None = None
    ours: Mapping[Place, Times] = field(default_factory=dict)
    skipped: str = ""

    @cached_property
    def each(self) -> tuple[float, float]:
        """Microseconds a unit to build and to run, by the engine."""
        return _each(self.theirs, self.units)

    def times_ours(self, place: Place, what: str) -> Figure:
        """Return how many times as long the engine took, round by round.

        Args:
            place: Where our units ran.
            what: ``build`` or ``run``.
        """
        theirs, ours = getattr(self.theirs, what), getattr(self.ours[place], what)
        return Figure.of(a / b for a, b in zip(theirs, ours, strict=True))

    def over_bound(self, times: Times) -> Figure:
        """Return how many times the bound the rounds took."""
        return Figure.of(one / self.bound for one in times.run)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        if self.theirs is None:
            return {"case": self.case, "skipped": self.skipped}
        told: dict[str, Any] = {"case": self.case, "units": self.units, "theirs": self._side(None)}
        told["ours"] = {place: self._side(place) for place in self.ours}
        return told

    def _side(self, place: Place | None) -> dict[str, Any]:
        times = self.theirs if place is None else self.ours[place]
        build, run = _each(times, self.units)
        told: dict[str, Any] = {"build_us_a_unit": build, "run_us_a_unit": run}
        if self.bound:
            assert times is not None
            told["makespan_over_bound"] = self.over_bound(times).middle
        if place is not None:
            ratio = self.times_ours(place, "run")
            told["run_ratio"] = {"median": ratio.middle, "low": ratio.low, "high": ratio.high}
        return told


@dataclass(frozen=True, slots=True)
class Report:
    """All cases of one engine.

    Attributes:
        peer: The engine.
        versions: Versions of its packages.
        outcomes: What came out, by case.
        skipped: Why it was not measured at all.
    """

    peer: Peer
    versions: Mapping[str, str] = field(default_factory=dict)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    skipped: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        told = {"peer": self.peer.name, "title": self.peer.title, "versions": dict(self.versions)}
        if self.skipped:
            return told | {"skipped": self.skipped}
        return told | {"cases": [outcome.as_dict() for outcome in self.outcomes.values()]}


class Comparison:
    """Us, in processes that are kept, and one engine after the other beside them.

    Args:
        options: How much is measured.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ours: dict[Place, Child] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def measure(self, peer: Peer) -> Report:
        """Measure all cases of an engine."""
        places: set[Place] = {"loop", peer.place}
        ours = {place: await self._us(place) for place in sorted(places)}
        try:
            if sys.version_info < peer.python:
                raise Unavailable(f"it needs Python {peer.python[0]}.{peer.python[1]}")
            python = python_for(peer.requires, self._options.folder)
            packages = [package(one) for one in peer.requires]
            async with started(python, peer.engine, packages) as child:
                return Report(peer, child.versions, await self._cases(peer, child, ours))
        except Unavailable as reason:
            return Report(peer, skipped=str(reason))

    async def _us(self, place: Place) -> Child:
        if place not in self._ours:
            child = started(python_for(()), OURS[place])
            self._ours[place] = await self._stack.enter_async_context(child)
        return self._ours[place]

    async def _cases(
        self, peer: Peer, child: Child, ours: Mapping[Place, Child]
    ) -> dict[str, Outcome]:
        units, outcomes = self._options.units(peer), dict[str, Outcome]()
        if not self._options.quick:  # what only a first time costs
            await child.ask(case=peer.cases[0], count=units, graphs="", repeats=1)
        for case in peer.cases:
            if child.gone:
                outcomes[case] = Outcome(case, skipped="not tried after that")
                continue
            # Where units sleep we are compared on the loop only: slots are not what is asked.
            beside: Mapping[Place, Child] = {"loop": ours["loop"]} if case in MAKESPAN else ours
            outcomes[case] = await self._case(case, units, child, beside)
        return outcomes

    async def _case(
        self, case: str, units: int, child: Child, ours: Mapping[Place, Child]
    ) -> Outcome:
        try:
            given = work(case, units, self._options.graphs)
        except FileNotFoundError as error:
            return Outcome(case, skipped=str(error))
        asked = {"case": case, "count": units, "graphs": self._options.graphs}
        theirs = _Side(child, asked)
        us = {place: _Side(one, asked) for place, one in ours.items()}
        try:
            await self._rounds(theirs, list(us.values()))
        except _Failed as failure:
            if failure.side is not theirs:
                raise RuntimeError(f"quantum_async fails at {case}: {failure}") from failure
            return Outcome(case, skipped=str(failure))
        bound = given.graph.critical_path() if given.sleeps else 0.0
        taken = {place: side.times for place, side in us.items()}
        return Outcome(case, len(given.graph), bound, theirs.times, taken)

    async def _rounds(self, theirs: "_Side", us: list["_Side"]) -> None:
        sides = [theirs, *us]
        took = [await side.turn() for side in sides]  # what only a first time costs
        rounds = 1
        if not self._options.quick:
            rounds = max(1, min(_ROUNDS, int(_MOST / took[0])))
            for side, seconds in zip(sides, took, strict=True):
                side.repeats = max(1, min(_REPEATS, math.ceil(_LEAST / seconds)))
        for side in sides:
            side.forget()
        for turn in range(rounds):
            start = turn % len(sides)
            for side in sides[start:] + sides[:start]:
                await side.turn()


class _Failed(Exception):  # noqa: N818 - it is a reason
    """An engine raised, or was wrong."""

    def __init__(self, side: "_Side", reason: str) -> None:
        super().__init__(reason)
        self.side = side


class _Side:
    """One of those who take turns at a case.

    Args:
        child: Its process.
        asked: The case.
    """

    def __init__(self, child: Child, asked: Mapping[str, Any]) -> None:
        self.repeats = 1
        self._child = child
        self._asked = asked
        self._taken: list[tuple[float, float]] = []

    @property
    def times(self) -> Times:
        """What its turns took."""
        build, run = zip(*self._taken, strict=True)
        return Times(build, run)

    def forget(self) -> None:
        """Forget the turns so far."""
        self._taken.clear()

    async def turn(self) -> float:
        """Build and run once, or as often as makes it long enough; return the seconds of one."""
        try:
            answer = await self._child.ask(**self._asked, repeats=self.repeats)
        except Unavailable as gone:
            raise _Failed(self, str(gone)) from gone
        if "error" in answer:
            raise _Failed(self, answer["error"])
        self._taken.append((answer["build"], answer["run"]))
        return float(answer["build"] + answer["run"])


def _each(times: Times | None, units: int) -> tuple[float, float]:
    if times is None:
        return 0.0, 0.0
    build, run = statistics.median(times.build), statistics.median(times.run)
    return build / units * 1e6, run / units * 1e6
