"""Small things about event loops."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from anyio import CancelScope


async def all_ended(
    coroutines: list[Coroutine[Any, Any, None]],
) -> asyncio.CancelledError | None:
    """Wait until all have ended, whatever happens; return a cancellation that came meanwhile."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
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
