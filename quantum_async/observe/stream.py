"""A run's events, or its results, as an asynchronous iterator."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from quantum_async.core.events import Event, UnitCompleted
from quantum_async.core.plan import ExecutionPlan

R = TypeVar("R")

BLOCK, DROP_OLDEST = "block", "drop_oldest"


class Live(Protocol):
    """A run that goes on, as one may ask it."""

    @property
    def plan(self) -> ExecutionPlan:
        """What runs."""
        ...

    @property
    def running(self) -> dict[str, float]:
        """Seconds since the first start of each unit that runs, by name."""
        ...

    def explain(self, unit: str) -> str:
        """Say what a unit waits for."""
        ...


# Gives the run's coroutine, for the inbox, and for what takes the run as it begins and its result.
Start = Callable[["Inbox", Callable[[Live], None], Callable[[R], None]], Coroutine[Any, Any, R]]


class Inbox:
    """Events that were told and not taken yet: an observer, and the gate of a run that waits.

    Args:
        size: How many events it holds.
        overflow: ``"block"``: the run starts nothing more while it is full. ``"drop_oldest"``.
        event_types: The types of events that it takes; all without.

    Attributes:
        dropped: How many events were dropped.
    """

    def __init__(
        self, size: int, overflow: str, event_types: tuple[type[Event], ...] | None = None
    ) -> None:
        self._size = size
        self._drops = overflow == DROP_OLDEST
        self._events: deque[Event] = deque()
        self._takers: set[asyncio.Future[None]] = set()
        self._held: list[Callable[[], object]] = []
        self.dropped = 0
        self.gate = None if self._drops else self
        self.event_types = event_types

    def __call__(self, event: Event) -> None:
        """Put an event in."""
        self._events.append(event)
        if self._drops and len(self._events) > self._size:
            self._events.popleft()
            self.dropped += 1
        self.wake()

    @property
    def is_shut(self) -> bool:
        """Whether it is full."""
        return len(self._events) >= self._size

    def call_when_open(self, callback: Callable[[], object]) -> None:
        """Call `callback` once, when there is room again."""
        if callback not in self._held:
            self._held.append(callback)

    async def wait_news(self) -> None:
        """Wait until there may be something to take."""
        news = asyncio.get_running_loop().create_future()
        self._takers.add(news)
        try:
            await news
        finally:
            self._takers.discard(news)

    def wake(self, _: object = None) -> None:
        """Wake those who wait."""
        for news in self._takers:
            if not news.done():
                news.set_result(None)

    def take(self) -> Event:
        """Take the oldest event out."""
        event = self._events.popleft()
        if self._held and not self.is_shut:
            held, self._held = self._held, []
            for go_on in held:
                go_on()
        return event

    def __len__(self) -> int:
        return len(self._events)

    def __bool__(self) -> bool:
        return True  # an observer, also when there is nothing in it


class EventStream(Generic[R]):
    """The events of one run, which lives as long as the ``async with`` block.

    Leaving the block cancels the run, if it still goes on, and waits until it has ended. If it had
    already failed, its error is raised on leaving. `result` is there afterwards.

    Args:
        start: Gives the run's coroutine.
        inbox: Where its events are until they are taken.
    """

    def __init__(self, start: Start[R], inbox: Inbox) -> None:
        self._start = start
        self._inbox = inbox
        self._run: Live | None = None
        self._task: asyncio.Task[R] | None = None
        self.result: R | None = None

    @property
    def dropped(self) -> int:
        """How many events were dropped because the buffer was full."""
        return self._inbox.dropped

    @property
    def plan(self) -> ExecutionPlan | None:
        """What runs; None before it has begun."""
        return None if self._run is None else self._run.plan

    @property
    def running(self) -> dict[str, float]:
        """Seconds since the first start of each unit that runs now, by name, oldest first."""
        return {} if self._run is None else self._run.running

    def explain(self, unit: Any) -> str:
        """Say what a unit is doing now, and what it waits for.

        Args:
            unit: Its name or handle.

        Raises:
            KeyError: If there is no such unit in the run.
            RuntimeError: If the run has not begun.
        """
        if self._run is None:
            raise RuntimeError("the run has not begun: take an event of the stream first")
        return self._run.explain(getattr(unit, "id", unit))

    async def __aenter__(self) -> "EventStream[R]":
        if self._task is not None:
            raise RuntimeError("a stream is of one run and cannot be entered again")
        # Not through the loop's task factory, which may start it on the spot.
        run = self._start(self._inbox, self._begin, self._keep)
        self._task = asyncio.Task(run, loop=asyncio.get_running_loop())
        self._task.add_done_callback(self._inbox.wake)
        return self

    def __aiter__(self) -> "EventStream[R]":
        return self

    async def __anext__(self) -> Event:
        if self._task is None:
            raise RuntimeError("use the stream in an `async with` block: it starts the run")
        while not len(self._inbox):
            if self._task.done():
                raise StopAsyncIteration
            await self._inbox.wait_news()
        return self._inbox.take()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task = self._task
        assert task is not None  # entered before it is left
        over = task.done()
        if not over:
            task.cancel()
        interrupted = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as again:
                interrupted = again  # the run is waited for all the same
        failure = None if task.cancelled() else task.exception()
        if interrupted is not None:
            raise interrupted
        # A run that was cut off by leaving has no failure of its own to tell of.
        if failure is not None and error is None and over:
            raise failure

    def _begin(self, run: Live) -> None:
        self._run = run

    def _keep(self, result: R) -> None:
        self.result = result


class ResultStream(Generic[R]):
    """The results of a run as they come: ``async for unit, result in flow.results(ctx)``.

    The run starts with the loop. Leaving the loop early cancels the run; in an ``async with`` block
    that is waited for. If the run failed, its error is raised when there are no more results.

    Args:
        stream: The run's stream; only `UnitCompleted` is needed of it.
        children: Whether children of maps and units of nested runs come too.
    """

    def __init__(self, stream: EventStream[R], *, children: bool) -> None:
        self._stream = stream
        self._children = children
        self._items: AsyncIterator[tuple[str, Any]] | None = None

    @property
    def result(self) -> R | None:
        """The run's result, when it has ended."""
        return self._stream.result

    async def __aenter__(self) -> "ResultStream[R]":
        # What was opened is closed: a loop alone leaves that to the collector.
        self._items = _completed(self._stream, self._children)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the run, if it goes on, and wait for it."""
        items, self._items = self._items, None
        if items is not None:
            await items.aclose()  # type: ignore[attr-defined]

    def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        return self._items or _completed(self._stream, self._children)


async def _completed(stream: EventStream[Any], children: bool) -> AsyncIterator[tuple[str, Any]]:
    # No scope and no task group is open at the `yield`: the run is a task of its own.
    async with stream:
        async for event in stream:
            assert isinstance(event, UnitCompleted)  # the inbox takes no others
            if children or stream.plan is None or event.unit in stream.plan.index:
                yield event.unit, event.result
