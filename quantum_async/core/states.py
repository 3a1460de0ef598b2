"""The words that say how units run and how they end. Each is accepted by its value too."""

from enum import Enum
from typing import TypeVar

from quantum_async.core.errors import PlanError, did_you_mean

E = TypeVar("E", bound=Enum)


class UnitState(Enum):
    """Where a unit is in its life; there are no other states."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELED = "canceled"
    TIMEOUT = "timeout"


class ExecutionMode(Enum):
    """Where units run.

    AUTO puts each unit where it belongs: a coroutine function on the loop, a plain function in
    a thread, one with ``mode="process"`` or ``resource_type: "cpu"`` in a worker process.
    ASYNC and THREAD send plain functions to threads, PROCESS to worker processes, CUSTOM to the
    ``custom_executor``, INTERPRETER to sub-interpreters (Python 3.13 and later; nothing can stop
    what runs there), REMOTE to the cluster that is given as ``executor``. SEQUENTIAL runs one unit
    at a time in plan order, plain functions inline.
    """

    AUTO = "auto"
    SEQUENTIAL = "sequential"
    PROCESS = "process"
    THREAD = "thread"
    ASYNC = "async"
    CUSTOM = "custom"
    INTERPRETER = "interpreter"
    REMOTE = "remote"


class FailurePolicy(Enum):
    """What one unit's failure means for the others.

    CONTINUE: what does not depend on it runs to its end, then `ExecutionError` is raised.
    FAIL_FAST: the rest is cancelled at once, then `ExecutionError` is raised.
    COLLECT: as CONTINUE, but the `RunResult` is returned and nothing is raised.
    """

    CONTINUE = "continue"
    FAIL_FAST = "fail_fast"
    COLLECT = "collect"


class Strategy(Enum):
    """How the ready queue is ordered.

    CRITICAL_PATH: explicit priority, then the longest remaining path by `cost`, then declaration.
    PRIORITY: explicit priority, then declaration. FIFO: in order of readiness.
    RESOURCE_BALANCED: as CRITICAL_PATH, CPU units in worker processes and I/O units in threads,
    each kind with slots of its own. ADAPTIVE: as CRITICAL_PATH, with as many slots as the
    machine's load and the loop's lag allow.
    """

    CRITICAL_PATH = "critical_path"
    PRIORITY = "priority"
    FIFO = "fifo"
    RESOURCE_BALANCED = "resource_balanced"
    ADAPTIVE = "adaptive"


def parse(kind: type[E], value: E | str, what: str) -> E:
    """Return the member of `kind` that `value` is or names.

    Raises:
        PlanError: If there is no such member; `what` says in the message what was asked for.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        try:
            return kind(value.lower())
        except ValueError:
            pass
    known = [member.value for member in kind]
    raise PlanError(
        f"{what} must be one of {', '.join(map(repr, known))}, not {value!r}"
        f"{did_you_mean(value, known)}"
    )
