"""The errors that a run ends with, in words that name what failed and what it cost."""

from collections import Counter

from quantum_async.core.errors import ExecutionError, RunTimeoutError, described
from quantum_async.core.states import UnitState
from quantum_async.result import RunResult

_MOST = 10  # failed units that are named one by one


def failed(result: RunResult) -> ExecutionError:
    """Return the error of a run in which units failed."""
    errors = result.errors
    states = Counter(result.states.values())
    units = "unit" if len(errors) == 1 else "units"
    lines = [f"{len(errors)} {units} of {sum(states.values())} failed{_losses(states)}:"]
    for name, error in list(errors.items())[:_MOST]:
        attempts = result.units[name].attempts
        tries = f" (after {attempts} attempts)" if attempts > 1 else ""
        lines.append(f"  {name}: {described(error)}{tries}")
    if len(errors) > _MOST:
        lines.append(f"  … and {len(errors) - _MOST} more, in .errors")
    if len(result):
        lines.append("results of the others are in .result and get_partial_results()")
    return ExecutionError("\n".join(lines), errors, result)


def first_error(result: RunResult) -> BaseException | None:
    """Return the exception of the unit that failed first."""
    errors = result.errors
    if not errors:
        return None
    first = min(errors, key=lambda name: result.units[name].ended_at or 0.0)
    return errors[first]


def out_of_time(result: RunResult, limit: float) -> RunTimeoutError:
    """Return the error of a run whose time was up."""
    states = Counter(result.states.values())
    return RunTimeoutError(
        f"the run's time limit of {limit:g} s passed: {states[UnitState.COMPLETED]} of "
        f"{sum(states.values())} units had completed{_losses(states)}; what completed is in "
        ".result, and run(resume_from=error.result) goes on from there",
        limit,
        result,
    )


def _losses(states: "Counter[UnitState]") -> str:
    told = [
        f"{states[state]} {state.value}"
        for state in (UnitState.SKIPPED, UnitState.CANCELED)
        if states[state]
    ]
    return f", {' and '.join(told)}" if told else ""
