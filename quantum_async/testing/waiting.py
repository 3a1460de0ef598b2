"""Who waits, in words: what an error says when nothing can run any more."""

import asyncio
from typing import Any

_MOST_NAMED = 20
_LIBRARIES = ("asyncio", "anyio", "quantum_async")


def deadlock(loop: asyncio.AbstractEventLoop, silence: str) -> str:
    """Say that nothing can run in a loop any more, and who waits.

    Args:
        loop: The loop.
        silence: What else was waited for, in words.
    """
    waiting = sorted(f"  {task.get_name()!r} {_where(task)}" for task in asyncio.all_tasks(loop))
    if len(waiting) > _MOST_NAMED:
        waiting[_MOST_NAMED:] = [f"  and {len(waiting) - _MOST_NAMED} more"]
    return (
        f"deadlock at {loop.time():g} s of virtual time: no timer is set and nothing is at work "
        f"outside the loop{silence}, so these would wait for ever (for somebody whom the loop "
        "cannot see, use VirtualClock.outside_work):\n" + "\n".join(waiting or ["  no task"])
    )


def _where(task: "asyncio.Task[Any]") -> str:
    """Return the innermost line of a task that is the user's."""
    coroutine: Any = task.get_coro()
    users = last = None
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            last = frame
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            users = users if package in _LIBRARIES else frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    frame = users or last
    if frame is None:
        return ""
    return f"in {frame.f_code.co_qualname}, {frame.f_code.co_filename}:{frame.f_lineno}"
