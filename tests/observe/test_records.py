"""Runs that are saved and loaded: nothing is lost but what JSON cannot hold, and that is told."""

import asyncio
import json
import math
import os
import pathlib
import subprocess
import sys
from enum import IntEnum

import pytest

from quantum_async import QuantumPartitioner, RunResult, UnitState
from quantum_async.account import every_unit, slices_of
from quantum_async.core.record import SavedValue
from quantum_async.jsonable import RecordedError, packed, packed_error, unpacked, unpacked_error
from quantum_async.records import RecordError, as_record, from_record
from quantum_async.testing import VirtualClock, timeline
from tests.support.recorded import HOSTILE, flow_of_everything, run_of_everything


@pytest.fixture(scope="module")
def result():
    return run_of_everything()


@pytest.fixture(scope="module")
def loaded(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run.json"
    result.save(path)
    return RunResult.load(path)


# -- there and back -------------------------------------------------------------------------------


def test_a_loaded_result_tells_what_the_saved_one_told(result, loaded):
    assert loaded.states == result.states
    assert loaded.roots == result.roots
    assert loaded.ok is result.ok is False
    assert loaded.duration == pytest.approx(result.duration)
    assert loaded.critical_path == result.critical_path
    assert loaded.explain() == result.explain()
    assert timeline(loaded) == timeline(result)
    assert repr(loaded) == repr(result)
    assert loaded.what_if(max_workers=5) == result.what_if(max_workers=5)


def test_records_times_and_waits_of_every_unit_come_back(result, loaded):
    names = list(every_unit(result))
    assert {"squares[1]", "inside/y"} <= set(names)
    assert list(every_unit(loaded)) == names
    for name in names:
        before, after = result.units[name], loaded.units[name]
        assert (before.state, before.attempts, before.ran_on, before.cause, before.held_by) == (
            after.state, after.attempts, after.ran_on, after.cause, after.held_by,
        )  # fmt: skip
        assert before.started_at == pytest.approx(after.started_at)
        assert before.waited == pytest.approx(after.waited)
        assert [(it.kind, it.note) for it in slices_of(result, name)] == [
            (it.kind, it.note) for it in slices_of(loaded, name)
        ]
        assert loaded.explain(name) == result.explain(name)


def test_a_result_that_is_saved_twice_is_the_same_file(loaded):
    assert as_record(from_record(as_record(loaded), RunResult)) == as_record(loaded)


def test_the_plan_comes_back_without_functions(result, loaded):
    plan, found = result.plan, loaded.plan
    assert found.fingerprint == plan.fingerprint
    assert (found.levels, found.dependencies) == (plan.levels, plan.dependencies)
    assert found.visualize("mermaid") == plan.visualize("mermaid")
    assert not plan.diff(found)
    with pytest.raises(RecordError, match=r"flaky was not saved with its run"):
        found.units["flaky"](None)


def test_results_come_back_and_stand_ins_for_those_that_cannot(result, loaded):
    assert loaded["squares"] == [1, 4]
    assert loaded["squares[1]"] == 4
    assert loaded["falls back"] == [7, None]  # tuples are lists
    assert loaded["flaky"] == SavedValue("set", "{1}")
    assert repr(loaded["flaky"]) == "<set that was not saved: {1}>"
    assert isinstance(loaded["inside"], RunResult)
    assert loaded.units["inside/x"].state is UnitState.COMPLETED


def test_errors_come_back_by_name_with_their_traceback(result, loaded):
    error = loaded.errors["fails"]
    assert isinstance(error, RecordedError)
    assert type(error).__name__ == "KeyError"
    assert str(error) == str(result.errors["fails"])
    assert "raise KeyError(HOSTILE)" in error.traceback
    assert error.__notes__ == result.errors["fails"].__notes__
    assert loaded.units["falls back"].fallback_used


async def test_a_run_goes_on_from_a_loaded_one_but_not_from_stand_ins(tmp_path):
    flow, ran = QuantumPartitioner(), []

    @flow.unit
    async def number():
        ran.append("number")
        return 7

    @flow.unit
    async def group():
        ran.append("group")
        return {1, 2}

    @flow.unit
    async def both(number, group):
        return number, group

    (await flow.run()).save(tmp_path / "run.json")
    ran.clear()
    earlier = RunResult.load(tmp_path / "run.json")
    again = await flow.run(resume_from=earlier, targets=["both", "group"])
    assert again["group"] == {1, 2}
    assert ran == ["group"]


def test_a_run_that_was_cut_short_can_be_saved(tmp_path):
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(lambda ctx: asyncio.sleep(5), name="long", retries=2)
    flow.add_unit(lambda ctx: None, ["long"], name="after")
    with pytest.raises(TimeoutError):
        VirtualClock().run(flow.run(timeout=1))
    flow.last_result.save(tmp_path / "run.json")
    loaded = RunResult.load(tmp_path / "run.json")
    assert set(loaded.states.values()) == {UnitState.CANCELED}
    assert loaded.explain() == flow.last_result.explain()


async def test_a_run_that_goes_on_can_be_saved(tmp_path, virtual_clock):
    flow = QuantumPartitioner()

    @flow.unit
    async def one():
        await asyncio.sleep(1)

    @flow.unit
    async def two(one):
        running = flow_result()
        running.save(tmp_path / "run.json")
        running.save_trace(tmp_path / "trace.json")
        running.explain()

    from quantum_async.engine.engine import Engine

    engines, begin = [], Engine._begin

    def kept(self):
        engines.append(self)
        return begin(self)

    def flow_result():
        return RunResult(engines[0].ledger, engines[0].timers.pauses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_begin", kept)
        await flow.run()
    loaded = RunResult.load(tmp_path / "run.json")
    assert loaded.states == {"one": UnitState.COMPLETED, "two": UnitState.RUNNING}
    assert loaded.duration == 1


# -- values ---------------------------------------------------------------------------------------


class Colour(IntEnum):
    RED = 1


class Secretive:
    def __repr__(self):
        raise OSError("no")


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(10**300), 1.5, "", HOSTILE, [], [1, [2, {"a": None}]], {"": {"b": [False]}}],
    ids=repr,
)
def test_values_of_json_come_back(value):
    assert unpacked(json.loads(json.dumps(packed(value)))) == value


