"""The worker's side of values that several calls share: each travels to a worker once.

In the pickle of a call, `fetch` with the value's number stands in its place.
"""

from collections.abc import Callable
from typing import Any

_values: dict[int, Any] = {}
_errors: dict[int, BaseException] = {}


def put(number: int, load: Callable[[], Any]) -> None:
    """Take a shared value; an error in unpickling it is that of each call that needs it."""
    try:
        _values[number] = load()
    except BaseException as error:
        _errors[number] = error


def fetch(number: int) -> Any:
    """Return a shared value."""
    if number in _errors:
        raise _errors[number]
    return _values[number]


def keep(number: int, value: Any) -> None:
    """Keep a result for the next call."""
    _values[number] = value


def take(number: int) -> Any:
    """Return the result that was kept for this call."""
    return _values.pop(number)


def forget(number: int) -> None:
    """Let go of a shared value."""
    _values.pop(number, None)
    _errors.pop(number, None)


def clear() -> None:
    """Let go of them all."""
    _values.clear()
    _errors.clear()
