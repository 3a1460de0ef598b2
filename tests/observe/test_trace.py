"""Traces keep to the rules of the trace event format, as its viewers do not say what they miss."""

import asyncio
import itertools
import json
from collections import Counter

import pytest

from quantum_async import QuantumPartitioner
from quantum_async.core.errors import UnitTimeoutError
from quantum_async.testing import VirtualClock
from quantum_async.trace import trace
from tests.support.recorded import HOSTILE, run_of_everything
from tests.support.runs import alone, broken, canceled, chain, done, late, made_run

NEEDED = {
    "X": {"dur", "cat", "args"},
    "s": {"id", "cat"},
    "f": {"id", "cat", "bp"},
    "i": {"s"},
    "C": {"args"},
    "M": {"args"},
}


def broken_rules(data):
    """Return what a viewer would not like about a trace, in words."""
    found = []
    events = data["traceEvents"]
    for event in events:
        missing = {"name", "pid", "tid", "ts", *NEEDED.get(event["ph"], ())} - event.keys()
        if event["ph"] not in NEEDED or missing or event["ts"] < 0 or event.get("dur", 0) < 0:
            found.append(f"{event} lacks {missing}")
        if not json.dumps(event, ensure_ascii=False).isprintable():
            found.append(f"{event} has control characters")
    timed = [event["ts"] for event in events if event["ph"] != "M"]
    if timed != sorted(timed):
        found.append("events are not in the order of time")
    lanes = {}
    for event in events:
        if event["ph"] == "X":
            lanes.setdefault((event["pid"], event["tid"]), []).append(event)
    for lane in lanes.values():
        lane.sort(key=lambda it: (it["ts"], it["dur"]))
        for one, next_one in itertools.pairwise(lane):
            if one["ts"] + one["dur"] > next_one["ts"] + 0.002:
                found.append(f"{one['name']} and {next_one['name']} overlap in their lane")
    named = {(it["pid"], it["tid"]) for it in events if it["name"] == "thread_name"}
    if named != lanes.keys():
        found.append(f"lanes without a name, or names without a lane: {named ^ lanes.keys()}")
    ends = {ph: {it["id"]: it for it in events if it["ph"] == ph} for ph in "sf"}
    if ends["s"].keys() != ends["f"].keys():
        found.append("arrows with one end")
    for number, start in ends["s"].items():
        if start["ts"] > ends["f"][number]["ts"]:
            found.append(f"arrow {number} goes back in time")
        for end in (start, ends["f"][number]):
            if not any(
                it["ts"] <= end["ts"] <= it["ts"] + it["dur"]
                for it in lanes[end["pid"], end["tid"]]
            ):
                found.append(f"{end} is in no slice")
    return found


def slices(data, **wanted):
    return [
        event
        for event in data["traceEvents"]
        if event["ph"] == "X" and all(event.get(key) == it for key, it in wanted.items())
    ]


def lane_names(data):
    return [it["args"]["name"] for it in data["traceEvents"] if it["name"] == "thread_name"]


@pytest.fixture(scope="module")
def everything():
    return trace(run_of_everything())


def test_a_run_of_everything_keeps_to_the_rules(everything):
    assert broken_rules(everything) == []


def test_slots_and_waits_have_lanes_and_the_critical_path_has_its_own(everything):
    names = lane_names(everything)
    assert {"critical path", "loop 1", "loop 2", "loop 3", "map", "run", "race"} <= set(names)
    assert "loop 4" not in names or names.count("loop 4") == 1
    assert {"for a slot 1", "for dependencies 1", "backing off"} <= set(names)


def test_attempts_retries_and_timeouts_are_marked(everything):
    events = everything["traceEvents"]
    assert [it["name"] for it in slices(everything, cname="bad")] == ["flaky"]
    assert {"retry: flaky", "timeout: late"} <= {it["name"] for it in events if it["ph"] == "i"}
    [again] = [it for it in slices(everything, name="flaky (attempt 2)") if it["args"]]
    assert again["args"]["state"] == "completed"
    [backs_off] = slices(everything, cat="wait,back-off")
    assert backs_off["args"] == {"unit": "flaky", "for": "ValueError: not yet"}


