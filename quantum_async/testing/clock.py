"""Virtual time: an asyncio loop whose clock jumps to the next timer when nothing else can run.

Sleeps, cancel scopes, back-off, rates and deadlines take no real time. Three rules:

1. Real I/O comes first. The clock jumps only when no callback and no socket is ready.
2. It does not jump while work is under way that the loop cannot see: threads, subprocesses, units
   in worker processes and custom executors, and what says so by `outside_work`.
3. It is never held back for ever. What could not jump for `patience` real seconds goes on as a real
   clock does, so that a thread that hangs, a socket that is always busy and a callback that always
   comes again meet the time limits they would meet anyway.

If there is nothing to jump to either, that is an error that lists who waits. uvloop keeps its clock
in C, so that this can only be an asyncio loop.
"""

import asyncio
import math
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import Any, NamedTuple, TypeVar

# It takes note of asyncio's own `new_event_loop`, and must have done so before we replace it.
import quantum_async.blocking  # noqa: F401
from quantum_async.engine.loops import running_loop
from quantum_async.testing.outside import OutsideWork, Seen, busy_threads, idle_processes
from quantum_async.testing.waiting import deadlock

T = TypeVar("T")

_LEAST = 1e-6  # seconds a timer is ahead at least: code that waits until "now" would stop time
_LONGEST_TURN = 0.1  # real seconds that count of one turn of the loop: a debugger may stop it
_LEAST_SILENCE = 1.0  # real seconds in which nothing comes from open sockets, before it is an error
_LONGEST_SELECT = 3600.0


class DeadlockError(RuntimeError):
    """Raised out of a loop on virtual time in which nothing will ever happen again."""


class Jump(NamedTuple):
    """One jump of a virtual clock, in seconds of its own time.

    Attributes:
        start: What it said before.
        end: What it said after.
    """

    start: float
    end: float


