"""Units that treat their worker process badly, each with the end that it must have."""

import logging
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from quantum_async import (
    ExecutionContext,
    QuantumPartitioner,
    RemoteError,
    RunResult,
    UnitState,
    WorkerCrashedError,
)

FAILED, COMPLETED = UnitState.FAILED, UnitState.COMPLETED

_ROOM = 64 << 20  # bytes that a unit may take before its worker's limit stops it
_held: list[bytes] = []  # what units left behind in this worker


class Behaviour(NamedTuple):
    """A kind of unit.

    Attributes:
        do: The function, which takes the unit's number.
        state: How the unit ends.
        error: The type of its error; None if it has a result, which is its number.
        says: What the error says.
    """

    do: Callable[[int], Any]
    state: UnitState = COMPLETED
    error: type[BaseException] | None = None
    says: str = ""


class Unpicklable:
    """Cannot be sent."""

    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")


class LostError(Exception):
    """Can be pickled, and not unpickled: its arguments are not those of its class."""

    def __init__(self, number: int, other: object) -> None:
        super().__init__(f"lost {number}")


# -- those that are well ---------------------------------------------------------------------------


def is_well(number: int) -> int:
    return number


def floods_stdout(number: int) -> int:
    for _ in range(200):
        print("x" * 1_000)  # noqa: T201
    sys.stdout.write("y" * 300_000)  # one line that has no end
    return number


def floods_descriptors(number: int) -> int:
    for descriptor in (1, 2):
        for _ in range(20):
            os.write(descriptor, b"z" * 10_000 + b"\n")
    return number


def floods_the_log(number: int) -> int:
    for turn in range(300):
        logging.getLogger("flood").warning("%s %s", turn, "l" * 500)
    return number


def floods_from_threads(number: int) -> int:
    threads = [threading.Thread(target=floods_descriptors, args=(number,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return number


def holds_memory(number: int) -> int:
    _held.append(bytes(8 << 20))
    return number


def ignores_signals(number: int) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return number


# -- those that fail -------------------------------------------------------------------------------


def fills_memory(number: int) -> int:
    """Take memory up to a limit of the worker's own, and let go of it."""
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, before[1]))
    taken = []
    try:
        while True:
            taken.append(bytearray(1 << 20))
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)


def returns_what_cannot_travel(number: int) -> object:
    return threading.Lock()


def returns_what_raises(number: int) -> object:
    return Unpicklable()


def raises_what_cannot_travel(number: int) -> object:
    error = ValueError(f"number {number}")
    error.extra = threading.Lock()  # type: ignore[attr-defined]
    raise error


def raises_what_is_lost(number: int) -> object:
    raise LostError(number, None)


def recurses(number: int) -> int:
    return recurses(number) + 1


# -- those that end their worker -------------------------------------------------------------------


def exits(number: int) -> None:
    os._exit(number % 200 + 1)


def aborts(number: int) -> None:
    os.abort()


def kills_itself(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminates_itself(number: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def floods_and_exits(number: int) -> None:
    floods_descriptors(number)
    os._exit(7)


BEHAVIOURS = (
    *map(
        Behaviour,
        (
            is_well, is_well, is_well, floods_stdout, floods_descriptors, floods_the_log,
            floods_from_threads, holds_memory, ignores_signals,
        ),
    ),
    Behaviour(fills_memory, FAILED, MemoryError),
    Behaviour(returns_what_cannot_travel, FAILED, TypeError, "lock"),
    Behaviour(returns_what_raises, FAILED, TypeError, "not to be sent"),
    Behaviour(raises_what_cannot_travel, FAILED, RemoteError, "ValueError"),
    Behaviour(raises_what_is_lost, FAILED, RemoteError, "LostError"),
    Behaviour(recurses, FAILED, RecursionError),
    Behaviour(exits, FAILED, WorkerCrashedError, "exit code"),
    Behaviour(aborts, FAILED, WorkerCrashedError, "SIGABRT"),
    Behaviour(kills_itself, FAILED, WorkerCrashedError, "SIGKILL"),
    Behaviour(terminates_itself, FAILED, WorkerCrashedError, "SIGTERM"),
    Behaviour(floods_and_exits, FAILED, WorkerCrashedError, "exit code 7"),
)  # fmt: skip


def hostile_flow(
    chance: random.Random, count: int
) -> tuple[QuantumPartitioner[Any, Any], dict[str, Behaviour]]:
    """Return a graph of such units, some behind one that is well, and what each must come to.

    Args:
        chance: The seed's.
        count: How many units.
    """
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(
        default_execution_mode="process", failure_policy="collect", max_memory=96 << 20
    )
    due: dict[str, Behaviour] = {}
    well: list[str] = []
    for number in range(count):
        behaviour = chance.choice(BEHAVIOURS)
        name = f"{behaviour.do.__name__} {number}"
        above = [chance.choice(well)] if well and chance.random() < 0.3 else []
        flow.add_unit(partial(_called, behaviour.do, number), above, name)
        due[name] = behaviour
        if behaviour.error is None:
            well.append(name)
    return flow, due


def _called(do: Callable[[int], Any], number: int, ctx: ExecutionContext[Any]) -> Any:
    return do(number)


def wrong(result: RunResult, due: dict[str, Behaviour]) -> list[str]:
    """Return which units came to another end than they must, in words."""
    found = []
    for name, behaviour in due.items():
        record = result.units[name]
        number = int(name.rpartition(" ")[2])
        fine = record.state is behaviour.state
        if behaviour.error is None:
            fine &= record.result == number
        else:
            fine &= isinstance(record.error, behaviour.error)
            fine &= behaviour.says in str(record.error)
        if not fine:
            found.append(f"{name!r}: {record}")
    return found
