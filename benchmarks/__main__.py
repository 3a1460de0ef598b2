"""``python -m benchmarks``: measure, and print tables in Markdown."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from benchmarks import cluster, dask_graphs, growth, makespan, offload, overhead, pages, scale
from benchmarks.measure import Size, Table, environment, others_work_too

SECTIONS: dict[str, Callable[[Size], Table]] = {
    "overhead": overhead.measure,
    "scale": scale.measure,
    "growth": growth.measure,
    "makespan": makespan.measure,
    "offload": offload.measure,
    "dask": dask_graphs.measure,
    "cluster": cluster.measure,
    "ray": cluster.measure_ray,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the sections that are asked for, print their tables, and write them where wanted."""
    asked = _parsed(arguments)
    size = Size(quick=asked.quick, graphs=asked.graphs)
    facts = environment()
    began = perf_counter()
    written: list[str] = []

    def tell(text: str) -> None:
        print(text, end="\n\n", flush=True)
        written.append(text)

    print("# quantum_async, measured\n")
    tell("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    if asked.quick:
        tell("**`--quick`: this shows that the benchmarks work. Its figures mean nothing.**")
    elif others_work_too():
        tell("**The machine was busy with other work: these figures are rough.**")
    tables: dict[str, Table] = {}
    for name in asked.section or SECTIONS:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        tables[name] = SECTIONS[name](size)
        tell(str(tables[name]).strip())
    tell(
        "Figures are medians of rounds in which both sides were timed in turn; lower is better "
        f"where the target is an upper limit. Measured in {perf_counter() - began:.0f} s."
    )
    if asked.json:
        _write(asked.json, facts, asked.quick, tables)
    if asked.write:
        pages.put(asked.write, "bench", "\n\n".join(written))
    return 0


def _write(file: Path, facts: dict[str, str], quick: bool, tables: dict[str, Table]) -> None:
    sections = {name: [row.as_dict() for row in table.rows] for name, table in tables.items()}
    told = {"environment": facts, "quick": quick, "sections": sections}
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "section", nargs="*", help=f"what to measure: {', '.join(SECTIONS)}; by default all"
    )
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    parser.add_argument(
        "--graphs",
        default=Size().graphs,
        metavar="FOLDER",
        help="where the real task graphs are",
    )
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.section if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
