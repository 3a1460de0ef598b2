"""What a cluster in this process keeps for itself is not left behind by a test."""

from collections.abc import Iterator

import pytest

from quantum_async.testing.leaks import Resources

_OF_DASK = ("Dask-Offload", "Dask-Callback")


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """As for all tests; but the scheduler and its pool of connections live on between these."""
    from distributed import Client

    before = Resources.now()
    yield
    left = Resources.left_since(before)
    threads = [it for it in left.threads if not it.name.startswith(_OF_DASK)]
    clients = [it for it in Client._instances if it.status != "closed"]
    if threads or left.children or clients:
        pytest.fail(f"left behind: {left}, {clients}", pytrace=False)
