"""What real processes may suffer: signals at random times, to random workers, by a seed."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from anyio import to_process

FULL = "QUANTUM_CHAOS" in os.environ  # the full counts, which take minutes


def workers() -> list[int]:
    """Return the worker processes of the running loop that have started."""
    with contextlib.suppress(LookupError):
        return [one.pid for one in to_process._process_pool_workers.get()]
    return []


def children() -> list[int]:
    """Return the children of this process, half-started workers among them."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return found


def of_session(session: int) -> list[int]:
    """Return the processes of a session (see `setsid`) that run."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of, *_ = place.read_text().rpartition(")")[2].split()
            if int(of) == session and state not in "ZX":
                found.append(int(place.parent.name))
    return found


# -- the ways to do harm: each takes a process and the seed's chance ------------------------------

Way = Callable[[int, random.Random], object]


def kill(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGKILL)


def interrupt(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGINT)


def terminate(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGTERM)


def stop(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGSTOP)


def stop_for_a_while(pid: int, chance: random.Random) -> None:
    os.kill(pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(0.05 * chance.random(), _go_on, pid)


def interrupt_group(pid: int, chance: random.Random) -> None:
    _to_group(pid, signal.SIGINT)


def terminate_group(pid: int, chance: random.Random) -> None:
    _to_group(pid, signal.SIGTERM)


def _to_group(pid: int, number: signal.Signals) -> None:
    # A worker that has just started is still in our own group.
    if os.getpgid(pid) == pid:
        os.killpg(pid, number)


def _go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def harm(
    chance: random.Random,
    ways: Sequence[Way],
    counts: "Counter[str]",
    *,
    pause: float,
    most: int = 1 << 30,
    whom: Callable[[], list[int]] = workers,
) -> AsyncIterator[None]:
    """Do harm to random processes at random moments while the block lasts.

    Args:
        chance: The seed's.
        ways: What is done.
        counts: How often each was done is added to this; ``"signals"`` is all of them.
        pause: The most seconds between two.
        most: The most in all.
        whom: Gives the processes that may be harmed.
    """
    before = set(children()) if whom is children else set()

    async def go_on() -> None:
        sent = 0
        while sent < most:
            await asyncio.sleep(chance.random() * pause)
            pids = sorted(set(whom()) - before)
            if not pids:
                continue
            way = chance.choice(ways)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                way(chance.choice(pids), chance)
                sent += 1
                counts["signals"] += 1
                counts["kills" if way is kill else way.__name__.replace("_", " ")] += 1

    harming = asyncio.create_task(go_on(), name="harm")
    try:
        yield
    finally:
        harming.cancel()
        await asyncio.wait([harming])
        if not harming.cancelled():
            harming.result()
