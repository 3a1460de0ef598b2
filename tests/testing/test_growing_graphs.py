"""The test kit, pictures and explanations on graphs that grow while they run."""

import asyncio
import json
import pickle

import pytest

from quantum_async import ExecutionError, PlanError, QuantumPartitioner, RunResult, UnitState
from quantum_async.core import events
from quantum_async.testing import (
    Faults,
    InjectedError,
    RunRecorder,
    assert_run,
    broken_laws,
    explore,
    plan_snapshot,
    run_unit,
    timeline,
)

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED


async def double(item):
    return 2 * item


async def inverse(item):
    await asyncio.sleep(0)
    return 1 / item


def growing(**options):
    """Return a graph with a streaming unit, maps, a reader, a nested run and an included one."""
    inner = QuantumPartitioner(failure_policy="collect", name="inner")

    @inner.unit
    async def first():
        return 1

    @inner.unit
    async def second(first):
        return first + 1

    flow = QuantumPartitioner(**{"failure_policy": "collect", **options})

    @flow.unit
    async def source():
        for number in range(6):
            yield number

    doubled = flow.map(double, source, name="doubled")
    flow.map(double, doubled, name="again", max_concurrency=2, retries=1)

    @flow.unit(after=[source])
    async def reader(ctx):
        return [item async for item in ctx.stream("source")]

    @flow.unit
    async def nests(ctx, doubled):
        return (await ctx.run(inner))["second"]

    flow.include(inner, "part", dependencies=[source])

    @flow.unit
    async def last(again, reader, nests, part):
        return sum(again) + sum(reader) + nests + part["second"]

    return flow


NOTES = ("2 at once", "stream", "run of 2 units")
LAST = 60 + 15 + 2 + 2


# -- laws, orders, assertions --------------------


@pytest.mark.parametrize("workers", [1, 2, None])
async def test_no_law_is_broken(workers):
    log = []
    flow = growing()
    result = await flow.run(observers=[log.append], max_workers=workers)
    assert result["last"] == LAST
    assert broken_laws(result.plan, log) == []


