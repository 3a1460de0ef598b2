"""What an engine has to be able to do to be measured.

Each file here runs in the environment of its engine: it imports the standard library, the engine,
and `benchmarks.peers.work`.
"""

from collections.abc import Iterable
from typing import Any, Self

from benchmarks.peers.work import Work


class Engine:
    """One engine; entered before the first case and left after the last."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End what was started."""

    async def prepare(self, work: Work) -> Any:
        """Return what a user has at hand before the graph is built, such as written functions.

        This is not timed.
        """
        return work

    async def build(self, prepared: Any) -> Any:
        """Return the graph in the engine's own form. This is timed, apart from `run`."""
        return prepared

    async def run(self, built: Any) -> Iterable[int]:
        """Run what was built, once, and return the results of the sinks."""
        raise NotImplementedError
