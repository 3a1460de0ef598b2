"""Virtual time: an asyncio loop whose clock jumps to the next timer when nothing else can run.

Sleeps, cancel scopes, back-off and deadlines take no real time. Real I/O comes first, and work
outside the loop holds the jump back until it returns: threads, subprocesses, units in worker
processes. Time starts at 0. uvloop's clock is in C, so that this can only be an asyncio loop.
"""

import asyncio
import concurrent.futures
import math
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any, NamedTuple, TypeVar

from quantum_async.engine.loops import running_loop

T = TypeVar("T")

_PATIENCE = 1.0  # real seconds for somebody outside to speak before it is called a deadlock
_LEAST = 1e-6  # seconds that any timer is ahead: one that is due at once for ever would stop time


class DeadlockError(RuntimeError):
    """Raised out of a loop on virtual time in which nothing will ever happen again."""


class Jump(NamedTuple):
    """One jump of a virtual clock, in seconds since it started.

    Attributes:
        start: What it said before.
        end: What it said after.
    """

    start: float
    end: float


class VirtualClock:
    """A clock, and the loops that live by it.

    Attributes:
        jumps: All jumps so far.
    """

    def __init__(self) -> None:
        self.jumps: list[Jump] = []
        self._now = 0.0

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def jump(self, end: float) -> None:
        """Go forward to a moment. For the loop."""
        if end > self._now:
            self.jumps.append(Jump(self._now, end))
            self._now = end

    def new_loop(self) -> "VirtualTimeLoop":
        """Return a new event loop on this time; also as ``asyncio.Runner(loop_factory=…)``."""
        return VirtualTimeLoop(self)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as `asyncio.run` does, on this time.

        Args:
            main: The coroutine.

        Raises:
            DeadlockError: If it waits for something that will never happen.
        """
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(main)

    def __repr__(self) -> str:
        return f"<VirtualClock at {self._now:g} s, {len(self.jumps)} jumps>"


class _Selector(selectors.BaseSelector):
    """Looks at real I/O as the real one does, and jumps where that would wait."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.loop: VirtualTimeLoop | None = None

    def select(self, timeout: float | None = None) -> list[Any]:
        found = self._real.select(0)
        loop = self.loop
        if found or loop is None or (timeout is not None and timeout <= 0):
            return found
        if loop.waits_for_others():
            return self._real.select(None)
        due = loop.next_timer()
        if due < math.inf:
            loop.clock.jump(due)
            return []
        # Somebody may still speak over a socket.
        found = self._real.select(_PATIENCE if len(self._real.get_map()) > 1 else 0)
        if not found and not loop.is_ending():
            raise DeadlockError(loop.who_waits())
        return found

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> Any:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self._real.get_map()

    def get_key(self, fileobj: Any) -> Any:
        return self._real.get_key(fileobj)

    def close(self) -> None:
        self._real.close()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time.

    Args:
        clock: What time it is.
    """

    def __init__(self, clock: VirtualClock) -> None:
        selector = _Selector()
        self.clock = clock
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = 1e-9
        self._outside = 0  # calls in executors
        self._subprocesses: list[asyncio.SubprocessTransport] = []

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.clock.time()

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call at a moment, which is always ahead."""
        when = max(when, self.time() + _LEAST)
        return super().call_at(when, callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call after some seconds."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def next_timer(self) -> float:
        """Return when the next timer is due; infinite without one."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return min((timer.when() for timer in timers if not timer.cancelled()), default=math.inf)

    def is_ending(self) -> bool:
        """Return whether it was told to stop."""
        return bool(self._stopping)  # type: ignore[attr-defined]

    # -- work outside -----------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Call in an executor; time stands still meanwhile."""
        future = super().run_in_executor(executor, func, *args)
        self._outside += 1
        future.add_done_callback(self._came_back)
        return future

    def hold(self, future: "concurrent.futures.Future[Any]") -> None:
        """Have time stand still until a future of another thread is done."""
        self._outside += 1

        def back(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                self.call_soon_threadsafe(self._came_back, None)

        future.add_done_callback(back)

    def _came_back(self, _: object) -> None:
        self._outside -= 1

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """Wait for the threads of the default executor; time stands still meanwhile."""
        self._outside += 1
        try:
            await super().shutdown_default_executor(*args, **options)
        finally:
            self._outside -= 1

    async def _make_subprocess_transport(self, *args: Any, **options: Any) -> Any:
        transport = await super()._make_subprocess_transport(  # type: ignore[misc]
            *args, **options
        )
        self._subprocesses.append(transport)
        return transport

    def waits_for_others(self) -> bool:
        """Return whether work outside this loop is under way."""
        alive = [one for one in self._subprocesses if one.get_returncode() is None]
        self._subprocesses = alive
        return self._outside > 0 or _busy_threads() or len(alive) > _idle_workers(self)

    def who_waits(self) -> str:
        """Say who waits for ever, and for what."""
        told = []
        for task in asyncio.all_tasks(self):
            frames = task.get_stack(limit=1)
            where = ""
            if frames:
                code = frames[-1].f_code
                where = f" in {code.co_qualname}, {code.co_filename}:{frames[-1].f_lineno}"
            told.append(f"  {task.get_name()}{where}")
        return (
            "deadlock: no timer is set, nothing runs outside the loop, and these wait for ever:\n"
            + "\n".join(sorted(told))
        )


def _busy_threads() -> bool:
    """Return whether one of anyio's worker threads works for the running loop."""
    with suppress(Exception):  # it is not public
        from anyio._backends import _asyncio as backend

        return len(backend._threadpool_workers.get()) > len(backend._threadpool_idle_workers.get())
    return False


def _idle_workers(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many worker processes wait for work: anyio's, and those that serve us."""
    idle = 0
    with suppress(Exception):  # it is not public
        from anyio import to_process

        idle = len(to_process._process_pool_idle_workers.get())
    from quantum_async.engine.executors.crew import Crew

    return idle + Crew.idle_in(loop)


# -- for code that starts a loop by itself --------------------------------------------------------


@contextmanager
def virtual_time(clock: VirtualClock | None = None) -> Iterator[VirtualClock]:
    """Have loops that are started in the block, in this thread, live by a virtual clock.

    ``asyncio.run``, ``asyncio.Runner`` without a factory, and the blocking `execute` start such.

    Args:
        clock: The clock; by default a new one.

    Raises:
        RuntimeError: If a loop runs here already: its clock cannot be changed any more.

    Example:
        >>> with virtual_time() as clock:
        ...     asyncio.run(asyncio.sleep(3600))
        >>> clock.time(), len(clock.jumps)
        (3600.0, 1)
    """
    loop = running_loop()
    if loop is not None:
        kind = f"{type(loop).__module__}.{type(loop).__name__}"
        raise RuntimeError(
            f"virtual_time() is entered before the event loop starts, and one ({kind}) is running "
            "here: put the block around asyncio.run(…), use the fixture `virtual_clock`, or start "
            "the loop with asyncio.Runner(loop_factory=VirtualClock().new_loop); uvloop's clock "
            "cannot be replaced"
        )
    clock = clock or VirtualClock()
    owner, before = threading.get_ident(), asyncio.events.new_event_loop

    def new_event_loop() -> asyncio.AbstractEventLoop:
        return clock.new_loop() if threading.get_ident() == owner else before()

    asyncio.events.new_event_loop = new_event_loop
    try:
        yield clock
    finally:
        asyncio.events.new_event_loop = before