async def test_no_law_is_broken_by_failures_and_cancellation(virtual_clock):
    flow = QuantumPartitioner(failure_policy="collect")
    flow.map(inverse, [1, 0], name="bad")
    flow.map(inverse, "bad", name="over")
    flow.map(inverse, [1, 0], name="kept", on_item_error="collect")
    flow.map(inverse, [1, 0], name="retried", retries=1, timeout=1)
    flow.map(asyncio.sleep, [1, 100, 100], name="slow", max_concurrency=2)
    log = []
    task = asyncio.create_task(flow.run(observers=[log.append]))
    await asyncio.sleep(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert broken_laws(flow.build_execution_plan(), log) == []


async def test_a_recorder_takes_them_as_they_are():
    with RunRecorder() as recorder:
        await growing().run()
    assert len(recorder.events) == 1
    recorder.check()
    assert "again[5]" in recorder.timelines()[0]


@pytest.mark.slow
def test_many_orders_have_the_same_result():
    found = explore(growing, seeds=15, check=lambda result: result["last"] == LAST)
    assert found.runs == 15
    assert found.orders > 5


@pytest.mark.slow
def test_many_orders_with_failures_and_cancellations_break_no_law():
    def ends_well(result):
        return result["last"] == LAST if result.ok else "last" not in result

    explore(growing, seeds=60, failures=True, cancels=True, check=ends_well)


async def test_assertions_know_children():
    run = assert_run(await growing().run(max_workers=2))
    run.ok().completed("doubled", "doubled[0]", "again[5]", "part/second", "nests/first")
    run.result("again[5]", 20).ran_on("doubled", "map").ran_on("doubled[3]", "loop")
    run.attempts("again[2]", 1)
    run.started_in_order("source", "doubled[0]", "again[0]", "last")
    run.max_running(2, on="loop")


async def test_what_happened_to_children_can_be_seen():
    flow = growing()
    result = await flow.run()
    text = timeline(result)
    assert "doubled[0]" in text
    assert "nests" in text


# -- faults and doubles --------------------


async def test_faults_of_a_child_and_of_a_map(virtual_clock):
    flow = QuantumPartitioner(failure_policy="collect")
    flow.map(double, [1, 2], name="m", retries=1)
    faults = Faults().fail("m[1]", attempts=[1])
    result = await flow.run(faults=faults)
    assert result["m"] == [2, 4]
    assert [(one.unit, one.attempt) for one in faults.fired] == [("m[1]", 1)]
    every = Faults().fail("m", attempts=[1, 2])
    result = await flow.run(faults=every)
    assert isinstance(result.errors["m[0]"], InjectedError)
    assert len(every.fired) == 4
    with pytest.raises(PlanError, match="there is no such unit"):
        await flow.run(faults=Faults().fail("n[1]"))


async def test_a_double_stands_for_a_whole_map_or_for_its_function():
    flow = QuantumPartitioner(failure_policy="collect")
    flow.map(double, [1, 2], name="m")

    @flow.unit
    async def after(m):
        return sum(m)

    with flow.override({"m": [5, 6]}):
        assert (await flow.run())["after"] == 11

    async def negative(item):
        return -item

    with flow.override({"m": negative}):
        assert (await flow.run())["m"] == [-1, -2]
    assert (await flow.run())["after"] == 6


# -- pictures, words, numbers --------------------


@pytest.mark.parametrize("kind", ["dot", "mermaid", "svg"])
def test_pictures_show_maps_and_included_partitioners(kind):
    plan = growing().build_execution_plan()
    picture = plan.visualize(kind)
    plain = QuantumPartitioner()
    for name in plan.names:
        plain.add_unit(double, plan.dependencies[name], name=name)
    assert "doubled" in picture
    assert picture != plain.build_execution_plan().visualize(kind)
    assert [word for word in NOTES if word in picture] == list(NOTES)


def test_a_fingerprint_knows_what_a_unit_is():
    def fingerprint(**options):
        flow = QuantumPartitioner()
        flow.map(double, [1], name="m", **options)
        return flow.build_execution_plan().fingerprint

    assert fingerprint() == fingerprint()
    plain = QuantumPartitioner()
    plain.add_unit(double, name="m")
    assert fingerprint() != plain.build_execution_plan().fingerprint
    assert (
        growing().build_execution_plan().fingerprint == growing().build_execution_plan().fingerprint
    )


def test_snapshots_and_simulations_know_maps():
    flow = growing()
    assert "again" in plan_snapshot(flow)
    simulation = flow.build_execution_plan().simulate(max_workers=1)
    assert simulation.ends["last"] == simulation.makespan


async def test_explanations_name_children():
    flow = QuantumPartitioner(failure_policy="collect")
    flow.map(inverse, [1, 0], name="m")
    result = await flow.run()
    assert "m[1]" in result.explain()
    assert "ZeroDivisionError" in result.explain("m[1]")
    assert "map" in result.explain("m")
    nested = await growing().run()
    assert "part/second" in nested.explain("part/second")
    assert nested.explain()


async def test_metrics_count_children():
    result = await growing().run()
    metrics = result.metrics
    assert metrics["total_units"] == 7 + 12
    assert metrics["completed_units"] == 19
    assert metrics["failed_units"] == 0
    assert "again[5]" in metrics["unit_times"]
    assert {"event": "complete", "unit": "doubled[0]"}.items() <= next(
        entry for entry in metrics["execution_trace"]
        if entry["unit"] == "doubled[0]" and entry["event"] == "complete"
    ).items()  # fmt: skip
    json.dumps(metrics)


async def test_the_partitioners_own_view_of_the_last_run():
    flow = QuantumPartitioner(failure_policy="collect")
    flow.map(inverse, [1, 0], name="m")
    after = flow.map(inverse, [1, 2], name="n")
    await flow.run()
    assert flow.get_partial_results() == {"n": [1, 0.5]}
    assert [unit.id for unit in flow.get_failed_units()] == ["m"]
    assert flow.failed_units == {"m", "m[1]"}
    assert flow.completed_units == {"m[0]", "n", "n[0]", "n[1]"}
    assert flow.units["m"].state is FAILED
    assert after.result == [1, 0.5]


async def test_critical_path_and_repr():
    result = await growing().run()
    assert result.critical_path[-1] == "last"
    assert "completed" in repr(result)
    assert all(name in result.units for name in result.critical_path)


def test_errors_of_maps_can_be_pickled():
    flow = QuantumPartitioner()
    flow.map(inverse, [1, 0], name="m")
    with pytest.raises(ExecutionError) as caught:
        flow.execute()
    error = pickle.loads(pickle.dumps(caught.value))
    assert set(error.errors) == {"m", "m[1]"}
    assert isinstance(error.errors["m"].exceptions[0], ZeroDivisionError)


# -- one unit, blocking forms, listeners --------------------


async def test_the_blocking_forms_and_the_stream_of_events():
    flow = growing()
    seen = []
    async with flow.stream() as stream:
        async for event in stream:
            if isinstance(event, events.UnitCompleted):
                seen.append(event.unit)
    assert {"again[0]", "part/first", "nests/second", "last"} <= set(seen)
    assert stream.result["last"] == LAST
    ended = []
    flow.on_unit_complete = lambda unit, result: ended.append(unit)
    result = await flow.run()
    assert "again[3]" in ended
    assert isinstance(result["part"], RunResult)


def test_execute_gives_the_results():
    results = growing().execute()
    assert results["last"] == LAST
    assert "doubled[0]" not in results


async def test_a_function_of_a_map_is_tested_by_itself():
    flow = growing()
    assert await flow.units["doubled"].function(4) == 8
    inputs = {"again": [1], "reader": [2], "nests": 3, "part": {"second": 4}}
    assert await run_unit(flow, "last", inputs) == 10
