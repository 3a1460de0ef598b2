"""States computed from events, one after the other: of a run that goes on, or of a recorded one."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Generic, TypeVar, overload

from quantum_async.core.events import Event

S = TypeVar("S")
Reducer = Callable[[S, Any], S]


class Projection(Generic[S]):
    """An observer that keeps a state: ``run(observers=[projection])``, then ``projection.state``.

    Args:
        reducer: Takes the state and an event, and returns the next state.
        initial: The state before the first event.
        event_types: The types of events that it takes; all without.
    """

    def __init__(
        self,
        reducer: Reducer[S],
        initial: S,
        *,
        event_types: tuple[type[Event], ...] | None = None,
    ) -> None:
        self._reducer = reducer
        self.state = initial
        self.event_types = event_types

    def __call__(self, event: Any) -> None:
        """Go on to the next state."""
        self.state = self._reducer(self.state, event)

    def __repr__(self) -> str:
        return f"<Projection: {self.state!r}>"


@overload
def project(events: Iterable[Event], reducer: Reducer[S], initial: S) -> S: ...
@overload
def project(events: AsyncIterable[Event], reducer: Reducer[S], initial: S) -> AsyncIterator[S]: ...
def project(events: Any, reducer: Reducer[S], initial: S) -> Any:
    """Fold events into a state.

    Args:
        events: Recorded events; or a stream of a run that goes on.
        reducer: Takes the state and an event, and returns the next state. It is called once an
            event, in their order; the same events give the same states, live and recorded.
        initial: The state before the first event.

    Returns:
        The last state; for a stream, an asynchronous iterator of the state after each event.

    Raises:
        TypeError: If `events` are no events.

    Example:
        >>> from quantum_async import QuantumPartitioner, project
        >>> from quantum_async.core.events import UnitCompleted
        >>> recorded = []
        >>> flow = QuantumPartitioner(observers=[recorded.append])
        >>> _ = flow.add_unit(lambda ctx: 1, name="one")
        >>> _ = flow.execute()
        >>> project(recorded, lambda n, event: n + isinstance(event, UnitCompleted), 0)
        1
    """
    if isinstance(events, AsyncIterable):
        return _states(events, reducer, initial)
    if not isinstance(events, Iterable):
        raise TypeError(f"events must be a list of events or a stream, not {events!r}")
    state = initial
    for event in events:
        state = reducer(state, event)
    return state


async def _states(events: AsyncIterable[Event], reducer: Reducer[S], state: S) -> AsyncIterator[S]:
    async for event in events:
        state = reducer(state, event)
        yield state
