"""The adaptive strategy: how the number of slots follows the load."""

import asyncio

import pytest

from quantum_async import QuantumPartitioner
from quantum_async.engine.adaptive import Governor, Load, next_limit
from quantum_async.testing import VirtualClock
from quantum_async.tuning import usable_cpus

CALM = Load(lag=0.0, cpu=0.5, memory=0.5)


@pytest.mark.parametrize(
    ("load", "heavy"),
    [
        (CALM, False),
        (Load(lag=0.06, cpu=0.5, memory=0.5), True),
        (Load(lag=0.0, cpu=1.6, memory=0.5), True),
        (Load(lag=0.0, cpu=0.5, memory=0.93), True),
    ],
)
def test_a_load_is_heavy_if_one_of_its_parts_is(load, heavy):
    assert load.heavy is heavy


@pytest.mark.parametrize(
    ("limit", "load", "all_used", "after"),
    [
        (8, CALM, True, 10),
        (3, CALM, True, 4),  # by one at least
        (19, CALM, True, 20),  # and never over what the user allows
        (8, CALM, False, 8),
        (8, Load(lag=1.0, cpu=0.0, memory=0.0), True, 6),
        (1, Load(lag=1.0, cpu=0.0, memory=0.0), False, 1),
    ],
)
def test_slots_grow_while_all_are_used_and_shrink_when_it_is_too_much(limit, load, all_used, after):
    assert next_limit(limit, 20, load, all_used=all_used) == after


class Slots:
    """A run, and its scheduler, in which so many slots are used as are wanted."""

    def __init__(self, wanted):
        self.wanted = wanted
        self.max_running = 0

    @property
    def used(self):
        return min(self.wanted, self.max_running)

    def resize(self, limit):
        self.max_running = limit


def slots_over_time(loads, *, wanted=1000, most=None):
    """Return how many slots there are at the start, and after each of the loads."""
    slots, seen = Slots(wanted), []

    async def main():
        governor = Governor(slots, 2, most, iter(loads).__next__)
        governor.begin(slots)
        seen.append(slots.max_running)
        for _ in loads:
            await asyncio.sleep(0.1)
            seen.append(slots.max_running)
        await governor.end()
        await asyncio.sleep(10)  # nobody asks for the load any more

    VirtualClock().run(main())
    return seen


def test_a_run_begins_with_a_few_slots_and_follows_the_load():
    calm, heavy = (0.1, 0.1), (9.0, 0.1)
    assert slots_over_time([calm, calm, heavy, calm]) == [6, 7, 8, 6, 7]
    assert slots_over_time([calm, calm, calm], most=7) == [6, 7, 7, 7]
    assert slots_over_time([calm, calm], wanted=3) == [6, 6, 6]


def test_a_governor_that_never_began_may_end():
    asyncio.run(Governor(Slots(0), 2, None, lambda: (0.0, 0.0)).end())


def test_units_of_a_run_get_the_slots_that_the_load_allows(monkeypatch):
    monkeypatch.setattr("quantum_async.launch.machine_load", lambda: (0.0, 0.0))
    flow, most = QuantumPartitioner(strategy="adaptive"), []
    running = 0

    async def unit(ctx):
        nonlocal running
        running += 1
        most.append(running)
        await asyncio.sleep(1)
        running -= 1

    for number in range(200):
        flow.add_unit(unit, name=f"unit {number}")
    assert VirtualClock().run(flow.run({})).ok
    assert max(most) > usable_cpus() + 4