circle: list = []
circle.append(circle)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ({1}, "set", "{1}"),
        (math.nan, "float", "nan"),
        ([math.inf], "list", "[inf]"),
        ({1: 2}, "dict", "{1: 2}"),
        (b"ab", "bytes", "b'ab'"),
        (pathlib.PurePosixPath("a"), "pathlib", "PurePosixPath('a')"),
        (Colour.RED, "Colour", "<Colour.RED: 1>"),
        (Secretive(), "Secretive", "Secretive"),
        (circle, "list", "..."),
        (10**5000, "int", ""),
        (object, "type", "object"),
    ],
    ids=[
        "set",
        "nan",
        "inf",
        "key",
        "bytes",
        "path",
        "enum",
        "unfriendly",
        "circle",
        "long",
        "type",
    ],
)
def test_other_values_are_told_by_type_and_short_repr(value, kind, text):
    told = json.loads(json.dumps(packed(value), allow_nan=False))
    assert kind in told["type"]
    assert text in told["repr"]
    assert unpacked(told) == SavedValue(told["type"], told["repr"])
    assert packed(unpacked(told)) == told


def test_what_is_long_is_shortened():
    assert len(packed({"x" * 10**6: {1}})["repr"]) < 1001
    error = packed_error(RuntimeError("x" * 10**5))
    assert len(error["traceback"]) < 21_000


def test_exceptions_that_cannot_be_told_are_told_by_name():
    class BrokenError(Exception):
        def __str__(self):
            raise OSError("no")

    told = json.loads(json.dumps(packed_error(BrokenError())))
    error = unpacked_error(told)
    assert type(error).__name__ == "BrokenError"
    assert str(error) == "(its __str__ raised)"


def test_exceptions_whose_notes_and_traceback_cannot_be_told_are_told_without():
    class SecretError(Exception):
        @property
        def __notes__(self):
            raise OSError("no")

    told = json.loads(json.dumps(packed_error(SecretError("what"))))
    assert told["message"] == "what"


