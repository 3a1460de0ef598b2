"""What goes to another process and what comes back: a call, and an answer in every case.

`answer` runs in the other process. Whatever the user's code does, raises or returns there, it
gives a plain answer that can be pickled; `opened` turns that into a result or an exception here.
"""

import asyncio
import inspect
import os
import pickle
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple

from quantum_async.core.context import DetachedRun, ExecutionContext
from quantum_async.core.errors import RemoteError
from quantum_async.core.record import Usage
from quantum_async.engine.executors.base import Job

# How a call ended.
RETURNED, RAISED, UNLOADABLE, UNSENDABLE = "returned", "raised", "unloadable", "unsendable"

# Places (see `carry`), and what goes there: pickled, so that one that cannot be unpickled harms no
# other.
Carried = tuple[tuple[str, bytes], ...]
# A function, its arguments, and perhaps context variables that travel with it.
Call = tuple[Any, ...]


class Answer(NamedTuple):
    """How a call ended in another process.

    Attributes:
        how: RETURNED, RAISED, UNLOADABLE (the call could not be unpickled) or UNSENDABLE (the
            result could not be pickled).
        content: The pickled result, or what `_described` says of the exception.
        told: The pickled metrics, emitted values and side effects, if there are any.
        seconds: How long it took.
        usage: What it cost.
    """

    how: str
    content: bytes
    told: bytes
    seconds: float
    usage: Usage


def answer(load: Callable[[], Call], dump: Callable[[Any], bytes]) -> Answer:
    """Run a call in this process.

    Args:
        load: Unpickles the call.
        dump: Pickles its result.
    """
    began, cpu_before = time.perf_counter(), time.process_time()
    how, content, told = _outcome(load, dump)
    usage = Usage(os.getpid(), time.process_time() - cpu_before, _peak())
    return Answer(how, content, told, time.perf_counter() - began, usage)


def _outcome(load: Callable[[], Call], dump: Callable[[Any], bytes]) -> tuple[str, bytes, bytes]:
    try:
        function, args, kwargs, *carried = load()
    except BaseException as error:
        return UNLOADABLE, _described(error), b""
    run = _run_of((*args, *kwargs.values()))
    before = {} if run is None else dict(run.metrics)
    if run is not None:
        run.start_clock(time.monotonic)
        run.effects.clock = _steady_clock()
    try:
        value = copy_context().run(_called, function, args, kwargs, *carried)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt too: they would end the worker.
        how, content = RAISED, _described(error)
    else:
        try:
            how, content = RETURNED, dump(value)
        except BaseException as error:
            how, content = UNSENDABLE, _described(error)
    try:
        return how, content, b"" if run is None else _told(run, before)
    except BaseException as error:
        return UNSENDABLE, _described(error), b""


def _called(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    carried: Carried = (),
) -> Any:
    _receive(carried)
    value = function(*args, **kwargs)
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def _receive(carried: Carried) -> None:
    """Put everything that was carried in its place."""
    for path, content in carried:
        place: Any = pkgutil.resolve_name(path)
        value = pickle.loads(content)
        if isinstance(place, ContextVar):
            place.set(value)
        else:
            place(value)


def _run_of(arguments: tuple[Any, ...]) -> DetachedRun | None:
    """Return what stands for the run, if the unit was given its context."""
    for argument in arguments:
        if isinstance(argument, ExecutionContext) and isinstance(argument.view, DetachedRun):
            return argument.view
    return None


def _told(run: DetachedRun, before: dict[str, Any]) -> bytes:
    """Pickle the metrics, values and side effects that the unit gave to its context."""
    missing = object()
    metrics = {k: v for k, v in run.metrics.items() if before.get(k, missing) is not v}
    effects = list(run.effects)
    return any_pickle((metrics, run.emitted, effects)) if metrics or run.emitted or effects else b""


def _steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since the epoch that never goes back."""
    since = time.time() - time.perf_counter()
    return lambda: since + time.perf_counter()


def _described(error: BaseException) -> bytes:
    """Pickle an exception's description, and itself if it survives the journey."""
    description = (
        f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        _text(error),
        _traceback(error),
    )
    try:
        itself = any_pickle(error)
        # An exception with an __init__ of its own may come out as another one, or not at all.
        survived = type(pickle.loads(itself)) is type(error)
    except BaseException:
        survived = False
    return pickle.dumps((*description, itself if survived else None))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<its __str__ raised>"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        # `traceback` asks an exception whether it is true, and more. Where it was still shows.
        where = "".join(traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error)))
        return f"Traceback (most recent call last):\n{where}{type(error).__qualname__}"


def any_pickle(value: Any) -> bytes:
    """Pickle with pickle, which is quick, or else with cloudpickle."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle

        return bytes(cloudpickle.dumps(value))


def _peak() -> int:
    """Return the most memory that this process ever held, in bytes; 0 where that is unknown.

    On Linux not what ``getrusage`` says: a process inherits that from the one that started it.
    """
    global _known_peak
    try:
        import resource
    except ImportError:
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF)
    if sys.platform != "linux":
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Without a page fault it cannot have grown, and reading the file takes ten times as long.
    process = os.getpid(), usage.ru_minflt
    if process != _known_peak[0]:
        with suppress(OSError, ValueError), open("/proc/self/status", "rb", buffering=0) as file:
            status = file.read(4096)
            at = status.index(b"VmHWM:") + 6
            _known_peak = process, int(status[at : status.index(b"kB", at)]) * 1024
    return _known_peak[1]


_known_peak = ((0, 0), 0)  # process and its page faults then, bytes


# -- back here ------------------------------------------------------------------------------------


def opened(
    job: Job,
    given: Answer,
    load: Callable[[bytes], Any] = pickle.loads,
    where: str = "worker process",
) -> Any:
    """Return the result in an answer, or raise what it tells of; pass on what the unit told.

    Args:
        job: What was asked.
        given: What was answered.
        load: Unpickles the result.
        where: What it was asked of, for the notes of exceptions.
    """
    job.measured(given.usage)
    if given.told:
        metrics, emitted, effects = pickle.loads(given.told)
        job.context.metrics.update(metrics)
        for value in emitted:
            job.context.emit(value)
        for effect in effects:
            job.context.view.effects.add(effect)
    if given.how == RETURNED:
        return load(given.content)
    error = _exception(given.content, where)
    if given.how in _NOTES:
        _note(error, f"raised in the {where} {_NOTES[given.how].format(job.unit)}")
    raise error


_NOTES = {
    UNLOADABLE: "while unit {!r} was unpickled there, before it started",
    UNSENDABLE: "while the result of unit {!r} was pickled: return plain data, or run the unit "
    "with mode='thread'",
}


def _exception(content: bytes, where: str) -> BaseException:
    """Return the exception that was described, or a `RemoteError` in its place.

    The worker's traceback is in its notes: tracebacks themselves cannot travel.
    """
    type_name, message, trace, itself = pickle.loads(content)
    error: BaseException | None = None
    if itself is not None:
        try:
            error = pickle.loads(itself)
        except Exception:
            error = None
    if error is None:
        error = RemoteError(type_name, message, trace)
    _note(error, f"in the {where}:\n{trace.rstrip()}")
    return error


def _note(error: BaseException, note: str) -> None:
    with suppress(Exception):  # an exception may be frozen, or have an `add_note` of its own
        error.add_note(note)
