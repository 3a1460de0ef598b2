"""The comparison with other engines works. Nothing is installed for it here."""

import ast
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages, shapes
from benchmarks.peers import children, work
from benchmarks.peers.__main__ import main
from benchmarks.peers.catalogue import OURS, PEERS, Peer
from benchmarks.peers.child import measure, reason
from benchmarks.peers.children import Child, started
from benchmarks.peers.comparison import Comparison, Options, Outcome, Report, Times
from benchmarks.peers.engines import Engine, by_hand, ours
from benchmarks.peers.environments import Unavailable, package, python_for
from benchmarks.peers.tables import tables
from benchmarks.peers.work import OVERHEAD, Work

pytestmark = pytest.mark.usefixtures("unmeasured")

ROOT = Path(__file__).parents[1]
ENGINES = ROOT / "benchmarks/peers/engines"
BY_HAND = "levels,taskgroup,graphlib" + (",eager" if sys.version_info >= (3, 12) else "")
# What pip is told to install fails at once, and asks nobody.
NOWHERE = ("nothing @ file:///no/such/place",)


# -- the work --------------------------------------------------------------------------------------


def test_a_result_depends_on_all_inputs() -> None:
    assert work.value(0) == 1
    assert work.value(2, 5, 7) == 31 * 12 + 3
    diamond = shapes.Graph([(), (0,), (0,), (1, 2)])
    given = Work(diamond, [0.0] * 4)
    # 1, 31 + 2, 31 + 3, 31 * (33 + 34) + 4
    assert given.sinks == [3]
    assert given.outcome == 2081


@pytest.mark.parametrize(
    ("case", "units", "outcome"),
    [
        ("wide", 40, 820),
        ("chain", 40, 145_529),
        ("layered", 40, 1_140_750),
        ("tree", 40, 8_588_886),
    ],
)
def test_the_cases_have_outcomes_that_stay(case: str, units: int, outcome: int) -> None:
    given = work.work(case, 40, "")
    assert (len(given.graph), given.outcome) == (units, outcome)
    assert not given.sleeps


def test_lanes_sleep_and_workflows_are_scaled(tmp_path: Path) -> None:
    lanes = work.work("lanes", 1_000, "")
    assert (len(lanes.graph), len(lanes.sinks), lanes.sleeps) == (400, 20, True)
    assert work.work("lanes", 3, "").graph.edges == 6
    nodes = [
        {"id": "b", "duration": 300, "deps": ["a"]},
        {"id": "a", "duration": 100, "deps": []},
    ]
    (tmp_path / "some.json").write_text(json.dumps({"nodes": nodes}))
    assert list(work.work("some", 1, str(tmp_path)).seconds) == pytest.approx([0.1, 0.3])
    with pytest.raises(FileNotFoundError, match=r"no other\.json"):
        work.work("other", 1, str(tmp_path))


async def test_functions_are_written_that_name_their_dependencies() -> None:
    given = work.work("layered", 40, "")
    on_loop, plain = work.named(given, on_loop=True), work.named(given, on_loop=False)
    found: dict[str, int] = {}
    for name, function in plain.items():
        inputs = [found[f"n{one}"] for one in given.graph.dependencies[int(name[1:])]]
        found[name] = function(*inputs)
        assert await on_loop[name](*inputs) == found[name]
    assert sum(found[f"n{one}"] for one in given.sinks) == given.outcome


# -- the engines -----------------------------------------------------------------------------------

HERE = [by_hand.Levels, by_hand.TaskGroup, by_hand.Graphlib, ours.OnLoop, ours.InThreads]
if sys.version_info >= (3, 12):
    HERE.append(by_hand.EagerTaskGroup)


@pytest.mark.parametrize("case", [*OVERHEAD, "lanes"])
@pytest.mark.parametrize("engine", HERE, ids=lambda engine: engine.__name__)
async def test_an_engine_computes_the_outcome(engine: type[Engine], case: str) -> None:
    told = await measure(engine(), work.work(case, 5, ""), repeats=1)
    assert told.keys() == {"build", "run"}, told
    assert told["run"] > 0


async def test_gather_computes_what_has_no_dependencies() -> None:
    assert "error" not in await measure(by_hand.Gather(), work.work("wide", 5, ""), 1)
    # Nobody wins by not running: here inputs are missing.
    told = await measure(by_hand.Gather(), work.work("chain", 5, ""), 1)
    assert told["error"].startswith("wrong results: their sum is 15 and not ")


async def test_who_runs_nothing_is_found_out() -> None:
    class Idle(Engine):
        async def run(self, built: Any) -> Iterable[int]:
            return []

    assert "wrong results" in (await measure(Idle(), work.work("wide", 5, ""), 1))["error"]


