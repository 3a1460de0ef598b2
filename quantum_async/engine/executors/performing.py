"""A call in a worker of a cluster: this side of what `remote` sends.

`perform` never raises. It gives an answer in every case, and beside it the value, which the
cluster keeps. Small values travel with the answer, and need not be fetched.
"""

import io
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from quantum_async.core.record import NOTHING
from quantum_async.engine.executors.cluster import RemoteAnswer
from quantum_async.engine.executors.envelope import Call, answer, any_pickle
from quantum_async.engine.executors.overheard import overheard

_HOST = socket.gethostname()
_here = threading.local()


def taken(index: int) -> Any:
    """Return the value that stands in a call at a number; for the unpickler."""
    return _here.values[index]


@lru_cache(maxsize=256)
def function_of(blob: bytes) -> Callable[..., Any]:
    """Return a function that was sent by value: the same one for all calls of it."""
    function: Callable[..., Any] = pickle.loads(blob)
    return function


def perform(
    blob: bytes,
    values: Sequence[Any] = (),
    size_of: Callable[[Any], int] = sys.getsizeof,
) -> tuple[RemoteAnswer, Any]:
    """Run a call that was packed for a cluster.

    Args:
        blob: The call.
        values: The values of its references, in their order.
        size_of: Estimates how many bytes an object takes.

    Returns:
        The answer, and the value if there is one.
    """
    limit, settings, call = pickle.loads(blob)
    kept: Any = NOTHING
    size = 0

    def load() -> Call:
        _here.values = values
        try:
            loaded: Call = pickle.loads(call)
        finally:
            del _here.values
        return loaded

    def dump(value: Any) -> bytes:
        nonlocal kept, size
        kept, content = value, pickled_within(value, limit)
        size = len(content) or max(limit, size_of(value))
        return content

    with overheard(settings) as records:
        how, content, told, _, usage = answer(load, dump)
    usage = usage._replace(host=_HOST)
    return RemoteAnswer(how, content, told, usage, size, tuple(records.kept)), kept


class _TooLongError(Exception):
    """A pickle is longer than was allowed."""


class _Bounded(io.RawIOBase):
    """A file that takes so many bytes."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.parts: list[bytes] = []

    def write(self, part: Any) -> int:
        size = memoryview(part).nbytes
        self.left -= size
        if self.left < 0:
            raise _TooLongError
        self.parts.append(bytes(part))
        return size


def pickled_within(value: Any, limit: int) -> bytes:
    """Pickle a value; nothing if that takes more bytes than the limit.

    Raises:
        Exception: What pickling raises.
    """
    file = _Bounded(limit)
    try:
        pickle.Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    except _TooLongError:
        return b""
    except Exception:
        content = any_pickle(value)
        return content if len(content) <= limit else b""
    return b"".join(file.parts)
