"""A call in a worker of Dask, and what Dask's words for trouble mean."""

import pickle
from typing import Any
from weakref import WeakKeyDictionary, proxy

from dask.sizeof import sizeof
from distributed import KilledWorker, get_worker

from quantum_async.core.errors import ClusterError, WorkerCrashedError
from quantum_async.engine.executors.envelope import RETURNED
from quantum_async.executors import Failed, RemoteAnswer, perform

_SHORT = 0.02  # seconds within which a call may end untold
BEGAN, ENDED = "began", "ended"


class UnitFailedError(Exception):
    """What a task of Dask raises whose unit has no result; its answer says why."""

    def __init__(self, key: str, answer: RemoteAnswer) -> None:
        super().__init__(key, answer)
        self.key = key
        self.answer = answer

    def __str__(self) -> str:
        return f"the unit has no result ({self.answer.how})"

    __repr__ = __str__


class _Beginnings:
    """Tells of calls that have begun, unless they end at once: most are short.

    Args:
        worker: The worker that they run in.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = proxy(worker)
        self._running: dict[str, str | None] = {}  # topics by key; None once it was told
        self._looks = False

    def add(self, key: str, topic: str) -> None:
        """A call begins; called in its thread."""
        self._running[key] = topic
        if not self._looks:
            self._looks = True
            self._worker.loop.add_callback(self._look_later)

    def remove(self, key: str) -> None:
        """It has ended."""
        self._running.pop(key, None)

    def _look_later(self) -> None:
        self._worker.loop.call_later(_SHORT, self._look, list(self._running))

    def _look(self, before: list[str]) -> None:
        for key in before:
            topic = self._running.get(key)
            if topic is not None:
                self._worker.log_event(topic, (BEGAN, key, self._worker.address))
                self._running[key] = None
        self._looks = bool(self._running)
        if self._looks:
            self._look_later()


_beginnings: "WeakKeyDictionary[Any, _Beginnings]" = WeakKeyDictionary()


def perform_there(topic: str, blob: bytes, *values: Any) -> Any:
    """Run a call in a worker of Dask, and tell of its beginning and its end."""
    worker = get_worker()
    key = str(worker.get_current_task())
    beginnings = _beginnings.get(worker) or _beginnings.setdefault(worker, _Beginnings(worker))
    beginnings.add(key, topic)
    try:
        answer, value = perform(blob, values, sizeof)
    finally:
        beginnings.remove(key)
    worker.log_event(topic, (ENDED, key, pickle.dumps(answer)))
    if answer.how != RETURNED:
        raise UnitFailedError(key, answer)
    return value


def executing(keys: list[str], dask_worker: Any = None) -> list[str]:
    """Return which of some calls a worker is executing."""
    return [task.key for task in dask_worker.state.executing if task.key in keys]


async def begin(topic: str, dask_scheduler: Any = None) -> list[str]:
    """Return what resources workers have, in the scheduler, once our subscription has arrived.

    It comes another way than this call, and would bring the topic back after it was forgotten.
    """
    import asyncio

    while topic not in dask_scheduler._broker._topics:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    return sorted({name for it in dask_scheduler.workers.values() for name in it.resources})


async def known(keys: list[str], dask_scheduler: Any = None) -> list[str]:
    """Return which keys the scheduler has, once the graphs that it was sent are in.

    A key that is cancelled before that is not cancelled at all, and would run.
    """
    import asyncio

    while True:
        await asyncio.sleep(0.005)  # what was sent before this call may come after it
        if not getattr(dask_scheduler, "_active_graph_updates", 0):
            return [key for key in keys if key in dask_scheduler.tasks]


def forget(topic: str, dask_scheduler: Any = None) -> None:
    """Forget the events of a topic, in the scheduler."""
    dask_scheduler._broker._topics.pop(topic, None)


# They travel by value: the scheduler runs no units, and needs none of this library.
begin.__module__ = known.__module__ = forget.__module__ = "__main__"


# -- back here ------------------------------------------------------------------------------------


def compare(versions: Any) -> None:
    """Refuse a cluster on which something else is installed, by name."""
    mine = versions["client"]["packages"]
    names = ("python", "dask", "distributed", "quantum_async")
    for place, theirs in {"scheduler": versions["scheduler"], **versions["workers"]}.items():
        packages = theirs["packages"]
        for name in names:
            if place == "scheduler" and name == "quantum_async":
                continue  # it runs no units
            if packages.get(name) != mine.get(name):
                raise ClusterError(
                    f"{name} is {packages.get(name) or 'not installed'} on {place} and "
                    f"{mine.get(name)} here: install the same on the cluster"
                )


def loaded(blob: Any) -> Any:
    """Return a value that was pickled there, or `Failed` if it cannot be read here."""
    if isinstance(blob, Failed):
        return blob
    try:
        return pickle.loads(blob)
    except Exception as error:
        return Failed(error)


def meant_by(error: Exception) -> Exception:
    """Return the error of a value that cannot be fetched: of ours, if the cluster is to blame."""
    reason = getattr(error, "reason", "")
    if isinstance(error, OSError | KilledWorker) or reason:
        return ClusterError(f"the cluster does not give the value any more: {error}")
    return error


def meant(unit: str, error: Any) -> BaseException:
    """Return in our words why Dask gave a task up."""
    if isinstance(error, KilledWorker):
        return crashed(unit, error.last_worker.address)
    if isinstance(error, UnitFailedError):
        return ClusterError(f"unit {unit!r} was submitted with the result of one that failed")
    told = ClusterError(f"Dask could not run unit {unit!r}: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def crashed(unit: str, worker: str) -> WorkerCrashedError:
    """Return the error of a unit whose worker died."""
    return WorkerCrashedError(
        f"the Dask worker {worker} of unit {unit!r} died while it ran: the unit ended the process, "
        "or the machine or the worker's memory limit did; the worker's log says more",
        unit,
        f"worker {worker} was lost",
    )
