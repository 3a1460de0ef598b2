"""Units on a Dask cluster. Needs the extra: ``pip install 'quantum_async[dask]'``.

What all clusters have in common is in `engine.executors.remote`. Here is how Dask is connected to,
told of calls, and asked for values; and what its own words for trouble mean.

A call's answer comes as an event of the cluster's log, ahead of Dask's own word that its key is in
memory, so that its result need not come here. That a function begins is told the same way. The
function fails there if the unit did, so that what was submitted with its result never runs.
"""

import asyncio
import pickle
import uuid
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

try:
    from dask._task_spec import Task, TaskRef
    from distributed import Client, Security
    from distributed.core import connect
except ImportError as error:
    raise ImportError(
        "DaskExecutor needs dask and distributed: pip install 'quantum_async[dask]'"
    ) from error
try:
    from dask._expr import LLGExpr
except ImportError:
    LLGExpr = None  # before it was there, graphs were told as they are

from quantum_async.core.checks import check_number
from quantum_async.core.errors import ClusterError, PlanError, StaysRemoteError
from quantum_async.engine.executors.envelope import any_pickle
from quantum_async.engine.loops import in_thread, running_loop
from quantum_async.executors import (
    Capabilities,
    Failed,
    Hearer,
    RemoteCall,
)
from quantum_async.executors.dask_calls import Calls, subscribe, unsubscribe
from quantum_async.executors.dask_worker import (
    begin,
    compare,
    forget,
    loaded,
    meant_by,
    perform_there,
)

_BIG = 1_000_000  # bytes that would hold the loop while they are unpickled


