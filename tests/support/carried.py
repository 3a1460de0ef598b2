"""Things that a worker process finds by name: context variables, and a value that bites."""

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
