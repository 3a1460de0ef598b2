"""What worker processes wrote, in the log of this one.

Records of `logging` go to the logger of the same name here, as they would without a worker, and
have the attributes `quantum_run`, `quantum_unit` and `quantum_attempt`. Events of structlog, and
lines of stdout and stderr, go through structlog where the user has configured it; else to
`logging`, with the facts behind the message, as `log` writes them.
"""

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

_STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
_DEFAULT_LOGGER = "quantum_async.worker"
_METHODS = {50: "critical", 40: "error", 30: "warning", 20: "info", 10: "debug"}


class Record(Protocol):
    """What is relayed; `WorkerRecord` of the engine's outlet is one."""

    @property
    def kind(self) -> str:
        """Where it was born: "stdout", "stderr", "logging", "structlog" or "dropped"."""

    @property
    def level(self) -> int:
        """A level of `logging`."""

    @property
    def logger(self) -> str:
        """The logger's name, which may be empty."""

    @property
    def message(self) -> str:
        """The line, message or event."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """Extra attributes, or key-values of structlog."""

    @property
    def exception(self) -> str:
        """A traceback as text, or nothing."""

    @property
    def created(self) -> float:
        """When, in seconds since the epoch; 0 if it is not known."""

    @property
    def place(self) -> tuple[str, int, str]:
        """File, line and function."""

    @property
    def pid(self) -> int:
        """The process that wrote it."""


def relay(record: Record, *, run: str, unit: str, attempt: int) -> None:
    """Write a record of a worker process to the log.

    Args:
        record: What the worker wrote.
        run: The run's id.
        unit: The unit's name.
        attempt: Which attempt wrote it, from 1.
    """
    facts = {"run": run, "unit": unit, "attempt": attempt}
    structlog = _configured_structlog()
    if structlog is not None and record.kind != "logging":
        logger = structlog.get_logger(*([record.logger] if record.logger else []))
        _to_structlog(logger, record, facts)
        return
    plain = logging.getLogger(record.logger or _DEFAULT_LOGGER)
    if plain.isEnabledFor(record.level):
        plain.handle(_log_record(plain.name, record, facts))


def wanted() -> dict[str, Any]:
    """Return what workers are to send: what would be written here, and no more.

    The engine hands it, as JSON, to `capture.begin` in the worker.
    """
    manager = logging.root.manager
    levels = {"": max(logging.root.level, manager.disable + 1)}
    for name, logger in list(manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = max(logger.level, manager.disable + 1)
    answer: dict[str, Any] = {"levels": levels}
    if "structlog" in sys.modules:
        answer["structlog"] = _structlog_level(min(levels.values()))
        answer["hooks"] = [f"{__name__}:{forward_structlog.__name__}"]
    for stream, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        answer[stream] = _is_shown(f"{_DEFAULT_LOGGER}.{stream}", level)
    return answer


def forward_structlog(send: Callable[..., None], settings: Mapping[str, Any]) -> None:
    """Configure structlog in a worker process so that its events are sent; for `capture`.

    Args:
        send: `capture.send`.
        settings: What `wanted` returned.
    """
    import structlog

    def forward(name: str, method: str, event: MutableMapping[str, Any]) -> Any:
        trace = "\n".join(str(event.pop(key)) for key in ("exception", "stack") if key in event)
        level = logging.getLevelNamesMapping().get(method.upper(), logging.INFO)
        send("structlog", level, name, event.pop("event", ""), event, trace)
        raise structlog.DropEvent

    level = min(settings["structlog"] // 10 * 10, logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            forward,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: str(names[0]) if names else "",
        cache_logger_on_first_use=False,
    )


def _configured_structlog() -> Any:
    structlog = sys.modules.get("structlog")  # nobody has configured what nobody has imported
    return structlog if structlog is not None and structlog.is_configured() else None


def _structlog_level(otherwise: int) -> int:
    """Return the level below which structlog writes nothing here."""
    structlog = _configured_structlog()
    if structlog is None:
        return otherwise
    logger = structlog.get_logger().bind()
    if hasattr(logger, "getEffectiveLevel"):  # as the logger of `logging` says that it wraps
        return otherwise
    return int(logger.get_effective_level()) if hasattr(logger, "get_effective_level") else 0


def _is_shown(name: str, level: int) -> bool:
    structlog = _configured_structlog()
    if structlog is None:
        return logging.getLogger(name).isEnabledFor(level)
    enabled = getattr(structlog.get_logger(name).bind(), "is_enabled_for", None)
    return enabled is None or bool(enabled(level))


def _to_structlog(logger: Any, record: Record, facts: dict[str, Any]) -> None:
    # As `bind_contextvars` would have it: an event's own key beats what is bound.
    values = facts | {"worker": record.pid} | dict(record.fields)
    if record.exception:
        values["exception"] = record.exception
    for taken in ("self", "event", "exc_info"):
        if taken in values:
            values[f"{taken}_"] = values.pop(taken)
    level = max((one for one in _METHODS if one <= record.level), default=logging.DEBUG)
    getattr(logger.bind(**values), _METHODS[level])(record.message)


def _log_record(name: str, record: Record, facts: dict[str, Any]) -> logging.LogRecord:
    message = one_line(record.message)
    if record.kind != "logging":
        shown = dict(record.fields) | facts if record.kind == "structlog" else facts
        message += "".join(f" {one_line(key)}={_value(value)}" for key, value in shown.items())
    path, line, function = record.place
    attributes: dict[str, Any] = {
        "name": one_line(name),
        "levelno": record.level,
        "levelname": logging.getLevelName(record.level),
        "msg": message,
        "args": (),
        "pathname": path,
        "filename": path.rpartition("/")[2],
        "module": path.rpartition("/")[2].removesuffix(".py"),
        "lineno": line,
        "funcName": function,
        "process": record.pid or None,
        "processName": "worker",
        "exc_text": "\n".join(map(one_line, record.exception.split("\n"))) or None,
    }
    if record.created:
        attributes["created"] = record.created
        attributes["msecs"] = int(record.created % 1 * 1000) + 0.0
    attributes |= {f"quantum_{key}": value for key, value in facts.items()}
    for key, value in record.fields.items():
        if key not in _STANDARD:
            attributes.setdefault(key, value)
    return logging.makeLogRecord(attributes)


def one_line(text: str) -> str:
    """Escape what ends a line or moves the cursor: nobody writes lines into the log with it."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one == "\t" else one.encode("unicode_escape").decode()
        for one in text
    )


def _value(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if text.isprintable() and " " not in text and text else repr(text)