class DaskExecutor:
    """Runs units on a Dask cluster: ``await flow.run(…, executor=DaskExecutor(client))``.

    It serves any number of runs. Dask cannot interrupt a function that runs: the unit ends at its
    timeout all the same, and its slot stays taken until the function returns.

    Args:
        client: A ``distributed.Client``, asynchronous on the loop of the runs or synchronous, or a
            cluster or the address of a scheduler. A client that was opened here is closed when
            nothing needs it any more, or by `close`.
        keep_remote: Results of more bytes stay on the cluster until they are asked for.
        wait_for_running: Whether a run that is stopped waits for functions that run on.
        connect_timeout: Seconds to connect to an address.

    Raises:
        PlanError: If it is none of these.
        ImportError: If dask or distributed are not installed.

    Example:
        >>> from quantum_async import QuantumPartitioner
        >>> flow = QuantumPartitioner()
        >>> @flow.unit(mode="remote")
        ... def squares(count): return [n * n for n in range(count)]
        >>> flow.execute({"count": 4}, executor=DaskExecutor("tcp://…:8786"))  # doctest: +SKIP
        {'squares': [0, 1, 4, 9]}
    """

    name = "dask"
    can = Capabilities(
        interrupts_running=False,
        runs_coroutines=True,
        keeps_data=True,
        tells_start=True,
    )

    def __init__(
        self,
        client: Any,
        *,
        keep_remote: int = 10_000_000,
        wait_for_running: bool = False,
        connect_timeout: float = 10.0,
    ) -> None:
        check_number("", "connect_timeout", connect_timeout)
        if isinstance(keep_remote, bool) or not isinstance(keep_remote, int) or keep_remote < 0:
            raise PlanError(f"keep_remote must be a number of bytes from 0 up, not {keep_remote!r}")
        is_client = isinstance(client, Client)
        if not (is_client or isinstance(client, str) or hasattr(client, "scheduler_address")):
            raise PlanError(
                "DaskExecutor takes a distributed.Client, a cluster or the address of a scheduler, "
                f"not {client!r}"
            )
        self.keep_remote = keep_remote
        self.wait_for_running = wait_for_running
        self._given = client
        self._patience = connect_timeout
        self._client: Any = client if is_client else None
        self._is_ours = not is_client
        self._runs = 0
        self._door = asyncio.Lock()  # one of the runs that begin at once opens the client
        self._topic = f"quantum-async-{uuid.uuid4().hex}"
        self._hears = False
        self._gate = asyncio.Lock()  # between those who begin to hear and those who cease
        self._calls = Calls(client, self._all_over, self._lost_connection)
        self._calls.client = self._client
        self._resources: frozenset[str] = frozenset()

    # -- connection -------------------------------------------------------------------------

    async def attach(self) -> None:
        """Connect, and look whether what is installed there fits; see `RemoteExecutor`."""
        async with self._door:
            if self._client is None:
                self._client = self._calls.client = await self._connected()
        client = self._client
        if not self._calls.loop.is_running():
            raise ClusterError(
                "the client of DaskExecutor belongs to an event loop that does not run any more: "
                "make it in the loop of the run, or give a synchronous client or an address"
            )
        if client.status != "running":
            raise ClusterError(f"the client of DaskExecutor is {client.status}: {client!r}")
        self._runs += 1
        try:
            await self._on_client(self._look_around)
        except BaseException as error:
            self._runs -= 1
            if isinstance(error, OSError):
                raise self._unreachable(error) from error
            raise

    async def _connected(self) -> Any:
        """Open a client of our own."""
        if isinstance(self._given, str):
            # A client that cannot connect would leave its thread behind.
            security = Security().get_connection_args("client")
            try:
                comm = await connect(self._given, timeout=self._patience, **security)
            except (OSError, ValueError) as error:
                raise self._unreachable(error) from error
            await comm.close()
        return await in_thread(self._open)

    def _open(self) -> Any:
        try:
            return Client(self._given, set_as_default=False, timeout=self._patience)
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClusterError:
        return ClusterError(
            f"the Dask scheduler {self._given!r} cannot be reached ({error}): see that it runs, "
            "and that its address is right"
        )

    async def _look_around(self) -> None:
        """Subscribe to answers, and see what the workers are; on the client's loop."""
        client = self._client
        async with self._gate:
            if not self._hears:
                compare(await client.get_versions(packages=["quantum_async"]))
                subscribe(self._calls, self._topic)
                self._hears = True
            self._resources = frozenset(await client.run_on_scheduler(begin, self._topic))

    async def detach(self) -> None:
        """A run has ended; see `RemoteExecutor`."""
        self._runs -= 1
        client = self._client
        if self._runs or client is None:
            return
        if client.status == "running":
            await self._on_client(self._calls.settled)
        if client.status == "running" and not (self._calls or self._runs):
            with suppress(OSError, ClusterError):
                await self._on_client(self._forget)
        if self._is_ours and not (self._runs or client.futures):
            await in_thread(self.close)

    async def _forget(self) -> None:
        """Have the scheduler forget what was told, once all has been; on the client's loop."""
        waiting = self._calls.watches - {asyncio.current_task()}
        if waiting:
            await asyncio.wait(waiting)
        async with self._gate:
            if self._hears and not self._runs:
                self._hears = False
                unsubscribe(self._calls)
                await self._client.run_on_scheduler(forget, self._topic)

    def _all_over(self) -> None:
        """The last call has ended; if it outlived its run, that could not do this."""
        if not self._runs:
            self._calls.go_on(self._forget())

    def _lost_connection(self) -> None:
        self._hears = False

    def close(self) -> None:
        """Close the client if it was opened here; results that are still there are gone then."""
        if self._is_ours and self._client is not None:
            client, self._client = self._client, None
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _on_client(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Await something of the client on the client's own loop."""
        if self._calls.loop is asyncio.get_running_loop():
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._calls.loop))

    def resources(self) -> Collection[str]:
        """Return the names of the workers' resources."""
        return self._resources

    # -- calls ------------------------------------------------------------------------------

    def submit(self, calls: Sequence[RemoteCall], hearer: Hearer) -> list[Any]:
        """Submit calls, those of the same needs as one graph; see `RemoteExecutor`."""
        client = self._client
        if client is None or client.status not in ("running", "connecting"):
            raise ClusterError("the client of DaskExecutor was closed")
        futures: dict[str, Any] = {}
        for (needs, priority), some in _by_needs(calls):
            graph: dict[str, Task] = {}
            for call in some:
                references = [
                    TaskRef(it) if it in graph else futures.get(it, it) for it in call.references
                ]
                graph[call.key] = Task(call.key, perform_there, self._topic, call.blob, *references)
            found = client.get(
                _as_one(graph),
                list(graph),
                sync=False,
                resources=needs or None,
                priority=priority,
                fifo_timeout="0 ms",  # what is submitted later comes later
            )
            futures.update(zip(graph, found, strict=True))
            for call in some:
                self._calls.add(call.key, call.unit, hearer, futures[call.key])
        self._calls.watch(futures)
        return [futures[call.key] for call in calls]

    def cancel(self, keys: Collection[str]) -> None:
        """Take calls back; what runs already runs on. See `RemoteExecutor`."""
        self._calls.cancel(keys)

    # -- values -----------------------------------------------------------------------------

    async def fetch(self, references: Sequence[Any]) -> list[Any]:
        """Return values; see `RemoteExecutor`."""
        blobs = await self._on_client(partial(self._gather, self._pickled(references)))
        if sum(len(blob) for blob in blobs if isinstance(blob, bytes)) > _BIG:
            return list(await in_thread(lambda: list(map(loaded, blobs))))
        return list(map(loaded, blobs))

    def _pickled(self, references: Sequence[Any]) -> list[Any]:
        """Have values pickled there: Dask itself takes minutes for a list of a million numbers."""
        graph = {}
        for reference in references:
            key = f"fetch-{uuid.uuid4().hex}"
            graph[key] = Task(key, any_pickle, reference)
        return list(self._client.get(_as_one(graph), list(graph), sync=False))

    async def _gather(self, futures: list[Any]) -> list[Any]:
        try:
            return list(await self._client.gather(futures, asynchronous=True))
        except Exception as error:
            if len(futures) == 1:
                return [Failed(meant_by(error))]
        return [(await self._gather([future]))[0] for future in futures]

    def fetch_now(self, reference: Any) -> Any:
        """Return a value, and block meanwhile; see `RemoteExecutor`."""
        if self._client is None or not self._calls.loop.is_running():
            raise StaysRemoteError("its client is gone")
        if self._calls.loop is running_loop():
            raise StaysRemoteError("its client is asynchronous, in this event loop")
        [future] = self._pickled([reference])
        try:
            return pickle.loads(future.result())
        except Exception as error:
            raise meant_by(error) from error

    async def put(self, value: Any) -> Any:
        """Send a value to the cluster; see `RemoteExecutor`."""

        async def scatter() -> Any:
            [future] = await self._client.scatter([value], hash=False, asynchronous=True)
            return future

        return await self._on_client(scatter)

    def __repr__(self) -> str:
        return f"<DaskExecutor {self._given!r}: {self._runs} runs, {len(self._calls)} calls>"


def _as_one(graph: dict[str, Any]) -> Any:
    """Return a graph as it is told to the scheduler."""
    # Its keys are unique: it need not be hashed to find out whether it was there before.
    return graph if LLGExpr is None else LLGExpr(graph, _determ_token=uuid.uuid4().hex)


def _by_needs(
    calls: Sequence[RemoteCall],
) -> list[tuple[tuple[dict[str, float], float], list[RemoteCall]]]:
    """Return calls in their order, those that follow each other and need the same together."""
    found: list[tuple[tuple[dict[str, float], float], list[RemoteCall]]] = []
    for call in calls:
        needs = dict(call.resources), call.priority
        if not found or found[-1][0] != needs:
            found.append((needs, []))
        found[-1][1].append(call)
    return found
