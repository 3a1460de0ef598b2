"""The three assignable hooks of a partitioner, as an observer."""

from collections.abc import Callable
from typing import Any

from quantum_async.core.events import Event, UnitCompleted, UnitFailed, UnitStarted, UnitTimedOut


class Hooks:
    """Calls a partitioner's hooks.

    Args:
        start: Called with the unit's name when its first attempt starts.
        complete: Called with name and result when it has one.
        error: Called with name and exception when it failed or timed out for good.
    """

    def __init__(
        self,
        start: Callable[[str], object] | None,
        complete: Callable[[str, Any], object] | None,
        error: Callable[[str, BaseException], object] | None,
    ) -> None:
        self._start, self._complete, self._error = start, complete, error
        types: list[type[Event]] = []
        types += [UnitStarted] if start else []
        types += [UnitCompleted] if complete else []
        types += [UnitFailed, UnitTimedOut] if error else []
        self.event_types = tuple(types)

    def __call__(self, event: Any) -> None:
        """Call the hook that an event belongs to."""
        match event:
            case UnitStarted(attempt=1) if self._start:
                self._start(event.unit)
            case UnitCompleted() if self._complete:
                self._complete(event.unit, event.result)
            case UnitFailed() | UnitTimedOut() if self._error:
                self._error(event.unit, event.error)

    def __repr__(self) -> str:
        return "the partitioner's hooks"