def test_the_first_line_of_the_first_error_is_the_reason() -> None:
    group = ExceptionGroup("several", [ExceptionGroup("more", [ValueError("this\nand that")])])
    assert reason(group) == "ValueError: this"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_every_entry_names_a_class_that_is_there() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for engine in (*OURS.values(), *(peer.engine for peer in PEERS)):
        module, _, kind = engine.partition(":")
        tree = ast.parse((ENGINES / f"{module}.py").read_text(encoding="utf-8"))
        assert kind in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert {file.stem for file in ENGINES.glob("*.py")} - {"__init__", "ours"} == {
        peer.engine.partition(":")[0] for peer in PEERS
    }


@pytest.mark.parametrize("file", sorted(ENGINES.glob("*.py")), ids=lambda file: file.stem)
def test_an_engines_file_imports_nothing_but_its_engine(file: Path) -> None:
    allowed = {"benchmarks.peers.engines", "benchmarks.peers.work", "benchmarks.shapes"}
    allowed |= {"quantum_async"} if file.stem == "ours" else {file.stem}
    if file.stem == "distributed":
        allowed |= {"benchmarks.peers.engines.dask"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
        for name in names:
            top = name.partition(".")[0]
            assert name in allowed or top in allowed or top in sys.stdlib_module_names, name


# -- environments and children ---------------------------------------------------------------------


def test_without_requirements_an_engine_runs_where_we_do(tmp_path: Path) -> None:
    assert python_for((), tmp_path) == Path(sys.executable)
    assert package("dask>=2025,<2027") == "dask"


def test_an_environment_is_kept_while_nothing_changes(tmp_path: Path) -> None:
    environment = tmp_path / "some-package"
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    stamp = environment / ".installed"
    stamp.write_text(f"{sys.version}\nsome-package>=1", encoding="utf-8")
    assert python_for(["some-package>=1"], tmp_path) == python


@pytest.mark.slow
async def test_what_cannot_be_installed_is_skipped_with_the_reason(tmp_path: Path) -> None:
    peer = Peer("nothing", "Nothing", "nothing:Nothing", 10, NOWHERE)
    async with Comparison(Options(quick=True, graphs="", folder=tmp_path)) as comparison:
        report = await comparison.measure(peer)
    assert report.skipped.startswith("it cannot be installed: ")
    assert "/no/such/place" in report.skipped
    assert f"| Nothing | all | skipped: {report.skipped} |" in "\n".join(tables([report]))
    assert report.as_dict()["skipped"] == report.skipped
    # It is tried anew the next time.
    assert not (tmp_path / "nothing/.installed").exists()


async def test_what_needs_a_newer_python_is_skipped_with_the_reason(tmp_path: Path) -> None:
    peer = Peer("later", "Later", "by_hand:Levels", 10, python=(3, 99))
    async with Comparison(Options(quick=True, graphs="", folder=tmp_path)) as comparison:
        assert (await comparison.measure(peer)).skipped == "it needs Python 3.99"


@pytest.mark.slow
async def test_what_does_not_start_says_why() -> None:
    with pytest.raises(Unavailable, match="does not start: AttributeError"):
        async with started(Path(sys.executable), "by_hand:Nobody"):
            pytest.fail("it started")


async def _child(source: str, folder: Path) -> Child:
    log = folder / "log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", source),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    return Child(process, log)


async def test_what_ends_is_skipped_with_its_last_words(tmp_path: Path) -> None:
    child = await _child("raise SystemExit('no memory left')", tmp_path)
    with pytest.raises(Unavailable, match="ended with code 1: no memory left"):
        await child.ask(case="wide")
    assert child.gone
    await child.end()


async def test_what_takes_too_long_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "LIMIT", 0.01)
    child = await _child("import sys; sys.stdin.read(); sys.stdin.read()", tmp_path)
    with pytest.raises(Unavailable, match=r"took longer than 0\.01 s"):
        await child.ask(case="wide")
    await child.end()


