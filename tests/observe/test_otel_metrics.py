"""Metrics of runs and units, as the SDK's in-memory reader gets them."""

import asyncio

import pytest
from tenacity import stop_after_attempt, wait_none

from quantum_async import QuantumPartitioner, RetryPolicy
from quantum_async.observe.otel import OpenTelemetry

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

AT_ONCE = RetryPolicy(stop=stop_after_attempt(5), wait=wait_none())


class Numbers:
    """What was measured."""

    def __init__(self):
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader])
        self.observer = OpenTelemetry(meter_provider=self._provider)

    def close(self):
        self._provider.shutdown()

    def all_points(self, name):
        """Return a metric's points."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in ([] if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"quantum_async.{name}"
            for point in metric.data.data_points
        ]

    def points(self, name):
        """Return a metric's points by the unit, or by the run's state."""
        found = self.all_points(name)
        key = "quantum_async.run.state" if name.startswith("run") else "quantum_async.unit"
        return {point.attributes[key]: point for point in found}


@pytest.fixture
def numbers():
    numbers = Numbers()
    yield numbers
    numbers.close()


@pytest.fixture
def flow(numbers):
    return QuantumPartitioner(name="shop", observers=[numbers.observer], failure_policy="collect")


async def fine(ctx):
    return None


async def nap(ctx):
    await asyncio.sleep(0.05)


async def fail(ctx):
    raise LookupError


async def test_durations_of_runs_and_units_are_seconds(flow, numbers):
    flow.add_unit(nap, name="nap")
    flow.add_unit(fail, name="bad")
    flow.add_unit(fine, ["bad"], name="below")
    result = await flow.run()
    run = numbers.points("run.duration")["failed"]
    assert (run.count, run.attributes["error.type"]) == (1, "ExecutionError")
    assert run.sum == pytest.approx(result.metrics["total_duration"], abs=0.005)
    units = numbers.points("unit.duration")
    assert units.keys() == {"nap", "bad"}
    assert 0.04 < units["nap"].sum <= run.sum
    assert dict(units["nap"].attributes) == {
        "quantum_async.partitioner": "shop",
        "quantum_async.unit": "nap",
        "quantum_async.unit.where": "loop",
        "quantum_async.unit.state": "completed",
    }
    assert units["bad"].attributes["error.type"] == "LookupError"


async def test_the_wait_for_a_slot_is_measured(flow, numbers):
    flow.add_unit(nap, name="first", priority=1)
    flow.add_unit(nap, name="second")
    await flow.run(max_workers=1)
    waits = numbers.points("unit.queue.duration")
    assert waits["first"].sum < 0.04 < waits["second"].sum


async def test_units_are_active_while_they_run(flow, numbers):
    seen = {}

    async def look(ctx):
        seen.update(numbers.points("unit.active"))

    flow.add_unit(look, name="unit")
    await flow.run()
    assert seen["unit"].value == 1
    assert numbers.points("unit.active")["unit"].value == 0


@pytest.mark.parametrize("end", ["failed", "timeout", "canceled", "retried"])
async def test_nothing_stays_active(flow, numbers, end):
    began = asyncio.Event()

    async def unit(ctx):
        began.set()
        if end == "failed" or (end == "retried" and ctx.attempt == 1):
            raise OSError
        if end != "retried":
            await asyncio.sleep(60)

    timeout = 0.01 if end == "timeout" else None
    flow.add_unit(unit, name="unit", retry=AT_ONCE if end == "retried" else None, timeout=timeout)
    running = asyncio.ensure_future(flow.run())
    await began.wait()
    if end == "canceled":
        running.cancel()
    await asyncio.wait([running])
    assert numbers.points("unit.active")["unit"].value == 0


async def test_retries_are_counted(flow, numbers):
    async def third_time(ctx):
        if ctx.attempt < 3:
            raise OSError

    flow.add_unit(third_time, name="unit", retry=AT_ONCE)
    flow.add_unit(fine, name="other", retry=AT_ONCE)
    await flow.run()
    retries = numbers.points("unit.retries")
    assert {name: point.value for name, point in retries.items()} == {"unit": 2}


async def test_children_of_a_map_are_one_series(flow, numbers):
    async def child(item):
        return item

    flow.map(child, over=range(20), name="map")
    await flow.run()
    counts = {
        (point.attributes["quantum_async.unit.where"], point.count)
        for point in numbers.all_points("unit.duration")
    }
    assert counts == {("loop", 20), ("map", 1)}
    assert {point.count for point in numbers.all_points("unit.queue.duration")} == {20}
