"""Small things about event loops."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

from anyio import CancelScope

T = TypeVar("T")


def new_task(coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Run a coroutine as a task with empty context variables.

    Not through the loop's task factory, which is the user's, and may start it on the spot.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), context=Context())


async def all_ended(
    coroutines: list[Coroutine[Any, Any, None]],
) -> asyncio.CancelledError | None:
    """Wait until all have ended, whatever happens; return a cancellation that came meanwhile."""
    tasks = [new_task(coroutine) for coroutine in coroutines]
    again = None
    with CancelScope(shield=True):
        while not all(task.done() for task in tasks):
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError as error:
                again = error
    return again


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