class _Told(Child):
    """A child that answers what it is told to."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.versions, self.gone = {}, False
        self._answers = list(answers)

    async def ask(self, **case: Any) -> dict[str, Any]:
        if self._answers:
            return self._answers.pop(0)
        self.gone = True
        raise Unavailable("it took longer than a day")


async def test_after_the_end_of_an_engine_its_other_cases_are_not_tried(tmp_path: Path) -> None:
    times = {"build": 1e-3, "run": 2e-3}
    peer = Peer("some", "Some", "some:Some", 10, cases=("wide", "chain", "layered", "tree"))
    options = Options(quick=True, graphs="", folder=tmp_path)
    theirs = _Told(times, times, {"error": "RecursionError"})
    us: Any = {"loop": _Told(*[times] * 4)}
    outcomes = await Comparison(options)._cases(peer, theirs, us)
    assert outcomes["wide"].times_ours("loop", "run").middle == 1
    assert {case: one.skipped for case, one in outcomes.items()} == {
        "wide": "",
        "chain": "RecursionError",
        "layered": "it took longer than a day",
        "tree": "not tried after that",
    }


async def test_a_failure_of_ours_is_no_gap_in_the_table(tmp_path: Path) -> None:
    times = {"build": 1e-3, "run": 2e-3}
    peer = Peer("some", "Some", "some:Some", 10, cases=("wide",))
    comparison = Comparison(Options(quick=True, graphs="", folder=tmp_path))
    us: Any = {"loop": _Told()}
    with pytest.raises(RuntimeError, match="quantum_async fails at wide: it took longer"):
        await comparison._cases(peer, _Told(*[times] * 9), us)


# -- what is printed -------------------------------------------------------------------------------


def _report(**given: Any) -> Report:
    two = Times([2e-6, 4e-6, 6e-6], [30e-6, 50e-6, 40e-6])
    one = Times([1e-6, 1e-6, 1e-6], [2e-6, 2e-6, 2e-6])
    peer = Peer("some", "Some", "some:Some", 10, ("some",), target=10, **given)
    outcomes = {
        "wide": Outcome("wide", 10, 0.0, two, dict.fromkeys(("loop", peer.place), one)),
        "chain": Outcome("chain", skipped="RecursionError: too | deep"),
        "lanes": Outcome("lanes", 9, 10e-6, two, {"loop": one}),
    }
    return Report(peer, {"some": "1.2"}, outcomes)


def test_tables_have_both_sides_and_what_is_missing() -> None:
    text = "\n".join(tables([_report(place="threads")]))
    wide = "4.00 · 20.0× | – | – | –"
    assert f"| Some 1.2 | on the loop | 10 | {wide} | ≥ 10×: yes |" in text
    assert f"| Some 1.2 | in threads | 10 | {wide} | ≥ 10×: yes |" in text
    assert "| Some 1.2 | 10 | 0.40 · 4.00× | – | – | – |" in text
    assert "| Some 1.2 | 4.00 (0.20) | – | – |" in text
    assert "| Some 1.2 | chain | skipped: RecursionError: too \\| deep |" in text


def test_the_figures_are_told_as_data() -> None:
    told = _report().as_dict()
    wide, chain, lanes = told["cases"]
    assert wide["theirs"]["run_us_a_unit"] == pytest.approx(4)
    assert wide["ours"]["loop"]["run_ratio"] == pytest.approx({"median": 20, "low": 15, "high": 25})
    assert chain == {"case": "chain", "skipped": "RecursionError: too | deep"}
    assert lanes["theirs"]["makespan_over_bound"] == pytest.approx(4)


def test_a_table_replaces_what_stood_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- peers:begin -->\nold\n<!-- peers:end -->\nrest\n")
    for _ in range(2):
        pages.put(page, "peers", "## Title\n\n| a |\n")
        assert page.read_text() == (
            "# Page\n<!-- peers:begin -->\n### Title\n\n| a |\n<!-- peers:end -->\nrest\n"
        )
    with pytest.raises(ValueError, match=r"has no <!-- bench:begin --> … <!-- bench:end -->"):
        pages.put(page, "bench", "text")


@pytest.mark.slow
def test_a_quick_run_prints_tables_and_writes_them(tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    page.write_text("<!-- peers:begin --><!-- peers:end -->", encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "--only", f"gather,{BY_HAND}"]
    command += ["--json", str(figures), "--write", str(page), "--graphs", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert told["environment"]["Python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert [one["peer"] for one in told["peers"]] == ["gather", *told_names()]
    written = page.read_text(encoding="utf-8")
    for peer in told["peers"]:
        assert f"| {peer['title']} | on the loop |" in ended.stdout
        assert f"| {peer['title']} | on the loop |" in written
        for case in peer["cases"]:
            if case["case"] in (*OVERHEAD, "lanes"):
                assert case["theirs"]["run_us_a_unit"] > 0
                assert case["ours"]["loop"]["run_ratio"]["median"] > 0
            else:
                assert case["skipped"] == f"no {case['case']}.json in {tmp_path}"


def told_names() -> list[str]:
    return [peer.name for peer in PEERS if peer.name in BY_HAND.split(",")]


def test_an_unknown_engine_is_refused_by_name() -> None:
    with pytest.raises(SystemExit):
        main(["--only", "dusk"])
