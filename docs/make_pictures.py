"""Make the generated parts of the docs: ``python docs/make_pictures.py``.

Two pictures, and nothing in them is drawn by hand: the timeline of the README comes from two
simulated runs of one graph, the state diagram of `design.md` from the scheduler's own table. A test
compares both with what is in the repository.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from quantum_async import ExecutionPlan, QuantumPartitioner, Simulation
from quantum_async.core.scheduler import OUTSIDE, PHASES, TRANSITIONS

DOCS = Path(__file__).parent
BEGIN, END = "<!-- states:begin -->\n", "<!-- states:end -->"

# Seconds that each step takes. Each document has one slow step, and each another one.
STEPS = ("read", "parse", "embed")
SECONDS: Mapping[str, tuple[float, ...]] = {"a": (1, 4, 1), "b": (4, 1, 1), "c": (1, 1, 4)}
INDEX = 1.0


# -- the same graph, twice -------------------------------------------------------------------------


def documents() -> ExecutionPlan:
    """Return the plan of three documents in three steps each, and an index over them."""
    flow = QuantumPartitioner()
    for document, seconds in SECONDS.items():
        before: list[str] = []
        for step, cost in zip(STEPS, seconds, strict=True):
            name = f"{step} {document}"
            flow.add_unit(_nothing, before, name, cost=cost)
            before = [name]
    flow.add_unit(_nothing, [f"{STEPS[-1]} {d}" for d in SECONDS], "index", cost=INDEX)
    return flow.build_execution_plan()


def with_barriers(plan: ExecutionPlan) -> ExecutionPlan:
    """Return the same units as an engine runs them that waits for whole levels."""
    flow = QuantumPartitioner()
    above: list[str] = []
    for level in plan.levels:
        for name in level:
            flow.add_unit(_nothing, above, name, cost=plan.units[name].cost)
        above = level
    return flow.build_execution_plan()


def _nothing(ctx: object) -> None:
    """Stand for work that is only simulated."""


# -- the timeline ----------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT = 760, 96, 16  # pixels
ROW, BAR = 28, 22
HEAD, AXIS, GAP = 34, 24, 18

BY_LEVEL = ("Level by level", "each level waits for its slowest unit")
ON_QUEUE = ("Ready queue", "each unit starts when what it needs has ended")
HATCH = (
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line class="hatch" y2="6"/></pattern>'
)

# Hues of Okabe and Ito, as light fills with dark letters and as dark fills with light ones.
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2937 }
  .title { font-weight: 600; font-size: 13px }
  .small, .axis text { font-size: 11px; font-weight: 400; fill: #57606a }
  .bar text { text-anchor: middle; fill: #111827 }
  .page { fill: #ffffff; stroke: #d0d7de }
  .axis line { stroke: #d0d7de }
  .barrier { stroke: #c2410c; stroke-width: 1.5; stroke-dasharray: 4 3 }
  .idle { fill: url(#hatch); stroke: #b6bec8; stroke-dasharray: 2 2 }
  .hatch { stroke: #b6bec8 }
  .read rect { fill: #a9d8f5 } .parse rect { fill: #f8d38a }
  .embed rect { fill: #9fdcc6 } .index rect { fill: #e3b7d3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .small, .axis text { fill: #9aa4b0 }
    .bar text { fill: #f0f6fc }
    .page { fill: #0d1117; stroke: #30363d }
    .axis line { stroke: #30363d }
    .barrier { stroke: #ff8a5c }
    .idle { stroke: #4b5563 } .hatch { stroke: #4b5563 }
    .read rect { fill: #0b5a86 } .parse rect { fill: #7a5200 }
    .embed rect { fill: #00634a } .index rect { fill: #7b3564 }
  }"""


