"""Hamilton's asynchronous driver."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hamilton import ad_hoc_utils, async_driver

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import Work, named

Prepared = tuple[Mapping[str, Callable[..., Any]], Sequence[str]]


class Driver(Engine):
    """Functions that name their dependencies, in a module."""

    async def prepare(self, work: Work) -> Prepared:
        """Write the functions."""
        return named(work, on_loop=True), [f"n{node}" for node in work.sinks]

    async def build(self, prepared: Prepared) -> tuple[Any, Sequence[str]]:
        """Make module and driver."""
        functions, sinks = prepared
        module = ad_hoc_utils.create_temporary_module(*functions.values())
        return await async_driver.Builder().with_modules(module).build(), sinks

    async def run(self, built: tuple[Any, Sequence[str]]) -> Iterable[int]:
        """Execute it."""
        driver, sinks = built
        results = await driver.execute(sinks)
        return [results[name] for name in sinks]
