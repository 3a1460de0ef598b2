"""What a process holds: threads, child processes, file descriptors. For finding what was left."""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Idle threads of anyio end when their loop is closed, and a thread that was timed out when it
# returns: neither waits for the other to be looked at.
SECONDS_TO_END = 3.0

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
    def left_since(cls, before: "Resources") -> "Resources":
        """Return what is held now and was not `before`; what is about to end gets some time."""
        left = cls.now().beyond(before)
        if left:
            gc.collect()  # what only a circle of references holds is closed by this
            patience = time.monotonic() + SECONDS_TO_END
            while (left := cls.now().beyond(before)) and time.monotonic() < patience:
                time.sleep(0.005)
        return left

    def but_for_a_loop(self) -> "Resources":
        """Return what is not there for the sake of an event loop that still runs.

        Idle threads and worker processes wait for its next run, and it has pipes and sockets.
        """
        return Resources(
            frozenset(one for one in self.threads if not one.name.startswith("AnyIO")),
            frozenset(one for one in self.children if "anyio.to_process" not in _command(one)),
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
    return b" ".join(words).decode(errors="replace").strip()[:200] or "ended, and not waited for"
