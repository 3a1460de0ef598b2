"""Small things about event loops."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread

T = TypeVar("T")


def new_task(
    coroutine: Coroutine[Any, Any, T], context: Context | None = None
) -> "asyncio.Task[T]":
    """Run a coroutine as a task, with empty context variables if none are given.

    Not through the loop's task factory, which is the user's, and may start it on the spot.
    """
    return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), context=context or Context())


async def all_ended(
    coroutines: list[Coroutine[Any, Any, None]], context: Context | None = None
) -> asyncio.CancelledError | None:
    """Wait until all have ended, whatever happens; return a cancellation that came meanwhile.

    Args:
        coroutines: What is waited for.
        context: Their context variables, if they are to have any.
    """
    if not coroutines:
        return None
    tasks = [new_task(coroutine, context) for coroutine in coroutines]
    again = None
    with CancelScope(shield=True):
        while not all(task.done() for task in tasks):
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError as error:
                again = error
    return again


async def in_thread(function: Callable[[], Any]) -> Any:
    """Call a plain function, never on the loop; whoever is cancelled meanwhile waits for it too."""
    limiter = CapacityLimiter(1)  # not the one shared with the user's framework
    outcome: list[Any] = []

    async def call() -> None:
        try:
            outcome.append((await to_thread.run_sync(function, limiter=limiter), None))
        except BaseException as error:
            outcome.append((None, error))

    again = await all_ended([call()], context=copy_context())
    if again is not None:
        raise again
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
