"""Another driver of the scheduler: threads that take the next unit by themselves.

For graphs of plain functions alone, from code that has no event loop. Nothing goes back and forth
between a loop and its threads: who has ended a unit books its result and takes the next one, under
one lock. So a unit costs a tenth of what it costs on a loop, and has none of what the loop gives:
time limits, retries, events.

Three rules:

1. The scheduler and the host are only touched under the lock, functions only called outside it.
2. A thread that takes a unit and sees another one that is ready gets one more thread to work: one
   that waits, else a new one, up to the limit.
3. `run` returns when no thread works any more, also after a failure or an interruption.
"""

from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from threading import Condition, Lock, Thread, local
from typing import Any, Protocol

from quantum_async.core.errors import InternalError
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.engine.loops import running_loop

_this_thread = local()  # whether it is a worker of a run

Spawn = Callable[[Callable[[], None]], object]


class Host(Protocol):
    """Whose units they are. Called under the lock."""

    def begin(self, unit: int) -> Callable[[], Any]:
        """Return the call that is the unit's work."""
        ...

    def completed(self, unit: int, value: Any) -> None:
        """The unit has a result, and the scheduler knows it."""
        ...


class ThreadDriver:
    """One run of a scheduler's units in threads. Made for it, and of no use afterwards.

    Args:
        scheduler: Knows what is ready; all of its units are plain functions, in one lane.
        host: Gives the units' work, and takes their results.
        workers: How many units run at once.
        spawn: Has a function called in another thread, as ``Executor.submit`` does; by default in
            a new one, which ends with the run.

    Attributes:
        failed: The unit that ended the run, and its exception; None if there is none.
    """

    def __init__(
        self, scheduler: Scheduler, host: Host, workers: int, spawn: Spawn | None = None
    ) -> None:
        self._scheduler = scheduler
        self._host = host
        self._most = workers
        self._spawn = spawn
        self._context = copy_context()  # the caller's
        self._lock = Lock()
        self._ready, self._over = Condition(self._lock), Condition(self._lock)
        self._threads: list[Thread] = []
        self._asked = 1  # how many were to work, of which some may not have begun
        self._working = self._waiting = 0
        self._stopped = False
        self.failed: tuple[int, BaseException] | None = None

    def run(self) -> None:
        """Run all units; return when they have ended, or those that ran when one failed.

        A thread that is a worker already, of a run around this one, works along: then there is one
        even if the pool has no other to spare.

        Raises:
            KeyboardInterrupt: If this thread was interrupted; what ran has ended by then.
        """
        try:
            if getattr(_this_thread, "works", False) and running_loop() is None:
                self._work()
            else:
                self._get_worker()
            self._until_over()
        except BaseException:
            self.stop()
            self._until_over()  # a second interruption leaves here
            raise

    def stop(self) -> None:
        """Let nothing start any more. From any thread."""
        with self._lock:
            self._stopped = True
            self._ready.notify_all()
            self._over.notify_all()

    def _until_over(self) -> None:
        with self._lock:
            while self._working or not self._is_over():
                self._over.wait()
        for thread in self._threads:
            thread.join()

    def _is_over(self) -> bool:
        return self._stopped or self._scheduler.finished

    def _get_worker(self) -> None:
        if self._spawn is not None:
            self._spawn(self._work)
            return
        thread = Thread(target=self._work, name=f"quantum_async thread {len(self._threads)}")
        thread.start()
        self._threads.append(thread)

    # -- in the threads -----------------------------------------------------------------------

    def _work(self) -> None:
        before = getattr(_this_thread, "works", False)
        with self._lock:
            self._working += 1
        try:
            _this_thread.works = True
            while self._work_once():
                pass
        except BaseException as bug:
            self._fail(NOBODY, bug)
        finally:
            _this_thread.works = before
            with self._lock:
                self._working -= 1
                self._ready.notify_all()
                self._over.notify_all()

    def _work_once(self) -> bool:
        """Take a unit and run it; return False if there are no more."""
        taken = self._take()
        if taken is None:
            return False
        unit, call, wants_help = taken
        if wants_help:
            with suppress(Exception):  # no thread can be started, or the pool was shut down
                self._get_worker()
        try:
            value = self._context.copy().run(call)
        except BaseException as error:
            self._fail(unit, error)
            return False
        with self._lock:
            self._scheduler.complete(unit)
            self._host.completed(unit, value)
        return True

    def _take(self) -> tuple[int, Callable[[], Any], bool] | None:
        """Return a unit, its work, and whether one more worker is to be asked for."""
        scheduler = self._scheduler
        with self._lock:
            while not self._is_over():
                unit = scheduler.next_start()
                if unit != NOBODY:
                    return unit, self._host.begin(unit), self._is_short_of_workers()
                if not scheduler.used:
                    raise InternalError(f"the run is stuck: {scheduler!r}")
                self._waiting += 1
                self._ready.wait()
                self._waiting -= 1
        return None

    def _is_short_of_workers(self) -> bool:
        """Whether a unit is ready and nobody waits for it; wake somebody who does."""
        if not self._scheduler.ready_in(0):
            return False
        if self._waiting:
            self._ready.notify()
            return False
        if self._asked == self._most:
            return False
        self._asked += 1
        return True

    def _fail(self, unit: int, error: BaseException) -> None:
        with self._lock:
            if self.failed is None:
                self.failed = unit, error
        self.stop()
