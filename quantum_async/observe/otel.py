"""OpenTelemetry: runs and attempts as spans and metrics, and the trace context in worker processes.

Nothing here imports OpenTelemetry where the user has not, and its API is enough.

* A span begins when its run or attempt is told of, in the context variables of that. So it is
  current in there, and what is current around it is its parent: the caller's span for a run, the
  run's for an attempt, the attempt's for a run inside it, the map's for its children.
* How it ends is told elsewhere: what is open is looked up by the names of run and unit.
"""

import importlib
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from quantum_async.core.events import (
    RunFinished,
    RunStarted,
    UnitCanceled,
    UnitCompleted,
    UnitFailed,
    UnitReady,
    UnitRetrying,
    UnitSkipped,
    UnitStarted,
    UnitTimedOut,
)
from quantum_async.core.unit import QuantumUnit

# -- the trace context in worker processes --------------------------------------------------------

#: Where a worker finds what takes the headers.
ATTACH = f"{__name__}:attach"


def headers() -> dict[str, str] | None:
    """Return ``traceparent``, ``tracestate`` and what else is propagated; None if nothing is."""
    if "opentelemetry.context" not in sys.modules:
        return None
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier or None


def attach(carrier: dict[str, Any]) -> None:
    """Make the trace context of the headers the current one."""
    context: Any = importlib.import_module("opentelemetry.context")
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    context.attach(propagate.extract(carrier))


# -- runs and attempts ----------------------------------------------------------------------------

_NAME = "quantum_async"
# What is open without a slot: nothing of it waits or works.
_OPEN = frozenset({"map", "run", "race"})
_HERE = frozenset({"loop", "inline"})
_RUN_ERRORS = {"failed": "ExecutionError", "timeout": "RunTimeoutError"}
# Upper bounds in seconds: a unit may take a millisecond or an hour.
_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0, 3600.0,
)  # fmt: skip


@dataclass(slots=True)
class _Scope:
    """Units that may depend on each other, as far as they have begun: their spans' contexts."""

    spans: dict[str, Any] = field(default_factory=dict)
    is_map: bool = False  # its children depend on nothing, and there may be very many


@dataclass(slots=True)
class _Attempt:
    span: Any
    began: float  # monotonic seconds
    labels: dict[str, Any]
    is_active: bool


@dataclass(slots=True)
class _Run:
    span: Any
    partitioner: str
    ready: dict[str, float] = field(default_factory=dict)  # monotonic seconds
    open: dict[str, _Attempt] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)


