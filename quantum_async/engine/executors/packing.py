"""How functions and exceptions travel between this process and its workers.

cloudpickle sends lambdas, closures and what ``__main__`` defines by value. It sends the functions
of modules by name; a module that a worker could not import (a test module under pytest's importlib
mode, one that was made at run time) is found out here, and sent by value too.
"""

import importlib.machinery
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import cloudpickle

from quantum_async.core.binding import ExactBinding
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import PlanError, UnpicklableUnitError
from quantum_async.core.plan import Unit
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.transport import dump

_NO_FILE = "<dynamic-code>"


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):
            # From 3.1.3 on cloudpickle leaves out the file, and a traceback would show no source.
            make, parts = self.dispatch_table[CodeType](obj)
            return make, tuple(obj.co_filename if part == _NO_FILE else part for part in parts)
        if isinstance(obj, FunctionType | type) and not importable(obj.__module__):
            module = sys.modules.get(obj.__module__)
            if module is not None:
                cloudpickle.register_pickle_by_value(module)
        return super().reducer_override(obj)


def dumps(value: Any) -> bytes:
    """Pickle anything that a worker can unpickle."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


_BIG = 1_000_000  # bytes from which on pickling would hold the loop


def packed(
    job: Job, call: tuple[Any, ...] | None = None, open_segment: Callable[[], int] | None = None
) -> bytes:
    """Pickle a job's call.

    Args:
        job: The job.
        call: What stands for its function, arguments and keyword arguments, if they do not travel
            as they are.
        open_segment: Where big arguments go (see `transport.dump`); None if they go nowhere.

    Raises:
        UnpicklableUnitError: If its arguments cannot be, naming what is to blame.
    """
    call = call or (job.function, job.args, job.kwargs)
    try:
        return dumps(call) if open_segment is None else dump(call, make_pickler, open_segment)
    except Exception as error:
        named = dict(job.kwargs)
        for place, value in enumerate(job.args):
            named |= value if isinstance(value, ExecutionContext) else {str(place): value}
        raise unsendable_arguments(job.unit, named, error) from error


def make_pickler(file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> Any:
    """Return a pickler for `transport.dump` of anything that a worker can unpickle."""
    return _Pickler(file, protocol=5, buffer_callback=buffer_callback)


def looks_big(job: Job) -> bool:
    """Return whether a job's arguments are likely to take long to pickle."""
    values = [*job.kwargs.values()]
    for value in job.args:
        values += value.unit_results.values() if isinstance(value, ExecutionContext) else [value]
    return sum(map(sys.getsizeof, values)) > _BIG


def unsendable_arguments(unit: str, values: Mapping[str, Any], error: Exception) -> Exception:
    """Return the error of a unit whose arguments cannot be pickled, naming what is to blame."""
    blame = [
        f"{name!r} ({_kind(value)})" for name, value in values.items() if not _picklable(value)
    ]
    inside = f"; to blame: {', '.join(blame)}" if blame else ""
    return UnpicklableUnitError(
        f"what unit {unit!r} is to be called with cannot be sent to a worker process: {error}"
        f"{inside}. A unit that takes the context is sent its dependencies' results and the whole "
        "input: name what it needs as parameters (@flow.unit, args=…), or use mode='thread'"
    )


@lru_cache(maxsize=1024)
def importable(name: str | None) -> bool:
    """Return whether another process that has our `sys.path` would find the same module."""
    module = sys.modules.get(name or "")
    if name is None or module is None or name == "__main__":
        return True  # cloudpickle decides by itself
    path, spec = None, None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = _found(".".join(parts[:end]), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    file = getattr(module, "__file__", None)
    return spec is None or spec.origin is None or file is None or spec.origin == file


def _found(name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return None


def unsendable(units: Iterable[Unit]) -> list[PlanError]:
    """Return the problem of each unit that cannot be sent to a worker process.

    It names the object inside that is to blame, and what to do.
    """
    problems: list[PlanError] = []
    good: set[int] = set()  # many units may share a function
    for unit in units:
        try:
            if id(unit.function) not in good:
                dumps(unit.function)
                good.add(id(unit.function))
            if isinstance(unit.options.binding, ExactBinding):
                dumps(unit.options.binding.bind(_Nothing()))
        except Exception as error:
            problems.append(_problem(unit, error))
    return problems


class _Nothing:
    """Stands for a context whose results are not there yet."""

    def __getitem__(self, _: object) -> None:
        return None


def _problem(unit: Unit, error: Exception) -> UnpicklableUnitError:
    culprit = next(_culprits(unit.function), None)
    inside = f"; {culprit}" if culprit else ""
    return UnpicklableUnitError(
        f"unit {unit.id!r} is to run in a worker process and cannot be sent to one: {error}"
        f"{inside}. Pass plain data through the input or a dependency, make such objects "
        "inside the function, or run it with mode='thread'"
    )


def _culprits(function: Callable[..., Any]) -> Iterator[str]:
    """Say which of a function's variables cannot be pickled."""
    plain = getattr(function, "__func__", getattr(function, "func", function))
    owner = getattr(function, "__self__", None)
    if owner is not None and not _picklable(owner):
        yield f"the object that it is a method of ({_kind(owner)}) is to blame"
    code = getattr(plain, "__code__", None)
    if code is None:
        return
    for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=True):
        value = cell.cell_contents
        if not _picklable(value):
            yield f"its variable {name!r} ({_kind(value)}) is to blame"
    for value in (*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values()):
        if not _picklable(value):
            yield f"a default value of its ({_kind(value)}) is to blame"
    for name in code.co_names:
        if name in plain.__globals__ and not _picklable(plain.__globals__[name]):
            yield f"the global {name!r} that it uses ({_kind(plain.__globals__[name])}) is to blame"


def _picklable(value: Any) -> bool:
    try:
        dumps(value)
    except Exception:
        return False
    return True


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
