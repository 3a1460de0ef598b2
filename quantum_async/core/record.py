"""What happened to one unit in one run."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from quantum_async.core.states import UnitState


class _Nothing:
    """The absence of a result: None is a value that a unit may return."""

    def __repr__(self) -> str:
        return "<no result>"

    def __reduce__(self) -> str:
        return "NOTHING"


NOTHING = _Nothing()


class Elsewhere:
    """Base of what stands in a run for a result that is not in this process."""

    __slots__ = ()

    @property
    def is_here(self) -> bool:
        """Whether it has come home, or needs no fetching."""
        raise NotImplementedError

    def is_on(self, executor: Any) -> bool:
        """Whether it is on this cluster, and has not been released."""
        raise NotImplementedError

    def here(self) -> Any:
        """Return the result itself."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, repr=False)
class SavedValue:
    """Stands in a loaded result for a value that JSON cannot hold.

    Attributes:
        type: The value's qualified type name.
        text: Its repr, shortened.
    """

    type: str
    text: str

    def __repr__(self) -> str:
        return f"<{self.type} that was not saved: {self.text}>"


class Outcome(NamedTuple):
    """How a unit ended, for units that depend on it.

    Attributes:
        state: Its state; PENDING or RUNNING if it has not ended.
        result: Its result; None if it has none.
        error: The exception of its last attempt, if it has one.
        cause: Why it ended as it did, where the state alone does not say it.
    """

    state: UnitState
    result: Any = None
    error: BaseException | None = None
    cause: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it has a result."""
        return self.state is UnitState.COMPLETED


class Usage(NamedTuple):
    """What an attempt cost in another process.

    Attributes:
        pid: The process.
        cpu_time: Seconds of processor time of the attempt.
        peak_memory: The most memory that the process ever held, in bytes; 0 if it is unknown.
        host: The machine, if it ran on a cluster.
    """

    pid: int
    cpu_time: float
    peak_memory: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """What happened to one unit in one run.

    Attributes:
        name: The unit's name.
        state: Its terminal state (PENDING or RUNNING only in a record taken while it runs).
        result: What it returned, or its fallback; None if there is no result or if it was dropped.
        error: The exception of the last attempt, also where a fallback took its place.
        attempts: How many attempts were started.
        started_at: When its first attempt started, in seconds since the epoch, or None.
        ended_at: When it ended, in seconds since the epoch, or None.
        duration: Seconds from the first start to the end, back-off included, or None.
        waited: Seconds from its last dependency's end to its first start, or None.
        ran_on: ``"loop"``, ``"thread"``, ``"process"``, ``"custom"``, ``"interpreter"``,
            ``"remote"`` or ``"inline"``; ``"map"``, ``"run"`` or ``"race"`` for units that
            hold no slot themselves; ``"given"``
            for a value that was given with ``overrides`` or ``resume_from``; ``"cache"`` for one
            that came out of a cache; None if it never started.
        fallback_used: Whether `result` is the unit's fallback.
        cause: Why it ended as it did, where the state alone does not say it: the root failure of
            a skipped unit, who cancelled it, that its thread is still running.
        usage: Process, processor time and memory of its last attempt, if it ran in a process.
        held_by: The limit that it waited for when it was ready; None if that was a slot.
    """

    name: str
    state: UnitState
    result: Any = None
    error: BaseException | None = None
    attempts: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    duration: float | None = None
    waited: float | None = None
    ran_on: str | None = None
    fallback_used: bool = False
    cause: str | None = None
    usage: Usage | None = None
    held_by: str | None = None
