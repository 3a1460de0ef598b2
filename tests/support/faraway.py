"""A cluster of one thread pool in this process: what the engine asks of clusters, and no more."""

import asyncio
import pickle
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from quantum_async.core.errors import ClusterError, StaysRemoteError
from quantum_async.engine.executors import overheard
from quantum_async.executors import (
    Capabilities,
    Failed,
    Hearer,
    RemoteAnswer,
    RemoteCall,
    perform,
)


class Reference:
    """Stands for a value; dropping it drops the value."""

    def __init__(self, value: Any = None) -> None:
        self.pickled = b""
        self.failed = False
        self.ready = threading.Event()
        if value is not None:
            self.fill(value)

    def fill(self, value: Any) -> None:
        self.pickled = pickle.dumps(value)
        self.ready.set()


class Faraway:
    """Runs calls in threads, each with values of its own.

    Args:
        can: What it can.
        wait_for_running: As everywhere.
        keep_remote: As everywhere.
    """

    name = "faraway"

    def __init__(
        self,
        can: Capabilities | None = None,
        *,
        wait_for_running: bool = False,
        keep_remote: int = 10_000_000,
        names: Collection[str] | None = None,
    ) -> None:
        self.can = can or Capabilities(False, True, True, tells_start=True)
        self.wait_for_running = wait_for_running
        self.keep_remote = keep_remote
        self.names = names
        self.batches: list[list[str]] = []
        self.attached = 0
        self.canceled: set[str] = set()
        self.refuses: Exception | None = None
        self.spoils: Callable[[str], BaseException | None] = lambda unit: None
        self._pool: ThreadPoolExecutor | None = None
        self._begun: set[str] = set()

    async def attach(self) -> None:
        self.attached += 1
        self._pool = self._pool or ThreadPoolExecutor(2)

    async def detach(self) -> None:
        self.attached -= 1
        if not self.attached and self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)

    def resources(self) -> Collection[str] | None:
        return self.names

    def submit(self, calls: Sequence[RemoteCall], hearer: Hearer) -> list[Reference]:
        if self.refuses is not None:
            raise self.refuses
        assert self._pool is not None
        self.batches.append([call.unit for call in calls])
        made: dict[str, Reference] = {}
        loop = asyncio.get_running_loop()
        for call in calls:
            made[call.key] = Reference()
            needs = [made.get(it, it) for it in call.references]
            self._pool.submit(self._run, call, needs, made[call.key], hearer, loop)
        return list(made.values())

    def _run(
        self,
        call: RemoteCall,
        needs: list[Any],
        made: Reference,
        hearer: Hearer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        def tell(what: Callable[..., object], *told: Any) -> None:
            loop.call_soon_threadsafe(what, call.key, *told)

        for one in needs:
            one.ready.wait()
        made.failed = call.key in self.canceled or any(one.failed for one in needs)
        spoilt = self.spoils(call.unit)
        if made.failed or spoilt is not None:
            made.failed = True
            made.ready.set()
            tell(hearer.lost, spoilt or asyncio.CancelledError())
            return
        self._begun.add(call.key)
        if self.can.tells_start:
            tell(hearer.began)
        answer, value = perform(call.blob, [pickle.loads(one.pickled) for one in needs])
        made.failed = answer.how != "returned"
        if made.failed:
            made.ready.set()
        else:
            made.fill(value)
        tell(hearer.ended, answer)

    def cancel(self, keys: Collection[str]) -> None:
        self.canceled.update(keys)

    async def fetch(self, references: Sequence[Any]) -> list[Any]:
        await asyncio.sleep(0)
        found: list[Any] = []
        for one in references:
            try:
                found.append(pickle.loads(one.pickled))
            except Exception as error:
                found.append(Failed(error))
        return found

    def fetch_now(self, reference: Any) -> Any:
        raise StaysRemoteError("it is far away")

    async def put(self, value: Any) -> Any:
        if isinstance(value, bytes) and value.startswith(b"bad"):
            raise ClusterError("not this one")
        return Reference(value)


@contextmanager
def unheard() -> Iterator[None]:
    """Put back what `overheard` changes for good in a worker's process."""
    import logging
    import sys

    before = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        root = logging.getLogger()
        for handler in list(root.handlers):
            if isinstance(handler, overheard._Handler):
                root.removeHandler(handler)
        overheard._settled.cache_clear()


__all__ = ["Capabilities", "Faraway", "Reference", "RemoteAnswer", "unheard"]
