"""One engine in a process of its own: ``python -m benchmarks.peers.child ENGINE PACKAGE…``.

An engine is named as module and class, as ``dask:Threads``. The first answer has the versions of
the packages. Then it reads cases from stdin, one a line as JSON, and answers each with a line. What
the engine prints goes to stderr.
"""

import asyncio
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from time import perf_counter
from typing import Any

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import Work, work

_Answer = Callable[[dict[str, Any]], None]


async def measure(engine: Engine, given: Work, repeats: int) -> dict[str, Any]:
    """Build and run a graph some times.

    Returns:
        Mean seconds to `build` and to `run`, or the `error` that came.
    """
    expected, build, run = given.outcome, 0.0, 0.0
    _ = given.nodes, given.sinks  # what all engines ask for is found beforehand
    for _ in range(repeats):
        prepared = await engine.prepare(given)
        # As if the engine were alone: the collector stays on, but does not walk through the rest.
        gc.collect()
        gc.freeze()
        began = perf_counter()
        built = await engine.build(prepared)
        half = perf_counter()
        results = await engine.run(built)
        ended = perf_counter()
        gc.unfreeze()
        if (found := sum(results)) != expected:
            return {"error": f"wrong results: their sum is {found} and not {expected}"}
        build, run = build + half - began, run + ended - half
    return {"build": build / repeats, "run": run / repeats}


async def serve(engine: Engine, packages: Sequence[str], answer: _Answer) -> None:
    """Answer until stdin ends."""
    async with engine:
        answer({"versions": {package: metadata.version(package) for package in packages}})
        # In a thread, since some engines have work on this loop between two cases.
        while line := await asyncio.to_thread(sys.stdin.readline):
            case = json.loads(line)
            try:
                given = work(case["case"], case["count"], case["graphs"])
                answer({"units": len(given.graph)} | await measure(engine, given, case["repeats"]))
            except Exception as error:
                traceback.print_exc()
                answer({"error": reason(error)})


def reason(error: BaseException) -> str:
    """Return the first error in a line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def main(name: str, *packages: str) -> None:
    """Serve an engine."""
    # Engines print: the answers need a way of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    module, _, kind = name.partition(":")
    try:
        engine = getattr(importlib.import_module(f"benchmarks.peers.engines.{module}"), kind)()
        asyncio.run(serve(engine, packages, answer))
    except Exception as error:
        traceback.print_exc()
        answer({"error": reason(error)})
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
