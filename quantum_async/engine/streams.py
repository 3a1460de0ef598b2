"""Items of a unit as they come: from async generators and maps, to maps and ``ctx.stream``.

A source pushes; takers take. Nobody keeps more than a bounded number of items that wait: a source
looks at `has_room` before it makes another. The items are kept only if somebody may want them all.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any, Protocol

from quantum_async.core.errors import DependencyError
from quantum_async.core.phases import COMPLETED
from quantum_async.core.shapes import Mapped
from quantum_async.engine.executors.base import Job
from quantum_async.engine.setup import Setup

BOUND = 32  # items that may wait for a taker


class Taker(Protocol):
    """A map over the items of a stream."""

    @property
    def has_room(self) -> bool:
        """Whether another item may come."""
        ...

    def feed(self, index: int, item: Any) -> None:
        """Take an item."""
        ...

    def source_over(self, *, lost: bool) -> None:
        """No more items will come; `lost` says that the source has no result."""
        ...


class Stream:
    """What one unit gives while it runs.

    Args:
        keeps: Whether the items are kept, for readers or for the unit's result.
        room_again: Called when there is room after there was none.
    """

    __slots__ = (
        "_early", "_gap", "_keeps", "_news", "_room_again", "_was_full", "awaited", "ended",
        "error", "items", "pushed", "readers", "takers",
    )  # fmt: skip

    def __init__(self, *, keeps: bool, room_again: Callable[[], None]) -> None:
        self._keeps = keeps
        self._room_again = room_again
        self._was_full = False
        self._gap: asyncio.Future[None] | None = None  # the source waits for room
        self._news: list[asyncio.Future[None]] = []  # readers wait for items
        self.items: list[Any] = []
        self.pushed = 0
        self.takers: list[Taker] = []
        self.awaited: set[int] = set()  # takers that are not open yet, for which items are kept
        self._early: list[tuple[int, Any]] = []
        self.readers: dict[int, int] = {}  # how many items each unit has read
        self.ended = False
        self.error: Callable[[], BaseException] | None = None

    @property
    def has_room(self) -> bool:
        """Whether everybody can take another item."""
        room = (
            len(self._early) < BOUND
            and all(taker.has_room for taker in self.takers)
            and all(self.pushed - read < BOUND for read in self.readers.values())
        )
        self._was_full |= not room
        return room

    def push(self, index: int, item: Any) -> None:
        """Give an item to all that take them."""
        self.pushed += 1
        if self._keeps:
            self.items.append(item)
        if self.awaited:
            self._early.append((index, item))
        for taker in self.takers:
            taker.feed(index, item)
        self._tell()

    def join(self, unit: int, taker: Taker) -> None:
        """A taker is open: it gets what came before it, and all that comes."""
        self.takers.append(taker)
        for index, item in list(self._early):
            taker.feed(index, item)
        self._no_longer_awaits(unit)
        if self.ended:
            taker.source_over(lost=self.error is not None)

    def _no_longer_awaits(self, unit: int) -> None:
        self.awaited.discard(unit)
        if not self.awaited and self._early:
            self._early.clear()
            self.taken()

    def close(self, error: Callable[[], BaseException] | None = None) -> None:
        """No more items will come; with `error`, because the source has no result."""
        if self.ended:
            return
        self.ended, self.error = True, error
        for taker in list(self.takers):
            taker.source_over(lost=error is not None)
        self._tell()

    def taken(self) -> None:
        """A taker or reader has more room, or is gone."""
        if self._was_full and self.has_room:
            self._was_full = False
            if self._gap is not None and not self._gap.done():
                self._gap.set_result(None)
            self._room_again()

    async def room(self) -> None:
        """Wait until there is room."""
        while not self.has_room:
            self._gap = asyncio.get_running_loop().create_future()
            await self._gap

    def leave(self, unit: int) -> None:
        """A reader or taker has ended: nobody waits for it any more."""
        self._no_longer_awaits(unit)
        if self.readers.pop(unit, None) is not None:
            self.taken()

    async def read(self, unit: int, inside: "Inside") -> AsyncIterator[Any]:
        """Iterate over all items, from the first one on, as they come.

        The reader holds no slot while it waits: the source may need that very one.
        """
        at = 0
        self.readers[unit] = 0
        while True:
            while at < len(self.items):
                item = self.items[at]
                at += 1
                if unit in self.readers:
                    self.readers[unit] = at
                self.taken()
                yield item
            if self.ended:
                break
            await inside.without_slot(unit, self._next_news())
        if self.error is not None:
            raise self.error()

    async def _next_news(self) -> None:
        news = asyncio.get_running_loop().create_future()
        self._news.append(news)
        await news

    def _tell(self) -> None:
        news, self._news = self._news, []
        for future in news:
            if not future.done():
                future.set_result(None)


class Inside(Protocol):
    """What lets units wait for others."""

    async def without_slot(self, unit: int, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait for something while the unit's slot is free."""
        ...

    async def nest(
        self,
        unit: int,
        attempt: int,
        flow: Any,
        input: Any,  # noqa: A002
        options: dict[str, Any],
    ) -> Any:
        """Run another partitioner inside the run."""
        ...


