"""pipefunc: a pipeline run asynchronously, its functions in threads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from pipefunc import PipeFunc, Pipeline

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import SLOTS, Work, named

Prepared = tuple[Mapping[str, Callable[..., Any]], Sequence[str]]


class Eager(Engine):
    """`map_async` with the eager strategy, which starts what is ready, and results in memory."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(SLOTS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the threads."""
        self._pool.shutdown()

    async def prepare(self, work: Work) -> Prepared:
        """Write the functions."""
        return named(work, on_loop=False), [f"n{node}" for node in work.sinks]

    async def build(self, prepared: Prepared) -> tuple[Pipeline, Sequence[str]]:
        """Make the pipeline; there are type hints to check as well, which can be left out."""
        functions, sinks = prepared
        units = [PipeFunc(unit, output_name=name) for name, unit in functions.items()]
        return Pipeline(units, validate_type_annotations=False), sinks

    async def run(self, built: tuple[Pipeline, Sequence[str]]) -> Iterable[int]:
        """Map it over no inputs."""
        pipeline, sinks = built
        running = pipeline.map_async(
            {},
            executor=self._pool,
            scheduling_strategy="eager",
            storage="dict",
            persist_memory=False,
            show_progress=False,
            display_widgets=False,
        )
        results = await running.task
        return [results[name].output for name in sinks]
