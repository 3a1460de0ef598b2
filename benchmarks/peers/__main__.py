"""``python -m benchmarks.peers``: measure others and us, and print tables in Markdown."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from benchmarks import pages
from benchmarks.measure import Size, environment, others_work_too
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.comparison import Comparison, Options, Report
from benchmarks.peers.environments import FOLDER
from benchmarks.peers.tables import tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the engines that are asked for, print tables, and write them where wanted."""
    asked = _parsed(arguments)
    facts = environment() | {"date": datetime.now(UTC).date().isoformat()}
    busy, began = others_work_too(), perf_counter()
    reports = asyncio.run(_measured(asked.only, Options(asked.quick, asked.graphs, asked.folder)))
    told = ["\n".join(f"- {name}: {value}" for name, value in facts.items())]
    if asked.quick:
        told.append("**`--quick`: this shows that it works. Its figures mean nothing.**")
    elif busy:
        told.append("**The machine was busy with other work: these figures are rough.**")
    told += tables(reports)
    told.append(
        "Medians of rounds in which an engine and we were timed in turn, each in a process of its "
        f"own. Measured in {perf_counter() - began:.0f} s."
    )
    print("# quantum_async and others, measured\n")
    print("\n\n".join(told))
    if asked.json:
        data = {"environment": facts, "quick": asked.quick}
        data["peers"] = [report.as_dict() for report in reports]
        text = json.dumps(data, indent=2, ensure_ascii=False)
        asked.json.write_text(text + "\n", encoding="utf-8")
    if asked.write:
        pages.put(asked.write, "peers", "\n\n".join(told))
    return 0


async def _measured(peers: Sequence[Peer], options: Options) -> list[Report]:
    reports = []
    async with Comparison(options) as comparison:
        for peer in peers:
            print(f"measuring: {peer.name}", file=sys.stderr, flush=True)
            reports.append(await comparison.measure(peer))
    return reports


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"some of: {','.join(names)}")
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    parser.add_argument(
        "--graphs", default=Size().graphs, metavar="FOLDER", help="where the real task graphs are"
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the environments are made and kept"
    )
    asked = parser.parse_args(arguments)
    only = asked.only.split(",") if asked.only else names
    unknown = [name for name in only if name not in names]
    if unknown:
        parser.error(f"no engine {unknown[0]!r}; there are {', '.join(names)}")
    asked.only = [peer for peer in PEERS if peer.name in only]
    return asked


if __name__ == "__main__":
    sys.exit(main())
