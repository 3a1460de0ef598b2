"""The job as one graph: the only file here that knows the engine.

    list ─┬▶ parse[0] ──▶ chunk[0] ─┬▶ weigh ──▶ write ──▶ answer ──▶ report
          ├▶ parse[1] ──▶ chunk[1] ─┤
          └▶    …            …     ─┘

(`broken`, beside `weigh`, gathers the files that gave nothing.) `parse` and `chunk` are CPU-bound
and go to worker processes; `answer` waits for all queries at once on the loop; the others are plain
functions and run in threads.
"""

import ast
import os
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread

from examples.search_index import documents, passages, report, store
from examples.search_index.progress import Progress
from quantum_async import QuantumPartitioner
from quantum_async.core import events

QUERIES = (
    "read the rows of a csv file",
    "wait until a task is cancelled or a timeout expires",
    "heap as a priority queue",
)
BATCHES_PER_CPU = 4  # a slow batch at the end then costs an eighth of the parsing on two cores
PARSE_LIMIT = 120.0  # seconds; a batch of the standard library takes two


def usable_cpus() -> int:
    """Count the CPUs that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(usable(0)) if usable else os.cpu_count() or 1


def sensible_batches() -> int:
    """Choose how many batches keep every usable CPU busy to the end, without sending crumbs."""
    return max(8, BATCHES_PER_CPU * usable_cpus())


def build(
    root: str,
    database: str,
    *,
    batches: int | None = None,
    queries: Sequence[str] = QUERIES,
    parser: documents.Parser = ast.parse,
    limit: float = PARSE_LIMIT,
) -> QuantumPartitioner[Any, Any]:
    """Declare the job; its unit `report` gives the text to print.

    Args:
        root: The folder to index.
        database: The file to write.
        batches: How many batches to cut the files into; `sensible_batches` by default.
        queries: What to ask the finished index.
        parser: What parses the content of a file.
        limit: Seconds that a batch may take to parse.
    """
    batches = batches or sensible_batches()
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(name="search index")
    listing = flow.add_unit(documents.list_files, name="list", args=(root,))
    parsed: list[Any] = []
    chunked: list[Any] = []
    for batch in range(batches):
        parse = flow.add_unit(
            documents.parse_batch,
            name=f"parse[{batch}]",
            args=(listing, batch, batches, f"{database}.parse{batch}", parser),
            mode="process",
            timeout=limit,
            retries=3,  # each leaves out a file that made the parser hang or crash
        )
        chunk = flow.add_unit(
            passages.chunk_batch, name=f"chunk[{batch}]", args=(parse,), mode="process", retries=1
        )
        parsed.append(parse)
        chunked.append(chunk)
    weights = flow.add_unit(passages.weigh, name="weigh", args=tuple(chunked))
    broken = flow.add_unit(documents.broken_files, name="broken", args=(listing, parsed))
    written = flow.add_unit(
        store.write_index, name="write", args=(database, weights, chunked, broken)
    )
    answers = flow.add_unit(answer, name="answer", args=(written, queries))
    flow.add_unit(report.format_contents, name="report", args=(root, written, broken, answers))
    return flow


async def answer(written: store.Written, queries: Sequence[str]) -> dict[str, list[store.Hit]]:
    """Ask the index all queries at once; SQLite blocks, so each of them waits in a thread.

    Args:
        written: The index.
        queries: What to ask.
    """
    answers: dict[str, list[store.Hit]] = {query: [] for query in queries}

    async def ask(query: str) -> None:
        answers[query] = await anyio.to_thread.run_sync(store.search, written.database, query)

    async with anyio.create_task_group() as group:
        for query in queries:
            group.start_soon(ask, query)
    return answers


def watch(progress: Progress) -> Callable[[events.Event], None]:
    """Make an observer that tells `progress` what a run reports.

    Args:
        progress: Who wants to know.
    """

    def observe(event: events.Event) -> None:
        match event:
            case events.RunStarted(units=units):
                progress.run_started(units)
            case events.UnitStarted(unit=unit):
                progress.unit_started(unit)
            case events.UnitRetrying(unit=unit, error=error):
                progress.unit_retrying(unit, f"{type(error).__name__}: {error}")
            case events.UnitCompleted(unit=unit):
                progress.unit_ended(unit)
            case (
                events.UnitFailed(unit=unit, error=error)
                | events.UnitTimedOut(unit=unit, error=error)
            ):
                progress.unit_ended(unit, f"{type(error).__name__}: {error}")
            case events.UnitSkipped(unit=unit) | events.UnitCanceled(unit=unit):
                progress.unit_dropped(unit)

    return observe


class Stopwatch:
    """An observer that adds up what attempts take.

    A unit's record has its time from the first start to the end, in which one that was tried again
    also waited for its next turn.
    """

    def __init__(self) -> None:
        self.busy = 0.0  # seconds
        self._began: dict[str, float] = {}

    def __call__(self, event: events.Event) -> None:
        """Take note of an attempt's start or end."""
        match event:
            case events.UnitStarted(unit=unit, time=time):
                self._began[unit] = time
            case (
                events.UnitRetrying(unit=unit, time=time)
                | events.UnitCompleted(unit=unit, time=time)
                | events.UnitFailed(unit=unit, time=time)
                | events.UnitTimedOut(unit=unit, time=time)
            ):
                self.busy += time - self._began.pop(unit, time)
