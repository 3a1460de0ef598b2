"""Resources that cannot be meant, or cannot be had."""

from contextlib import asynccontextmanager

import pytest

from quantum_async import (
    CircularDependencyError,
    DuplicateUnitError,
    PlanError,
    QuantumPartitioner,
    UnitState,
)
from tests.api.test_resources import Life, uses

FAILED, SKIPPED = UnitState.FAILED, UnitState.SKIPPED


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


def test_what_cannot_be_opened_is_refused(flow):
    async def coroutine(): ...

    def generator():
        yield

    for wrong in (coroutine, generator, 3):
        with pytest.raises(PlanError, match=r"resource 'pool' must be an asynchronous generator"):
            flow.resource(wrong, name="pool")
    with pytest.raises(PlanError, match="must be an identifier"):
        flow.resource(asynccontextmanager(generator), name="a b")


def test_names_are_of_units_or_of_resources(flow):
    Life().resource(flow, "pool")
    with pytest.raises(DuplicateUnitError, match="'pool' already"):
        Life().resource(flow, "pool")
    with pytest.raises(DuplicateUnitError, match="resource 'pool' already"):
        flow.add_unit(lambda ctx: 1, name="pool")


def test_resources_that_need_each_other_are_refused(flow):
    life = Life()
    life.resource(flow, "a", needs=["b"])
    life.resource(flow, "b", needs=["a"])
    uses(flow, "unit", "a")
    with pytest.raises(CircularDependencyError):
        flow.build_execution_plan()


def test_a_resource_and_a_unit_that_need_each_other_are_refused(flow):
    Life().resource(flow, "pool", needs=["unit"])
    uses(flow, "unit", "pool")
    with pytest.raises(CircularDependencyError):
        flow.build_execution_plan()


async def test_a_resource_cannot_travel_to_a_worker_process(flow):
    Life().resource(flow, "pool")

    @flow.unit(mode="process")
    def unit(pool): ...

    with pytest.raises(PlanError, match=r"unit 'unit'.*'pool'"):
        await flow.run()


async def test_a_unit_is_skipped_if_its_resource_needs_one_that_failed(flow):
    Life().resource(flow, "pool", needs=["settings"])
    uses(flow, "settings", seconds=0, error=ValueError("no settings"))
    uses(flow, "a", "pool", seconds=0)
    result = await flow.run()
    assert result.states == {"settings": FAILED, "a": SKIPPED}


async def test_what_it_takes_of_the_input_must_be_there(flow):
    life = Life()
    life.resource(flow, "pool", needs=["url"])
    life.resource(flow, "session", needs=["pool", "user"])
    uses(flow, "a", "session", seconds=0)
    uses(flow, "b", seconds=0)
    with pytest.raises(PlanError) as refusal:
        await flow.run({"urls": 1})
    assert len(refusal.value.problems) == 2
    assert "resource 'pool' has a parameter 'url'" in str(refusal.value)
    assert "did you mean 'urls'" in str(refusal.value)
    assert (await flow.run(targets=["b"])).ok
    with pytest.raises(DuplicateUnitError, match="both a resource and a key"):
        await flow.run({"pool": 1, "url": 1, "user": 1})
