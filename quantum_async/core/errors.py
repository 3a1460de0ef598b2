"""Every error that the library raises by itself, in one tree.

A message says what happened, to which unit, why that is likely, and how to mend it.
`docs/errors.md` has an entry for each class.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

# `get_close_matches` is quadratic in its candidates' length: 435 ms at 20,000 names.
_MOST_CANDIDATES = 2_000


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of `known`, or an empty string."""
    from difflib import get_close_matches  # only when something is wrong already

    near = get_close_matches(str(name), map(str, islice(known, _MOST_CANDIDATES)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def message_of(error: BaseException) -> str:
    """Return an exception's message, whatever its ``__str__`` may do."""
    try:
        return str(error)
    except Exception:
        return "(its __str__ raised)"


def described(error: BaseException) -> str:
    """Return an exception's type and message."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class QuantumError(Exception):
    """Base of all errors of this library. They can be pickled and copied, notes included."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Not through __init__, whose arguments are others than `args`. A run's result stays where
        # the run was: it holds the plan, and the plan the functions.
        state = {name: None if name == "result" else it for name, it in vars(self).items()}
        return _restored, (type(self), self.args, state)

    def __copy__(self) -> "QuantumError":
        return _restored(type(self), self.args, vars(self))


def _restored(
    kind: type[QuantumError], args: tuple[Any, ...], state: dict[str, Any]
) -> QuantumError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error


class PlanError(QuantumError, ValueError):
    """A graph or a call was refused before anything ran.

    Args:
        message: What is wrong.
        problems: Every problem found, so that all of them can be mended at once.
    """

    def __init__(self, message: str, problems: Sequence["PlanError"] = ()) -> None:
        super().__init__(message)
        self._problems = tuple(problems)

    @property
    def problems(self) -> "tuple[PlanError, ...]":
        """Every problem found; a lone problem is its own."""
        return self._problems or (self,)

    @classmethod
    def of(cls, problems: Sequence["PlanError"]) -> "PlanError":
        """Return the one problem itself, or one error that lists them all."""
        if len(problems) == 1:
            return problems[0]
        lines = "\n".join(f"  {n}. {problem}" for n, problem in enumerate(problems, 1))
        return PlanError(f"the plan has {len(problems)} problems:\n{lines}", problems)


class DuplicateUnitError(PlanError):
    """Two units have one name, or a unit has the name of an input key."""


class UnknownDependencyError(PlanError):
    """A unit depends on a name that no unit has."""


class CircularDependencyError(PlanError):
    """Units wait for each other in a circle.

    Args:
        cycle: The names along the circle, the first one again at its end; or a message.
    """

    def __init__(self, cycle: Sequence[str]) -> None:
        if isinstance(cycle, str):
            self.cycle: tuple[str, ...] = ()
            super().__init__(cycle)
            return
        self.cycle = tuple(cycle)
        super().__init__(
            f"units wait for each other in a circle: {' → '.join(_shortened(self.cycle))}. "
            "None of them could ever start; take one of these dependencies out"
        )


def _shortened(cycle: Sequence[str]) -> list[str]:
    if len(cycle) <= 12:
        return list(cycle)
    return [*cycle[:6], f"… {len(cycle) - 11} more …", *cycle[-5:]]


class UnpicklableUnitError(PlanError):
    """A unit for a worker process cannot be sent to one."""


class MissingInputError(PlanError):
    """A decorated unit has a parameter that neither a unit nor the input provides."""


class Backpressure(QuantumError):  # noqa: N818 - the name that the contract gives
    """What a unit raises when a resource is to be left alone for a while, by everybody.

    Args:
        resource: The name of a limit.
        seconds: How long nothing of it is given, to any unit of any run that shares the limit.
        message: Why.

    Raises:
        PlanError: If the seconds are no number, negative, NaN or without end.
    """

    def __init__(self, resource: str, seconds: float, message: str = "") -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise PlanError(f"Backpressure of {resource!r}: {seconds!r} is no number of seconds")
        if not 0 <= seconds < float("inf"):
            raise PlanError(
                f"Backpressure of {resource!r}: its seconds must be from 0 up and finite, not "
                f"{seconds!r}"
            )
        super().__init__(message or f"{resource!r} is to be left alone for {seconds:g} s")
        self.resource = resource
        self.seconds = seconds


class Overloaded(QuantumError):  # noqa: N818 - likewise
    """A run was refused at once: as many are going on and waiting as the `Runtime` takes.

    Args:
        message: What is full.
    """


class ExecutionError(QuantumError):
    """Units failed. `__cause__` is the first failed unit's own exception object.

    Attributes:
        errors: Each failed unit's exception, by unit name, in plan order.
        result: The `RunResult`, with everything that did succeed.
    """

    def __init__(self, message: str, errors: Mapping[str, BaseException], result: Any) -> None:
        super().__init__(message)
        self.errors = dict(errors)
        self.result = result


class RunTimeoutError(QuantumError, TimeoutError):
    """The run's own time limit passed; what had not ended was cancelled.

    Attributes:
        limit: The limit in seconds.
        result: The `RunResult`, with everything that had ended by then.
    """

    def __init__(self, message: str, limit: float, result: Any) -> None:
        super().__init__(message)
        self.limit = limit
        self.result = result


class UnitTimeoutError(QuantumError, TimeoutError):
    """A unit was stopped because a time limit passed.

    Attributes:
        unit: The unit's name.
        attempt: Which attempt it was, from 1.
        limit: The limit in seconds.
        which: ``"timeout"`` (of one attempt) or ``"deadline"`` (of all attempts together).
    """

    def __init__(self, message: str, unit: str, attempt: int, limit: float, which: str) -> None:
        super().__init__(message)
        self.unit = unit
        self.attempt = attempt
        self.limit = limit
        self.which = which


class WorkerCrashedError(QuantumError):
    """The worker process died while it ran a unit.

    Attributes:
        unit: The unit's name.
        how: The exit code (``"exit code 3"``) or signal name (``"SIGSEGV"``), if it is known.
    """

    def __init__(self, message: str, unit: str, how: str) -> None:
        super().__init__(message)
        self.unit = unit
        self.how = how


class RemoteError(QuantumError):
    """Stands for an exception of a worker process that could not travel.

    Attributes:
        type_name: The exception's qualified type name.
        remote_message: Its message.
        traceback: The worker's traceback as text.
    """

    def __init__(self, type_name: str, remote_message: str, traceback: str) -> None:
        super().__init__(f"{type_name}: {remote_message}")
        self.type_name = type_name
        self.remote_message = remote_message
        self.traceback = traceback


class ClusterError(QuantumError):
    """A cluster cannot be reached, went away, or does not fit what is installed here."""


class StaysRemoteError(QuantumError):
    """A result is on a cluster, and cannot be fetched without waiting: use ``result.fetch``."""


class DependencyError(QuantumError, KeyError):
    """A unit read a dependency that has no result: it failed, was skipped, or has not ended."""

    __str__ = Exception.__str__


class UndeclaredDependencyError(QuantumError, KeyError):
    """A unit read the result of a unit that it does not depend on."""

    # KeyError shows the repr of its argument, which would escape our quotes.
    __str__ = Exception.__str__


class ViewError(QuantumError, ValueError):
    """Results do not fit the type that was to be built of them.

    Attributes:
        schema: The name of the type.
        problems: One sentence a problem, each with its unit.
    """

    def __init__(self, schema: str, problems: Sequence[str]) -> None:
        self.schema = schema
        self.problems = tuple(problems)
        told = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"the results do not fit {schema}:{told}")


class InternalError(QuantumError):
    """A bug of this library. Please report it with its text, which tells the unit's story."""
