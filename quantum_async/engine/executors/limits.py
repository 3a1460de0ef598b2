"""What worker processes may use."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from quantum_async.core.checks import check_count
from quantum_async.core.errors import PlanError


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What the worker processes of a partitioner's runs may use.

    Attributes:
        max_uses: After so many units a worker makes room for a new one.
        max_memory: It does too when it holds more than so many bytes after a unit.
        max_result_bytes: The most bytes of a unit's result, where the unit does not say it.
        batch: Whether short units may be sent to a worker several at a time.
        contextvars: Places, as ``module:name``, of the context variables whose values travel.
    """

    max_uses: int | None = None
    max_memory: int | None = None
    max_result_bytes: int | None = None
    batch: bool = True
    contextvars: tuple[str, ...] = ()

    @property
    def batches(self) -> bool:
        """Whether units may be sent several at a time: not where workers are counted or weighed."""
        return self.batch and self.max_uses is None and self.max_memory is None

    @classmethod
    def checked(
        cls,
        max_uses: Any,
        max_memory: Any,
        max_result_bytes: Any,
        batch: Any,
        contextvars: Sequence[ContextVar[Any] | str],
    ) -> "WorkerLimits":
        """Return limits that can be meant.

        Raises:
            PlanError: For anything else.
        """
        check_count("max_uses", max_uses)
        check_count("max_memory", max_memory)
        check_count("max_result_bytes", max_result_bytes)
        if not isinstance(batch, bool):
            raise PlanError(f"batch must be True or False, not {batch!r}")
        paths: tuple[str, ...] = ()
        if contextvars:
            from quantum_async.engine.executors.carry import paths_of

            paths = paths_of(contextvars)
        return cls(max_uses, max_memory, max_result_bytes, batch, paths)
