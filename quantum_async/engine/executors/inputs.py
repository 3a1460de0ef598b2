"""The large values of a run's input go to a cluster once, and not with each call."""

import asyncio
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from quantum_async.core.binding import Binding, ContextBinding, WiredBinding
from quantum_async.core.context import ExecutionContext
from quantum_async.core.shapes import ItemBinding
from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.cluster import RemoteExecutor
from quantum_async.engine.executors.references import RemoteValue
from quantum_async.engine.executors.shares import SentContext

_WORTH = 100_000  # bytes


class Inputs:
    """The values of a run's input that are on a cluster.

    Args:
        executor: The cluster.
        given: The run's input.
    """

    def __init__(self, executor: RemoteExecutor, given: Any) -> None:
        self._executor = executor
        self._given = given
        self._there: dict[int, RemoteValue] = {}  # by identity

    async def store(self, bindings: Iterable[Binding]) -> None:
        """Send what units read and is large; what cannot be sent travels with each call.

        Args:
            bindings: How the units that run there get their arguments.
        """
        values = {id(it): it for it in self._read_by(bindings) if _size(it) >= _WORTH}
        sent = (self._executor.put(value) for value in values.values())
        for value, reference in zip(
            values.values(), await asyncio.gather(*sent, return_exceptions=True), strict=True
        ):
            if not isinstance(reference, BaseException):
                there = self._there[id(value)] = RemoteValue("the input", "", self._executor)
                there.reference, there.size = reference, _size(value)

    def _read_by(self, bindings: Iterable[Binding]) -> Iterable[Any]:
        given = self._given
        named: set[str] = set()
        for binding in bindings:
            if isinstance(binding, ItemBinding):
                binding = binding.others
            if isinstance(binding, ContextBinding) or getattr(binding, "context", None):
                return [*given.values(), given] if isinstance(given, Mapping) else [given]
            if isinstance(binding, WiredBinding):
                named.update(binding.names)
        if not isinstance(given, Mapping):
            return ()
        return [value for name, value in given.items() if name in named]

    def call_of(self, job: Job) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a job's arguments, with what stands for the values that are there."""
        if not self._there:
            return job.args, job.kwargs
        args = tuple(map(self._instead, job.args))
        return args, {name: self._instead(value) for name, value in job.kwargs.items()}

    def _instead(self, value: Any) -> Any:
        if isinstance(value, ExecutionContext) and value.input is self._given:
            given = self._given
            if type(given) is dict:
                given = {key: self._there.get(id(one), one) for key, one in given.items()}
            else:
                given = self._there.get(id(given), given)
            return SentContext(value, given)
        return self._there.get(id(value), value)

    def close(self) -> None:
        """Let the cluster forget them."""
        self._there.clear()


def _size(value: Any) -> int:
    """Return at least how many bytes a value takes, as far as that is told at once."""
    own = getattr(value, "nbytes", None)
    return own if isinstance(own, int) else sys.getsizeof(value)
