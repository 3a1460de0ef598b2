"""Events to whom they concern: by type, unit or tag; asynchronous handlers in their own task."""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import copy_context
from fnmatch import translate
from typing import Any, Self, TypeVar, overload

from quantum_async.core.events import EVENT_TYPES, Event, RunFinished
from quantum_async.core.plan import ExecutionPlan
from quantum_async.observe.log import complain

H = TypeVar("H", bound=Callable[[Any], object])


class Subscription:
    """A handler, and which events it is for; ``cancel()`` ends it.

    Args:
        bus: Where it is.
        handler: Called with each event; what it gives is awaited if it is a coroutine.
        event_types: Types of events; all if there are none.
        unit: A name of units, where ``*`` is any text and ``?`` any character.
        tag: One of the unit's ``metadata["tags"]``.
    """

    def __init__(
        self,
        bus: "EventBus",
        handler: Callable[[Any], object],
        event_types: tuple[type[Event], ...],
        unit: str | None,
        tag: str | None,
    ) -> None:
        self._bus = bus
        self._handler = handler
        self._pattern = None if unit is None else _pattern(unit)
        self._tag = tag
        self._queue: deque[Coroutine[Any, Any, object]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._context = copy_context()
        self._complained = False
        self.event_types = event_types or EVENT_TYPES

    def cancel(self) -> None:
        """End the subscription; what was told already is still handled."""
        self._bus.discard(self)

    def wants(self, event: Any, tags: Callable[[], Iterable[str]]) -> bool:
        """Whether an event is for this handler."""
        if not isinstance(event, self.event_types):
            return False
        if self._pattern is None and self._tag is None:
            return True
        unit = getattr(event, "unit", None)
        if unit is None:
            return False
        fits = self._pattern is None or self._pattern.match(unit) is not None
        return fits and (self._tag is None or self._tag in tags())

    def handle(self, event: Any) -> None:
        """Call the handler; if it is asynchronous, its task goes on with it."""
        try:
            given = self._handler(event)
        except Exception as error:
            self._failed(error)
            return
        if not asyncio.iscoroutine(given):
            return
        self._queue.append(given)
        if self.task is None:
            # Not in the context variables of the unit whose end is told here.
            self._task = asyncio.get_running_loop().create_task(
                self._work(), name=repr(self), context=self._context.copy()
            )
            self._task.add_done_callback(self._over)

    async def _work(self) -> None:
        """Await what the handler gave, in order; end when there is nothing more."""
        while self._queue:
            try:
                await self._queue.popleft()
            except Exception as error:
                self._failed(error)

    def _over(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            while self._queue:
                self._queue.popleft().close()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of the asynchronous handler, while it has something to do."""
        return None if self._task is None or self._task.done() else self._task

    def _failed(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            complain(f"the handler {self!r} of an EventBus raised; it is not said again", error)

    def __repr__(self) -> str:
        name = getattr(self._handler, "__qualname__", None)
        return str(name) if name else type(self._handler).__qualname__


class EventBus:
    """An observer that passes events on to whom they concern.

    A plain handler is called at once, on the event loop. A coroutine function is awaited in a task
    of its own, one event after the other; the run does not wait for it. A handler that raises is
    named in the log once, and gets the next event all the same. At the end of an ``async with``
    block all handlers have done their work; without one, see `wait_idle`.

    Example:
        >>> import asyncio
        >>> from quantum_async import EventBus, QuantumPartitioner
        >>> from quantum_async.core.events import UnitCompleted
        >>> flow = QuantumPartitioner()
        >>> _ = flow.add_unit(lambda ctx: 1, name="load-a", metadata={"tags": ["input"]})
        >>> async def main():
        ...     async with EventBus() as bus:
        ...         bus.subscribe(lambda event: print(event.unit), UnitCompleted, tag="input")
        ...         await flow.run(observers=[bus])
        >>> asyncio.run(main())
        load-a
    """

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._working: set[Subscription] = set()
        self._plans: dict[str, list[tuple[str, ExecutionPlan]]] = {}

    @property
    def event_types(self) -> tuple[type[Event], ...]:
        """The types that anybody subscribed to; a run reads it when it starts."""
        # The end of each run is always heard: what is known of its plan goes then.
        wanted = {kind for one in self._subscriptions for kind in one.event_types}
        return tuple(kind for kind in EVENT_TYPES if kind in wanted or kind is RunFinished)

    def subscribe(
        self,
        handler: Callable[[Any], object],
        *event_types: type[Event],
        unit: str | None = None,
        tag: str | None = None,
    ) -> Subscription:
        """Have a handler called with events, of the runs that start from now on.

        Args:
            handler: A callable that takes an event, plain or asynchronous.
            event_types: Only events of these types; of all without.
            unit: Only those of units with this name, where ``*`` is any text and ``?`` any
                character; ``map[*]`` are the children of a map, ``name/*`` those of a nested run.
            tag: Only those of units that have it in ``metadata["tags"]``; children have their
                map's.

        Raises:
            TypeError: For anything that could not be meant.
        """
        _check(handler, event_types, unit, tag)
        subscription = Subscription(self, handler, event_types, unit, tag)
        self._subscriptions.append(subscription)
        return subscription

    @overload
    def on(self, handler: H, /) -> H: ...
    @overload
    def on(
        self, *event_types: type[Event], unit: str | None = None, tag: str | None = None
    ) -> Callable[[H], H]: ...
    def on(self, *given: Any, unit: str | None = None, tag: str | None = None) -> Any:
        """Subscribe the decorated function, bare or with the arguments of `subscribe`."""
        if len(given) == 1 and given[0] not in EVENT_TYPES and callable(given[0]):
            self.subscribe(given[0])
            return given[0]

        def decorated(handler: H) -> H:
            self.subscribe(handler, *given, unit=unit, tag=tag)
            return handler

        return decorated

    def discard(self, subscription: Subscription) -> None:
        """End a subscription."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def on_plan(self, run_id: str, plan: ExecutionPlan, prefix: str) -> None:
        """Take the plan of a run, or of one inside it, whose units' names begin with `prefix`."""
        self._plans.setdefault(run_id, []).append((prefix, plan))

    def __call__(self, event: Any) -> None:
        """Pass an event on."""
        for subscription in tuple(self._subscriptions):
            if subscription.wants(event, lambda: self._tags(event)):
                subscription.handle(event)
                if subscription.task is not None:
                    self._working.add(subscription)
        if isinstance(event, RunFinished):
            self._plans.pop(event.run_id, None)

    async def wait_idle(self) -> None:
        """Wait until asynchronous handlers have handled all that they were given."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for task in self._tasks():
                task.cancel()
        await self.wait_idle()

    def _tasks(self) -> list[asyncio.Task[None]]:
        self._working = {one for one in self._working if one.task is not None}
        return [one.task for one in self._working if one.task is not None]

    def _tags(self, event: Any) -> Iterable[str]:
        for prefix, plan in reversed(self._plans.get(event.run_id, ())):
            if event.unit.startswith(prefix):
                name = event.unit.removeprefix(prefix)
                number = plan.index.get(name)
                if number is None:
                    number = plan.index.get(name.rpartition("[")[0])
                if number is not None:
                    tags = plan.handles[number].metadata.get("tags", ())
                    return (tags,) if isinstance(tags, str) else tuple(tags)
        return ()


def _pattern(unit: str) -> re.Pattern[str]:
    # Brackets are part of names here: those of a map's children.
    return re.compile(translate(unit.replace("[", "[[]")))


def _check(handler: Any, event_types: Any, unit: Any, tag: Any) -> None:
    if not callable(handler):
        raise TypeError(f"a handler is a callable that takes an event, not {handler!r}")
    for kind in event_types:
        if kind not in EVENT_TYPES:
            names = ", ".join(one.__name__ for one in EVENT_TYPES)
            raise TypeError(f"{kind!r} is no type of event; there are {names}")
    for name, text in (("unit", unit), ("tag", tag)):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"{name} must be a string, not {text!r}")
