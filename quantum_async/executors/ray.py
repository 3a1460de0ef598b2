"""Units on a Ray cluster. Needs the extra: ``pip install 'quantum_async[ray]'``.

What all clusters have in common is in `engine.executors.remote`. Here is how Ray is told of calls
and asked for values; `ray_thread` holds the connection, and `ray_worker` has the other side.

A call is a task with two results: its answer, which comes here, and its value, which stays. That an
answer is there Ray tells in a thread of its own; those of a moment go to the run's loop together.
"""

import asyncio
import pickle
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self

try:
    import ray
except ImportError as error:
    raise ImportError("RayExecutor needs ray: pip install 'quantum_async[ray]'") from error

from quantum_async.core.checks import check_number
from quantum_async.core.errors import ClusterError, PlanError
from quantum_async.engine.loops import in_thread
from quantum_async.executors import Capabilities, Failed, Hearer, RemoteCall
from quantum_async.executors.ray_thread import THREAD, Reference, hosts, names_of_resources
from quantum_async.executors.ray_worker import (
    Pickled,
    called,
    is_cancellation,
    meant,
    meant_by,
    perform_there,
    taken,
)

_PAUSE = 0.002  # seconds
_POLL = 0.5  # seconds from one look whether a value can still come to the next


class _Batch:
    """Brings what becomes of calls that were submitted together to the event loop of their run."""

    def __init__(self, hearer: Hearer) -> None:
        self.hearer = hearer
        self._loop = asyncio.get_running_loop()
        self._told: deque[tuple[Callable[..., None], Any, Any]] = deque()
        self._is_coming = False

    def tell(self, how: Callable[..., None], key: str, what: Any) -> None:
        """Pass something on; from any thread."""
        self._told.append((how, key, what))
        if not self._is_coming:
            self._is_coming = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        if not self._told:
            self._is_coming = False
            if not self._told:  # else it came in between
                return
            self._is_coming = True
        while self._told:
            how, key, what = self._told.popleft()
            how(key, pickle.loads(what) if type(what) is bytes else what)
        # One answer seldom comes alone, and to wake the loop for each takes longer than to look.
        self._loop.call_later(_PAUSE, self._deliver)


class _Call:
    """A call that has not ended."""

    __slots__ = (
        "answer",
        "batch",
        "blob",
        "canceled",
        "grace",
        "key",
        "needs",
        "reads",
        "unit",
        "value",
    )

    def __init__(self, call: RemoteCall, batch: _Batch, reads: list[Reference]) -> None:
        self.unit = call.unit
        self.key = call.key
        self.blob = call.blob
        self.needs = tuple(sorted(call.resources.items()))
        self.grace = call.grace
        self.batch = batch
        self.reads = reads
        self.value = Reference(THREAD.session)
        self.answer: Any = None
        self.canceled = False


