"""What is printed at the end: how the run went, what was indexed, what the queries found."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from examples.search_index.documents import BrokenFile, printable
from examples.search_index.store import Hit, Written
from quantum_async.core.record import UnitRecord

FIRST = 5  # broken files and slow units to name
PLACES = {"loop": "on the loop", "thread": "in threads", "process": "in worker processes"}
_GLUE = "\N{NO-BREAK SPACE}"  # keeps a unit and its seconds on one line

Answers = Mapping[str, Sequence[Hit]]


@dataclass(frozen=True, slots=True)
class Figures:
    """How a run went.

    Attributes:
        places: How many units ran in each kind of place.
        wall: Seconds from the run's start to its end.
        summed: Seconds of all attempts of all units together.
        slots: The most units that ran at one time, but not more than there are CPUs.
        path: The measured critical path: unit names with their seconds, first to last.
        path_waited: Seconds that units on that path were ready and had no slot.
        slowest: The slowest units with their seconds and where they ran, the slowest first.
        retries: How many attempts were second ones or later.
    """

    places: Counter[str]
    wall: float
    summed: float
    slots: int
    path: tuple[tuple[str, float], ...]
    path_waited: float
    slowest: tuple[tuple[str, float, str], ...]
    retries: int

    @property
    def efficiency(self) -> float:
        """The share of `slots` that was busy, from 0 to 1."""
        return self.summed / (self.wall * self.slots) if self.wall and self.slots else 0.0


def figures(
    records: Iterable[UnitRecord],
    critical_path: Sequence[str] = (),
    *,
    wall: float,
    summed: float,
    cpus: int,
) -> Figures:
    """Work out how a run went.

    Args:
        records: The records of its units; those that never ran are left out.
        critical_path: Names of the units along it.
        wall: Seconds from the run's start to its end.
        summed: Seconds of all attempts of all units together.
        cpus: How many CPUs the run could use.
    """
    ran = [record for record in records if record.ran_on and record.duration is not None]
    seconds = {record.name: record.duration or 0.0 for record in ran}
    slowest = sorted(ran, key=lambda record: (-seconds[record.name], record.name))[:FIRST]
    return Figures(
        places=Counter(record.ran_on or "" for record in ran),
        wall=wall,
        summed=summed,
        slots=min(most_at_once(ran), cpus),
        path=tuple((name, seconds.get(name, 0.0)) for name in critical_path),
        path_waited=sum(record.waited or 0.0 for record in ran if record.name in critical_path),
        slowest=tuple((it.name, seconds[it.name], it.ran_on or "") for it in slowest),
        retries=sum(max(record.attempts - 1, 0) for record in ran),
    )


def most_at_once(records: Iterable[UnitRecord]) -> int:
    """Count how many units ran at the moment when the most did."""
    changes: list[tuple[float, int]] = []
    for record in records:
        if record.started_at is not None and record.ended_at is not None:
            changes += [(record.started_at, 1), (record.ended_at, -1)]
    most = now = 0
    # Where one ends as another starts, the end counts first: they used one slot.
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def format_figures(run: Figures) -> str:
    """Lay the figures out as a table of one line each."""
    places = ", ".join(
        f"{number} {PLACES.get(place, place)}" for place, number in run.places.items()
    )
    path = " > ".join(f"{name}{_GLUE}{seconds:.2f}" for name, seconds in run.path)
    slowest = ", ".join(
        f"{name}{_GLUE}{seconds:.2f}{_GLUE}s{_GLUE}({place})"
        for name, seconds, place in run.slowest
    )
    on_path = sum(seconds for _, seconds in run.path)
    busy = f"{run.efficiency:.0%} of {run.slots} slots"
    rows = {
        "units": f"{run.places.total()}: {places}",
        "wall time": f"{run.wall:.2f} s",
        "unit time": f"{run.summed:.2f} s summed",
        "efficiency": f"{busy} (unit time / (wall time x slots))",
        "critical path": f"{on_path:.2f} s, and {run.path_waited:.2f} s waiting for slots: {path}",
        "slowest units": slowest,
        "retries": str(run.retries),
    }
    return "\n".join(_format_row(name, row) for name, row in rows.items())


def _format_row(name: str, row: str) -> str:
    wrapped = textwrap.fill(
        row, 100, initial_indent=f"{name:<15}", subsequent_indent=" " * 15, break_on_hyphens=False
    )
    return wrapped.replace(_GLUE, " ")


def format_contents(
    root: str, written: Written, broken: Sequence[BrokenFile], answers: Answers
) -> str:
    """Say what was indexed, what was broken, and what the sample queries found.

    Args:
        root: The folder.
        written: What the index holds.
        broken: Files that gave no document.
        answers: The hits of each query, the best first.
    """
    size = f"{written.passages:,} passages, {written.size / 2**20:.1f} MiB"
    lines = [f"{written.documents:,} documents of {printable(root)} indexed: {size}."]
    if broken:
        lines.append(f"{len(broken):,} broken and left out:")
        lines += [f"  {file.path}: {file.reason}" for file in broken[:FIRST]]
        if len(broken) > FIRST:
            lines.append(f"  ... and {len(broken) - FIRST:,} more")
    for query, hits in answers.items():
        lines += ["", f'"{query}"', *_format_hits(hits)]
    return "\n".join(lines)


def _format_hits(hits: Sequence[Hit]) -> list[str]:
    lines: list[str] = []
    for number, hit in enumerate(hits, 1):
        lines.append(f"  {number}. {hit.title}  ({hit.path}:{hit.line}, score {hit.score:.1f})")
        if hit.text:
            lines.append("     " + textwrap.shorten(hit.text, 90, placeholder=" ..."))
    return lines or ["  nothing found"]