class VirtualClock:
    """A clock that starts at 0, and the event loops that live by it, one after the other.

    Args:
        patience: Real seconds that the clock lets itself be held back before it goes on as a real
            clock does; infinity to wait for ever, 0 to keep real time whenever it cannot jump.

    Attributes:
        jumps: All jumps so far.
        slipped: Virtual seconds that passed without a jump, because patience was used up: if it
            is not 0, times in this test depend on the machine.
        patience: The argument; it may be changed at any time.

    Example:
        >>> clock = VirtualClock()
        >>> clock.run(asyncio.sleep(3600, "slept"))
        'slept'
        >>> clock.jumps
        [Jump(start=0.0, end=3600.0)]
    """

    def __init__(self, *, patience: float = 5.0) -> None:
        if not patience >= 0:
            raise ValueError(f"patience must be real seconds, 0 or more, not {patience!r}")
        self.jumps: list[Jump] = []
        self.slipped = 0.0
        self.patience = patience
        self._now = 0.0
        self._outside: dict[OutsideWork, None] = {}  # in the order in which it began
        self._running: VirtualTimeLoop | None = None

    def time(self) -> float:
        """Return the virtual time in seconds.

        Raises:
            RuntimeError: In a ``virtual_time`` block of this clock, on a loop that does not live by
                it, such as one of uvloop's.
        """
        loop = running_loop()
        if loop is not None and self is active_clock() and not self.drives(loop):
            raise RuntimeError(f"this is not virtual time: {why_not(loop)}")
        return self._now

    def drives(self, loop: object) -> bool:
        """Return whether a loop lives by this clock."""
        return isinstance(loop, VirtualTimeLoop) and loop.clock is self

    def loop_factory(self) -> "VirtualTimeLoop":
        """Return a new event loop on this time: ``asyncio.Runner(loop_factory=…)``."""
        return VirtualTimeLoop(self)

    def run(self, main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
        """Run a coroutine as `asyncio.run` does, on this time.

        Args:
            main: The coroutine.
            debug: Whether the loop is in debug mode.

        Raises:
            DeadlockError: If it waits for something that will never happen.
        """
        with asyncio.Runner(debug=debug, loop_factory=self.loop_factory) as runner:
            return runner.run(main)

    def outside_work(self, what: str = "work outside the loop") -> "OutsideWork":
        """Hold the clock back until work has ended that the loop cannot see.

        Threads of `asyncio.to_thread`, `run_in_executor` and anyio, subprocesses and units need
        nothing of the kind. It is for threads of one's own, and for answers of other machines.

        Args:
            what: What it is, for messages.

        Returns:
            The work, which has begun: a context manager, or call `end` from any thread.
        """
        return OutsideWork(what, self._outside, self._wake)

    def held_by(self) -> list[str]:
        """Return what is under way outside the loop, in words."""
        held = [work.what for work in self._outside]
        return held if self._running is None else held + self._running.workers_busy()

    def _wake(self) -> None:
        """Have the loop look again, if it waits in another thread."""
        loop = self._running
        if loop is not None and running_loop() is not loop:
            with suppress(RuntimeError):  # it has been closed by now
                loop.call_soon_threadsafe(_nothing)

    def _jump(self, end: float) -> None:
        self.jumps.append(Jump(self._now, end))
        self._now = end

    def _slip(self, end: float) -> None:
        if end > self._now:
            self.slipped += end - self._now
            self._now = end

    def __repr__(self) -> str:
        count = len(self.jumps)
        told = f"{self._now:g} s, {count} jump{'' if count == 1 else 's'}"
        if held := self.held_by():
            told += f", held by {', '.join(held)}"
        return f"<VirtualClock: {told}>"


class _Selector(selectors.DefaultSelector):
    """Looks for real I/O without waiting; the loop knows what to do if there is none."""

    loop: "VirtualTimeLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            self.loop._came_round()
            return found
        return self.loop._nothing_ready(super().select)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; as a class it is a loop factory.

    Args:
        clock: What it lives by; by default the clock of the ``virtual_time`` block around, or else
            one of its own.

    Attributes:
        clock: What it lives by.
    """

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = clock or active_clock() or VirtualClock()
        self._processes: list[asyncio.SubprocessTransport] = []
        self._since = self._held = self._looked = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._count_anew()

    def run_forever(self) -> None:
        """Run until it is stopped."""
        self._count_anew()  # what passed between two runs was not the loop's time
        self.clock._running = self
        try:
            super().run_forever()
        finally:
            self.clock._running = None

    # -- time -------------------------------------------------------------------------------

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.clock._now

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call at a moment, which is always ahead."""
        now = self.clock._now
        when = max(when, now + max(_LEAST, 2 * math.ulp(now)))
        return super().call_at(when, callback, *args, context=context)

    def _next_timer(self) -> float:
        """Return when the next timer is due; infinite without one."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return timers[0].when() if timers else math.inf

    def _came_round(self) -> None:
        """Something was ready. Time stands still, unless it has done so for too long."""
        now = time.monotonic()
        self._held += min(now - self._looked, _LONGEST_TURN)
        self._looked = now
        self._lose_patience()

    def _nothing_ready(self, select: Callable[[float | None], list[Any]]) -> list[Any]:
        """Jump to the next timer; wait really for who works outside; or find that nobody does."""
        due, clock = self._next_timer(), self.clock
        outside = bool(clock._outside) or bool(self.workers_busy())
        if not outside and due < math.inf:
            clock._jump(due)
            self._count_anew()
            return []
        if outside:
            # A limit is never met earlier than on a real clock.
            limit = max(clock.patience, due - self._since) - self._held
        elif self._is_open():
            limit = max(clock.patience, _LEAST_SILENCE)
        else:
            raise DeadlockError(deadlock(self, ""))
        began = time.monotonic()
        found = select(None if limit == math.inf else min(max(limit, 0.0), _LONGEST_SELECT))
        self._looked = time.monotonic()
        waited = self._looked - began
        if outside:
            self._held += waited
            self._lose_patience()
        elif not found and waited >= limit:
            silence = f", and nothing came through open sockets or pipes for {limit:g} real seconds"
            raise DeadlockError(deadlock(self, silence))
        return found

    def _lose_patience(self) -> None:
        if self._held >= self.clock.patience:
            self.clock._slip(self._since + self._held)
            self._keep_resolution()

    def _count_anew(self) -> None:
        """Begin to count the real seconds in which the clock could not jump."""
        self._since = self.clock._now
        self._held = 0.0
        self._looked = time.monotonic()
        self._keep_resolution()

    def _keep_resolution(self) -> None:
        # After some months of virtual time a nanosecond is too little to be added to it, and a
        # timer that is due now would not be: the loop runs those before now + resolution.
        self._clock_resolution = max(1e-9, 2 * math.ulp(self.clock._now))

    # -- work outside -----------------------------------------------------------------------

    def outside_work(self, what: str) -> OutsideWork:
        """Hold the clock back until it ends; see `VirtualClock.outside_work`."""
        return self.clock.outside_work(what)

    def workers_busy(self) -> list[str]:
        """Return which threads and processes work for this loop, in words."""
        busy = []
        if threads := busy_threads(self):
            busy.append("a thread" if threads == 1 else f"{threads} threads")
        if self._processes:
            self._processes = [it for it in self._processes if it.get_returncode() is None]
            idle = idle_processes(self)
            pids = [it.get_pid() for it in self._processes]
            busy += [f"process {pid}" for pid in pids if pid not in idle]
        return busy

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Call in an executor; the clock waits until the call has ended, awaited or not."""
        if executor is None:
            self._check_default_executor()  # type: ignore[attr-defined]
            executor = self._default_executor  # type: ignore[attr-defined]
            if executor is None:
                executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
                self.set_default_executor(executor)
        seen = Seen(executor)
        future = super().run_in_executor(seen, func, *args)  # type: ignore[arg-type]
        work = self.outside_work(f"a call of {getattr(func, '__qualname__', func)}")

        def over(waiting: "asyncio.Future[Any]") -> None:
            if waiting.cancelled():
                seen.future.add_done_callback(work.end)  # what runs already runs on
            else:
                work.end()

        # Not of the executor's future: that is done before the loop hears of it.
        future.add_done_callback(over)
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """Wait for the threads of the default executor, in real time."""
        with self.outside_work("the end of the default executor"):
            await super().shutdown_default_executor(*args, **options)

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        """Start a program; the clock waits until it has ended."""
        return await self._started(super().subprocess_exec(*args, **options))

    async def subprocess_shell(self, *args: Any, **options: Any) -> Any:
        """Start a shell; the clock waits until it has ended."""
        return await self._started(super().subprocess_shell(*args, **options))

    async def _started(self, start: Coroutine[Any, Any, Any]) -> Any:
        with self.outside_work("a process that starts"):
            transport, protocol = await start
        self._processes.append(transport)
        return transport, protocol

    async def sock_connect(self, sock: Any, address: Any) -> None:
        """Connect a socket, in real time: the other side may be another machine."""
        with self.outside_work(f"connecting to {address}"):
            await super().sock_connect(sock, address)

    def _is_open(self) -> bool:
        """Return whether somebody may be heard of: through sockets or pipes, or as a process ends.

        anyio's idle workers, which hold nothing back, are killed at the end and waited for.
        """
        watched = self._selector.get_map()  # type: ignore[attr-defined]
        return len(watched) > 1 or bool(self._processes)  # one is the loop's own


def _nothing() -> None:
    """What a loop does when it is only to look again."""


# -- for code that starts a loop by itself --------------------------------------------------------

_lock = threading.Lock()
_active: dict[int, list[VirtualClock]] = {}  # by thread, the innermost block last
_asyncios_own: dict[Any, Callable[[], asyncio.AbstractEventLoop]] = {}


def active_clock() -> VirtualClock | None:
    """Return the clock of the innermost ``virtual_time`` block of this thread, if there is one."""
    clocks = _active.get(threading.get_ident())
    return clocks[-1] if clocks else None


@contextmanager
def virtual_time(clock: VirtualClock | None = None) -> Iterator[VirtualClock]:
    """Have event loops that start in the block, in this thread, live by a virtual clock.

    ``asyncio.run``, ``asyncio.Runner`` without a loop factory, `anyio.run` and the blocking
    `execute` start such. Loops of other threads, and those that run already, keep real time.

    Args:
        clock: The clock; by default a new one.

    Raises:
        RuntimeError: If a loop on real time runs here already: it cannot be changed any more.

    Example:
        >>> with virtual_time() as clock:
        ...     asyncio.run(asyncio.sleep(3600))
        >>> clock.time(), len(clock.jumps)
        (3600.0, 1)
    """
    loop = running_loop()
    if loop is not None:
        if not isinstance(loop, VirtualTimeLoop) or clock not in (None, loop.clock):
            raise RuntimeError(
                f"virtual_time() is entered before the event loop starts; {why_not(loop)}"
            )
        yield loop.clock
        return
    clock = clock or VirtualClock()
    thread = threading.get_ident()
    with _lock:
        if not _active:
            for module in (asyncio.events, asyncio):
                _asyncios_own[module] = module.new_event_loop
                module.new_event_loop = _new_event_loop  # type: ignore[attr-defined]
        _active.setdefault(thread, []).append(clock)
    try:
        yield clock
    finally:
        with _lock:
            _active[thread].pop()
            if not _active[thread]:
                del _active[thread]
            if not _active:
                for module, own in _asyncios_own.items():
                    module.new_event_loop = own


def _new_event_loop() -> asyncio.AbstractEventLoop:
    clock = active_clock()
    return _asyncios_own[asyncio.events]() if clock is None else VirtualTimeLoop(clock)


def why_not(loop: object) -> str:
    """Say why a running loop has no virtual time, and what to do; None is trio's."""
    if loop is None:
        return "no asyncio loop runs here; trio's own clock for tests is trio.testing.MockClock"
    kind = type(loop)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in ("uvloop", "winloop"):
        return (
            f"{name} runs here, whose clock is in C and cannot be replaced: use an asyncio loop "
            "(no uvloop.run, no loop_factory=uvloop.new_event_loop, no use_uvloop in anyio_backend)"
        )
    return (
        f"{name} runs here, which was started before: put `with virtual_time():` around "
        "asyncio.run(…), or start it with asyncio.Runner(loop_factory=VirtualTimeLoop); a test "
        "that requests `virtual_clock` needs a loop that it does not share, as with "
        '@pytest.mark.asyncio(loop_scope="function"), or under anyio without asynchronous fixtures '
        "of a wider scope"
    )
