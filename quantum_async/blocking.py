"""Running a coroutine from a script: in a loop of our own, uvloop's where it is installed."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")

_NEW_LOOP = asyncio.events.new_event_loop
_INTERPRETERS = "quantum_async.engine.executors.interpreter"  # loaded where they are used


def run_blocking(make: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Run the coroutine that `make` returns, and block until it has ended.

    Raises:
        RuntimeError: If an event loop is running in this thread already.
    """
    if _in_loop():
        raise RuntimeError(
            "execute() starts an event loop of its own, and one is running here already: this is "
            "asynchronous code or a notebook, so use `await partitioner.run(…)`"
        )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(make())


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if asyncio.events.new_event_loop is not _NEW_LOOP:
        return None  # somebody has a loop of their own in mind: virtual time, say
    if _INTERPRETERS in sys.modules:
        # Once there are sub-interpreters, a process that uvloop starts dies at its fork (uvloop
        # 0.23 on CPython 3.13).
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
