"""Runs in the log, through structlog.

Where the user has configured structlog, his pipeline is used. Else a private one, which ends in
``logging.getLogger("quantum_async")``: nothing is printed that the user's logging does not print,
and structlog is never configured. What the level would drop is not even listened to.
"""

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any

from quantum_async.core.events import (
    Event,
    RunFinished,
    RunStarted,
    UnitCanceled,
    UnitCompleted,
    UnitFailed,
    UnitRetrying,
    UnitSkipped,
    UnitStarted,
    UnitTimedOut,
)

_LOGGER = logging.getLogger("quantum_async")
_LOGGER.addHandler(logging.NullHandler())

_LEVELS: dict[type[Event], int] = {
    RunStarted: logging.INFO,
    UnitStarted: logging.DEBUG,
    UnitCompleted: logging.DEBUG,
    UnitRetrying: logging.WARNING,
    UnitFailed: logging.ERROR,
    UnitTimedOut: logging.ERROR,
    UnitSkipped: logging.INFO,
    UnitCanceled: logging.INFO,
    RunFinished: logging.INFO,
}
# Of events whose level depends on what they tell: a run that ended badly is told of as such units.
_HIGHEST: dict[type[Event], int] = {RunFinished: logging.ERROR}
_METHODS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}
_NAMES: dict[type[Event], str] = {
    RunStarted: "run started",
    UnitStarted: "unit started",
    UnitCompleted: "unit completed",
    UnitRetrying: "unit retrying",
    UnitFailed: "unit failed",
    UnitTimedOut: "unit timed out",
    UnitSkipped: "unit skipped",
    UnitCanceled: "unit canceled",
    RunFinished: "run finished",
}


class LogObserver:
    """Writes a run's events to the log.

    Durations are in seconds. Each line has `run`, those of a unit `unit` and `attempt` too.
    """

    def __init__(self) -> None:
        self._level = level = _effective_level()
        self.event_types = tuple(
            kind for kind, its in _LEVELS.items() if max(its, _HIGHEST.get(kind, its)) >= level
        )

    def __call__(self, event: Any) -> None:
        """Write one event."""
        kind = type(event)
        level = _level_of(event)
        if level < self._level:
            return  # before structlog is imported for nothing
        facts: dict[str, Any] = {"run": event.run_id}
        if kind not in (RunStarted, RunFinished):
            facts |= {"unit": event.unit, "attempt": event.attempt}
        facts |= _particulars(event)
        getattr(_logger(), _METHODS[level])(_NAMES[kind], **facts)


def _level_of(event: Any) -> int:
    kind = type(event)
    if kind is RunFinished and event.state in ("failed", "timeout"):
        return _HIGHEST[kind]
    return _LEVELS[kind]


def _particulars(event: Any) -> dict[str, Any]:
    match event:
        case RunStarted():
            return {"units": event.units, "partitioner": event.partitioner}
        case UnitStarted():
            return {"where": event.where}
        case UnitCompleted():
            return {"duration": round(event.duration, 6)}
        case UnitRetrying():
            return {"error": _told(event.error), "wait": round(event.wait, 3)}
        case UnitFailed() | UnitTimedOut():
            return {"error": _told(event.error), "duration": round(event.duration, 6)}
        case UnitSkipped():
            return {"root": event.root}
        case UnitCanceled():
            return {"cause": event.cause}
        case RunFinished():
            return {"state": event.state, "duration": round(event.duration, 6)}
    return {}


def complain(message: str, error: BaseException | None = None) -> None:
    """Write a warning of the engine: a broken observer, a unit that ignores its cancellation."""
    facts = {} if error is None else {"exc_info": error}
    with suppress(Exception):  # a log that raises breaks no run either
        _logger().warning(message, **facts)


def context_binder(run_id: str) -> Callable[[str, int], None] | None:
    """Return what binds run, unit and attempt for structlog; None if nobody would see them.

    Binding costs microseconds an attempt: it is left out while the process has not even imported
    structlog.
    """
    if "structlog" not in sys.modules:
        return None
    from structlog.contextvars import bind_contextvars

    def bind(unit: str, attempt: int) -> None:
        bind_contextvars(run=run_id, unit=unit, attempt=attempt)

    return bind


def _effective_level() -> int:
    """Return the level below which nothing would be written."""
    if "structlog" in sys.modules:
        import structlog

        if structlog.is_configured():
            logger = structlog.get_logger("quantum_async").bind()
            # Asked of the class: some loggers take any attribute for a method that logs.
            if hasattr(type(logger), "get_effective_level"):
                return int(logger.get_effective_level())
            return logging.NOTSET
    return _LOGGER.getEffectiveLevel()


def _logger() -> Any:
    import structlog

    if structlog.is_configured():
        return structlog.get_logger("quantum_async")
    return _private_logger()


_private: Any = None


def _private_logger() -> Any:
    global _private
    if _private is None:
        import structlog

        _private = structlog.wrap_logger(
            _LOGGER,
            wrapper_class=structlog.stdlib.BoundLogger,
            processors=[_to_stdlib],
        )
    return _private


def _to_stdlib(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str], dict[str, Any]]:
    """Make a plain log line, with the facts as attributes of the record too."""
    message, exc_info = event.pop("event"), event.pop("exc_info", None)
    facts = " ".join(f"{key}={_shown(value)}" for key, value in event.items())
    extra = {f"quantum_{key}": value for key, value in event.items()}
    return (f"{message} {facts}".rstrip(),), {
        "exc_info": exc_info,
        "extra": extra,
    }


def _told(error: object) -> str:
    try:
        return repr(error)
    except Exception:
        return type(error).__name__


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    # Names may hold line ends and control characters: nobody writes lines into the log with them.
    return text if text.isprintable() and " " not in text and text else repr(text)
