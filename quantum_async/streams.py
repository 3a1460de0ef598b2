"""Runs as streams of aiostream, with its operators: ``events(flow, ctx) | pipe.map(…)``.

Needs the extra ``streams``. aiostream is GPL-3.0-or-later; nothing else in this package imports it.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from quantum_async.core.events import Event

try:
    from aiostream import operator
except ImportError:
    raise ImportError(
        "quantum_async.streams is a bridge to aiostream, which is not installed: "
        "pip install 'quantum-async[streams]'"
    ) from None

if TYPE_CHECKING:
    from quantum_async.partitioner import QuantumPartitioner

__all__ = ["events", "results"]


@operator
async def events(
    flow: "QuantumPartitioner[Any, Any]", context: Any = None, **options: Any
) -> AsyncIterator[Event]:
    """Run a partitioner, and give its events as a stream of aiostream.

    Each iteration is a run of its own; it starts with the iteration. Leaving
    ``async with events(flow, ctx).stream() as streamer:`` cancels the run and waits for it, and so
    does closing a stream that was made of it with `pipe`, `merge` or another operator.

    Args:
        flow: The partitioner.
        context: The run's input.
        options: The options of `QuantumPartitioner.stream`.

    Raises:
        ExecutionError: In the iteration, after the last event, if units failed.
    """
    async with flow.stream(context, **options) as stream:
        async for event in stream:
            yield event


@operator
async def results(
    flow: "QuantumPartitioner[Any, Any]", context: Any = None, **options: Any
) -> AsyncIterator[tuple[str, Any]]:
    """As `events`, with pairs of unit name and result, as `QuantumPartitioner.results` gives them.

    Args:
        flow: The partitioner.
        context: The run's input.
        options: The options of `QuantumPartitioner.results`.

    Raises:
        ExecutionError: In the iteration, after the last result, if units failed.
    """
    async with flow.results(context, **options) as stream:
        async for item in stream:
            yield item
