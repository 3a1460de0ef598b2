"""How near the schedule comes to the best that there is, on graphs whose best makespan is known.

Modelled time: what the scheduler decides, without the lateness of timers. Whoever has several slots
and picks the ready unit with the longest way still before it is rarely far off; see
`docs/benchmarks.md`.
"""

import gzip
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import flows, shapes
from benchmarks.measure import Figure, Row, Size, Target, skipped

SLOTS = (2, 4, 8, 16)
_MEAN, _WORST = Target(1.003), Target(1.05)


def measure(size: Size) -> list[Row]:
    """Simulate every graph whose optimum is known, the Standard Task Graph Set's by themselves."""
    ratios = list(over_optimum(Path(size.graphs), quick=size.quick))
    if not ratios:
        return [skipped("simulated makespan", "known optimum", f"no graphs in `{size.graphs}`")]
    rows = []
    for whose, standard in (("the Standard Task Graph Set", True), ("all other graphs", False)):
        mine = [one for one in ratios if one[0].startswith("stg-") is standard]
        if mine:
            rows += _rows(f"graphs of {whose}", mine, standard)
    return rows


def over_optimum(folder: Path, *, quick: bool = False) -> Iterator[tuple[str, int, float]]:
    """Yield for each graph and number of slots the simulated makespan over the optimum."""
    for path in sorted(folder.glob("*.json*"))[: 60 if quick else None]:
        known = _optima(path)
        if not known:
            continue
        graph = shapes.load(path)
        plan = flows.with_costs(graph, [_unit] * len(graph)).build_execution_plan()
        durations = dict(zip(plan.names, plan.costs, strict=True))
        for slots in SLOTS:
            if (best := known.get(str(slots))) is not None:
                made = plan.simulate(durations, max_workers=slots).makespan
                yield path.name, slots, made / best


async def _unit(ctx: Any) -> None:
    """Do nothing: it is never run."""


def _optima(path: Path) -> dict[str, float]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text).get("optimal") or {}


def _rows(what: str, ratios: list[tuple[str, int, float]], standard: bool) -> list[Row]:
    by_slots = {
        slots: [ratio for _, of, ratio in ratios if of == slots]
        for slots in SLOTS
        if any(of == slots for _, of, _ in ratios)
    }
    each = ", ".join(f"{statistics.mean(them):.4f} at {n}" for n, them in by_slots.items())
    name, at, worst = max(ratios, key=lambda one: one[2])
    mean = statistics.mean(ratio for *_, ratio in ratios)
    best = "known optimum"
    return [
        Row(
            f"simulated makespan of {len({name for name, *_ in ratios})} {what}, mean",
            best,
            Figure.of([mean]),
            _MEAN if standard else None,
            f"by slots: {each}",
        ),
        Row(
            "the same, worst",
            best,
            Figure.of([worst]),
            _WORST if standard else None,
            f"{name.partition('.')[0]} at {at} slots",
        ),
    ]
