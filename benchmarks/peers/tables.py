"""The outcome as tables in Markdown."""

import functools
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks.measure import shown
from benchmarks.peers.catalogue import Place
from benchmarks.peers.comparison import Outcome, Report
from benchmarks.peers.work import LANES, MAKESPAN, OVERHEAD

_PLACES: Final[dict[Place, str]] = {
    "loop": "on the loop",
    "threads": "in threads",
    "processes": "in processes",
}
_NONE = "–"
_RUN = (
    "µs a unit, and how many times what it costs with us: with coroutines on the loop, and with "
    "units of the same kind where the engine runs them in threads or processes."
)
_BUILD = (
    "µs a unit, and how many times what declaring and planning costs with us; – where there is no "
    "graph before it runs."
)
_MAKESPAN = (
    "Units sleep; nobody can be quicker than the critical path, which is 1. In brackets what we "
    "took in the same rounds."
)


def tables(reports: Sequence[Report]) -> list[str]:
    """Return all of them, and the notes about what is missing."""
    measured = [report for report in reports if not report.skipped]
    sections = [
        ("## To run a unit that does nothing", _RUN, _running(measured)),
        ("## To build the graph", _BUILD, _building(measured)),
        ("## Makespan over the lower bound", _MAKESPAN, _makespan(measured)),
        ("## What is missing", "", _missing(reports)),
    ]
    return [part for section in sections if section[-1] for part in section if part]


def _running(reports: Sequence[Report]) -> str:
    rows = []
    for report in reports:
        besides: dict[Place, None] = {"loop": None, report.peer.place: None}
        for beside in besides:
            title, *cells = _overhead(report, beside, "run")
            rows.append([title, _PLACES[beside], *cells, _verdict(report, beside)])
    head = ["engine", "beside ours", "units", *OVERHEAD, "target"]
    return _table(head, rows, "ll" + "r" * (len(OVERHEAD) + 1) + "l")


def _building(reports: Sequence[Report]) -> str:
    rows = [_overhead(report, "loop", "build") for report in reports]
    rows = [row for row in rows if set(row[2:]) != {_NONE}]
    return _table(["engine", "units", *OVERHEAD], rows, "l" + "r" * (len(OVERHEAD) + 1))


def _overhead(report: Report, place: Place, what: str) -> list[str]:
    show = functools.partial(_compared, place=place, what=what)
    units = max(one.units for one in report.outcomes.values() if one.case in OVERHEAD)
    return [_title(report), f"{units:,}", *(_cell(report, case, show) for case in OVERHEAD)]


def _compared(outcome: Outcome, place: Place, what: str) -> str:
    each = outcome.each[what == "run"]
    if each < 0.2:  # a graph that is no more than what was given
        return _NONE
    return f"{shown(each)} · {shown(outcome.times_ours(place, what).middle)}×"


def _verdict(report: Report, place: Place) -> str:
    """Return whether our cost is so many times less in every shape."""
    ratios = [
        outcome.times_ours(place, "run").middle
        for outcome in report.outcomes.values()
        if outcome.case in OVERHEAD and outcome.theirs
    ]
    if report.peer.target is None or not ratios:
        return ""
    reached = "yes" if min(ratios) >= report.peer.target else "**no**"
    return f"≥ {report.peer.target:g}×: {reached}"


def _makespan(reports: Sequence[Report]) -> str:
    head = ["engine", *(_case_title(reports, case) for case in MAKESPAN)]
    rows = [
        [_title(report), *(_cell(report, case, _over) for case in MAKESPAN)]
        for report in reports
        if any(case in report.outcomes for case in MAKESPAN)
    ]
    return _table(head, rows, "l" + "r" * len(MAKESPAN))


def _case_title(reports: Sequence[Report], case: str) -> str:
    title = "staggered lanes" if case == LANES else f"`{case}`"
    found = [report.outcomes[case] for report in reports if case in report.outcomes]
    units = max((one.units for one in found), default=0)
    return f"{title}, {units} units" if units else title


def _over(outcome: Outcome) -> str:
    assert outcome.theirs is not None
    theirs = outcome.over_bound(outcome.theirs).middle
    return f"{shown(theirs)} ({shown(outcome.over_bound(outcome.ours['loop']).middle)})"


def _cell(report: Report, case: str, show: Callable[[Outcome], str]) -> str:
    outcome = report.outcomes.get(case)
    return _NONE if outcome is None or outcome.theirs is None else show(outcome)


def _title(report: Report) -> str:
    versions = " ".join(report.versions.values())
    return f"{report.peer.title} {versions}".strip()


def _missing(reports: Sequence[Report]) -> str:
    rows = []
    for report in reports:
        if report.skipped:
            rows.append([report.peer.title, "all", f"skipped: {_one_cell(report.skipped)}"])
        for outcome in report.outcomes.values():
            if outcome.skipped:
                why = f"skipped: {_one_cell(outcome.skipped)}"
                rows.append([_title(report), outcome.case, why])
    return _table(["engine", "graph", "why it is missing"], rows, "lll")


def _one_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    if not rows:
        return ""
    rules = ["---:" if one == "r" else "---" for one in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))
