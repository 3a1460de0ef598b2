"""The command line: what it answers, where it says it, and with which exit code it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from quantum_async.cli import command_line as cli
from quantum_async.cli import in_json

FLOWS = """
import asyncio
from quantum_async import QuantumPartitioner

flow = QuantumPartitioner()

@flow.unit
async def text(ctx):
    print("this is no answer")
    return ctx["line"]

@flow.unit
def words(text):
    return text.split()

@flow.unit(mode="process")
def count(words):
    return len(words)

@flow.unit
async def odd(words):
    return {1, 2}

failing = QuantumPartitioner()

@failing.unit
async def bad():
    raise ValueError("broken \\x1b[31m")

@failing.unit
async def after(bad): ...

circle = QuantumPartitioner()
circle.add_unit(lambda ctx: 1, ["b"], name="a")
circle.add_unit(lambda ctx: 1, ["a"], name="b")
circle.add_unit(lambda ctx: 1, ["textt"], name="text")

def made():
    return flow

number = 3

def wrong():
    raise OSError("no network")
"""

Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command line in a folder that has the module `flows_of_cli`."""
    (tmp_path / "flows_of_cli.py").write_text(FLOWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "flows_of_cli", raising=False)

    def call(*words: str, input: str | None = None) -> Result:  # noqa: A002 - as click has it
        result = CliRunner().invoke(cli, words, input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


# -- plan ------------------------------------------------------------------------------------------


def test_plan_shows_levels_and_the_critical_path(call: Call):
    done = call("plan", "flows_of_cli:flow")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1:] == [
        "level 1: text",
        "level 2: words",
        "level 3: count, odd",
        "critical path: text → words → count",
    ]


@pytest.mark.parametrize(
    ("option", "start"), [("--dot", "digraph {"), ("--mermaid", "flowchart LR"), ("--svg", "<svg")]
)
def test_plan_draws(call: Call, option: str, start: str):
    assert call("plan", "flows_of_cli:flow", option).stdout.startswith(start)
    assert json.loads(call("plan", "flows_of_cli:flow", option, "--json").stdout)[
        "drawing"
    ].startswith(start)


def test_plan_as_json(call: Call):
    answer = json.loads(call("plan", "flows_of_cli:flow", "--json").stdout)
    assert answer["ok"] is True
    assert answer["units"]["count"] == ["words"]
    assert answer["critical_path"] == ["text", "words", "count"]


