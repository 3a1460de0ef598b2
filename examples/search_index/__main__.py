"""`python -m examples.search_index [DIR]`: build an index, ask it three things, say how it went."""

import argparse
import asyncio
import contextlib
import io
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from examples.search_index import hostile, pipeline, report
from examples.search_index.documents import NoDocumentsError, check_folder, printable
from examples.search_index.progress import Progress
from examples.search_index.store import ForeignFileError, check_replaceable
from quantum_async import ClusterError, ExecutionError

PAGE, TRACE = "report.html", "trace.json"
REFUSED, FAILED, INTERRUPTED = 2, 1, 130  # exit codes, as argparse and the shell have them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code.

    Args:
        arguments: The command line's, without the program's name; those of this process by default.
    """
    _print_anything()
    wanted = _parser().parse_args(arguments)
    root = os.path.abspath(wanted.folder or sysconfig.get_path("stdlib"))
    try:
        check_folder(root)
        if wanted.db:
            check_replaceable(wanted.db)
        if wanted.out:
            os.makedirs(wanted.out, exist_ok=True)
    except (NoDocumentsError, ForeignFileError, OSError) as error:
        return _complain(str(error), REFUSED)
    try:
        with _database(wanted.db) as database:
            if wanted.hostile:
                print(asyncio.run(hostile_index(database, wanted.out)))
            else:
                with _cluster(wanted.dask) as options:
                    print(asyncio.run(index(root, database, wanted.out, **options)))
    except (ClusterError, ImportError) as error:
        return _complain(str(error), REFUSED)
    except ExecutionError as error:
        failed = [
            f"{unit} failed: {type(why).__name__}: {why}" for unit, why in error.errors.items()
        ]
        return _complain("\n".join(failed), FAILED)
    except KeyboardInterrupt:
        return _complain("Interrupted.", INTERRUPTED)
    if wanted.out:
        page, trace = (printable(os.path.join(wanted.out, name)) for name in (PAGE, TRACE))
        print(f"\nThe report of the run is {page}; its trace, for ui.perfetto.dev, {trace}.")
    if wanted.db:
        print(f"\nThe index is in {printable(wanted.db)}.")
    else:
        print("\nThe index was a temporary file; --db FILE keeps it.")
    return 0


async def hostile_index(database: str, out: str | None = None) -> str:
    """Run the graph over a folder of which two files make their parser hang and crash."""
    with tempfile.TemporaryDirectory(prefix="search_index.") as folder:
        hostile.write_folder(folder)
        return await index(folder, database, out, parser=hostile.parse, limit=1.0)


async def index(
    root: str, database: str, out: str | None = None, executor: Any = None, **options: Any
) -> str:
    """Run the graph, with progress on standard error, and return the text to print.

    Args:
        root: The folder to index.
        database: The file to write.
        out: The folder for the run's report and trace; None for neither.
        executor: The cluster that parses and chunks; None for worker processes.
        options: What else `pipeline.build` takes.
    """
    progress, stopwatch = Progress(), pipeline.Stopwatch()
    flow = pipeline.build(root, database, **options)
    try:
        result = await flow.run(observers=[pipeline.watch(progress), stopwatch], executor=executor)
    finally:
        progress.close()
    if out:
        result.save_html(os.path.join(out, PAGE))
        result.save_trace(os.path.join(out, TRACE))
    run = report.figures(
        result.units.values(),
        result.critical_path,
        wall=result.metrics["total_duration"],
        summed=stopwatch.busy,
        cpus=pipeline.usable_cpus(),
    )
    return f"{report.format_figures(run)}\n\n{result['report']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.search_index",
        description="Index the Python files of a folder, and ask the index three things.",
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        help="the folder; by default this Python's standard library",
    )
    parser.add_argument(
        "--db", metavar="FILE", help="keep the index there; an index that is there is replaced"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help=f"write the run's report ({PAGE}) and trace ({TRACE}) there"
    )
    parser.add_argument(
        "--hostile",
        action="store_true",
        help="index a made-up folder instead, whose files make their parser hang and crash",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="parse on the Dask cluster with this scheduler, which must see DIR too; without an "
        "address on two workers that are started for it",
    )
    return parser


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[dict[str, Any]]:
    """Give what runs units on a Dask cluster; on one of two workers here if there is no address."""
    if address is None:
        yield {}
        return
    from quantum_async.executors.dask import DaskExecutor

    with contextlib.ExitStack() as stack:
        if not address:
            from distributed import LocalCluster

            workers = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            address = stack.enter_context(workers).scheduler_address
        yield {"executor": stack.enter_context(DaskExecutor(address))}


@contextlib.contextmanager
def _database(wanted: str | None) -> Iterator[str]:
    if wanted:
        yield os.path.abspath(wanted)
    else:
        with tempfile.TemporaryDirectory(prefix="search_index.") as folder:
            yield os.path.join(folder, "index.db")


def _print_anything() -> None:
    # A docstring may hold what the terminal's encoding does not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complain(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
