"""The benchmarks work and count right. What they measure is never a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import flows, offload, optimum, shapes
from benchmarks.__main__ import main
from benchmarks.measure import Figure, Row, Table, Target
from benchmarks.shapes import Grid

pytestmark = pytest.mark.usefixtures("unmeasured")

ROOT = Path(__file__).parents[1]

# Tasks and dependencies of the Task Bench patterns by width, steps and radix (0 where there is
# none), from the table in shared/graphs/task_bench_patterns.md. The period is 2 for `spread` of
# radix 4, else 1.
COUNTS = """
trivial 4 4 0 16 0
no_comm 4 4 0 16 12
stencil_1d 4 4 0 16 30
stencil_1d_periodic 4 4 0 16 36
dom 4 4 0 6 6
tree 4 4 0 11 10
fft 4 4 0 16 28
all_to_all 4 4 0 16 48
nearest 4 4 3 16 30
nearest 4 4 5 16 42
nearest 4 4 4 16 36
spread 4 4 3 16 36
trivial 8 10 0 80 0
no_comm 8 10 0 80 72
stencil_1d 8 10 0 80 198
stencil_1d_periodic 8 10 0 80 216
dom 8 10 0 30 47
tree 8 10 0 63 62
fft 8 10 0 80 174
all_to_all 8 10 0 80 576
nearest 8 10 3 80 198
nearest 8 10 5 80 306
nearest 8 10 4 80 252
spread 8 10 3 80 216
spread 8 10 5 80 360
spread 8 10 4 80 288
trivial 13 20 0 260 0
no_comm 13 20 0 260 247
stencil_1d 13 20 0 260 703
stencil_1d_periodic 13 20 0 260 741
dom 13 20 0 110 197
tree 13 20 0 223 222
fft 13 20 0 260 607
all_to_all 13 20 0 260 3211
nearest 13 20 3 260 703
nearest 13 20 5 260 1121
nearest 13 20 4 260 912
spread 13 20 3 260 741
spread 13 20 5 260 1235
spread 13 20 4 260 988
trivial 64 100 0 6400 0
no_comm 64 100 0 6400 6336
stencil_1d 64 100 0 6400 18810
stencil_1d_periodic 64 100 0 6400 19008
dom 64 100 0 2550 4986
tree 64 100 0 6079 6078
fft 64 100 0 6400 16978
nearest 64 100 3 6400 18810
nearest 64 100 5 6400 31086
nearest 64 100 4 6400 24948
spread 64 100 3 6400 19008
spread 64 100 5 6400 31680
spread 64 100 4 6400 25344
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "section", ["overhead", "scale", "growth", "makespan", "offload", "dask", "cluster"]
)
def test_a_quick_run_of_a_section_prints_a_table(section: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(file), section]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert "| what | against | figure |" in ended.stdout
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["environment"]["Python"].endswith(".".join(map(str, sys.version_info[:3])))
    rows = told["sections"][section]
    assert len(rows) > 1
    for row in rows:
        assert row["what"] in ended.stdout
        # What is not measured says why.
        assert row["detail"] if row["figure"] is None else row["figure"] > 0
        assert row["reached"] in ((None,) if row["target"] is None else (True, False, None))


@pytest.mark.slow
def test_a_missing_folder_of_graphs_is_a_reason_and_no_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:begin --><!-- bench:end -->", encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--graphs", str(tmp_path), "makespan"]
    command += ["--write", str(page)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert f"no graphs in `{tmp_path}`" in ended.stdout
    assert f"no graphs in `{tmp_path}`" in page.read_text(encoding="utf-8")


def test_an_unknown_section_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["overheat"])
    assert "'overheat'" in capsys.readouterr().err


@pytest.mark.parametrize("line", COUNTS.strip().splitlines())
def test_patterns_have_the_counts_of_the_released_benchmark(line: str) -> None:
    pattern, *numbers = line.split()
    width, steps, radix, tasks, edges = map(int, numbers)
    period = 2 if (pattern, radix) == ("spread", 4) else 1
    graph = shapes.task_bench(pattern, Grid(width, steps, radix=radix, period=period))
    assert (len(graph), graph.edges) == (tasks, edges)


@pytest.mark.parametrize("pattern", sorted(shapes.PATTERNS))
def test_patterns_depend_on_the_step_before_only(pattern: str) -> None:
    graph = shapes.task_bench(pattern, Grid(width=6, steps=7))
    for node, above in enumerate(graph.dependencies):
        assert {graph.labels[one][0] for one in above} <= {graph.labels[node][0] - 1}


def test_random_nearest_draws_about_its_fraction_and_always_the_same() -> None:
    grid = Grid(width=60, steps=40, radix=9, period=40, fraction=0.25)
    graph = shapes.task_bench("random_nearest", grid)
    assert graph.dependencies == shapes.task_bench("random_nearest", grid).dependencies
    full = shapes.task_bench("nearest", grid)
    others = 39 * 60
    share = (graph.edges - others) / (full.edges - others)
    assert 0.22 < share < 0.28
    for (step, column), above in zip(graph.labels[60:], graph.dependencies[60:], strict=True):
        assert (step - 1, column) in [graph.labels[one] for one in above]


