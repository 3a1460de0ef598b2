"""A run's events as an asynchronous iterator."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from quantum_async.core.events import Event

R = TypeVar("R")
Start = Callable[[Callable[[Event], None], Callable[[R], None]], Coroutine[Any, Any, R]]


class EventStream(Generic[R]):
    """The events of one run, which lives as long as the ``async with`` block.

    Leaving the block cancels the run, if it still goes on, and waits until it has ended. If it had
    already failed, its error is raised on leaving. `result` is there afterwards.

    Args:
        start: Gives the run's coroutine, for a function that takes its events and one that takes
            its result, however it ends.
    """

    def __init__(self, start: Start[R]) -> None:
        self._start = start
        self._events: deque[Event] = deque()
        self._task: asyncio.Task[R] | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self.result: R | None = None

    async def __aenter__(self) -> "EventStream[R]":
        if self._task is not None:
            raise RuntimeError("a stream is of one run and cannot be entered again")
        # Not through the loop's task factory, which may start it on the spot.
        run = self._start(self._take, self._keep)
        self._task = asyncio.Task(run, loop=asyncio.get_running_loop())
        self._task.add_done_callback(self._wake)
        return self

    def __aiter__(self) -> "EventStream[R]":
        return self

    async def __anext__(self) -> Event:
        if self._task is None:
            raise RuntimeError("use the stream in an `async with` block: it starts the run")
        while not self._events:
            if self._task.done():
                raise StopAsyncIteration
            news = asyncio.get_running_loop().create_future()
            self._waiting.add(news)
            try:
                await news
            finally:
                self._waiting.discard(news)
        return self._events.popleft()

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

    def _take(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def _keep(self, result: R) -> None:
        self.result = result

    def _wake(self, _: object = None) -> None:
        for news in self._waiting:
            if not news.done():
                news.set_result(None)
