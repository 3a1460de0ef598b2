"""What the engine asks of a cluster: little, so that an adapter to one is thin.

An adapter connects, submits calls, takes them back, and fetches values. All else is the engine's:
what goes when and ahead of its turn, retries, time limits, envelopes, whose value is needed where.
`remote` is that side, and `performing` is what runs in a worker of the cluster.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from quantum_async.core.record import Usage


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a cluster can do.

    Attributes:
        interrupts_running: Whether it can stop a function that runs.
        runs_coroutines: Whether coroutine functions may go there.
        keeps_data: Whether results can stay there and be passed on.
        max_payload: The most bytes of a call, its arguments included; None if that is not known.
        tells_start: Whether it tells when a function begins. A unit's timeout counts from then on,
            and else from the moment that it is submitted.
    """

    interrupts_running: bool
    runs_coroutines: bool
    keeps_data: bool
    max_payload: int | None = None
    tells_start: bool = False


class RemoteWarning(UserWarning):
    """A unit asks of a cluster what that cannot do, or a large result leaves the cluster."""


class RemoteCall(NamedTuple):
    """A call that goes to a cluster.

    Attributes:
        unit: The unit's name, for messages.
        key: The call's own name, which no other call of any run ever has.
        blob: The first argument of `perform`.
        references: What stands for values that are there: what `submit` or `put` gave, or the key
            of a call before it in the same list. The values are the second argument of `perform`.
        resources: What it needs of the cluster's own resources, by name.
        priority: Larger is sooner, where the cluster can tell.
        grace: Seconds to clean up when it is interrupted, before it is killed.
    """

    unit: str
    key: str
    blob: bytes
    references: tuple[Any, ...] = ()
    resources: Mapping[str, float] = {}
    priority: float = 0
    grace: float = 0.0


class RemoteAnswer(NamedTuple):
    """How a call ended on a cluster.

    Attributes:
        how: As in `envelope.Answer`. Only if it is "returned" there is a value.
        content: The pickled result if it is small and wanted here, the description of an
            exception, or nothing.
        told: The pickled metrics, emitted values and side effects, if there are any.
        usage: What it cost, and where.
        size: About how many bytes the result takes.
        records: What it printed and logged, if that did not travel before.
    """

    how: str
    content: bytes
    told: bytes
    usage: Usage
    size: int = 0
    records: tuple[Any, ...] = ()


class Hearer(Protocol):
    """Takes what becomes of calls. Everything is called on the event loop of the run.

    For each call there is one `ended` or one `lost`, after `cancel` too: then as soon as it is sure
    that nothing of it runs any more.
    """

    def began(self, key: str) -> None:
        """The function begins; only of clusters that can tell."""
        ...

    def wrote(self, key: str, record: Any) -> None:
        """The function printed or logged something."""
        ...

    def ended(self, key: str, answer: RemoteAnswer) -> None:
        """The function has ended."""
        ...

    def lost(self, key: str, error: BaseException) -> None:
        """There is no answer and will be none.

        Args:
            key: The call.
            error: `WorkerCrashedError`, `ClusterError`, or `asyncio.CancelledError` if somebody
                cancelled it: there, or here.
        """
        ...


@dataclass(frozen=True, slots=True)
class Failed:
    """Takes the place of a value that could not be fetched.

    Attributes:
        error: Why.
    """

    error: BaseException


@runtime_checkable
class RemoteExecutor(Protocol):
    """A cluster, as the engine sees it. One serves any number of runs at once."""

    name: str
    can: Capabilities
    keep_remote: int  # bytes; larger results stay there until they are asked for
    wait_for_running: bool  # whether a run waits for functions that could not be stopped

    async def attach(self) -> None:
        """Connect to the cluster, for a run in this event loop; runs are counted.

        Raises:
            ClusterError: If it cannot be reached, or what is installed there does not fit.
        """
        ...

    async def detach(self) -> None:
        """A run has ended; what was opened here is closed when nothing needs it any more."""
        ...

    def resources(self) -> Collection[str] | None:
        """Return the names of the cluster's own resources; None if they are not known."""
        ...

    def submit(self, calls: Sequence[RemoteCall], hearer: Hearer) -> Sequence[Any]:
        """Submit calls, without waiting, and with the cluster's own retries off.

        Returns:
            For each call what stands for its value. When the last of it is dropped, the cluster
            forgets the value.

        Raises:
            ClusterError: If the connection is gone.
        """
        ...

    def cancel(self, keys: Collection[str]) -> None:
        """Take calls back: what waits never runs; what runs is interrupted, if that can be done."""
        ...

    async def fetch(self, references: Sequence[Any]) -> Sequence[Any]:
        """Return values, and `Failed` for those that do not come."""
        ...

    def fetch_now(self, reference: Any) -> Any:
        """Return a value, and block meanwhile.

        Raises:
            StaysRemoteError: If that cannot be done here.
        """
        ...

    async def put(self, value: Any) -> Any:
        """Send a value to the cluster, and return what stands for it."""
        ...
