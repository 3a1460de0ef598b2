"""The one thread of this process that talks to Ray, and another that watches.

* Ray's calls block: connecting takes seconds, submitting or cancelling some hundred microseconds.
  They are made here, in their order, so that no event loop waits for them.
* It is one thread as long as the connection lives: on Linux the processes of a local Ray die with
  the *thread* that started them.
* Ray does not say that its head, or the raylet of this machine, is gone: what is awaited is just
  never done, calls never return, and a minute later Ray ends this process. So the second thread
  calls both from time to time; if nobody answers, the first is left to itself.
"""

import socket
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from typing import Any, Protocol
from weakref import WeakSet

import ray

from quantum_async.core.errors import ClusterError
from quantum_async.executors.ray_worker import refuse

_TICK = 1.0  # seconds from one look at the cluster to the next
_GONE_AFTER = 5.0  # seconds for which it does not answer
_QUIET = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
_STARTS_ONE = (None, "auto", "local")  # addresses with nothing to call


class Reference:
    """Stands for a value on the cluster.

    Attributes:
        ref: Ray's own reference; None until the call that makes the value is submitted.
        session: The number of the connection that it belongs to.
    """

    __slots__ = ("__weakref__", "ref", "session")

    def __init__(self, session: int, ref: Any = None) -> None:
        self.session = session
        self.ref = ref


class User(Protocol):
    """Who needs Ray."""

    def went_away(self, error: ClusterError) -> None:
        """The cluster is gone: nothing that was awaited will come."""
        ...


class _Turn:
    """A thread that talks, until there is nothing to do or it hangs."""

    def __init__(self) -> None:
        self.work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self.ended = threading.Event()
        self.gone: ClusterError | None = None


