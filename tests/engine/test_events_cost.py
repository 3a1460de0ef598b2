"""What events cost, in calls of Python functions: these can be counted, and seconds cannot."""

import sys

from quantum_async import QuantumPartitioner
from quantum_async.engine.attempts import EAGER

UNITS = 200
# The unit itself, the coroutine around it, its context, its part of the scheduler, the loop's.
MOST_FOR_A_UNIT = 12 if EAGER else 32
# Ready, started and completed: each is told and taken, and each has a function of its own. And a
# unit whose end is told books it by itself.
MOST_WITH_ONE = 26 if EAGER else 41


async def noop(ctx):
    return None


def ignore(event):
    return None


def ignore_all(event):
    raise AssertionError(event)


ignore_all.event_types = ()


async def calls_in(flow, observers):
    """Return how many functions are called in a run."""
    count = 0

    def count_calls(frame, what, argument):
        nonlocal count
        count += what == "call"

    sys.setprofile(count_calls)
    try:
        await flow.run(observers=observers)
    finally:
        sys.setprofile(None)
    return count


async def test_an_observer_costs_so_many_calls_a_unit_and_none_costs_nothing():
    flow = QuantumPartitioner()
    for number in range(UNITS):
        flow.add_unit(noop, name=f"{number}")
    await flow.run()
    without = min([await calls_in(flow, []) for _ in range(3)])
    unasked = min([await calls_in(flow, [ignore_all]) for _ in range(3)])
    with_one = min([await calls_in(flow, [ignore]) for _ in range(3)])
    assert unasked - without < UNITS / 4
    assert without / UNITS < MOST_FOR_A_UNIT
    assert with_one / UNITS < MOST_WITH_ONE
