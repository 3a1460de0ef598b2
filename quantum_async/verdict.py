"""The errors that a run ends with, in words that name what failed and what it cost.

A loop waits while they are made: they look at the run's columns, not at a record of each unit.
"""

from quantum_async.core.errors import ExecutionError, RunTimeoutError, described
from quantum_async.core.scheduler import CANCELED, COMPLETED, OUTSIDE, SKIPPED
from quantum_async.result import RunResult

_MOST = 10  # failed units that are named one by one


def failed(result: RunResult) -> ExecutionError:
    """Return the error of a run in which units failed."""
    errors = _guilty(result)
    if not errors:
        return ExecutionError(_stopped(result), errors, result)
    units = "unit" if len(errors) == 1 else "units"
    lines = [f"{len(errors)} {units} of {_all(result)} failed{_losses(result)}:"]
    for name, error in list(errors.items())[:_MOST]:
        attempts = result.units[name].attempts
        tries = f" (after {attempts} attempts)" if attempts > 1 else ""
        lines.append(f"  {name}: {described(error)}{tries}")
    if len(errors) > _MOST:
        lines.append(f"  … and {len(errors) - _MOST} more, in .errors")
    if len(result):
        lines.append("results of the others are in .result and get_partial_results()")
    return ExecutionError("\n".join(lines), errors, result)


def _stopped(result: RunResult) -> str:
    ledger = result._ledger
    canceled = ledger.scheduler.in_phase(CANCELED)
    cause = ledger.stop_cause or next(filter(None, map(ledger.cause, canceled)), "")
    completed = ledger.scheduler.phase.count(COMPLETED)
    return (
        f"the run was stopped ({cause}): {completed} of {_all(result)} units had completed"
        f"{_losses(result)}; what completed is in .result, and run(resume_from=error.result) goes "
        "on from there"
    )


def first_error(result: RunResult) -> BaseException | None:
    """Return the exception of the unit that failed first, of those that fail the run."""
    ledger = result._ledger
    failed = ledger.guilty or ledger.failed
    first = min(failed, key=ledger.ends.__getitem__, default=None)
    return None if first is None else ledger.errors[first]


def out_of_time(result: RunResult, limit: float) -> RunTimeoutError:
    """Return the error of a run whose time was up."""
    completed = result._ledger.scheduler.phase.count(COMPLETED)
    return RunTimeoutError(
        f"the run's time limit of {limit:g} s passed: {completed} of "
        f"{_all(result)} units had completed{_losses(result)}; what completed is in "
        ".result, and run(resume_from=error.result) goes on from there",
        limit,
        result,
    )


def _guilty(result: RunResult) -> dict[str, BaseException]:
    """Return the failures that are the run's: not those of races, or that a map collects."""
    ledger = result._ledger
    return {ledger.rows.names[unit]: ledger.errors[unit] for unit in ledger.guilty}


def _all(result: RunResult) -> int:
    """Return how many units the run was about."""
    phase = result._ledger.scheduler.phase
    return len(phase) - phase.count(OUTSIDE)


def _losses(result: RunResult) -> str:
    phase = result._ledger.scheduler.phase
    counts = {"skipped": phase.count(SKIPPED), "canceled": phase.count(CANCELED)}
    told = [f"{count} {how}" for how, count in counts.items() if count]
    return f", {' and '.join(told)}" if told else ""
