"""Results that are on a cluster: what stands for them here, in a call, and how they come home."""

import asyncio
import pickle
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from quantum_async.core.errors import (
    ClusterError,
    RemoteError,
    StaysRemoteError,
    described,
)
from quantum_async.core.record import NOTHING, Elsewhere
from quantum_async.engine.executors.cluster import Failed, RemoteExecutor, RemoteWarning
from quantum_async.engine.executors.performing import taken

_packing = threading.local()


class RemoteValue(Elsewhere):
    """Stands for the result of a unit that is on a cluster.

    Args:
        unit: The unit's name.
        key: The key of the call that makes it.
        executor: The cluster.

    Attributes:
        reference: What stands for it there; None before it is submitted, and once it is released.
        size: About how many bytes it takes.
        content: Its pickle, if that came along.
    """

    __slots__ = (
        "__weakref__",
        "_executor",
        "_value",
        "content",
        "key",
        "reference",
        "size",
        "unit",
    )

    def __init__(self, unit: str, key: str, executor: RemoteExecutor) -> None:
        self.unit = unit
        self.key = key
        self.reference: Any = None
        self.size = 0
        self.content = b""
        self._executor = executor
        self._value: Any = NOTHING

    @property
    def executor(self) -> RemoteExecutor:
        """The cluster that it is on."""
        return self._executor

    @property
    def is_here(self) -> bool:
        """Whether the value is in this process, or needs no fetching."""
        return self._value is not NOTHING or bool(self.content)

    def is_on(self, executor: Any) -> bool:
        """Whether the value is on this cluster, and has not been released."""
        return self._executor is executor and self.reference is not None

    def here(self) -> Any:
        """Return the value; fetch it if that can be done by blocking.

        Raises:
            StaysRemoteError: If it can not.
            RemoteError: If it cannot be unpickled here.
        """
        if self._value is NOTHING:
            if self.content:
                self._value = unpickled(self.unit, self.content)
            elif self.reference is None:
                raise self._released()
            else:
                try:
                    value = self._executor.fetch_now(self.reference)
                except StaysRemoteError as error:
                    raise StaysRemoteError(
                        f"the result of unit {self.unit!r} ({_bytes(self.size)}) is on the "
                        f"{self._executor.name} cluster: {error}; write "
                        f"`await result.fetch({self.unit!r})`"
                    ) from None
                self.warn("is read from its result")
                self._value = value
        return self._value

    def arrived(self, value: Any) -> None:
        """Keep the value, which was fetched."""
        self._value = value

    def warn(self, why: str) -> None:
        """Warn if the value is large: it leaves the cluster."""
        if self.size > self._executor.keep_remote:
            warnings.warn(
                f"the result of unit {self.unit!r} ({_bytes(self.size)}) leaves the cluster "
                f"because it {why}: let units that read it run there too (mode='remote'), or allow "
                "more with keep_remote= of the executor",
                RemoteWarning,
                stacklevel=3,
            )

    def release(self) -> None:
        """Let the cluster forget the value."""
        self.reference = None

    def _released(self) -> StaysRemoteError:
        return StaysRemoteError(
            f"the result of unit {self.unit!r} was on the {self._executor.name} cluster, and was "
            "released: fetch it before that"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        used: list[RemoteValue] | None = getattr(_packing, "used", None)
        if used is None:
            raise pickle.PicklingError(
                f"the result of unit {self.unit!r} is on a cluster: fetch it first"
            )
        if self not in used:
            used.append(self)
        return taken, (used.index(self),)

    def __repr__(self) -> str:
        where = "released" if self.reference is None else f"on {self._executor.name}"
        return f"<result of {self.unit!r}, {_bytes(self.size)}, {where}>"


@contextmanager
def packing() -> Iterator[list[RemoteValue]]:
    """Let what is pickled in the block stand for values on the cluster; give what is used."""
    used: list[RemoteValue] = []
    _packing.used = used
    try:
        yield used
    finally:
        del _packing.used


def unpickled(unit: str, content: bytes) -> Any:
    """Return a result that came along with its answer.

    Raises:
        RemoteError: If it cannot be unpickled here.
    """
    try:
        return pickle.loads(content)
    except Exception as error:
        raise cannot_unpickle(unit, error) from error


def cannot_unpickle(unit: str, error: BaseException) -> RemoteError:
    """Return the error of a result that came home and cannot be read here."""
    return RemoteError(
        type(error).__qualname__,
        f"the result of unit {unit!r} cannot be unpickled here ({described(error)}): install here "
        "what is installed on the cluster, or return plain data",
        "",
    )


class Fetcher:
    """Brings values of one cluster home: each once, and those of one turn together.

    Args:
        executor: The cluster.
    """

    def __init__(self, executor: RemoteExecutor) -> None:
        self._executor = executor
        self._coming: dict[RemoteValue, asyncio.Future[None]] = {}
        self._wanted: list[RemoteValue] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def bring(self, value: RemoteValue) -> Any:
        """Return a value; everybody who waits for it gets the same object.

        Raises:
            ClusterError: If it does not come.
            RemoteError: If it cannot be unpickled here.
        """
        if not value.is_here:
            await asyncio.shield(self.coming(value))
        return value.here()

    def coming(self, value: RemoteValue) -> "asyncio.Future[None]":
        """Fetch a value that is not here; return what is done when it is."""
        coming = self._coming.get(value)
        if coming is None:
            loop = asyncio.get_running_loop()
            coming = self._coming[value] = loop.create_future()
            self._wanted.append(value)
            if len(self._wanted) == 1:
                loop.call_soon(self._begin)
        return coming

    def _begin(self) -> None:
        wanted, self._wanted = self._wanted, []
        task = asyncio.get_running_loop().create_task(self._fetch(wanted))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _fetch(self, wanted: list[RemoteValue]) -> None:
        try:
            outcomes = await fetched(self._executor, wanted)
        except BaseException as error:
            outcomes = [Failed(error)] * len(wanted)
            if not isinstance(error, Exception):
                raise
        finally:
            for value, outcome in zip(wanted, outcomes, strict=True):
                coming = self._coming.pop(value)
                if isinstance(outcome, Failed):
                    coming.set_exception(outcome.error)
                    coming.exception()  # perhaps nobody waits any more
                else:
                    value.arrived(outcome)
                    coming.set_result(None)


async def fetched(executor: RemoteExecutor, wanted: Sequence[RemoteValue]) -> list[Any]:
    """Return values of a cluster, and `Failed` with the unit's name for those that do not come."""
    references = [value.reference for value in wanted]
    outcomes: list[Any] = []
    for value, outcome in zip(wanted, await executor.fetch(references), strict=True):
        if isinstance(outcome, Failed) and not isinstance(outcome.error, ClusterError):
            outcome = Failed(cannot_unpickle(value.unit, outcome.error))
        outcomes.append(outcome)
    return outcomes


def _bytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size >= 100_000 else f"{size} bytes"
