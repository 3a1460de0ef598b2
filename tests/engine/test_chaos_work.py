"""Units that exit, crash, fill memory, flood the output and give what cannot travel, all at once.

`QUANTUM_CHAOS=1` in the environment gives the full counts.
"""

import logging
import random
import threading

import pytest

from quantum_async import QuantumPartitioner, UnitState
from quantum_async.core.errors import UnpicklableUnitError
from tests.support import harm, hostile

SEEDS = range(30 if harm.FULL else 1)
COUNT = 60 if harm.FULL else 40

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def few_log_records(caplog):
    """Keep pytest from holding what the floods leave in the log."""
    for name in ("quantum_async", "quantum_async.worker", "flood"):
        caplog.set_level(logging.CRITICAL, name)


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_unit_comes_to_its_own_end_and_no_other(seed):
    for _ in range(2):  # the second with the workers that the first has left
        flow, due = hostile.hostile_flow(random.Random(seed), COUNT)
        result = await flow.run({})
        assert hostile.wrong(result, due) == []


@pytest.mark.parametrize("behaviour", hostile.BEHAVIOURS[3:], ids=lambda one: one.do.__name__)
async def test_a_unit_of_each_kind_harms_nobody_else(behaviour):
    flow = QuantumPartitioner(
        default_execution_mode="process", failure_policy="collect", max_workers=1
    )
    flow.add_unit(behaviour.do, name=f"{behaviour.do.__name__} 1", args=[1])
    flow.add_unit(hostile.is_well, name="is_well 2", args=[2])
    due = {f"{behaviour.do.__name__} 1": behaviour, "is_well 2": hostile.BEHAVIOURS[0]}
    assert hostile.wrong(await flow.run({}), due) == []


async def test_what_cannot_travel_to_a_worker_is_that_units_failure():
    flow = QuantumPartitioner(failure_policy="collect")

    async def lock(ctx):
        return threading.Lock()

    flow.add_unit(lock, name="lock")
    flow.add_unit(lambda ctx: ctx["lock"], ["lock"], name="takes it", mode="process")
    flow.add_unit(lambda ctx: 1, ["lock"], name="does not look", mode="thread")
    flow.add_unit(hostile.is_well, name="well", mode="process", args=[3])
    result = await flow.run({})
    assert result.states["takes it"] is UnitState.FAILED
    assert isinstance(result.errors["takes it"], UnpicklableUnitError)
    assert result["well"] == 3
    assert result["does not look"] == 1
