"""The forms of a run for those who listen while it goes on: its events, and its results."""

from abc import abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.events import Event, UnitCompleted
from quantum_async.core.unit import R, T
from quantum_async.engine.bus import Observer
from quantum_async.forms import Forms
from quantum_async.observe.stream import (
    BLOCK,
    DROP_OLDEST,
    EventStream,
    Inbox,
    Live,
    ResultStream,
)
from quantum_async.request import RunRequest
from quantum_async.result import RunResult

_BUFFER = 1024  # events


class Listening(Forms[T, R]):
    """Runs that are heard of as they go on."""

    @abstractmethod
    def _requested(self, context: Any, options: dict[str, Any]) -> RunRequest:
        """Return what a call of `run` with these options asks for."""
        raise NotImplementedError

    @abstractmethod
    def _run(
        self, request: RunRequest, keep: Callable[[RunResult], None] | None = None
    ) -> Coroutine[Any, Any, RunResult]:
        """Return the run that was asked for."""
        raise NotImplementedError

    def stream(
        self,
        context: Any = None,
        *,
        buffer: int = _BUFFER,
        overflow: str = BLOCK,
        **options: Any,
    ) -> EventStream[RunResult]:
        """Run the units and hear of it: ``async with flow.stream(ctx) as events: async for …``.

        Leaving the block cancels the run and waits for it; ``events.result`` has its result.

        Args:
            context: The run's input.
            buffer: How many events may wait to be taken.
            overflow: What happens when so many do. ``"block"``: the run starts no attempt, of any
                unit, until one is taken. What runs already goes on, and what it tells and emits
                still comes, so that the buffer grows by that. Time limits go on too.
                ``"drop_oldest"``: the oldest event is dropped, and counted in ``events.dropped``.
            options: The options of `run`.

        Raises:
            PlanError: For any value that could not be meant.
        """
        return self._stream(context, buffer, overflow, options)

    def results(
        self,
        context: Any = None,
        *,
        children: bool = False,
        buffer: int = _BUFFER,
        **options: Any,
    ) -> ResultStream[RunResult]:
        """Run the units and take results as they come: ``async for name, value in …``.

        The run starts with the loop, and starts nothing more while `buffer` results wait to be
        taken. Leaving the loop cancels the run; ``async with flow.results(ctx) as results`` waits
        for that too. Results that were given (`overrides`, `resume_from`) do not come.

        Args:
            context: The run's input.
            children: Whether children of maps (``map[3]``) and units of nested runs
                (``unit/child``) come too.
            buffer: How many results may wait to be taken.
            options: The options of `run`.

        Raises:
            PlanError: For any value that could not be meant.
            ExecutionError: In the loop, after the last result, if units failed.
        """
        stream = self._stream(context, buffer, BLOCK, options, (UnitCompleted,))
        return ResultStream(stream, children=children)

    def _stream(
        self,
        context: Any,
        buffer: int,
        overflow: str,
        options: dict[str, Any],
        event_types: tuple[type[Event], ...] | None = None,
    ) -> EventStream[RunResult]:
        if type(buffer) is not int or buffer < 1:
            raise PlanError(f"buffer must be a whole number of events from 1 up, not {buffer!r}")
        if overflow not in (BLOCK, DROP_OLDEST):
            hint = did_you_mean(overflow, (BLOCK, DROP_OLDEST))
            raise PlanError(
                f"overflow must be {BLOCK!r} or {DROP_OLDEST!r}, not {overflow!r}{hint}"
            )
        request = self._requested(context, options)

        def start(
            inbox: Inbox, watch: Callable[[Live], None], keep: Callable[[RunResult], None]
        ) -> Coroutine[Any, Any, RunResult]:
            listeners: list[Observer] = [*request.observers, inbox]
            return self._run(replace(request, observers=listeners, watch=watch), keep)

        return EventStream(start, Inbox(buffer, overflow, event_types))