def test_what_units_compute_and_who_was_left_out_comes_back():
    flow = QuantumPartitioner(limits={"api": 2})
    flow.add_unit(lambda ctx: 1, name="a", uses=lambda ctx: "api")
    flow.add_unit(lambda ctx: 1, name="b", when=lambda ctx: False)
    flow.add_unit(lambda ctx: 1, ["b"], name="c", trigger="all_done")

    async def stream():
        yield 1

    flow.add_unit(stream, name="stream", args=[])
    flow.map(lambda item: item, "stream", name="each")
    result = VirtualClock().run(flow.run(overrides={}, targets=["a", "c", "each"]))
    loaded = from_record(json.loads(json.dumps(as_record(result))), RunResult)
    assert loaded.ok is result.ok is True
    assert loaded.roots == result.roots == {"b": "b"}
    assert loaded["each"] == [1]
    assert loaded.plan.visualize() == result.plan.visualize()
    assert loaded.what_if() == result.what_if()


async def test_effects_come_back():
    flow = QuantumPartitioner()

    @flow.unit
    async def mails(ctx):
        await ctx.perform("mail", asyncio.sleep, 0, "sent")

    result = await flow.run()
    loaded = from_record(json.loads(json.dumps(as_record(result))), RunResult)
    assert len(result.effects) == 1
    assert loaded.effects == result.effects


def test_units_that_the_run_was_not_about_stay_outside():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="a")
    flow.add_unit(lambda ctx: 1, name="b")
    flow.add_unit(lambda ctx: 1, ["a"], name="c")
    result = VirtualClock().run(flow.run(targets=["c"], overrides={"a": 5}))
    loaded = from_record(as_record(result), RunResult)
    assert loaded.states == result.states
    assert set(loaded.states) == {"a", "c"}
    assert loaded.units["a"].ran_on == "given"


# -- files ----------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_is_named(result, tmp_path):
    for path in (tmp_path / "no" / "such" / "folder.json", tmp_path):
        with pytest.raises(OSError, match=path.name):
            result.save(path)
        with pytest.raises(OSError, match=path.name):
            result.save_trace(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="there are no device files")
def test_a_device_is_written_to_and_not_replaced(result):
    result.save("/dev/null")
    assert not os.path.isfile("/dev/null")


def test_a_save_that_fails_leaves_what_was_there(result, tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text("before")

    def full(self, text, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(OSError, match=r"cannot write the file: No space.*run\.json"):
        result.save(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ("{", "it is not JSON"),
        ("\0", "it is not JSON"),
        ("[" * 10**5, "is no saved run|it is not JSON"),
        ("[]", "is no saved run: save one"),
        ('{"format": "other"}', "is no saved run: save one"),
        ('{"format": "quantum_async run", "version": 99}', "version 99.*update it"),
        ('{"format": "quantum_async run", "version": 1}', "is a damaged record"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path, text, why):
    (tmp_path / "it.json").write_text(text)
    with pytest.raises(RecordError, match=rf"it\.json.*({why})"):
        RunResult.load(tmp_path / "it.json")


def test_a_damaged_record_is_refused_whatever_is_missing(loaded):
    record = as_record(loaded)
    for key in [it for it in record if it not in ("format", "version", "ok")]:
        with pytest.raises(RecordError, match="damaged"):
            from_record({name: it for name, it in record.items() if name != key}, RunResult)
    circular = json.loads(json.dumps(record))
    circular["plan"]["units"][0]["dependencies"] = [circular["plan"]["units"][0]["name"]]
    with pytest.raises(RecordError, match="in a circle"):
        from_record(circular, RunResult)


def test_a_file_that_is_not_there_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        RunResult.load(tmp_path / "no.json")


@pytest.mark.slow
def test_a_run_is_loaded_where_its_functions_are_not(tmp_path):
    flow = flow_of_everything()
    VirtualClock().run(flow.run()).save(tmp_path / "run.json")
    code = (
        "import sys; from quantum_async import RunResult; "
        "print(RunResult.load(sys.argv[1])['squares'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[1, 4]\n"