class RayExecutor:
    """Runs units on a Ray cluster: ``await flow.run(…, executor=RayExecutor())``.

    It serves any number of runs. If this process is connected to Ray already, that connection is
    taken and left alone. Else one is opened, and closed when no run and no result needs it any
    more. That takes seconds: within ``async with`` or ``with`` it stays open.

    A unit that is stopped has its worker process killed; one with a grace is interrupted first
    (`KeyboardInterrupt`). Timeouts count from the moment that a unit is submitted.

    Args:
        address: Of the cluster's head, as in ``"host:6379"``. Without one, the cluster that
            ``ray.init()`` finds, or a new one on this machine.
        keep_remote: Results of more bytes stay on the cluster until they are asked for.
        connect_timeout: Seconds for the head to answer.
        init: Other arguments for ``ray.init``, as ``{"num_cpus": 4, "runtime_env": {…}}``.

    Raises:
        PlanError: If an argument is wrong.
        ImportError: If ray is not installed.

    Example:
        >>> from quantum_async import QuantumPartitioner
        >>> flow = QuantumPartitioner()
        >>> @flow.unit(mode="remote")
        ... def squares(count): return [n * n for n in range(count)]
        >>> flow.execute({"count": 4}, executor=RayExecutor())  # doctest: +SKIP
        {'squares': [0, 1, 4, 9]}
    """

    name = "ray"
    can = Capabilities(interrupts_running=True, runs_coroutines=True, keeps_data=True)
    wait_for_running = False  # there is nothing that could not be stopped

    def __init__(
        self,
        address: str | None = None,
        *,
        keep_remote: int = 10_000_000,
        connect_timeout: float = 10.0,
        init: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("", "connect_timeout", connect_timeout)
        if isinstance(keep_remote, bool) or not isinstance(keep_remote, int) or keep_remote < 0:
            raise PlanError(f"keep_remote must be a number of bytes from 0 up, not {keep_remote!r}")
        if address is not None and not isinstance(address, str):
            raise PlanError(f"RayExecutor takes the address of a cluster, not {address!r}")
        if (address or "").startswith("ray://"):
            raise PlanError(
                f"RayExecutor does not go through Ray Client ({address!r}), which cannot tell when "
                "a call has ended: give 'host:6379' on a machine of the cluster, or run a Ray job"
            )
        self.keep_remote = keep_remote
        self._address = address
        self._patience = connect_timeout
        self._init = dict(init or {})
        self._resources: Collection[str] = ()
        self._calls: dict[str, _Call] = {}
        self._arrivals: set[asyncio.Future[Any]] = set()
        self._stays_open = False
        self._is_held = False  # open for longer than a run

    # -- connection -------------------------------------------------------------------------

    async def attach(self) -> None:
        """Connect; see `RemoteExecutor`."""
        entered: list[bool] = []
        try:
            await in_thread(lambda: THREAD.ask(partial(self._enter, entered)))
        except asyncio.CancelledError:
            if entered:
                await self.detach()
            raise

    def _enter(self, entered: list[bool]) -> None:
        enter = partial(THREAD.enter, self, self._address, self._init, self._patience)
        enter()
        entered.append(True)
        if self._stays_open and not self._is_held:
            self._is_held = True
            enter()
        self._resources = names_of_resources()

    async def detach(self) -> None:
        """A run has ended; see `RemoteExecutor`."""
        await in_thread(lambda: THREAD.ask(partial(THREAD.leave, self)))

    def close(self) -> None:
        """Close the connection if it was opened here; results that are still there are gone."""
        THREAD.ask(self._leave)

    def _leave(self) -> None:
        self._stays_open = False
        if self._is_held:
            self._is_held = False
            THREAD.leave(self)
        THREAD.shut()

    def __enter__(self) -> Self:
        self._stays_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._stays_open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await in_thread(self.close)

    def resources(self) -> Collection[str]:
        """Return the names of the cluster's resources; ``"cpu"`` and ``"gpu"`` are Ray's own."""
        return self._resources

    def went_away(self, error: ClusterError) -> None:
        """The cluster is gone: nothing that was awaited will come."""
        for call in list(self._calls.values()):
            self._over(call, ClusterError(f"unit {call.unit!r} has no answer: {error}"))
        for arrival in list(self._arrivals):
            _settle_soon(arrival, Failed(error))

    # -- calls ------------------------------------------------------------------------------

    def submit(self, calls: Sequence[RemoteCall], hearer: Hearer) -> list[Reference]:
        """Submit calls, in the thread that talks to Ray; see `RemoteExecutor`."""
        batch = _Batch(hearer)
        made: dict[str, _Call] = {}
        for call in calls:
            reads = [made[it].value if isinstance(it, str) else it for it in call.references]
            made[call.key] = _Call(call, batch, reads)
        self._calls.update(made)
        submitted = list(made.values())
        references = [call.value for call in submitted]
        THREAD.references.update(references)
        THREAD.do(partial(self._submit_all, submitted))
        return references

    def _submit_all(self, calls: list[_Call]) -> None:
        for call in calls:
            try:
                self._submit(call)
            except Exception as error:
                self._over(call, error)

    def _submit(self, call: _Call) -> None:
        if call.canceled:
            self._over(call, asyncio.CancelledError())
            return
        THREAD.check(call.value)
        values = [reference.ref for reference in call.reads]
        if None in values:
            raise ClusterError(f"unit {call.unit!r} reads what was never submitted")
        call.answer, call.value.ref = _task(call.needs).remote(called(call.blob), *values)
        call.blob, call.reads = b"", []
        call.answer.future().add_done_callback(partial(self._heard, call))

    def _heard(self, call: _Call, future: "Future[Any]") -> None:
        """Ray has an answer, or why there is none; in a thread of Ray."""
        error = future.exception()
        if error is None:
            if self._calls.pop(call.key, None) is not None:
                call.batch.tell(call.batch.hearer.ended, call.key, future.result())
        else:
            # What it means is asked of Ray, which must not be done in its own thread.
            THREAD.do(partial(self._failed, call, error))

    def _failed(self, call: _Call, error: BaseException) -> None:
        if call.value.ref is not None:
            call.value.ref.future()  # or Ray writes to the log that nobody looked at the error
        if is_cancellation(error):
            self._over(call, asyncio.CancelledError())
        else:
            self._over(call, meant(call.unit, error, hosts))

    def _over(self, call: _Call, error: BaseException) -> None:
        if self._calls.pop(call.key, None) is not None:
            call.batch.tell(call.batch.hearer.lost, call.key, error)

    def cancel(self, keys: Collection[str]) -> None:
        """Take calls back, and kill the workers of those that run; see `RemoteExecutor`."""
        found = [self._calls[key] for key in keys if key in self._calls]
        for call in found:
            call.canceled = True
            if call.grace:
                asyncio.get_running_loop().call_later(call.grace, self._kill, call)
        THREAD.do(partial(self._cancel_all, found))

    def _cancel_all(self, calls: list[_Call]) -> None:
        for call in calls:
            self._cancel(call, force=not call.grace)

    def _kill(self, call: _Call) -> None:
        if call.key in self._calls:
            THREAD.do(partial(self._cancel, call, force=True))

    def _cancel(self, call: _Call, *, force: bool) -> None:
        if call.key in self._calls and ray.is_initialized():
            ray.cancel(call.answer, force=force)

    # -- values -----------------------------------------------------------------------------

    async def fetch(self, references: Sequence[Reference]) -> list[Any]:
        """Return values, and `Failed` for those that do not come; see `RemoteExecutor`."""
        return list(await asyncio.gather(*map(self._arrival, references)))

    def _arrival(self, reference: Reference) -> "asyncio.Future[Any]":
        arrival: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._arrivals.add(arrival)
        arrival.add_done_callback(self._arrivals.discard)
        try:
            THREAD.check(reference)
        except ClusterError as error:
            arrival.set_result(Failed(error))
        else:
            reference.ref.future().add_done_callback(partial(_arrived, arrival))
        return arrival

    def fetch_now(self, reference: Reference) -> Any:
        """Return a value, and block meanwhile; see `RemoteExecutor`."""
        THREAD.check(reference)
        future = reference.ref.future()
        while not wait([future], timeout=_POLL).done:
            THREAD.check(reference)
        try:
            return taken(future.result())
        except Exception as error:
            raise meant_by(error) from error

    async def put(self, value: Any) -> Reference:
        """Send a value to the cluster; see `RemoteExecutor`."""

        def put() -> Reference:
            THREAD.check()
            return Reference(THREAD.session, ray.put(Pickled(value)))

        reference: Reference = await in_thread(lambda: THREAD.ask(put))
        THREAD.references.add(reference)
        return reference

    def __repr__(self) -> str:
        return f"<RayExecutor {self._address or ''}: {len(self._calls)} calls>"


@lru_cache(maxsize=256)
def _task(needs: tuple[tuple[str, float], ...]) -> Any:
    """Return the task that performs calls with some needs; Ray would make it for each call anew."""
    resources = dict(needs)
    return ray.remote(perform_there).options(
        num_cpus=resources.pop("cpu", 1),
        num_gpus=resources.pop("gpu", 0),
        memory=resources.pop("memory", None),
        resources=resources or None,
        num_returns=2,
        max_retries=0,
        retry_exceptions=False,
    )


def _arrived(arrival: "asyncio.Future[Any]", future: "Future[Any]") -> None:
    """A value is there; in a thread of Ray."""
    try:
        outcome = taken(future.result())
    except Exception as error:
        outcome = Failed(meant_by(error))
    _settle_soon(arrival, outcome)


def _settle_soon(arrival: "asyncio.Future[Any]", outcome: Any) -> None:
    def settle() -> None:
        if not arrival.done():
            arrival.set_result(outcome)

    with suppress(RuntimeError):  # the loop is closed: nobody waits
        arrival.get_loop().call_soon_threadsafe(settle)