class Streams:
    """The streams of one run.

    Args:
        setup: All that the run is made of.
        room_again: Called with a map whose takers have room again.
        poke: Called when somebody may start.
    """

    def __init__(
        self, setup: Setup, room_again: Callable[[int], None], poke: Callable[[], None]
    ) -> None:
        self._setup = setup
        self._plan = setup.plan
        self._rows = setup.rows
        self._scheduler = setup.scheduler
        self._ledger = setup.ledger
        self._room_again = room_again
        self._poke = poke
        self._streams: dict[int, Stream] = {}

    def known(self, unit: int) -> Stream | None:
        """Return the stream of a unit that has begun."""
        return self._streams.get(unit)

    def of(self, unit: int) -> Stream:
        """Return the stream of a unit, made if there is none."""
        stream = self._streams.get(unit)
        if stream is None:
            live = self._plan.streams.get(unit, ())
            readers = [
                n for n in live if not isinstance(self._rows.handles[n].options.shape, Mapped)
            ]
            stream = self._streams[unit] = Stream(
                keeps=bool(readers), room_again=partial(self._room_again, unit)
            )
            going = [n for n in live if not self._scheduler.has_ended(n)]
            stream.readers.update((n, 0) for n in going if n in readers)
            stream.awaited.update(n for n in going if n not in readers)
        return stream

    def begin(self, unit: int) -> None:
        """A unit begins to give items: who takes them may start."""
        if unit in self._plan.streams:
            self._scheduler.begin_stream(unit)
            self._poke()

    def streaming(self, unit: int, inside: Inside) -> Callable[[Job], Coroutine[Any, Any, Any]]:
        """Return what runs an asynchronous generator as a unit."""
        stream = self.of(unit)
        if self._ledger.attempts[unit] == 1:
            self.begin(unit)
        return partial(self._gather, unit, stream, inside)

    async def _gather(self, unit: int, stream: Stream, inside: Inside, job: Job) -> list[Any]:
        items: list[Any] = []
        seen, pushed, live = 0, stream.pushed, unit in self._plan.streams
        keep = self._setup.keep
        below, live_below = self._plan.edges_down[unit], self._plan.streams.get(unit, ())
        keeps = keep is None or unit in keep or any(n not in live_below for n in below)
        async with aclosing(job()) as generator:
            async for item in generator:
                if keeps:
                    items.append(item)
                seen += 1
                # What an earlier attempt gave is not given again.
                if live and seen > pushed:
                    stream.push(seen - 1, item)
                    if not stream.has_room:
                        await inside.without_slot(unit, stream.room())
        return items

    async def read(self, unit: int, source: int, inside: Inside) -> AsyncIterator[Any]:
        """Iterate over the items of a unit as they come, for another one."""
        stream = self._streams.get(source)
        if stream is not None and unit in self._plan.streams.get(source, ()):
            async with aclosing(stream.read(unit, inside)) as items:  # type: ignore[type-var]
                async for item in items:
                    yield item
            return
        outcome = self._ledger.outcome(source)
        if not outcome.ok:
            raise self._no_result(source)
        for item in outcome.result:
            yield item

    def _push_rest(self, stream: Stream, fallback: Any) -> None:
        """Give what a fallback has more than was given already; one without items has none."""
        if isinstance(fallback, Iterable):
            for index, item in islice(enumerate(fallback), stream.pushed, None):
                stream.push(index, item)

    def _no_result(self, source: int) -> DependencyError:
        name, outcome = self._rows.names[source], self._ledger.outcome(source)
        why = f" ({outcome.cause or outcome.error})" if outcome.cause or outcome.error else ""
        return DependencyError(
            f"the stream of {name!r} ended without a result: it is {outcome.state.value}{why}"
        )

    def over(self, unit: int) -> None:
        """A unit has ended: its items have, and it takes no more of others."""
        stream = self._streams.get(unit)
        if stream is not None:
            won = self._scheduler.phase[unit] == COMPLETED
            if unit in self._ledger.fallbacks:
                self._push_rest(stream, self._ledger.results[unit])
            stream.close(None if won else partial(self._no_result, unit))
        for source in self._plan.edges_up[unit]:
            if source in self._streams:
                self._streams[source].leave(unit)
