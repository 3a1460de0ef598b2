"""What worker processes may use."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from quantum_async.core.unit import check_count


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What the worker processes of a partitioner's runs may use.

    Attributes:
        max_uses: After so many units a worker makes room for a new one.
        max_memory: It does too when it holds more than so many bytes after a unit.
        max_result_bytes: The most bytes of a unit's result, where the unit does not say it.
        contextvars: Places, as ``module:name``, of the context variables whose values travel.
    """

    max_uses: int | None = None
    max_memory: int | None = None
    max_result_bytes: int | None = None
    contextvars: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls,
        max_uses: Any,
        max_memory: Any,
        max_result_bytes: Any,
        contextvars: Sequence[ContextVar[Any] | str],
    ) -> "WorkerLimits":
        """Return limits that can be meant.

        Raises:
            PlanError: For anything else.
        """
        check_count("max_uses", max_uses)
        check_count("max_memory", max_memory)
        check_count("max_result_bytes", max_result_bytes)
        if not contextvars:
            return cls(max_uses, max_memory, max_result_bytes)
        from quantum_async.engine.executors.carry import paths_of

        return cls(max_uses, max_memory, max_result_bytes, paths_of(contextvars))
