"""What a cluster in this process keeps for itself is not left behind by a test."""

import sys
import threading
from collections.abc import Iterator

import pytest

from quantum_async.testing.leaks import Resources

_OF_DASK = ("Dask-Offload", "Dask-Callback")
_OF_RAY = ("PythonGCThread", "ray_")


def _lives_on(thread: threading.Thread) -> bool:
    # Ray's threads that are not Python's own look like these, once they have called us.
    foreign = isinstance(thread, threading._DummyThread)
    return foreign or thread.name.startswith(_OF_DASK + _OF_RAY)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """As for all tests; but the scheduler and its pool of connections live on between these."""
    before = Resources.now()
    yield
    left = Resources.left_since(before)
    threads = [it for it in left.threads if not _lives_on(it)]
    dask = sys.modules.get("distributed")
    clients = [it for it in dask.Client._instances if it.status != "closed"] if dask else []
    if threads or left.children or clients:
        pytest.fail(f"left behind: {left}, {clients}", pytrace=False)
