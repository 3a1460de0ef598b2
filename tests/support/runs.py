"""Results of runs that never were: every time in them is chosen."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantum_async import QuantumPartitioner
from quantum_async.core import scheduler as phases
from quantum_async.core.scheduler import Scheduler
from quantum_async.engine.ledger import NOTHING, Ledger
from quantum_async.engine.rows import Rows
from quantum_async.result import RunResult

BEGAN = 100.0


@dataclass(frozen=True)
class Row:
    """What became of a unit.

    Attributes:
        phase: How it ended.
        spans: From when to when each of its attempts ran.
        result: Its result.
        error: Its last exception.
        root: The unit to blame, if it was skipped.
        cause: Any other cause.
        where: Where it ran, if not on the loop.
        fallback: Whether its result is its fallback.
        ended: When it ended, if not with its last attempt.
    """

    phase: int
    spans: Sequence[tuple[float, float]] = ()
    result: Any = NOTHING
    error: BaseException | None = None
    root: str | None = None
    cause: str | None = None
    where: str | None = None
    fallback: bool = False
    ended: float | None = None


def done(*spans: tuple[float, float], result: Any = None, **more: Any) -> Row:
    return Row(phases.COMPLETED, spans, result, **more)


def broken(*spans: tuple[float, float], error: BaseException, **more: Any) -> Row:
    return Row(phases.FAILED, spans, error=error, **more)


def late(*spans: tuple[float, float], error: BaseException) -> Row:
    return Row(phases.TIMEOUT, spans, error=error)


def canceled(*spans: tuple[float, float], cause: str, **more: Any) -> Row:
    return Row(phases.CANCELED, spans, cause=cause, **more)


def skipped(root: str) -> Row:
    return Row(phases.SKIPPED, root=root)


def given(result: Any) -> Row:
    return Row(phases.COMPLETED, result=result, where="given")


OUTSIDE = Row(phases.OUTSIDE)


def made_run(flow: QuantumPartitioner, rows: Mapping[str, Row], duration: float) -> RunResult:
    """Return the result of a run in which all that happened."""
    plan = flow.build_execution_plan()
    scheduler = Scheduler(plan, None)
    ledger = Ledger(plan, scheduler, "run", time.time(), BEGAN, ["loop"], Rows(plan))
    ledger.ended = BEGAN + duration
    pauses = {}
    for name, row in rows.items():
        unit = plan.index[name]
        scheduler.phase[unit] = row.phase
        scheduler.unfinished -= row.phase != phases.OUTSIDE
        ledger.results[unit] = row.result
        ledger.attempts[unit] = len(row.spans)
        moments = [BEGAN + moment for span in row.spans for moment in span]
        if moments:
            ledger.starts[unit], ledger.ends[unit] = moments[0], moments[-1]
            pauses[unit] = moments[1:-1]
        if row.ended is not None:
            ledger.ends[unit] = BEGAN + row.ended
            pauses[unit] = moments[1:]
        for column, fact in (
            (ledger.errors, row.error),
            (ledger.causes, row.cause),
            (ledger.ran_on, row.where),
            (ledger.roots, None if row.root is None else plan.index[row.root]),
        ):
            if fact is not None:
                column[unit] = fact
        if row.fallback:
            ledger.fallbacks.add(unit)
    return RunResult(ledger, pauses)


def chain(*names: str) -> QuantumPartitioner:
    """Return a partitioner whose units each depend on the one before."""
    flow = QuantumPartitioner()
    for above, name in zip((None, *names), names, strict=False):
        flow.add_unit(_nothing, [] if above is None else [above], name)
    return flow


def alone(*names: str) -> QuantumPartitioner:
    """Return a partitioner whose units do not depend on each other."""
    flow = QuantumPartitioner()
    for name in names:
        flow.add_unit(_nothing, name=name)
    return flow


async def _nothing(ctx):
    pass
