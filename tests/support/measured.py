"""Have worker processes write what they measured, where the tests run under coverage.

A process writes it when it exits. anyio kills the workers that are idle when their loop ends, and
with them goes what they know of the worker's side. Here they lose their input instead, on which
they exit by themselves.
"""

import asyncio
import math
import os
from typing import Any

from anyio._backends import _asyncio

SECONDS = 5.0  # that a worker has to exit


def is_measured() -> bool:
    """Return whether coverage measures this process and those that it starts."""
    return "COVERAGE_PROCESS_CONFIG" in os.environ


def let_idle_workers_exit() -> None:
    """Put what ends idle workers gently in the place of what kills them."""
    _asyncio._forcibly_shutdown_process_pool_on_exit = _close_inputs
    _asyncio._shutdown_process_pool_on_exit = _end


def _close_inputs(workers: set[Any], task: object = None) -> None:
    """Do what is to be done when the loop's first task has ended: later ones need new workers."""
    for process in workers:
        if process.returncode is None:
            process.stdin._stream._transport.close()


async def _end(workers: set[Any]) -> None:
    """Do what is to be done when the loop ends."""
    try:
        await asyncio.sleep(math.inf)
    except asyncio.CancelledError:
        _close_inputs(workers)
        for process in workers.copy():
            try:
                await asyncio.wait_for(process.wait(), SECONDS)
            except TimeoutError:
                process.kill()
            await process.aclose()
