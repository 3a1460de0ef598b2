"""A map while it is open: it makes children as slots come free, and takes their results.

At most `BOUND` children are ready and not started; the items behind them stay where they come from.
An iterable is asked for more when few of those are left; an async iterable has a task of its own,
which waits for room; another map or a streaming unit pushes, and looks whether there is room.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from quantum_async.core.binding import Handle
from quantum_async.core.phases import COMPLETED, FAILED, TIMEOUT
from quantum_async.core.plan import Unit
from quantum_async.core.record import NOTHING
from quantum_async.core.shapes import Mapped
from quantum_async.core.triggers import Trigger
from quantum_async.core.unit import QuantumUnit
from quantum_async.engine.streams import BOUND, Stream

_FEW = BOUND // 2  # ready children: when there are no more, the next ones are made, all at once


class Nursery(Protocol):
    """What a map asks of the run around it."""

    def make_child(self, parent: int, handle: Unit, index: int, item: Any) -> int:
        """Make a child, which is ready, and return its number."""
        ...

    def interrupt(self, error: BaseException) -> None:
        """Stop the run, and raise `error` from it."""
        ...

    def map_over(self, fan: "Fan") -> None:
        """A map has ended, in one way or another."""
        ...


class Fan:
    """One map while it is open.

    Args:
        nursery: The run around it.
        unit: The map's number.
        handle: The map.
        keeps: Whether anybody wants its result.
        out: Where its results go as they come; None if nobody takes them.

    Attributes:
        failures: Errors of children, in the order in which they came.
        source_error: Why no more items could be had.
        unclean: What the clean-up of its source raised when it was stopped.
        lost: Whether its source ended without a result.
        stopped: Whether it was stopped.
    """

    def __init__(
        self, nursery: Nursery, unit: int, handle: Unit, *, keeps: bool, out: Stream | None
    ) -> None:
        shape = handle.options.shape
        assert isinstance(shape, Mapped)
        self._nursery = nursery
        self.unit = unit
        self._handle = child_of(handle)
        self._shape = shape
        self._keeps = keeps
        self._out = out
        self._source: Iterator[Any] | None = None
        self._upstream: Stream | None = None
        self._pulling: asyncio.Task[None] | None = None
        self._gap: asyncio.Future[None] | None = None
        self._backlog: deque[tuple[int, Any]] = deque()
        self._results: list[Any] = []
        self._source_over = self._over = self._passes_errors = self._filling = False
        self._active = self._ready = self._made = 0
        self.failures: list[BaseException] = []
        self.source_error: BaseException | None = None
        self.unclean: BaseException | None = None
        self.lost = self.stopped = False

    # -- where items come from --------------------------------------------------------------

    def follow(self, upstream: Stream, *, has_errors: bool) -> None:
        """Take the items of another unit as they come; `has_errors` if it collects exceptions."""
        self._upstream = upstream
        self._passes_errors = has_errors
        upstream.join(self.unit, self)

    def over(self, items: Any) -> None:
        """Take the items of an iterable, or of an async iterable.

        Raises:
            TypeError: If it is neither.
        """
        if isinstance(items, AsyncIterable):
            self._pulling = asyncio.Task(self._pull(items))
            # Cancelled before its first step, it could not report.
            self._pulling.add_done_callback(self._pulled)
        elif isinstance(items, Iterable):
            self._source = iter(items)
            self.refill()
        else:
            raise TypeError(
                f"unit {self._handle.id!r} maps over a value of type {type(items).__name__}, which "
                "cannot be iterated"
            )

    async def _pull(self, items: AsyncIterable[Any]) -> None:
        try:
            iterator = aiter(items)
            if not hasattr(iterator, "aclose"):
                iterator = _closable(iterator)
            async with aclosing(iterator):  # type: ignore[type-var]
                async for item in iterator:
                    self.feed(self._made + len(self._backlog), item)
                    while not (self.has_room or self.stopped):
                        self._gap = asyncio.get_running_loop().create_future()
                        await self._gap
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._source_failed(error)

    def _pulled(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() and not self.stopped:
            self._source_failed(asyncio.CancelledError("the items were cancelled"))
        self._pulling = None
        self.source_over(lost=False)

    def _source_failed(self, error: BaseException) -> None:
        if self.stopped:
            self.unclean = error  # no clean-up goes over a cancellation
        else:
            self.source_error = error
            if isinstance(error, KeyboardInterrupt):
                self._nursery.interrupt(error)

    @property
    def has_room(self) -> bool:
        """Whether another item may come."""
        return len(self._backlog) + self._ready < BOUND

    def feed(self, index: int, item: Any) -> None:
        """Take an item, for a child as soon as one may be made."""
        if self._passes_errors and isinstance(item, BaseException):
            self._take(index, item)
            return
        self._backlog.append((index, item))
        self.refill()

    def source_over(self, *, lost: bool) -> None:
        """No more items will come; `lost` says that the source has no result."""
        self._source_over = True
        self.lost |= lost
        self._end_if_over()

    # -- children ---------------------------------------------------------------------------

    def _may_make(self) -> bool:
        most = self._shape.max_concurrency
        return (
            not self.stopped
            and self._ready < BOUND
            and (most is None or self._active < most)
            and (self._out is None or self._out.has_room)
        )

    def refill(self) -> None:
        """Make as many children as may be."""
        if self._filling:
            return  # a child that could not even start has ended; the loop below goes on
        self._filling = True
        try:
            self._make_children()
        finally:
            self._filling = False
        if self.has_room:
            if self._gap is not None and not self._gap.done():
                self._gap.set_result(None)
            if self._upstream is not None:
                self._upstream.taken()

    def _make_children(self) -> None:
        while self._backlog and self._may_make():
            self._make(*self._backlog.popleft())
        while self._source is not None and self._may_make():
            try:
                item = next(self._source)
            except StopIteration:
                self._source = None
                self.source_over(lost=False)
            except BaseException as error:
                self._source = None
                self._source_failed(error)
                self.source_over(lost=False)
            else:
                self._make(self._made, item)

    def _make(self, index: int, item: Any) -> None:
        self._made += 1
        self._active += 1
        self._ready += 1
        self._nursery.make_child(self.unit, self._handle, index, item)

    def child_started(self) -> None:
        """A child's first attempt has begun."""
        self._ready -= 1
        if self._ready <= _FEW:
            self.refill()

    def child_over(self, child: int, index: int, phase: int, value: Any, *, started: bool) -> None:
        """A child has ended.

        Args:
            child: Its number.
            index: That of its item.
            phase: How it ended.
            value: Its result, or its error.
            started: Whether it ever began.
        """
        self._active -= 1
        self._ready -= not started
        if phase == COMPLETED:
            self._take(index, value)
        elif phase in (FAILED, TIMEOUT):
            if self._shape.collect:
                self._take(index, value)
            else:
                self.failures.append(value)
        # When one ends that had started, there is room for another only where they are counted.
        if not started or self._shape.max_concurrency is not None:
            self.refill()
        self._end_if_over()

    def _take(self, index: int, value: Any) -> None:
        self._store(index, value)
        if self._out is not None:
            self._out.push(index, value)

    def _store(self, index: int, value: Any) -> None:
        if not self._keeps:
            return
        if not self._shape.ordered:
            self._results.append(value)
            return
        missing = index + 1 - len(self._results)
        if missing > 0:
            self._results.extend([NOTHING] * missing)
        self._results[index] = value

    # -- the end ----------------------------------------------------------------------------

    @property
    def error(self) -> BaseException | None:
        """Why the map failed, None if it did not."""
        if not self.failures:
            return self.source_error
        count = len(self.failures)
        told = f"{count} item{'s' * (count != 1)} of {self._handle.id!r} failed"
        if self.source_error is None:
            return BaseExceptionGroup(told, self.failures)
        told += ", and so did what it goes over"
        return BaseExceptionGroup(told, [*self.failures, self.source_error])

    @property
    def results(self) -> list[Any]:
        """What the map gives: one result an item, without those of items that were lost."""
        return [value for value in self._results if value is not NOTHING]

    def stop(self) -> None:
        """Make no children any more; those that there are end by themselves."""
        self.stopped = True
        self._backlog.clear()
        if self._source is not None:
            close: Callable[[], None] | None = getattr(self._source, "close", None)
            self._source = None
            if close is not None:
                try:
                    close()
                except BaseException as error:
                    self.unclean = error
        self._source_over = True
        if self._pulling is not None:
            self._pulling.cancel()
        self._end_if_over()

    def _end_if_over(self) -> None:
        done = self._source_over and not self._backlog and not self._active
        if done and self._pulling is None and not self._over:
            self._over = True
            self._nursery.map_over(self)


def child_of(handle: Unit) -> Unit:
    """Return the handle of a map's children: its function, and the options that are theirs."""
    options = replace(
        handle.options, shape=None, when=None, trigger=Trigger.ALL_SUCCESS, streams=()
    )
    child: Unit = QuantumUnit(handle.id, handle.function, metadata=handle.metadata, options=options)
    return child


def items_of(over: Any) -> str | None:
    """Return the name of the unit or input key that a map goes over, None if it has the items."""
    return over.id if isinstance(over, Handle) else over if isinstance(over, str) else None


async def _closable(iterator: Any) -> Any:
    async for item in iterator:
        yield item
