"""The facts that a run tells to those who listen. Few, typed, never changed.

They are named tuples: making one costs a fifth of what a frozen dataclass costs, and a run of
many small units makes three a unit. `time` is monotonic (seconds, `time.perf_counter`), `wall`
is seconds since the epoch; `seq` counts the events of a run from 0.
"""

from typing import Any, NamedTuple

from quantum_async.core.record import Usage
from quantum_async.core.unit import QuantumUnit


class RunStarted(NamedTuple):
    """A run began: `units` of them will end.

    It is told in context variables of the run: what an observer sets there, every unit has.
    """

    run_id: str
    seq: int
    time: float
    wall: float
    units: int
    partitioner: str


class UnitReady(NamedTuple):
    """A unit's last dependency ended, or its back-off: it waits for nothing but a slot."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int


class UnitStarted(NamedTuple):
    """An attempt began. `where` says on what: loop, thread, process, custom, inline.

    `handle` is what was declared; the children of a map share one. It is told in the attempt's own
    context variables: what an observer sets there, the unit has, and for a map each child.
    """

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    where: str
    handle: QuantumUnit[Any, Any] | None = None


class UnitRetrying(NamedTuple):
    """An attempt failed or timed out; the next one is due `wait` seconds from now."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    error: BaseException | None
    wait: float


class UnitEmitted(NamedTuple):
    """A unit called ``ctx.emit(value)``."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    value: Any


class UnitCompleted(NamedTuple):
    """A unit has a result; `error` is what its fallback took the place of, if it has one.

    `duration` is the seconds from the start of its first attempt, and `usage` what the last one
    cost if it ran in another process.
    """

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    result: Any
    where: str
    duration: float
    error: BaseException | None
    usage: Usage | None = None


class UnitFailed(NamedTuple):
    """A unit's last attempt failed, `duration` seconds after its first one started."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    error: BaseException
    duration: float
    usage: Usage | None = None


class UnitTimedOut(NamedTuple):
    """A unit's last attempt, or all of them together, ran out of time."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    error: BaseException
    duration: float
    usage: Usage | None = None


class UnitSkipped(NamedTuple):
    """A unit will not run; `root` is the failed unit that is to blame."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    root: str


class UnitCanceled(NamedTuple):
    """A unit was stopped, or will not start any more."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    cause: str


class RunFinished(NamedTuple):
    """A run ended. `state` is ``"completed"``, ``"failed"``, ``"canceled"`` or ``"timeout"``."""

    run_id: str
    seq: int
    time: float
    wall: float
    state: str
    duration: float


Event = (
    RunStarted
    | UnitReady
    | UnitStarted
    | UnitRetrying
    | UnitEmitted
    | UnitCompleted
    | UnitFailed
    | UnitTimedOut
    | UnitSkipped
    | UnitCanceled
    | RunFinished
)
EVENT_TYPES: tuple[type[Event], ...] = (
    RunStarted,
    UnitReady,
    UnitStarted,
    UnitRetrying,
    UnitEmitted,
    UnitCompleted,
    UnitFailed,
    UnitTimedOut,
    UnitSkipped,
    UnitCanceled,
    RunFinished,
)
