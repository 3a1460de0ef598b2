"""The facts that a run tells to those who listen. Few, typed, never changed.

They are named tuples: making one costs a fifth of what a frozen dataclass costs, and a run of
many small units makes three a unit. `time` is monotonic (seconds, `time.perf_counter`), `wall`
is seconds since the epoch; `seq` counts the events of a run from 0.
"""

from typing import Any, NamedTuple


class RunStarted(NamedTuple):
    """A run began: `units` of them will end."""

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
    """An attempt began. `where` says on what: loop, thread, process, custom, inline."""

    run_id: str
    seq: int
    time: float
    wall: float
    unit: str
    attempt: int
    where: str


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

    `duration` is the seconds from the start of its first attempt.
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