def test_hostile_names_and_messages_are_escaped(everything):
    text = json.dumps(everything)
    assert text.isascii()
    [bad] = slices(everything, name="fails")
    assert "\\n\\x1b[31m\\x00\\ud800" in bad["args"]["error"]
    assert json.loads(text) == everything
    assert HOSTILE not in text


def test_arrows_go_from_each_dependency_to_its_dependent():
    rows = {"a": done((0, 1)), "b": done((1.5, 2), (3, 4)), "c": done((4, 4))}
    data = trace(made_run(chain("a", "b", "c"), rows, 4))
    assert broken_rules(data) == []
    arrows = [it for it in data["traceEvents"] if it["ph"] in "sf"]
    assert [(it["ph"], round(it["ts"])) for it in arrows] == [
        ("s", 1_000_000), ("f", 1_500_000), ("s", 4_000_000), ("f", 4_000_000),
    ]  # fmt: skip


def test_the_critical_path_is_coloured_and_has_a_lane_of_its_own():
    flow = chain("a", "b")
    flow.add_unit(lambda ctx: None, ["a"], "short")
    rows = {"a": done((0, 1)), "b": done((1, 3)), "short": done((1, 2))}
    data = trace(made_run(flow, rows, 3))
    assert [it["name"] for it in slices(data, cat="critical path")] == ["a", "b"]
    assert {it["name"] for it in slices(data) if it["args"].get("critical")} == {"a", "b"}
    assert "cname" not in slices(data, name="short")[0]


def test_units_that_ended_badly_are_coloured_and_say_why():
    rows = {
        "a": broken((0, 1), error=OSError("no")),
        "b": late((0, 2), error=UnitTimeoutError("late", "b", 1, 2.0, "timeout")),
        "c": canceled((0, 1), cause="somebody left"),
        "d": canceled(cause="never began"),
    }
    data = trace(made_run(alone(*rows), rows, 2))
    assert broken_rules(data) == []
    told = {it["name"]: it["args"] for it in slices(data, cname="terrible") if it["args"]}
    assert told["a"]["error"] == "OSError: no"
    assert told["c"]["cause"] == "somebody left"
    assert set(told) == {"a", "b", "c"}


def test_how_many_units_run_is_counted():
    rows = {"a": done((0, 2)), "b": done((1, 3))}
    counts = [
        it for it in trace(made_run(alone("a", "b"), rows, 3))["traceEvents"] if it["ph"] == "C"
    ]
    assert [(it["ts"], it["args"]["units"]) for it in counts] == [
        (0, 1), (1_000_000, 2), (2_000_000, 1), (3_000_000, 0),
    ]  # fmt: skip


def test_a_run_without_units_and_one_that_goes_on_have_traces_too():
    empty = trace(made_run(QuantumPartitioner(), {}, 0))
    assert broken_rules(empty) == []
    assert slices(empty) == []


def test_a_lane_has_one_unit_at_a_time_and_there_are_no_more_lanes_than_slots():
    flow = QuantumPartitioner(max_workers=4)
    for number in range(40):
        flow.add_unit(lambda ctx, n=number: asyncio.sleep(n % 7), name=str(number))
    data = trace(VirtualClock().run(flow.run()))
    assert broken_rules(data) == []
    assert Counter(name.split()[0] for name in lane_names(data))["thread"] == 4


@pytest.mark.slow
async def test_each_worker_process_has_a_lane(tmp_path):
    flow = QuantumPartitioner(max_workers=1)
    flow.add_unit(len, args=["ab"], name="length", mode="process")
    result = await flow.run()
    result.save_trace(tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    assert broken_rules(data) == []
    assert f"process {result.units['length'].usage.pid}" in lane_names(data)
