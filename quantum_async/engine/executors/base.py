"""What the engine asks of a place where units run: little, so that another can take its place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from quantum_async.core.context import ExecutionContext
from quantum_async.core.record import Usage

if TYPE_CHECKING:
    from quantum_async.core.plan import Unit  # a worker process needs no plans


_STILL = "its thread cannot be stopped and is still running"
_BACK = "its thread could not be stopped, and returned later"


def _nothing(*_: object) -> None:
    """Nobody is to be told."""


@dataclass(slots=True, eq=False)
class Job:
    """One attempt, ready to be called.

    Attributes:
        unit: The unit's name.
        attempt: Which attempt this is, from 1.
        function: What to call.
        context: The attempt's context; it is among the arguments if the function takes it.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        returned: What a place calls with the job, from any thread, when work that outlived its
            attempt ends.
        stop_clock: What a place calls before it prepares for the work.
        restart_clock: What a place calls when the work begins that it had to prepare for: a worker
            process is started outside any unit's time limit.
        measured: What a place calls with what the attempt cost, if it can tell.
        late: Whether the work outlived its attempt: it keeps its slot until `returned`.
        holds_run: Whether a run that is being stopped waits for work that outlived its attempt.
        still: What is said of such work while it goes on.
        back: What is said of it when it has ended.
        grace: Seconds it has to clean up when it is stopped, before it is killed.
        max_result_bytes: The most bytes of its result, where that travels; None if the unit does
            not say it.
        batch: Whether it may be sent along with others.
        number: The unit's number in the run.
    """

    unit: str
    attempt: int
    function: Callable[..., Any]
    context: ExecutionContext[Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    returned: Callable[["Job"], None] = _nothing
    stop_clock: Callable[[], None] = _nothing
    restart_clock: Callable[[], None] = _nothing
    measured: Callable[[Usage], None] = _nothing
    late: bool = False
    holds_run: bool = True
    still: str = _STILL
    back: str = _BACK
    grace: float = 0.0
    max_result_bytes: int | None = None
    batch: bool = True
    number: int = -1

    @classmethod
    def of(cls, unit: "Unit", context: ExecutionContext[Any]) -> "Job":
        """Return the job of a unit's attempt, without its arguments."""
        options = unit.options
        job = cls(context.unit_id, context.attempt, unit.function, context)
        job.number = context.number
        job.grace, job.batch = options.grace, options.batch
        job.max_result_bytes = options.max_result_bytes
        return job

    def __call__(self) -> Any:
        """Call the function."""
        return self.function(*self.args, **self.kwargs)


class Executor(Protocol):
    """A place where units run."""

    async def run(self, job: Job) -> Any:
        """Run a job and return its result.

        When the awaiting task is cancelled, the work must be stopped before the cancellation
        goes on. A place that cannot stop it sets `job.late` instead, and calls `job.returned`
        once it has ended.
        """
        ...
