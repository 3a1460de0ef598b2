"""Each example runs as a script and as a module, prints what it promises, and nothing else."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("unmeasured")

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "examples"

# Lines that show an example's point, as regular expressions, in order.
PRINTED = {
    "first_steps": [
        r"42 characters, most often \[\('hello', 2\), \('world', 2\)\], names: \['nothing found'\]",
        r"page +completed \(loop\), attempts: 2",
        r"words +completed \(process\), attempts: 1",
        r"length +completed \(thread\), attempts: 1",
        r"report +completed \(thread\), attempts: 1",
    ],
    "provider_fanout": [
        r"\{'best': \"beta on 'Why is the sky blue\?'\", 'answers': 3\}",
        r"  provider_alpha: 0\.\d\d s",
        r"  one after another 0\.\d\d s, together 0\.\d\d s",
        r"failed: provider_alpha \(alpha is down\)",
        r"kept:   provider_beta, provider_gamma",
    ],
    "document_pipeline": [
        r"10 units, critical path: extract_0 -> chunk_0 -> embed_0 -> index_embeddings",
        r"5 sentences indexed",
        r"  extract_0 ran on a process",
        r"  embed_0 ran on a thread",
        r"When do owls hunt\? Owls hunt at night\.",
    ],
    "agent_workflow": [
        r"How long .* to Lyon\? 3 h 20 min, on Monday, over the Alps\.",
        r"retrieval_agent +#+",
        r"tool_agent_maps +#+",
        r"response_agent +#+",
    ],
    "usage_patterns": [
        r"Execution levels: \[\['load_data'\], \['process_data', 'validate_data'\], \['store_.*",
        r"Critical path: \['load_data', 'process_data', 'store_results'\]",
        r"Stored: stored \[10, 20, 30\], valid: True",
        r"Parallelism efficiency: \d\.\d\dx",
        r"\{'processed': True, 'result': 6\}, attempts: 2",
        r"\{'processed': False\}, attempts: 2",
        r"Execution failed: 1 unit of 3 failed, 1 skipped:",
        r"Partial results: \{'check_disk': 'disk: 40% full'\}",
        r"Failed units: \['fetch_data'\]",
    ],
    "web_service": [
        r"\{'weather': 'sun in Rome', 'hotels': \['Hotel Rome', 'Old Rome Inn'\]\}",
        r"6 requests of 0\.1 s each in \d\.\d s",
        r"  weather of Quito: stopped",
        r"  run Quito: timeout after \d\.\d s",
        r"  504: no offer within 0\.5 s",
        r"  weather of Perth: stopped",
        r"  run Perth: canceled after \d\.\d s",
    ],
    "tool_agent": [
        r"Will I need an umbrella at the meeting\? It will rain in Lyon on Monday\.",
        r"turn 1 after 0\.\d s: calendar, maps",
        r"turn 2 after \d\.\d s: weather",
        r"turn 3 after \d\.\d s: done",
        r"busy_provider lost the race 'wanted' to 'steady_provider'",
    ],
    "streaming_ingest": [
        r"store opened",
        r"store closed with 97 rows",
        r"100 lines, 288 letters, broken: \[7, 47, 87\]",
        r"the first record was saved when \d+ lines had been read",
        r"line 7: failed, the run: result\.ok=True",
    ],
    "shared_service": [
        r"80 requests at once: \d\d answered, [1-9]\d* refused, after \d\.\d s",
        r"calls of the provider at once: at most 8",
        r"when the load is over: \{'running': 0, 'waiting': 0\}",
        r"drained",
    ],
    "service_pool": [
        r"40 answers from 2 services; the last: all about topic 39",
        r"a service died: 3\d answers, [1-4] lost",
        r"and then: all about owls",
        r"drained",
    ],
    "token_stream": [
        r"  unit: \{\"unit\": \"facts\", \"seconds\": \d\.\d+\}",
        r"  end: \{\"state\": \"completed\"\}",
        r"  10 tokens: owls hunt at night, and owls hardly make a sound\. ",
        r"  its run: completed",
        r"  bats hunt ",
        r"  the model was stopped",
        r"  its run: canceled",
    ],
    "async_test_suite": [
        r".*::test_a_unit_alone_is_a_plain_function PASSED.*",
        r".*::test_orders_at_once_do_not_mix PASSED.*",
        r"=+ 8 passed in .*",
    ],
}


# Before 3.13 anyio kills its idle workers twice when the loop ends, and asyncio may reap one in
# between and say so on stderr: seen with bare `anyio.to_process` too.
UPSTREAM = re.compile(r"(Unknown child process pid|child process pid) \d+.* returncode 255\n")


def check(name: str, command: list[str], folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    noise = ran.stderr if sys.version_info >= (3, 13) else UPSTREAM.sub("", ran.stderr)
    assert (ran.returncode, noise) == (0, ""), ran.stdout + ran.stderr
    lines = iter(ran.stdout.splitlines())
    for pattern in PRINTED[name]:
        assert any(re.fullmatch(pattern, line) for line in lines), f"{pattern}\n{ran.stdout}"


def test_no_example_is_left_out() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert names == PRINTED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_the_example_runs_as_a_script_from_any_folder(name: str, tmp_path: Path) -> None:
    check(name, [str(FOLDER / f"{name}.py")], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_the_example_runs_as_a_module(name: str) -> None:
    check(name, ["-m", f"examples.{name}"], REPOSITORY)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_importing_the_example_runs_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"examples.{name}")
    assert callable(module.main)
    assert module.__doc__
    assert capfd.readouterr() == ("", "")