class OpenTelemetry:
    """An observer that makes spans and metrics of runs.

    Each run has a span, and each attempt of a unit, with links to the spans of the units that it
    depends on. The span of an attempt is current inside the unit, wherever that runs. With the
    spans come histograms of the durations of runs and units and of the time units waited for a
    slot, the number of active units, and the number of retries.

    Args:
        tracer_provider: Where the tracer comes from; by default the global one.
        meter_provider: Where the meter comes from; by default the global one.

    Raises:
        ImportError: If OpenTelemetry's API is not installed.

    Example:
        >>> from quantum_async import QuantumPartitioner
        >>> flow = QuantumPartitioner(observers=[OpenTelemetry()])
    """

    def __init__(self, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        try:
            self._context: Any = importlib.import_module("opentelemetry.context")
            self._trace: Any = importlib.import_module("opentelemetry.trace")
            metrics: Any = importlib.import_module("opentelemetry.metrics")
        except ImportError as error:
            raise ImportError(
                "OpenTelemetry() needs the package opentelemetry-api: "
                "pip install 'quantum-async[otel]'"
            ) from error
        self._tracer = self._trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        seconds = partial(
            meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_BUCKETS
        )
        self._run_time = seconds("quantum_async.run.duration", description="Duration of runs.")
        self._unit_time = seconds(
            "quantum_async.unit.duration",
            description="Duration of units, from the start of their first attempt.",
        )
        self._queue_time = seconds(
            "quantum_async.unit.queue.duration",
            description="How long units that were ready waited for a slot.",
        )
        self._active = meter.create_up_down_counter(
            "quantum_async.unit.active", unit="{unit}", description="Units that are running."
        )
        self._retries = meter.create_counter(
            "quantum_async.unit.retries", unit="{retry}", description="Attempts after the first."
        )
        self._runs: dict[str, _Run] = {}
        self._scope: ContextVar[_Scope | None] = ContextVar("quantum_async_scope", default=None)
        self._takers: dict[type, Callable[[Any], None]] = {
            RunStarted: self._run_started,
            UnitReady: self._ready,
            UnitStarted: self._started,
            UnitRetrying: self._retrying,
            UnitCompleted: self._completed,
            UnitFailed: self._failed,
            UnitTimedOut: self._failed,
            UnitSkipped: self._skipped,
            UnitCanceled: self._canceled,
            RunFinished: self._run_finished,
        }
        self.event_types = tuple(self._takers)

    def __call__(self, event: Any) -> None:
        """Take one event."""
        self._takers[type(event)](event)

    def __repr__(self) -> str:
        return f"<OpenTelemetry: {len(self._runs)} runs>"

    # -- beginnings -------------------------------------------------------------------------

    def _run_started(self, event: RunStarted) -> None:
        name = _text(event.partitioner)
        facts = {
            "quantum_async.run.id": _text(event.run_id),
            "quantum_async.run.units": event.units,
            "quantum_async.partitioner": name,
        }
        span = self._begin(f"run {name}", event, facts, [])
        self._scope.set(_Scope())
        self._runs[event.run_id] = _Run(span, name)

    def _ready(self, event: UnitReady) -> None:
        if run := self._runs.get(event.run_id):
            run.ready[event.unit] = event.time

    def _started(self, event: UnitStarted) -> None:
        run = self._runs.get(event.run_id)
        if run is None:
            return
        handle = event.handle
        name = event.unit if handle is None else handle.id
        labels = {
            "quantum_async.partitioner": run.partitioner,
            "quantum_async.unit": _text(name),
            "quantum_async.unit.where": event.where,
        }
        facts = _facts(event) | _place(event.where)
        if handle is not None and event.where not in ("run", "race"):
            facts |= _code(handle)
        span = self._begin(_text(name), event, facts, self._links(event))
        scope = self._scope.get()
        if scope is not None and not scope.is_map:
            scope.spans[event.unit] = span.get_span_context()
        self._scope.set(_Scope(is_map=event.where == "map"))
        is_active = event.where not in _OPEN
        ready = run.ready.pop(event.unit, None)
        if is_active:
            self._active.add(1, labels)
            if ready is not None:
                self._queue_time.record(max(0.0, event.time - ready), labels)
        run.open[event.unit] = _Attempt(span, event.time, labels, is_active)

    def _begin(self, name: str, event: Any, facts: dict[str, Any], links: list[Any]) -> Any:
        """Start a span, and make it current in what begins."""
        span = self._tracer.start_span(
            name, attributes=facts, links=links, start_time=_nanoseconds(event)
        )
        # Never detached: the context variables are those of a run or an attempt, and end with it.
        self._context.attach(self._trace.set_span_in_context(span))
        return span

    def _links(self, event: UnitStarted) -> list[Any]:
        """Return links to what the unit depends on, as far as that has run."""
        scope, handle = self._scope.get(), event.handle
        if scope is None or handle is None or scope.is_map or not scope.spans:
            return []
        prefix = event.unit.removesuffix(handle.id)
        found = (scope.spans.get(prefix + name) for name in handle.dependencies)
        return [self._trace.Link(context) for context in found if context is not None]

    # -- ends -------------------------------------------------------------------------------

    def _retrying(self, event: UnitRetrying) -> None:
        run, attempt = self._ended(event)
        if run is None or attempt is None:
            return
        self._retries.add(1, attempt.labels)
        attempt.span.set_attribute("quantum_async.unit.retry_wait", event.wait)
        if event.error is None:
            attempt.span.add_event("result turned down", timestamp=_nanoseconds(event))
        else:
            self._blame(attempt.span, event, event.error)
        self._close(attempt.span, event, "retrying")

    def _completed(self, event: UnitCompleted) -> None:
        run, attempt = self._ended(event)
        if run is None or attempt is None:
            return
        if event.error is not None:
            # The fallback made it good: the exception is worth knowing, and no failure.
            attempt.span.add_event("exception", _told(event.error), _nanoseconds(event))
            attempt.span.set_attribute("quantum_async.unit.fallback_used", True)
        attempt.span.set_attribute("quantum_async.unit.where", event.where)
        attempt.span.set_attributes(_cost(event))
        self._close(attempt.span, event, "completed")
        self._took(run, attempt, event.duration, "completed")

    def _failed(self, event: UnitFailed | UnitTimedOut) -> None:
        run, attempt = self._ended(event)
        if run is None:
            return
        state = "timeout" if isinstance(event, UnitTimedOut) else "failed"
        # One that failed before an attempt, or between two, has a moment of its own.
        span = self._moment(run, event) if attempt is None else attempt.span
        span.set_attributes(_cost(event))
        self._blame(span, event, event.error)
        self._close(span, event, state)
        error = _type_name(event.error)
        self._took(run, attempt, event.duration, state, {"error.type": error})

    def _canceled(self, event: UnitCanceled) -> None:
        run, attempt = self._ended(event)
        if run is None:
            return
        if attempt is None:
            facts = {"quantum_async.unit.cause": _text(event.cause)}
            self._note(run, event, "unit canceled", facts)
        else:
            attempt.span.set_attribute("quantum_async.unit.cause", _text(event.cause))
            self._close(attempt.span, event, "canceled")
        seconds = 0.0 if attempt is None else event.time - attempt.began
        self._took(run, attempt, seconds, "canceled")

    def _skipped(self, event: UnitSkipped) -> None:
        run, _ = self._ended(event)
        if run is not None:
            facts = {"quantum_async.unit.root": _text(event.root)}
            self._note(run, event, "unit skipped", facts)
            self._took(run, None, 0.0, "skipped")

    def _run_finished(self, event: RunFinished) -> None:
        run = self._runs.pop(event.run_id, None)
        if run is None:
            return
        labels: dict[str, Any] = {
            "quantum_async.partitioner": run.partitioner,
            "quantum_async.run.state": event.state,
        }
        span = run.span
        span.set_attribute("quantum_async.run.state", event.state)
        for state, count in run.ends.items():
            span.set_attribute(f"quantum_async.run.{state}", count)
        if event.state in _RUN_ERRORS:
            labels["error.type"] = _RUN_ERRORS[event.state]
            span.set_attribute("error.type", labels["error.type"])
            bad = run.ends.get("failed", 0) + run.ends.get("timeout", 0)
            told = f"{bad} units failed" if event.state == "failed" else "its time was up"
            span.set_status(self._trace.StatusCode.ERROR, told)
        span.end(_nanoseconds(event))
        self._run_time.record(event.duration, labels)

    def _ended(self, event: Any) -> tuple[_Run | None, _Attempt | None]:
        """Return the run, and the attempt that has ended, if one was open."""
        run = self._runs.get(event.run_id)
        if run is None:
            return None, None
        run.ready.pop(event.unit, None)
        attempt = run.open.pop(event.unit, None)
        if attempt is not None and attempt.is_active:
            self._active.add(-1, attempt.labels)
        return run, attempt

    def _took(
        self,
        run: _Run,
        attempt: _Attempt | None,
        seconds: float,
        state: str,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Count a unit that has ended; of one that had begun its seconds."""
        run.ends[state] = run.ends.get(state, 0) + 1
        if attempt is not None:
            labels = attempt.labels | {"quantum_async.unit.state": state} | (more or {})
            self._unit_time.record(seconds, labels)

    def _blame(self, span: Any, event: Any, error: BaseException) -> None:
        told = _told(error)
        span.add_event("exception", told, _nanoseconds(event))
        span.set_attribute("error.type", told["exception.type"])
        span.set_status(self._trace.StatusCode.ERROR, told["exception.message"])

    def _close(self, span: Any, event: Any, state: str) -> None:
        span.set_attribute("quantum_async.unit.state", state)
        span.end(_nanoseconds(event))

    def _moment(self, run: _Run, event: Any) -> Any:
        return self._tracer.start_span(
            _text(event.unit),
            context=self._trace.set_span_in_context(run.span),
            attributes=_facts(event),
            start_time=_nanoseconds(event),
        )

    def _note(self, run: _Run, event: Any, what: str, facts: dict[str, Any]) -> None:
        """Write on the run's span what became of a unit that never began."""
        run.span.add_event(what, _facts(event) | facts, _nanoseconds(event))


# -- what is said of them -------------------------------------------------------------------------


def _facts(event: Any) -> dict[str, Any]:
    return {
        "quantum_async.run.id": _text(event.run_id),
        "quantum_async.unit.name": _text(event.unit),
        "quantum_async.unit.attempt": event.attempt,
    }


def _place(where: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"quantum_async.unit.where": where}
    if where in _HERE:
        facts["thread.id"] = threading.get_ident()
        facts["thread.name"] = _text(threading.current_thread().name)
    return facts


def _code(handle: QuantumUnit[Any, Any]) -> dict[str, Any]:
    """Return what the conventions say of a function; nothing of one that will not tell."""
    facts: dict[str, Any] = {}
    with suppress(Exception):
        function: Any = handle.function
        while isinstance(function, partial):
            function = function.func
        named = function if hasattr(function, "__qualname__") else type(function)
        facts["code.function.name"] = _text(f"{named.__module__}.{named.__qualname__}")
        code = function.__code__
        facts["code.file.path"] = _text(code.co_filename)
        facts["code.line.number"] = int(code.co_firstlineno)
    return facts


def _cost(event: UnitCompleted | UnitFailed | UnitTimedOut) -> dict[str, Any]:
    """Return which other process an attempt ran in, and what it cost there."""
    if event.usage is None:
        return {}
    pid, cpu_time, peak_memory, host = event.usage
    return {
        **({"host.name": host} if host else {}),
        "process.pid": pid,
        "quantum_async.unit.cpu_time": cpu_time,
        "quantum_async.unit.peak_memory": peak_memory,
    }


def _told(error: BaseException) -> dict[str, str]:
    """Return what the conventions say of an exception, of one that cannot be told too."""
    told = {"exception.type": _type_name(error), "exception.message": ""}
    with suppress(Exception):
        told["exception.message"] = _text(error)
    with suppress(Exception):
        told["exception.stacktrace"] = _text("".join(traceback.format_exception(error)))
    return told


def _type_name(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__
    return _text(name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}")


def _text(value: object) -> str:
    """Return text that can be exported: lone surrogates are no UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _nanoseconds(event: Any) -> int:
    return int(event.wall * 1e9)
