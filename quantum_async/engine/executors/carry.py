"""Context variables that travel to worker processes: those that the user named, and no others.

A variable travels as the place where a module keeps it, ``module:attribute``, with its value. So
does what is not a variable but a function there: it is called with the value, in the worker, before
the unit is. That is how the trace context of OpenTelemetry gets there.
"""

import pkgutil
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from quantum_async.core.errors import PlanError
from quantum_async.engine.executors.envelope import Carried
from quantum_async.engine.executors.packing import dumps, importable

# Gives what goes to a place; None for nothing.
Source = Callable[[], Any]


def paths_of(variables: "Iterable[ContextVar[Any] | str]") -> tuple[str, ...]:
    """Return the places where modules keep context variables.

    Raises:
        PlanError: If one is no context variable, or no module that a worker could import has it.
    """
    if isinstance(variables, str | ContextVar):
        raise PlanError(f"contextvars must be a list; write [{variables!r}]")
    try:
        return tuple(map(_path_of, variables))
    except TypeError as error:
        raise PlanError(f"contextvars must be a list, not {variables!r}") from error


def _path_of(variable: "ContextVar[Any] | str") -> str:
    if isinstance(variable, str):
        try:
            found = pkgutil.resolve_name(variable)
        except Exception as error:
            raise PlanError(f"contextvars: there is no {variable!r}: {error}") from error
        if not isinstance(found, ContextVar):
            raise PlanError(f"contextvars: {variable!r} is no ContextVar, but {found!r}")
        return variable
    if not isinstance(variable, ContextVar):
        raise PlanError(f"contextvars must be ContextVars or 'module:name', not {variable!r}")
    for name, module in list(sys.modules.items()):
        if name != "__main__" and module is not None and importable(name):
            for attribute, value in list(vars(module).items()):
                if value is variable:
                    return f"{name}:{attribute}"
    raise PlanError(
        f"the context variable {variable.name!r} cannot travel to worker processes: no module that "
        "they can import has it as a global; define it in a module of its own"
    )


class Carrier:
    """Collects what travels, in the context of an attempt.

    Args:
        variables: Places of context variables.
        sources: What else goes to which place.
        complain: Takes a sentence about a value that cannot travel, once, and the exception.
    """

    def __init__(
        self,
        variables: Iterable[str],
        sources: Iterable[tuple[str, Source]],
        complain: Callable[[str, BaseException | None], object],
    ) -> None:
        self._sources = [(path, _getter(path)) for path in variables]
        self._sources += sources
        self._complain = complain
        self._complained: set[str] = set()

    def collect(self) -> Carried:
        """Return what travels now."""
        found: list[tuple[str, bytes]] = []
        for path, source in self._sources:
            try:
                value = source()
                if value is not None:
                    found.append((path, dumps(value)))
            except Exception as error:
                if path not in self._complained:
                    self._complained.add(path)
                    what = f"the value of {path} cannot travel to worker processes and is left out"
                    self._complain(what, error)
        return tuple(found)


def _getter(path: str) -> Source:
    variable: ContextVar[Any] = pkgutil.resolve_name(path)
    return lambda: variable.get(None)