def test_a_plan_with_problems_tells_all_of_them(call: Call):
    done = call("plan", "flows_of_cli:circle", "--json")
    assert done.exit_code == 3
    assert "a → b → a" in done.stderr
    assert "did you mean 'text'?" in done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert len(answer["error"]["problems"]) == 2


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("flow_of_cli:flow", "no module 'flow_of_cli'; did you mean 'flows_of_cli'?"),
        ("flows_of_cli:flwo", "no 'flwo'; did you mean 'flow'?"),
        ("flows_of_cli.deeper:flow", "no module 'flows_of_cli.deeper'"),
        ("flows_of_cli:number", "is a int, and not a QuantumPartitioner"),
        ("flows_of_cli:wrong", "failed: OSError: no network"),
        ("flows_of_cli", "has 3 partitioners, so say which: flows_of_cli:flow, "),
        ("json", "has no QuantumPartitioner"),
        (":flow", "names no module"),
        ("flow_of_cli.py:flow", "no file 'flow_of_cli.py'; did you mean 'flows_of_cli.py'?"),
        ("nowhere/x.py:flow", "no file 'nowhere/x.py'"),
        ("json.py:flow", "has the name of another module"),
        ("broken.py:flow", "importing 'broken' failed: ZeroDivisionError"),
        ("lacking:flow", "importing 'lacking' failed: ModuleNotFoundError: No module named 'nix'"),
    ],
)
def test_a_target_that_is_not_there(call: Call, tmp_path: Path, target: str, message: str):
    (tmp_path / "json.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "lacking.py").write_text("import nix")
    done = call("plan", target, "--json")
    assert done.exit_code == 2
    assert message in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "TargetError"


@pytest.mark.parametrize("target", ["flows_of_cli:made", "flows_of_cli.py:flow"])
def test_other_ways_to_name_a_partitioner(call: Call, target: str):
    assert "level 3: count, odd" in call("plan", target).stdout


def test_the_only_partitioner_of_a_module_needs_no_name(call: Call, tmp_path: Path):
    (tmp_path / "only_flow_of_cli.py").write_text("from flows_of_cli import failing\n")
    assert "level 2: after" in call("plan", "only_flow_of_cli").stdout


# -- run -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_answers_with_one_object(call: Call, tmp_path: Path):
    (tmp_path / "input.json").write_text('{"line": "a b c"}')
    done = call("run", "flows_of_cli:flow", "--input", "input.json", "--json")
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert set(answer) == {"ok", "run_id", "results", "errors", "states", "metrics"}
    assert answer["ok"] is True
    assert answer["results"]["count"] == 3
    assert answer["results"]["odd"] == {"type": "set", "repr": "{1, 2}"}
    assert answer["states"]["odd"] == "completed"
    assert answer["metrics"]["total_units"] == 4
    assert "this is no answer" in done.stderr


@pytest.mark.parametrize("words", [["--set", "line=a b"], ["--set", 'line="a b"', "--input", "-"]])
def test_run_tells_what_came_out(call: Call, words: list[str]):
    done = call("run", "flows_of_cli:flow", "--target", "words", "--quiet", *words, input="{}")
    assert done.exit_code == 0
    assert "completed in" in done.stdout
    words = [*words, "--target", "odd", "--run-id", "mine"]
    done = call("run", "flows_of_cli:flow", *words, input="{}")
    assert done.stdout.startswith("mine completed in ")
    assert done.stdout.endswith("odd: {1, 2}\n")


def test_a_failure_is_a_row_and_an_exit_code(call: Call):
    done = call("run", "flows_of_cli:failing", "--quiet")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[2:] == [
        "UNIT   STATE    ATTEMPTS  WHY",
        "bad    failed   1         ValueError: broken ␛[31m",
        "after  skipped  0         'bad' failed",
    ]
    answer = json.loads(call("run", "flows_of_cli:failing", "--json").stdout)
    assert answer["ok"] is False
    assert answer["errors"]["bad"]["type"] == "ValueError"


def test_run_writes_a_report(call: Call, tmp_path: Path):
    done = call("run", "flows_of_cli:failing", "--html", "run.html")
    assert done.exit_code == 1
    assert "<title>" in (tmp_path / "run.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--input", "none.json"], 2, "cannot be read: No such file"),
        (["--input", "flows_of_cli.py"], 2, "is no JSON"),
        (["--input", "-", "--set", "a=1"], 2, "holds a list"),
        (["--set", "text"], 2, "write it as name=value"),
        (["--html", "none/run.html"], 2, "the folder 'none' does not exist: make it first"),
        (["--html", "."], 2, "is a directory"),
        (["--mode", "fast"], 2, "is not one of"),
        (["--workers", "0"], 2, "0 is not in the range"),
        (["--target", "wrods", "--set", "line=a"], 3, "did you mean 'words'?"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    call: Call, words: list[str], code: int, message: str
):
    done = call("run", "flows_of_cli:flow", "--target", "words", *words, input="[1]")
    assert done.exit_code == code
    assert message in done.stderr
    assert "this is no answer" not in done.stderr


