"""Things that a worker process finds by name: work, context variables, and a value that bites.

A worker imports this for its first call, within that unit's time limit: it has few imports.
"""

import os
from contextvars import ContextVar
from typing import Any

request: ContextVar[Any] = ContextVar("request", default=None)
secret: ContextVar[Any] = ContextVar("secret", default=None)


class NotHereError(Exception):
    """Raised where a value was not made."""


class RaisesHere:
    """Can be pickled, and unpickled only by the process that made it."""

    def __reduce__(self):
        return _unpickled, (os.getpid(),)


def _unpickled(pid):
    if pid != os.getpid():
        raise NotHereError
    return RaisesHere()


def work(number):
    """Work for some tenths of a millisecond."""
    value = 0
    for _ in range(2_000):
        value += number
    return number, value


def add_up(ctx):
    """Return a unit's number and what it depends on."""
    return int(ctx.unit_id[1:]) + sum(ctx.unit_results.values())
