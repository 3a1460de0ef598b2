"""A recorded run again on modelled time, with something changed."""

import asyncio

import pytest

from quantum_async import Limit, PlanError, QuantumPartitioner, RunResult
from quantum_async.testing import VirtualClock
from tests.support.recorded import run_of_everything


def ran(flow, **options):
    return VirtualClock().run(flow.run(**options))


def flow_of(count, seconds=1.0, **options):
    flow = QuantumPartitioner(**options)
    for number in range(count):
        flow.add_unit(lambda ctx: asyncio.sleep(seconds), name=f"u{number}")
    return flow


def test_the_same_run_takes_as_long():
    flow = flow_of(7, max_workers=3)
    flow.add_unit(lambda ctx: asyncio.sleep(2), ["u0", "u6"], name="last")
    result = ran(flow)
    again = result.what_if()
    assert again.makespan == result.duration == 4
    assert again.starts == {name: result.spans(name)[0][0] for name in result.units}


def test_more_workers():
    result = ran(flow_of(8, max_workers=2))
    assert result.duration == 4
    assert result.what_if(max_workers=4).makespan == 2
    assert result.what_if(max_workers=100).makespan == 1


def test_threads_are_slots_too():
    flow = QuantumPartitioner(max_workers=2)
    for number in range(4):
        flow.add_unit(lambda ctx: None, name=str(number))
    result = ran(flow)
    durations = dict.fromkeys(result.units, 1.0)
    assert result.what_if(durations).makespan == 2
    assert result.what_if(durations, slots={"thread": 1}).makespan == 4
    assert result.what_if(durations, max_workers=4).makespan == 1


def test_shorter_units():
    result = ran(flow_of(2))
    assert result.what_if({"u0": 0.25}).ends == {"u0": 0.25, "u1": 1}
    assert result.what_if({"u0": 0.25, "u1": 0.5}).makespan == 0.5


def test_other_limits():
    flow = QuantumPartitioner(limits={"api": 1, "rate": Limit(rate=1, per=3)})
    for number in range(4):
        flow.add_unit(lambda ctx: asyncio.sleep(1), name=f"a{number}", uses="api")
    flow.add_unit(lambda ctx: asyncio.sleep(1), name="r0", uses="rate")
    flow.add_unit(lambda ctx: asyncio.sleep(1), name="r1", uses="rate")
    result = ran(flow)
    assert result.duration == 4
    assert result.what_if(limits={"api": 2}).makespan == 4
    assert result.what_if(limits={"api": 2, "rate": None}).makespan == 2
    assert result.what_if(limits={"api": None, "rate": Limit(rate=1, per=9)}).makespan == 10


def test_maps_have_the_items_that_they_had():
    flow = QuantumPartitioner(max_workers=2)

    @flow.unit
    async def found():
        return [1, 2, 3]

    async def work(item):
        await asyncio.sleep(item)

    flow.map(work, found, name="work")
    result = ran(flow)
    assert result.duration == 4
    assert result.what_if().makespan == 4
    assert result.what_if({"work[2]": 1}).makespan == 2
    assert result.what_if({"work": 0.5}).makespan == 1
    assert result.what_if(max_workers=3).ends["work[2]"] == 3


def test_what_did_not_run_takes_no_time_and_is_not_told():
    result = run_of_everything()
    assert "not now" not in result.what_if(max_workers=50).ends
    flow = flow_of(2)
    flow.add_unit(lambda ctx: asyncio.sleep(1), ["u0"], name="after")
    result = ran(flow, overrides={"u0": 1})
    assert result.what_if().ends == {"u1": 1, "after": 1}


def test_the_order_is_that_of_the_run_or_another():
    flow = QuantumPartitioner(max_workers=1, strategy="fifo")
    flow.add_unit(lambda ctx: asyncio.sleep(1), name="a")
    flow.add_unit(lambda ctx: asyncio.sleep(1), name="b", priority=5)
    result = ran(flow)
    assert result.what_if().starts == {"a": 0, "b": 1}
    assert result.what_if(strategy="priority").starts == {"a": 1, "b": 0}
    one = ran(flow_of(3), mode="sequential")
    assert one.what_if().starts == {"u0": 0, "u1": 1, "u2": 2}


def test_a_loaded_run_gives_the_same(tmp_path):
    result = run_of_everything()
    result.save(tmp_path / "run.json")
    loaded = RunResult.load(tmp_path / "run.json")
    for change in ({}, {"max_workers": 9}, {"limits": {"api": None}}, {"durations": {"slow": 1}}):
        assert loaded.what_if(**change) == result.what_if(**change)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"durations": {"flakey": 1}}, "no unit of the run.*did you mean 'flaky'"),
        ({"durations": {"not now": 1}}, "did not run by itself"),
        ({"durations": {"slow": -1}}, "unit 'slow': its duration"),
        ({"durations": {"slow": float("nan")}}, "unit 'slow': its duration"),
        ({"max_workers": 0}, "max_workers"),
        ({"limits": {"apis": 1}}, "no such limit; did you mean 'api'"),
        ({"limits": {"api": 0}}, "limit 'api'"),
        ({"limits": {"api": 0.5}}, "would wait for ever"),
        ({"slots": {"lop": 1}}, "no unit ran there; did you mean 'loop'"),
        ({"slots": {"loop": 0}}, "max_workers"),
        ({"strategy": "best"}, "strategy must be one of"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, why):
    with pytest.raises(PlanError, match=why):
        run_of_everything().what_if(**change)
