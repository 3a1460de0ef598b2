"""The recipes of `docs/recipes.md`, tried: the page's own code, on what each is a recipe for."""

import asyncio
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quantum_async import UnitState

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/recipes.md"


def recipe(heading: str) -> str:
    """Return the first block of code of a section, which is the recipe."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None, f"{PAGE.name} has no recipe {heading!r}"
    return found[1]


@pytest.fixture
def cooked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Make a module of a recipe."""

    def cook(heading: str) -> Any:
        module = ModuleType("recipe")
        monkeypatch.setitem(sys.modules, "recipe", module)
        exec(compile(recipe(heading), str(PAGE), "exec"), vars(module))
        return module

    return cook


# -- Temporal ----------------------------------------------------------------------------------


@pytest.fixture
def temporal(cooked: Callable[[str], Any]) -> Any:
    pytest.importorskip("temporalio")
    return cooked("One run as one Temporal activity")


async def test_an_activity_that_is_tried_again_goes_on_where_it_was(
    temporal: Any,
) -> None:
    from temporalio.testing import ActivityEnvironment

    beats: list[Any] = []
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *details: beats.append(*details)
    environment.info = dataclasses.replace(
        environment.info, heartbeat_details=[{"page": "one two three"}]
    )
    result = await environment.run(temporal.report, "url")
    assert result == {"page": "one two three", "words": 3}
    assert beats[0] == {"page": "one two three"}
    assert beats[-1] == result


async def test_an_activity_that_is_cancelled_cancels_its_run(temporal: Any) -> None:
    from temporalio.testing import ActivityEnvironment

    flow, began = temporal.flow, asyncio.Event()

    @flow.unit(after=["words"])
    async def waits(page: str) -> None:
        began.set()
        await asyncio.sleep(60)

    environment = ActivityEnvironment()
    task = asyncio.create_task(environment.run(temporal.report, "url"))
    await began.wait()
    environment.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert flow.last_result.states["waits"] is UnitState.CANCELED
    assert flow.last_result["words"] == 4


# -- Celery ------------------------------------------------------------------------------------


def test_a_task_of_celery_runs_where_it_is_called(cooked: Callable[[str], Any]) -> None:
    pytest.importorskip("celery")
    celery = cooked("A run in a Celery task")
    result = celery.report.apply(["one"])
    assert result.get() == {"page": "the page of one", "words": 4}


# A broker and results in folders, in place of those in memory: a worker is another process.
IN_FOLDERS = """
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={name: "queue" for name in ("data_folder_in", "data_folder_out")}
    | {"control_folder": "control"},
    result_backend="file://{folder}/results",
)
"""
ASKING = """
from recipe import report

answers = [report.delay(url) for url in ("one", "two", "three")]
print([answer.get(timeout=30)["page"] for answer in answers])
"""


def test_tasks_of_celery_run_in_its_prefork_pool(tmp_path: Path) -> None:
    pytest.importorskip("celery")
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    settings = IN_FOLDERS.replace("{folder}", str(tmp_path))
    (tmp_path / "recipe.py").write_text(recipe("A run in a Celery task") + settings)
    serving = [sys.executable, "-m", "celery", "-A", "recipe", "worker", "--pool", "prefork"]
    worker = subprocess.Popen(
        [*serving, "--concurrency", "1", "--without-mingle", "--without-gossip"],
        cwd=tmp_path,
        env=os.environ | {"C_FORCE_ROOT": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASKING],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
        )
    finally:
        worker.terminate()
        worker.wait(20)
    assert asked.stdout == "['the page of one', 'the page of two', 'the page of three']\n", (
        asked.stderr
    )


# -- taskiq ------------------------------------------------------------------------------------


async def test_tasks_of_taskiq_share_a_runtime(cooked: Callable[[str], Any]) -> None:
    pytest.importorskip("taskiq")
    taskiq = cooked("A run in a taskiq task")
    broker, report = taskiq.broker, taskiq.report
    await broker.startup()
    try:
        asked = [await report.kiq(url) for url in ("one", "two", "three")]
        answers = [await one.wait_result(timeout=10) for one in asked]
        assert [one.return_value["words"] for one in answers] == [4, 4, 4]
        assert broker.state.runtime.max_runs == 8
        assert broker.state.runtime.running == 0
    finally:
        await broker.shutdown()
    refused = await (await report.kiq("late")).wait_result(timeout=10)
    assert not refused.is_err  # the runtime is closed, and runs without one go on
