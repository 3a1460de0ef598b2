"""The events of a run are all of it: told again from nothing, they give what the result has."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantum_async import QuantumPartitioner, UnitState
from quantum_async.core import events
from quantum_async.testing import VirtualClock
from tests.support import stories
from tests.support.replay import differences, folded

ROOT = Path(__file__).parents[2]


def flow_of_all_ends():
    flow = QuantumPartitioner(failure_policy="collect")

    async def flaky(ctx):
        if ctx.attempt < 2:
            raise ValueError("not yet")
        return ctx.attempt

    async def fails(ctx):
        raise KeyError("no")

    flow.add_unit(flaky, name="flaky", retries=1)
    flow.add_unit(fails, ["flaky"], name="fails")
    flow.add_unit(fails, ["flaky"], name="falls back", fallback=7)
    flow.add_unit(lambda ctx: asyncio.sleep(9), name="late", timeout=1)
    flow.add_unit(lambda ctx: None, ["fails"], name="skipped")
    flow.add_unit(lambda ctx: None, ["falls back"], name="in a thread")
    return flow


def run_of_all_ends():
    flow, log = flow_of_all_ends(), []
    return VirtualClock().run(flow.run(observers=[log.append])), log


def test_states_attempts_results_errors_and_order_come_out_of_the_events_alone():
    result, log = run_of_all_ends()
    story = folded(log)
    assert {name: unit.state for name, unit in story.units.items()} == result.states
    assert story.units["flaky"].attempts == 2
    assert story.units["skipped"].root == "fails"
    assert story.units["late"].state is UnitState.TIMEOUT
    assert story.verdict == "failed"
    assert differences(result, log) == []


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (events.UnitRetrying, "back-offs of 'flaky'"),
        (events.UnitStarted, "attempts of"),
        (events.UnitCompleted, "state of 'flaky'"),
        (events.UnitSkipped, "state of 'skipped'|'skipped', of which no event tells"),
        (events.RunFinished, "end of the run"),
    ],
)
def test_an_event_that_is_missing_is_found(lost, told):
    result, log = run_of_all_ends()
    found = differences(result, [event for event in log if not isinstance(event, lost)])
    assert bool(found) == bool(told)
    assert any(part in one for part in told.split("|") for one in found) or not told


def test_an_order_that_is_wrong_is_found():
    result, log = run_of_all_ends()
    assert any("order of ends" in one for one in differences(result, log[::-1]))


def test_what_was_given_has_no_events():
    flow, log = flow_of_all_ends(), []
    result = VirtualClock().run(
        flow.run(overrides={"flaky": 3}, targets=["falls back"], observers=[log.append])
    )
    assert result["falls back"] == 7
    assert differences(result, log) == []


# -- recorded stories -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_recorded_story_can_be_told_again(seed):
    story = stories.story_of(seed)
    assert len(story) > 2
    assert stories.story_of(seed) == story


@pytest.mark.slow
def test_a_story_is_the_same_in_every_process_whatever_hashes_are():
    told = []
    for hash_seed in ("0", "1", "4711"):
        ran = subprocess.run(
            [sys.executable, "-m", "tests.support.stories", *map(str, range(8))],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        told.append([json.loads(line) for line in ran.stdout.splitlines()])
    assert told[0] == told[1] == told[2]
    assert told[0] == [stories.story_of(seed) for seed in range(8)]
    assert any("UnitRetrying" in line for story in told[0] for line in story)
    assert any("UnitCanceled" in line for story in told[0] for line in story)


@pytest.mark.parametrize("seed", range(6))
def test_what_a_scheduler_was_told_can_be_told_to_another_one_with_the_same_answers(seed):
    """The decision core alone: no loop, no clock, no units."""
    calls = stories.calls_of(seed)
    assert any(call.name == "next_start" and call.answer >= 0 for call in calls)
    assert stories.first_difference(seed, calls) is None


def test_a_scheduler_that_decides_otherwise_is_found():
    calls = stories.calls_of(3)
    place = next(n for n, call in enumerate(calls) if call.name == "next_start")
    calls[place] = calls[place]._replace(answer=999)
    assert stories.first_difference(3, calls).startswith(f"call {place}, next_start(): ")
