"""The model: maps, limits and races on modelled time."""

import pytest

from quantum_async import Limit, PlanError, QuantumPartitioner


async def work(item):
    return item


def made(**options):
    return QuantumPartitioner(**options)


def test_a_map_has_as_many_children_as_items_are_known():
    flow = made()
    flow.map(work, [1, 2, 3], name="each")
    simulated = flow.build_execution_plan().simulate({"each": 2}, max_workers=1)
    assert simulated.makespan == 6
    assert simulated.starts == {"each": 0, "each[0]": 0, "each[1]": 2, "each[2]": 4}


def test_a_map_over_what_only_the_run_knows_has_one_child_or_as_many_as_said():
    flow = made()
    flow.map(work, "urls", name="each")
    plan = flow.build_execution_plan()
    assert plan.simulate(max_workers=1).makespan == 1
    assert plan.simulate(max_workers=1, items={"each": 5}).makespan == 5
    assert plan.simulate(items={"each": 0}).ends == {"each": 0}


def test_an_item_goes_through_a_chain_of_maps_before_the_next_one_begins():
    flow = made()
    first = flow.map(work, range(3), name="a")
    flow.map(work, first, name="b")
    flow.add_unit(work, ["b"], name="end")
    starts = flow.build_execution_plan().simulate(max_workers=1).starts
    order = sorted((when, name) for name, when in starts.items() if "[" in name)
    assert [name for _, name in order] == ["a[0]", "b[0]", "a[1]", "b[1]", "a[2]", "b[2]"]
    assert starts["end"] == 6


def test_a_map_keeps_to_its_own_concurrency():
    flow = made()
    flow.map(work, range(6), name="each", max_concurrency=2)
    assert flow.build_execution_plan().simulate().makespan == 3


def test_a_map_over_a_stream_begins_when_the_items_have_come():
    async def items(ctx):
        yield 1

    flow = made()
    flow.add_unit(items, name="items", cost=3)
    flow.map(work, "items", name="each")
    assert flow.build_execution_plan().simulate(items={"each": 2}).makespan == 4


def test_limits_hold_on_modelled_time():
    flow = made(limits={"api": Limit(rate=2, per=10), "gpu": 1})
    for name in "abc":
        flow.add_unit(work, name=name, uses="api")
    for name in "xyz":
        flow.add_unit(work, name=name, uses="gpu", cost=5)
    starts = flow.build_execution_plan().simulate().starts
    assert [starts[name] for name in "abcxyz"] == [0, 0, 10, 0, 5, 10]


def test_a_race_ends_with_its_first_success_and_so_do_the_losers():
    flow = made()
    flow.add_unit(work, name="before", cost=4)
    flow.add_unit(work, ["before"], name="slow")
    flow.add_unit(work, name="long", cost=9)
    flow.add_unit(work, name="quick", cost=2)
    flow.first("slow", "long", "quick", name="race")
    flow.add_unit(work, ["race"], name="end")
    simulated = flow.build_execution_plan().simulate({"end": 1})
    assert simulated.makespan == 3
    assert simulated.ends["long"] == simulated.ends["before"] == simulated.ends["race"] == 2
    assert "slow" not in simulated.starts


@pytest.mark.parametrize("items", [{"eahc": 1}, {"each": -1}, {"each": 1.5}, {"each": True}])
def test_items_that_cannot_be_meant_are_refused(items):
    flow = made()
    flow.map(work, "urls", name="each")
    with pytest.raises(PlanError, match=next(iter(items))):
        flow.build_execution_plan().simulate(items=items)