class RayThread:
    """Opens and closes the connection, counts who needs it, and does all work in order.

    Attributes:
        session: Counts connections.
        references: Those that are alive; they need the connection too.
    """

    def __init__(self) -> None:
        self.session = 0
        self.references: WeakSet[Reference] = WeakSet()
        self._turn: _Turn | None = None
        self._lock = threading.Lock()
        self._connecting = threading.RLock()
        self._users: list[User] = []
        self._opened_here = False
        self._places: list[tuple[str, int]] = []

    def do(self, work: Callable[[], object]) -> None:
        """Have something done after all that was asked before."""
        self._do(work)

    def _do(self, work: Callable[[], object]) -> _Turn:
        with self._lock:
            turn = self._turn
            if turn is None:
                turn = self._turn = _Turn()
                for name, target in (("", self._talk), ("-watch", self._watch)):
                    threading.Thread(
                        target=target, args=[turn], name=f"quantum-async-ray{name}", daemon=True
                    ).start()
            turn.work.put(work)
        return turn

    def ask(self, work: Callable[[], Any]) -> Any:
        """Have something done, block meanwhile, and return what it returns."""
        future: Future[Any] = Future()

        def settle() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        turn = self._do(settle)
        while not wait([future], timeout=_TICK).done:
            if turn.gone is not None:
                raise turn.gone
        return future.result()

    def _talk(self, turn: _Turn) -> None:
        while self._turn is turn:
            _do_next(turn.work)
            if self._turn is turn and not self._users and not self.references:
                self._close()
                with self._lock:
                    if turn.work.empty():
                        self._turn = None
        turn.ended.set()

    # -- the connection; all this in the thread ---------------------------------------------

    def enter(
        self, user: User, address: str | None, init: Mapping[str, Any], patience: float
    ) -> None:
        """Connect, if nobody has; see `leave`.

        Args:
            user: Who needs Ray.
            address: Of the cluster; None for any, or a new one on this machine.
            init: Other arguments for ``ray.init``.
            patience: Seconds for the head to answer.

        Raises:
            ClusterError: If the cluster cannot be reached or does not fit.
        """
        with self._connecting:
            if not ray.is_initialized():
                self._open(address, init, patience)
        if ray.util.client.ray.is_connected():
            raise ClusterError(
                "this process is connected through Ray Client (ray://…), which cannot tell when a "
                "call has ended: run it on a machine of the cluster, or as a Ray job"
            )
        head, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        if not answers((head, int(port)), patience):  # Ray itself would wait for it
            raise ClusterError("Ray is connected, and its cluster does not answer: shut it down")
        self._places = [(head, int(port)), *_raylets_here()]
        self._users.append(user)

    def _open(self, address: str | None, init: Mapping[str, Any], patience: float) -> None:
        self.session += 1
        what = f"the Ray cluster {address or 'on this machine'!r} cannot be used"
        host, _, port = (address or "").rpartition(":")
        if address not in _STARTS_ONE and not host.startswith("ray:"):
            # Ray itself would try for two minutes.
            if not (host and port.isdecimal()):
                raise ClusterError(f"{what}: its address must be like 'host:6379'")
            if not answers((host, int(port)), patience):
                raise ClusterError(f"{what}: nothing answers there; see that its head runs")
        try:
            ray.init(address, **{**_QUIET, **init})
        except (Exception, SystemExit) as error:
            ray.shutdown()
            refuse(what, error)
        self._opened_here = True

    def leave(self, user: User) -> None:
        """Undo `enter`; what was opened here is closed when nobody needs it."""
        self._users.remove(user)
        if not self._users and not self.references:
            self._close()

    def _close(self) -> None:
        with self._connecting:
            if self._opened_here:
                self._opened_here = False
                ray.shutdown()

    def shut(self) -> None:
        """Close what was opened here, although there are references."""
        if not self._users:
            self.references.clear()
            self._close()

    # -- whether it is there; in the thread that watches ------------------------------------

    def _watch(self, turn: _Turn) -> None:
        silent = 0.0
        while not turn.ended.wait(_TICK):
            if not self._users and not self.references:
                continue
            if not ray.is_initialized():
                silent, how = _GONE_AFTER, "was shut down"
            elif all(answers(place, _TICK) for place in self._places):
                silent = 0.0
            else:
                silent, how = silent + _TICK, "does not answer any more"
            if silent >= _GONE_AFTER:
                self._went_away(turn, ClusterError(f"the Ray cluster {how}"))
                return

    def _went_away(self, turn: _Turn, error: ClusterError) -> None:
        with self._lock:
            self._turn = None  # it may hang
        turn.gone = error
        self.session += 1
        self.references.clear()
        for user in list(self._users):
            user.went_away(error)
        self._close()

    def check(self, reference: Reference | None = None) -> None:
        """Refuse to go on without a connection: Ray would start another cluster by itself.

        Raises:
            ClusterError: If there is none, or not the one that a reference belongs to.
        """
        if not ray.is_initialized() or (reference and reference.session != self.session):
            raise ClusterError("the connection to the Ray cluster was closed")


def _do_next(queue: SimpleQueue[Callable[[], object]]) -> None:
    """Do what comes next, if it comes; then hold on to none of it, or references would live on."""
    try:
        work = queue.get(timeout=_TICK)
    except Empty:
        return
    try:
        work()
    except Exception as error:
        # An error of ours must not end the thread, and is not to be hidden.
        told = type(error), error, error.__traceback__, threading.current_thread()
        threading.excepthook(threading.ExceptHookArgs(told))


def _raylets_here() -> list[tuple[str, int]]:
    """Return where the raylet that this process belongs to takes calls."""
    mine = ray.get_runtime_context().get_node_id()
    here = [node for node in ray.nodes() if node["NodeID"] == mine]
    return [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in here]


def answers(place: tuple[str, int], patience: float) -> bool:
    """Return whether somebody takes calls at an address.

    Args:
        place: Host and port.
        patience: Seconds.
    """
    try:
        with socket.create_connection(place, patience):
            return True
    except OSError:
        return False


def names_of_resources() -> Collection[str]:
    """Return the names of the cluster's resources, as `uses` has them."""
    hidden = ("object_store_memory", "node:__internal_head__")
    return frozenset(
        {"CPU": "cpu", "GPU": "gpu"}.get(name, name)
        for name in ray.cluster_resources()
        if name not in hidden
    )


def hosts() -> list[str]:
    """Return the names of the cluster's hosts."""
    return sorted({str(it["NodeManagerHostname"]) for it in ray.nodes() if it["Alive"]})


THREAD = RayThread()
