"""What events cost, in calls of Python functions: these can be counted, and seconds cannot."""

import sys

from quantum_async import QuantumPartitioner

UNITS = 200
# Ready, started and completed: each is told and taken, and two have a function of their own.
MOST_FOR_A_UNIT = 9


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
    assert (with_one - without) / UNITS < MOST_FOR_A_UNIT
