"""What several calls of a run need travels to each worker once: the input, functions sent by value.

Such a value is pickled when the first unit needs it; big ones lie in shared memory, from which all
workers read. In a call, a `StandIn` takes its place. See `store` for the worker's side.
"""

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from types import FunctionType
from typing import Any

from quantum_async.core.context import ExecutionContext
from quantum_async.engine.executors import store
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.packing import importable, make_pickler
from quantum_async.engine.executors.session import Session
from quantum_async.engine.executors.transport import (
    SPILL,
    Segment,
    dump,
    inline,
    is_plain,
    size_of,
)

_WORTH = 1024  # bytes; what is smaller travels with each call
_SMALL = (int, float, bool, complex, type(None))
_numbers = count(1)


class StandIn:
    """Takes the place of a shared value in the pickle of a call."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return store.fetch, (self.number,)


class Previous(StandIn):
    """Takes the place of the result of a call of that number, which the worker has."""

    def __reduce__(self) -> tuple[Any, ...]:
        return store.take, (-self.number,)


class SentContext:
    """Takes the place of a context whose input is there already, or goes by itself."""

    def __init__(self, context: ExecutionContext[Any], given: Any) -> None:
        self._context = context
        self._input = given

    def __reduce__(self) -> tuple[Any, ...]:
        return self._context.travelling(self._input)


class Shared:
    """A pickled value."""

    def __init__(self, value: Any) -> None:
        self.number = next(_numbers)
        self.segment: Segment | None = None
        self.blob = dump(value, make_pickler, self._open)
        self.stand_in = StandIn(self.number)

    def _open(self) -> int:
        self.segment = Segment.create()
        return self.segment.open()

    @property
    def path(self) -> str:
        """Where the shared memory is to be opened; empty if there is none."""
        return "" if self.segment is None else self.segment.path

    def close(self) -> None:
        """Let go of the shared memory."""
        if self.segment is not None:
            self.segment.close()


class Shares:
    """The shared values of one run.

    Args:
        given: The run's input.
    """

    def __init__(self, given: Any) -> None:
        self._input = given
        self._inputs = {}
        if isinstance(given, Mapping):
            self._inputs = {id(v): v for v in given.values() if type(v) not in _SMALL}
        # By identity of the value; None for what travels with each call.
        self._known: dict[int, Shared | None] = {}
        self._by_number: dict[int, Shared] = {}

    def call_of(self, job: Job) -> tuple[tuple[Any, ...], list[Shared]]:
        """Return a job's function, arguments and keyword arguments, and what they share."""
        used: list[Shared] = []
        function = self._function(job.function, used)
        if not self._inputs and self._input is None:
            return (function, job.args, job.kwargs), used
        args = tuple(self._argument(value, used) for value in job.args)
        kwargs = {name: self._argument(value, used) for name, value in job.kwargs.items()}
        return (function, args, kwargs), used

    def _function(self, function: Callable[..., Any], used: list[Shared]) -> Any:
        if type(function) is not FunctionType or function.__closure__ or is_by_name(function):
            # A closure's variables, an object's attributes may change from call to call.
            return function
        return self._in_place(function, used)

    def _argument(self, value: Any, used: list[Shared]) -> Any:
        if id(value) in self._inputs:
            return self._in_place(value, used)
        if isinstance(value, ExecutionContext) and value.input is self._input:
            return SentContext(value, self._whole_input(used))
        return value

    def _whole_input(self, used: list[Shared]) -> Any:
        given = self._input
        if type(given) is dict:
            return {
                key: self._in_place(value, used) if id(value) in self._inputs else value
                for key, value in given.items()
            }
        return given if type(given) in _SMALL else self._in_place(given, used)

    def _in_place(self, value: Any, used: list[Shared]) -> Any:
        known = self._known.get(id(value), self)
        if known is self:
            known = self._known[id(value)] = self._shared(value)
        if known is None:
            return value
        assert isinstance(known, Shared)
        used.append(known)
        return known.stand_in

    def _shared(self, value: Any) -> Shared | None:
        if isinstance(value, str | bytes) and len(value) < _WORTH:
            return None
        try:
            shared = Shared(value)
        except Exception:
            return None  # the call cannot be pickled either, and says whose fault that is
        if size_of(shared.blob) < _WORTH and not isinstance(value, FunctionType):
            shared.close()
            return None
        self._by_number[shared.number] = shared
        return shared

    def send(self, used: list[Shared], session: Session) -> None:
        """Send what a worker has not got yet."""
        for shared in used:
            session.share(shared.number, shared.path, shared.blob)

    def close(self, sessions: "Iterator[Session]") -> None:
        """Let go of everything, here and in the workers."""
        for session in sessions:
            for number in self._by_number:
                session.forget(number)
        for shared in self._by_number.values():
            shared.close()
        self._by_number.clear()
        self._known.clear()


def is_by_name(function: FunctionType) -> bool:
    """Return whether a function travels as the name of a module and its own in there."""
    module: Any = sys.modules.get(function.__module__)
    if module is None or function.__module__ == "__main__" or not importable(function.__module__):
        return False
    found = module
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def quickly_packed(call: tuple[Any, ...]) -> bytes | None:
    """Pickle a small call without a Python pickler; None if it is not as plain as that."""
    function, args, kwargs = call[:3]
    named = isinstance(function, StandIn) or (
        type(function) is FunctionType and is_by_name(function)
    )
    if named and all(
        is_plain(value) or isinstance(value, StandIn) for value in (*args, *kwargs.values())
    ):
        content = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
        if len(content) < SPILL:
            return inline(content)
    return None