def timeline() -> str:
    """Return an SVG of the same graph run level by level, and on a ready queue."""
    plan = documents()
    by_level, on_queue = with_barriers(plan).simulate(), plan.simulate()
    end = max(by_level.makespan, on_queue.makespan)
    panel = HEAD + ROW * (len(SECONDS) + 1) + AXIS

    def x(seconds: float) -> float:
        return round(LEFT + seconds * (WIDTH - LEFT - RIGHT) / end, 1)

    upper, lower = GAP, GAP + panel + GAP
    height = lower + panel + GAP
    said = (
        f"Level by level the graph takes {by_level.makespan:g} s, because each level waits for its "
        f"slowest unit. On a ready queue it takes {on_queue.makespan:g} s."
    )
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{said}">',
        f"<title>{said}</title>",
        f"<style>{STYLE}\n</style>",
        HATCH,
        f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        *_panel(plan, by_level, upper, x, *BY_LEVEL),
        *_barriers(plan, by_level, upper, x),
        *_panel(plan, on_queue, lower, x, *ON_QUEUE),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _panel(
    plan: ExecutionPlan,
    run: Simulation,
    top: int,
    x: Callable[[float], float],
    title: str,
    subtitle: str,
) -> Iterator[str]:
    yield (
        f'<text class="title" x="16" y="{top + 14}">{title}: {run.makespan:g} s'
        f'<tspan class="small" dx="10">{subtitle}</tspan></text>'
    )
    rows = [*SECONDS, "index"]
    bottom = top + HEAD + ROW * len(rows)
    yield '<g class="axis">'
    for second in range(int(run.makespan) + 1):
        yield f'<line x1="{x(second)}" x2="{x(second)}" y1="{top + HEAD - 4}" y2="{bottom}"/>'
        yield f'<text x="{x(second)}" y="{bottom + 14}" text-anchor="middle">{second}</text>'
    yield "</g>"
    for at, row in enumerate(rows):
        y = top + HEAD + ROW * at
        label = row if row == "index" else f"document {row}"
        yield f'<text x="16" y="{y + BAR - 7}">{label}</text>'
        for name in plan.names:
            step, _, document = name.partition(" ")
            if (document or step) != row:
                continue
            ready = max((run.ends[above] for above in plan.dependencies[name]), default=0.0)
            if run.starts[name] > ready:
                yield _box("idle", x(ready), x(run.starts[name]), y, "")
            yield _box(f"bar {step}", x(run.starts[name]), x(run.ends[name]), y, step)


def _box(kind: str, left: float, right: float, y: int, label: str) -> str:
    width = round(right - left, 1)
    if not label:
        return f'<rect class="{kind}" x="{left}" y="{y}" width="{width}" height="{BAR}"/>'
    middle = round((left + right) / 2, 1)
    return (
        f'<g class="{kind}"><rect x="{left}" y="{y}" width="{width}" height="{BAR}" rx="3"/>'
        f'<text x="{middle}" y="{y + BAR - 7}">{label}</text></g>'
    )


def _barriers(
    plan: ExecutionPlan, run: Simulation, top: int, x: Callable[[float], float]
) -> Iterator[str]:
    bottom = top + HEAD + ROW * (len(SECONDS) + 1)
    for level in plan.levels[:-1]:
        at = x(max(run.ends[name] for name in level))
        yield f'<line class="barrier" x1="{at}" x2="{at}" y1="{top + HEAD - 8}" y2="{bottom}"/>'


# -- the state diagram -----------------------------------------------------------------------------


def states() -> str:
    """Return the scheduler's transitions as a Mermaid state diagram, in a fenced block."""
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR", "    [*] --> waiting"]
    names = [phase.replace(" ", "_") for phase in PHASES]
    for phase, name in zip(PHASES, names, strict=True):
        if name != phase and phase != PHASES[OUTSIDE]:
            lines.append(f'    state "{phase}" as {name}')
    ends: dict[int, None] = {}
    for source, targets in TRANSITIONS.items():
        for target in sorted(targets):
            lines.append(f"    {names[source]} --> {names[target]}")
            if target not in TRANSITIONS:
                ends[target] = None
    lines += [f"    {names[end]} --> [*]" for end in sorted(ends)]
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    """Write the timeline, and the diagram between its marks."""
    (DOCS / "timeline.svg").write_text(timeline(), encoding="utf-8")
    design = DOCS / "design.md"
    text = design.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    design.write_text(before + BEGIN + states() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
