"""Every nasty unit, in every mode that it has, on every loop: nothing but itself is harmed."""

import concurrent.futures
import multiprocessing
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from quantum_async import QuantumPartitioner, UnitState
from tests.support.loops import LOOPS
from tests.zoo import anywhere, in_workers, on_loop  # noqa: F401 - they fill ANIMALS
from tests.zoo.animals import ANIMALS, AWAY
from tests.zoo.cage import Cage

HERE = [
    pytest.param(one, mode, id=f"{one.name}-{mode}")
    for one in ANIMALS
    for mode in one.modes
    if mode not in AWAY
]
WORKERS = [one for one in ANIMALS if "process" in one.modes]
TAME, WILD = [one for one in WORKERS if not one.escapes], [one for one in WORKERS if one.escapes]


@pytest.fixture(params=LOOPS)
def let_loose(request):
    def let_loose(animals, mode):
        wrong = Cage(animals, mode).open(LOOPS[request.param])
        if wrong:
            pytest.fail("\n".join(wrong), pytrace=False)

    return let_loose


@pytest.mark.parametrize(("animal", "mode"), HERE)
def test_it_harms_nothing_but_itself(animal, mode, let_loose):
    let_loose([animal], mode)


@pytest.mark.slow
def test_all_of_them_in_worker_processes_at_once(let_loose):
    let_loose(TAME, "process")


@pytest.mark.slow
@pytest.mark.parametrize("animal", WILD, ids=lambda one: one.name)
def test_one_that_ends_the_run_from_a_worker_process(animal, let_loose):
    let_loose([animal], "process")


@pytest.mark.slow
async def test_a_pool_that_breaks_takes_only_its_own_units_with_it():
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(in_workers.leaves_at_once, name="leaves", mode="custom")
    flow.add_unit(len, ["leaves"], name="after", args=["four"])
    flow.add_unit(len, name="beside", args=["four"])
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        result = await flow.run({}, custom_executor=pool)
    assert isinstance(result.errors["leaves"], BrokenProcessPool)
    assert result.states["after"] is UnitState.SKIPPED
    assert result["beside"] == 4


IN_INTERPRETERS = """
import asyncio
import sys

from tests.zoo import anywhere
from tests.zoo.animals import ANIMALS
from tests.zoo.cage import Cage

animals = [one for one in ANIMALS if one.name in sys.argv[1:]]
assert animals
print(*Cage(animals, "interpreter").open(asyncio.new_event_loop), sep="\\n", end="")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python 3.13 and later")
def test_all_of_them_in_sub_interpreters_at_once():
    names = [one.name for one in ANIMALS if "interpreter" in one.modes]
    # In a process of its own: once there are sub-interpreters, uvloop cannot start processes.
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_INTERPRETERS, *names],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if ran.stdout or ran.returncode:
        pytest.fail(f"{ran.stdout}\n{ran.stderr[-2000:]}", pytrace=False)
