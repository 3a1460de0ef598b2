"""What a process and a loop hold, for finding what was left behind."""

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Idle threads of anyio end when their loop is closed, and a thread that was timed out when it
# returns: neither waits for the other to be looked at.
SECONDS_TO_END = 3.0
_TURNS_TO_END = 10
_ENDED = "ended, and not waited for"

_THIS_PROCESS = Path("/proc/self")
_HAS_CHILDREN = (_THIS_PROCESS / f"task/{os.getpid()}/children").exists()
_HAS_DESCRIPTORS = (_THIS_PROCESS / "fd").exists()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process holds. A platform that does not tell of something holds none of it."""

    threads: frozenset[threading.Thread]
    children: frozenset[int]
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def now(cls) -> "Resources":
        """Look. Costs well under a tenth of a millisecond."""
        return cls(
            frozenset(threading.enumerate()), frozenset(_children()), frozenset(_descriptors())
        )

    def beyond(self, before: "Resources") -> "Resources":
        """Return what is held now and was not `before`."""
        ours, our_descriptors = _of_multiprocessing()
        return Resources(
            self.threads - before.threads,
            self.children - before.children - ours,
            frozenset(
                one
                for one in self.descriptors - before.descriptors
                if one[0] not in our_descriptors
            ),
        )

    @classmethod
    def left_since(cls, before: "Resources", *, spare_open_loops: bool = False) -> "Resources":
        """Return what is held now and was not `before`; what is about to end gets some time.

        Args:
            before: What was held then.
            spare_open_loops: Whether what an event loop that is not closed keeps for its next run
                is to be left out.
        """
        left = cls.now().beyond(before)
        if not left:
            return left
        gc.collect()  # what only a circle of references holds is closed by this
        spares = spare_open_loops and _a_loop_is_open()
        patience = time.monotonic() + SECONDS_TO_END
        while True:
            left = cls.now().beyond(before)
            if spares:
                left = left._but_for_a_loop()
            if not left or time.monotonic() > patience:
                return left
            time.sleep(0.005)  # what is left may be anything: there is no one thing to wait for

    def _but_for_a_loop(self) -> "Resources":
        """Return what no event loop needs for its next run.

        Idle threads and worker processes wait for that, and it has pipes and sockets. It will
        collect the processes that have ended.
        """
        return Resources(
            frozenset(one for one in self.threads if not one.name.startswith("AnyIO")),
            frozenset(one for one in self.children if not _is_for_a_loop(_command(one))),
            frozenset(
                one for one in self.descriptors if one[1].startswith("/") and "memfd:" not in one[1]
            ),
        )

    def __bool__(self) -> bool:
        return bool(self.threads or self.children or self.descriptors)

    def __str__(self) -> str:
        told = [f"thread {thread.name!r}" for thread in self.threads]
        told += [f"child process {pid}: {_command(pid)}" for pid in self.children]
        told += [f"file descriptor {number}: {target}" for number, target in self.descriptors]
        return "; ".join(sorted(told))


def _is_for_a_loop(command: str) -> bool:
    return command == _ENDED or "anyio.to_process" in command


def _a_loop_is_open() -> bool:
    return any(
        # Not `isinstance`, which asks the objects: some are proxies that do not like it.
        issubclass(type(one), asyncio.AbstractEventLoop) and not one.is_closed()
        for one in gc.get_objects()
    )


@asynccontextmanager
async def begun_tasks(left: list[str]) -> AsyncIterator[None]:
    """Add to `left`, in words, the tasks of this loop that began in the block and outlive it.

    Those that are about to end, a cancelled one say, get some turns of the loop. If the block
    raises, nothing is looked for.

    Args:
        left: Where they are told.
    """
    before = asyncio.all_tasks()
    yield
    for _ in range(_TURNS_TO_END):
        names = [task.get_name() for task in asyncio.all_tasks() - before]
        # anyio's worker processes have one until the loop ends.
        names = [name for name in names if not name.startswith("AnyIO process pool")]
        if not names:
            return
        await asyncio.sleep(0)
    left += sorted(f"task {name!r}" for name in names)


def _children() -> Iterator[int]:
    # A child belongs to the thread that started it.
    if _HAS_CHILDREN:
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:
                yield from map(int, file.read().split())


def _descriptors() -> Iterator[tuple[int, str]]:
    if _HAS_DESCRIPTORS:
        for number in os.listdir("/proc/self/fd"):
            # Fails for the one that the listing itself needed.
            with suppress(OSError):
                yield int(number), os.readlink(f"/proc/self/fd/{number}")


def _of_multiprocessing() -> tuple[set[Any], set[Any]]:
    """Return processes and descriptors that the standard library keeps until the interpreter ends.

    The resource tracker and the fork server of `multiprocessing` serve all later pools too.
    """
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", 0)
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", 0)
    owners = [
        (tracker, ("_pid",), ("_fd",)),
        (server, ("_forkserver_pid",), ("_forkserver_alive_fd",)),
    ]
    pids = {getattr(owner, name, None) for owner, names, _ in owners for name in names}
    descriptors = {getattr(owner, name, None) for owner, _, names in owners for name in names}
    return pids - {None}, descriptors - {None}


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone by now"
    return b" ".join(words).decode(errors="replace").strip()[:200] or _ENDED
