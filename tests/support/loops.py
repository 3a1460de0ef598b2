"""The event loops that everything must work on."""

import asyncio
import sys
from collections.abc import Callable

import uvloop


def _eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


# uvloop with the user's own eager task factory is left out: anyio's and uvloop's `create_task` fail
# with it before we are asked.
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = _eager
