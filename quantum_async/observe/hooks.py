"""The three assignable hooks of a partitioner, as observers: one that raises is dropped alone."""

from collections.abc import Callable
from typing import Any

from quantum_async.core.events import Event, UnitCompleted, UnitFailed, UnitStarted, UnitTimedOut


class Hook:
    """Calls one hook.

    Args:
        name: The hook's name.
        call: Takes an event and calls the hook with what belongs to it.
        event_types: The events it is for.
    """

    def __init__(self, name: str, call: Callable[[Any], object], *event_types: type[Event]) -> None:
        self._name = name
        self._call = call
        self.event_types = event_types

    def __call__(self, event: Any) -> None:
        """Call the hook."""
        self._call(event)

    def __repr__(self) -> str:
        return f"hook {self._name}"


def hooks(
    start: Callable[[str], object] | None,
    complete: Callable[[str, Any], object] | None,
    error: Callable[[str, BaseException], object] | None,
) -> list[Hook]:
    """Return observers that call those hooks that there are.

    Args:
        start: Called with the unit's name when its first attempt starts.
        complete: Called with name and result when it has one.
        error: Called with name and exception when it failed or timed out for good.
    """
    found = []
    if start is not None:
        found.append(Hook("on_unit_start", lambda e: e.attempt == 1 and start(e.unit), UnitStarted))
    if complete is not None:
        found.append(Hook("on_unit_complete", lambda e: complete(e.unit, e.result), UnitCompleted))
    if error is not None:
        ends = (UnitFailed, UnitTimedOut)
        found.append(Hook("on_unit_error", lambda e: error(e.unit, e.error), *ends))
    return found