@pytest.mark.parametrize(
    ("graph", "nodes", "edges", "levels"),
    [
        (shapes.wide(7), 7, 0, 1),
        (shapes.chain(7), 7, 6, 7),
        (shapes.tree(7), 7, 6, 3),
        (shapes.layered(5, 3, degree=4), 15, 40, 3),
        (shapes.layered(2, 3, degree=4), 6, 8, 3),
        (shapes.lanes(3, 4, 0.1, 0.2), 12, 9, 4),
    ],
)
def test_regular_shapes(graph: shapes.Graph, nodes: int, edges: int, levels: int) -> None:
    assert (len(graph), graph.edges, len(graph.levels)) == (nodes, edges, levels)
    assert sum(map(len, graph.dependents)) == edges


def test_the_critical_path_is_the_longest() -> None:
    diamond = shapes.Graph([(), (0,), (0,), (1, 2)], [1, 2, 3, 4])
    assert diamond.critical_path() == 8
    assert diamond.critical_path([1, 9, 3, 4]) == 14
    assert diamond.scaled(0.5).critical_path() == 4


def test_a_graph_file_is_read_in_an_order_that_works(tmp_path: Path) -> None:
    nodes = [
        {"id": "late", "duration": None, "deps": ["early", "middle"]},
        {"id": "middle", "duration": 2, "deps": ["early"]},
        {"id": "early", "duration": 1.5, "deps": []},
    ]
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({"nodes": nodes}))
    graph = shapes.load(file)
    assert list(graph.labels) == ["early", "middle", "late"]
    assert [list(above) for above in graph.dependencies] == [[], [0], [0, 1]]
    assert list(graph.durations) == [1.5, 2, 0]


def test_declared_units_have_the_graphs_dependencies() -> None:
    graph = shapes.layered(4, 3, degree=2)
    plan = flows.planned(graph, lambda ctx: None).build_execution_plan()
    assert list(map(sorted, plan.edges_up)) == list(map(sorted, graph.dependencies))


def test_a_task_checks_that_it_got_what_it_wanted() -> None:
    assert offload.task(0, 3, 4, 1) == (0, 3)
    assert offload.task(1, 0, 4, 1, (0, 0), (0, 1)) == (1, 0)
    with pytest.raises(AssertionError, match="got"):
        offload.task(1, 0, 4, 1, (0, 0), (0, 2))
    grid = Grid(width=4, steps=3)
    graph = shapes.task_bench("stencil_1d", grid)
    for label, above in zip(graph.labels, graph.dependencies, strict=True):
        assert offload.task(*label, 4, 1, *(graph.labels[one] for one in above)) == label


def test_metg_is_interpolated_where_half_of_the_best_rate_is_reached() -> None:
    # Each task pays 1.2 s on top of its work: half of the rate where it works 1.2 s.
    work = [8, 4, 2, 1]
    grains = [seconds + 1.2 for seconds in work]
    rates = [seconds / grain for seconds, grain in zip(work, grains, strict=True)]
    assert offload.metg(grains, rates) == pytest.approx(2.4, rel=0.05)
    assert offload.metg(grains[:2], rates[:2]) is None
    assert offload.metg(grains[3:], rates[3:]) is None


def test_a_table_says_what_is_reached() -> None:
    rows = [
        Row("a", "b", Figure.of([0.7, 0.9, 0.8]), Target(0.8)),
        Row("a", "c", Figure.of([2.0], " ms"), Target(3, at_least=True, unit=" ms")),
        Row("a", "d", None, detail="because"),
    ]
    lines = str(Table("title", rows)).splitlines()[4:]
    assert lines == [
        "| a | b | 0.80 | 0.70 – 0.90 | ≤ 0.80 | yes |  |",
        "| a | c | 2.00 ms |  | ≥ 3.00 ms | **no** |  |",
        "| a | d | skipped |  |  |  | because |",
    ]
    assert [row.as_dict()["reached"] for row in rows] == [True, False, None]


GRAPHS = ROOT.parent / "shared" / "graphs"


@pytest.mark.slow
@pytest.mark.skipif(not GRAPHS.is_dir(), reason="the real task graphs are not here")
def test_schedules_come_near_to_the_known_optima_of_the_standard_task_graph_set():
    """What is asked of it; the lower bound of a ratio is 1, or an optimum is none."""
    ratios = [ratio for name, _, ratio in optimum.over_optimum(GRAPHS) if name.startswith("stg-")]
    assert len(ratios) > 100
    assert min(ratios) > 1 - 1e-6
    assert sum(ratios) / len(ratios) <= 1.003
    assert max(ratios) <= 1.05