def test_a_run_whose_time_is_up(call: Call, tmp_path: Path):
    (tmp_path / "slow_flow_of_cli.py").write_text(
        "import asyncio, quantum_async\nflow = quantum_async.QuantumPartitioner()\n"
        "flow.add_unit(asyncio.Event().wait, name='endless', args=())\n"
    )
    done = call("run", "slow_flow_of_cli:flow", "--timeout", "0.01", "--quiet")
    assert done.exit_code == 1
    assert "endless  canceled" in done.stdout
    assert "0.01 s" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_run_tells_what_it_has(tmp_path: Path):
    (tmp_path / "flows.py").write_text(
        textwrap.dedent("""
            import asyncio, sys
            from quantum_async import QuantumPartitioner
            flow = QuantumPartitioner()

            @flow.unit
            async def endless():
                print("started", flush=True)
                await asyncio.Event().wait()
        """)
    )
    command = [sys.executable, "-m", "quantum_async", "run", "flows:flow", "--quiet", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        answer, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert json.loads(answer)["states"] == {"endless": "canceled"}


# -- what was --------------------------------------------------------------------------------------


@pytest.fixture
def saved(call: Call) -> str:
    call("run", "flows_of_cli:failing", "--save", "run.json", "--quiet")
    return "run.json"


def test_explain(call: Call, saved: str):
    assert "bad failed: ValueError" in call("explain", saved).stdout
    assert call("explain", saved, "after").stdout.startswith("after was skipped")
    answer = json.loads(call("explain", saved, "bad", "--json").stdout)
    assert answer["unit"] == "bad"
    assert answer["explanation"][0].startswith("bad failed")
    done = call("explain", saved, "afte")
    assert done.exit_code == 2
    assert "did you mean 'after'?" in done.stderr


def test_diff_what_if_report_and_trace(call: Call, saved: str, tmp_path: Path):
    assert call("diff", saved, saved).exit_code == 0
    assert isinstance(json.loads(call("diff", saved, saved, "--json").stdout), dict)
    assert " instead of " in call("what-if", saved, "--duration", "bad=0.5").stdout
    answer = json.loads(call("what-if", saved, "--duration", "bad=0.5", "--json").stdout)
    assert answer["makespan"] == pytest.approx(0.5, abs=0.01)
    assert call("report", saved).stdout == "run.html\n"
    assert "<title>" in (tmp_path / "run.html").read_text(encoding="utf-8")
    assert call("run", "flows_of_cli:failing", "--trace", "trace.json").exit_code == 1
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "none.json"], "No such file"),
        (["report", "flows_of_cli.py"], "no saved run"),
        (["what-if", "run.json", "--duration", "bda=1"], "'bad'"),
        (["what-if", "run.json", "--duration", "bad=soon"], "no number"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_saved_runs_that_are_none(call: Call, words: list[str], message: str):
    done = call(*words)
    assert done.exit_code == 2
    assert message in done.stderr


# -- the program -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_for_this_program(call: Call, shell: str):
    assert "_QUANTUM_ASYNC_COMPLETE" in call("completion", shell).stdout


def test_words_are_completed(monkeypatch: pytest.MonkeyPatch, call: Call):
    monkeypatch.setenv("_QUANTUM_ASYNC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "quantum-async wh")
    monkeypatch.setenv("COMP_CWORD", "1")
    done = CliRunner().invoke(cli, prog_name="quantum-async")
    assert done.stdout.split(",")[1].strip() == "what-if"


def test_the_help_names_the_exit_codes(call: Call):
    assert "130  interrupted" in call("--help").stdout
    assert call("--version").stdout.rstrip().endswith(version("quantum-async"))
    assert call("rum").exit_code == 2


@pytest.mark.slow
def test_the_module_is_a_program_and_says_what_it_lacks(tmp_path: Path):
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('none', name='click')")
    command = [sys.executable, "-m", "quantum_async"]
    there = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert there.stdout.startswith("Usage: quantum-async ")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    lacking = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment)
    assert lacking.returncode == 2
    assert lacking.stderr == ("The command line needs click: pip install 'quantum-async[cli]'\n")


@pytest.mark.parametrize(
    ("value", "json_value"),
    [
        ((1, "a"), (1, "a")),
        (float("nan"), {"type": "float", "repr": "nan"}),
        (b"\0", {"type": "bytes", "repr": "b'\\x00'"}),
        ({1: 2}, {"type": "dict", "repr": "{1: 2}"}),
    ],
)
def test_what_json_has_not_is_shown_by_type_and_repr(value: Any, json_value: Any):
    assert in_json(value) == json_value


# -- its page --------------------------------------------------------------------------------------

REPOSITORY = Path(__file__).parents[2]
CONSOLE = re.findall(
    r"^```console\n\$ quantum-async (.*?)\n(.*?)^```$",
    (REPOSITORY / "docs/cli.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)
VARIES = re.compile(r"\b[0-9a-f]{16}\b|\d+\.\d+ m?s")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "shown"), CONSOLE, ids=lambda text: text[:24])
def test_the_page_shows_what_commands_print(
    words: str, shown: str, call: Call, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delitem(sys.modules, "first_steps", raising=False)
    assert VARIES.sub("#", call(*words.split()).stdout) == VARIES.sub("#", shown)
