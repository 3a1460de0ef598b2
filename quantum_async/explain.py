"""In words: what happened in a run, and where its time went."""

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from quantum_async.core.errors import described
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState

_MOST = 5  # units that are named one by one
_A_WAIT = 0.02  # seconds; less is the loop's own business


class Explainable(Protocol):
    """What an explanation looks at: a `RunResult`."""

    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def plan(self) -> ExecutionPlan: ...  # noqa: D102
    @property
    def units(self) -> Mapping[str, UnitRecord]: ...  # noqa: D102
    @property
    def duration(self) -> float: ...  # noqa: D102
    @property
    def critical_path(self) -> list[str]: ...  # noqa: D102


def explain_run(result: Explainable) -> str:
    """Say how a run went: counts, failures and what they cost, the critical path, the waits."""
    records = list(result.units.values())
    counts = Counter(record.state.value for record in records)
    lines = [
        f"run {result.run_id}: {_counted(len(records), 'unit')} in "
        f"{_seconds(result.duration)} – "
        + (", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing to do")
    ]
    lines += _failures(records)
    if result.critical_path and result.duration > 0:
        path = [result.units[name] for name in result.critical_path]
        busy = sum(record.duration or 0.0 for record in path)
        lines.append(
            f"critical path, {busy / result.duration:.0%} of the time: "
            + _chain([f"{r.name} ({_seconds(r.duration or 0.0)})" for r in path])
        )
    summed = sum(record.duration or 0.0 for record in records)
    if result.duration > 0:
        lines.append(f"on average {summed / result.duration:.1f} units at once")
    waits = sorted(records, key=lambda record: record.waited or 0.0, reverse=True)[:_MOST]
    waits = [r for r in waits if (r.waited or 0.0) > max(_A_WAIT, 0.05 * result.duration)]
    if waits:
        lines.append(
            "waited longest for a slot: "
            + ", ".join(f"{r.name} ({_seconds(r.waited or 0.0)})" for r in waits)
        )
    return "\n".join(lines)


def _failures(records: list[UnitRecord]) -> list[str]:
    failed = [r for r in records if r.state in (UnitState.FAILED, UnitState.TIMEOUT)]
    lines = [f"{r.name} {_how(r)}" for r in failed[:_MOST]]
    if len(failed) > _MOST:
        lines.append(f"… and {len(failed) - _MOST} more failures")
    causes = Counter(r.cause for r in records if r.state is UnitState.SKIPPED)
    lines += [f"{count} skipped because {cause}" for cause, count in causes.most_common(_MOST)]
    causes = Counter(r.cause for r in records if r.state is UnitState.CANCELED)
    lines += [f"{count} canceled: {cause}" for cause, count in causes.most_common(_MOST)]
    fallbacks = [r.name for r in records if r.fallback_used]
    if fallbacks:
        lines.append(f"fallbacks stand in for: {', '.join(fallbacks[:_MOST])}")
    retried = [r for r in records if r.attempts > 1]
    if retried:
        extra = sum(r.attempts - 1 for r in retried)
        lines.append(f"{extra} further attempts in {len(retried)} units")
    return lines


def explain_unit(result: Explainable, record: UnitRecord) -> str:
    """Say what became of one unit: what it waited for, where it ran, how it ended."""
    plan, above = result.plan, []
    if record.name in plan.index:  # a child of a map, or of a nested run, depends on no other unit
        above = [result.units[plan.names[unit]] for unit in plan.edges_up[plan.index[record.name]]]
    lines = [f"{record.name} {_how(record)}"]
    if above:
        last = max(above, key=lambda r: r.ended_at or 0.0)
        lines.append(
            f"depends on {_chain([r.name for r in above], ', ')}; {last.name} was the last to end"
        )
    if record.waited is not None:
        lines.append(f"waited {_seconds(record.waited)} for a slot")
    if record.duration is not None:
        tries = f" in {record.attempts} attempts" if record.attempts > 1 else ""
        lines.append(f"took {_seconds(record.duration)}{tries}, {record.ran_on}")
    return "\n".join(lines)


def _how(record: UnitRecord) -> str:
    said = {
        UnitState.COMPLETED: "completed",
        UnitState.FAILED: "failed",
        UnitState.TIMEOUT: "timed out",
        UnitState.SKIPPED: "was skipped",
        UnitState.CANCELED: "was canceled",
        UnitState.PENDING: "did not start",
        UnitState.RUNNING: "is running",
    }[record.state]
    if record.fallback_used:
        said += " with its fallback"
    if record.error is not None:
        said += f": {described(record.error)}"
    return said + (f" ({record.cause})" if record.cause else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _chain(names: list[str], joint: str = " → ") -> str:
    if len(names) > 2 * _MOST:
        names = [*names[:_MOST], f"… {len(names) - 2 * _MOST} more …", *names[-_MOST:]]
    return joint.join(names)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
