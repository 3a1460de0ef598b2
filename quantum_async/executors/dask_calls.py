"""The calls of a `DaskExecutor` that have not ended, and what becomes of them.

What comes back comes on the client's event loop, which may be another one than that of the run.
"""

import asyncio
import pickle
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from quantum_async.core.errors import ClusterError
from quantum_async.core.record import Usage
from quantum_async.engine.executors.envelope import RETURNED
from quantum_async.engine.loops import running_loop
from quantum_async.executors import Hearer, RemoteAnswer
from quantum_async.executors.dask_worker import (
    ENDED,
    UnitFailedError,
    crashed,
    executing,
    known,
    meant,
)

_CONNECTION = ("scheduler-connection-lost", "scheduler-restart")
_TRIES = 5  # to cancel keys


class _Call:
    """A call that has not ended."""

    __slots__ = ("canceled", "future", "hearer", "loop", "unit", "worker")

    def __init__(
        self, unit: str, hearer: Hearer, loop: asyncio.AbstractEventLoop, future: Any
    ) -> None:
        self.unit = unit
        self.hearer = hearer
        self.loop = loop
        self.future = future
        self.worker = ""  # where it began
        self.canceled = False


class Calls:
    """The calls that have not ended.

    Args:
        given: What the client is of, for words.
        all_over: Called on the client's loop when the last call has ended.
        on_lost_connection: Called there when the scheduler has forgotten all subscriptions.

    Attributes:
        client: The client, once there is one.
        watches: What goes on, on the client's loop.
    """

    def __init__(
        self,
        given: Any,
        all_over: Callable[[], object],
        on_lost_connection: Callable[[], object],
    ) -> None:
        self.client: Any = None
        self.watches: set[asyncio.Task[None]] = set()
        self._given = given
        self._all_over = all_over
        self._on_lost_connection = on_lost_connection
        self._open: dict[str, _Call] = {}
        self._canceling: list[str] = []
        self._cancels: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The client's event loop, perhaps in another thread."""
        loop: asyncio.AbstractEventLoop = self.client.loop.asyncio_loop
        return loop

    def add(self, key: str, unit: str, hearer: Hearer, future: Any) -> None:
        """A call of the loop that runs here is submitted; `watch` it when all of them are."""
        self._open[key] = _Call(unit, hearer, asyncio.get_running_loop(), future)

    def cancel(self, keys: Collection[str]) -> None:
        """Take calls back; what runs already runs on. See `RemoteExecutor`."""
        for key in keys:
            call = self._open.get(key)
            if call is not None and not call.canceled and self.client is not None:
                call.canceled = True
                self._canceling.append(key)
                if len(self._canceling) == 1:
                    # All of one turn together: the workers are asked once.
                    self.loop.call_soon_threadsafe(self._cancel_all)

    def _cancel_all(self) -> None:
        keys, self._canceling = self._canceling, []
        task = self.go_on(self._cancel(keys))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def settled(self) -> None:
        """Wait until it is known of all that was taken back whether it runs."""
        while self._canceling or self._cancels:
            await asyncio.wait(self._cancels) if self._cancels else await asyncio.sleep(0)

    async def _cancel(self, keys: list[str]) -> None:
        """Take calls back, and ask the workers which of them they had begun."""
        calls = {key: self._open[key] for key in keys if key in self._open}
        running: dict[str, str] = {}
        with suppress(Exception):  # the connection is lost, and so is everything else
            left = list(calls)
            for _ in range(_TRIES):
                futures = [calls[key].future for key in left]
                await self.client.cancel(futures, asynchronous=True)
                left = await self.client.run_on_scheduler(known, left)
                if not left:
                    break
            told = await self.client.run(executing, list(calls), on_error="ignore")
            running = {key: worker for worker, some in told.items() for key in some}
        for key, call in calls.items():
            if self._open.get(key) is not call:
                continue  # it has ended meanwhile
            if key in running and not call.worker:
                call.worker = running[key]
                self._tell(call, call.hearer.began, key)
            elif not call.worker:
                self._over(key, call.hearer.lost, asyncio.CancelledError())

    def _in_client(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function on the client's own loop."""
        if self.loop is running_loop():
            function(*args)
        else:
            self.loop.call_soon_threadsafe(function, *args)

    def watch(self, keys: Collection[str]) -> None:
        """Wait for what becomes of calls that were added."""
        self._in_client(self._watch_all, [(key, self._open[key].future) for key in keys])

    def _watch_all(self, futures: list[tuple[str, Any]]) -> None:
        for key, future in futures:
            self.go_on(self._watched(key, future))

    def go_on(self, work: Any) -> "asyncio.Task[None]":
        """Have something done on the client's loop, on which this is called."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self.watches.add(task)
        task.add_done_callback(self.watches.discard)
        return task

    # -- what comes back, on the client's loop ----------------------------------------------

    def heard(self, kind: str, key: str, told: Any) -> None:
        """A worker has told something of a call."""
        call = self._open.get(key)
        if call is None:
            return
        if kind == ENDED:
            self._over(key, call.hearer.ended, pickle.loads(told))
        elif not call.worker:
            call.worker = told
            self._tell(call, call.hearer.began, key)
        elif call.worker != told and not call.canceled:
            # Dask runs it again, which is not for Dask to decide.
            self._crashed(key, call)

    def worker_lost(self, worker: str, keys: Collection[str]) -> None:
        """A worker has died; Dask would run what it had begun again, without asking."""
        here = [key for key in self._open if key in keys]  # in the order in which they came
        # What ends its worker at once could not tell any more that it had begun.
        begun = [key for key in here if self._open[key].worker == worker] or here[:1]
        late = [key for key, it in self._open.items() if it.canceled and it.worker == worker]
        for key in dict.fromkeys((*begun, *late)):
            self._open[key].worker = worker
            self._crashed(key, self._open[key])

    def _crashed(self, key: str, call: _Call) -> None:
        self.go_on(self.client.cancel([call.future], asynchronous=True))
        self._over(key, call.hearer.lost, crashed(call.unit, call.worker))

    async def _watched(self, key: str, future: Any) -> None:
        """Wait for Dask's word that a key is there, or will not be."""
        error = await future.exception(asynchronous=True)
        call = self._open.get(key)
        if call is None:
            return
        if future.status == "finished":
            # Its answer got lost, perhaps with a scheduler; the value is there.
            unknown = RemoteAnswer(RETURNED, b"", b"", Usage(0, 0.0, 0))
            self._over(key, call.hearer.ended, unknown)
        elif isinstance(error, UnitFailedError) and error.key == key:
            self._over(key, call.hearer.ended, error.answer)
        elif future.status != "cancelled":
            self._over(key, call.hearer.lost, meant(call.unit, error))
        elif (reason := getattr(future._state.exception, "reason", "")) in _CONNECTION:
            self._on_lost_connection()
            self._over(key, call.hearer.lost, self._lost_with(reason, call))
        elif not call.canceled:  # else somebody waits already to hear what it does
            self._over(key, call.hearer.lost, asyncio.CancelledError())

    def _lost_with(self, reason: str, call: _Call) -> ClusterError:
        lost = reason == _CONNECTION[0]
        return ClusterError(
            f"unit {call.unit!r} was on the Dask cluster {self._given!r} when "
            + ("the connection to its scheduler was lost" if lost else "that was restarted")
        )

    def _over(self, key: str, tell: Callable[..., object], told: Any) -> None:
        call = self._open.pop(key)
        self._tell(call, tell, key, told)
        if not self._open:
            self._all_over()

    def _tell(self, call: _Call, tell: Callable[..., object], *told: Any) -> None:
        if call.loop is running_loop():
            tell(*told)
        else:
            with suppress(RuntimeError):  # the run's loop has ended
                call.loop.call_soon_threadsafe(partial(tell, *told))


# A client passes the events of a topic to one handler.
_of_client: "WeakKeyDictionary[Any, WeakSet[Calls]]" = WeakKeyDictionary()


def subscribe(calls: Calls, topic: str) -> None:
    """Hear of calls, and of workers that die; on the client's loop."""
    client = calls.client
    # Weakly, because a client may live for ever.
    client.subscribe_topic(topic, partial(_heard_by, ref(calls)))
    client.subscribe_topic("all", partial(_happened_to, ref(client)))
    _of_client.setdefault(client, WeakSet()).add(calls)


def unsubscribe(calls: Calls) -> None:
    """Hear no more of workers, if nobody does any more; on the client's loop."""
    others = _of_client.get(calls.client, WeakSet[Calls]())
    others.discard(calls)
    if not others:
        with suppress(ValueError):
            calls.client.unsubscribe_topic("all")


def _heard_by(calls: "ref[Calls]", event: tuple[float, Any]) -> None:
    found = calls()
    if found is not None:
        found.heard(*event[1])


def _happened_to(client: "ref[Any]", event: tuple[float, Any]) -> None:
    told, found = event[1], client()
    if found is not None and told.get("action") == "remove-worker" and not told.get("expected"):
        for calls in list(_of_client.get(found, ())):
            calls.worker_lost(told["worker"], told["processing-tasks"])
