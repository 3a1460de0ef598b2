"""A worker's cold start, cut off at every millisecond of it (`QUANTUM_CHAOS=1`), or at some."""

import random

import pytest

from tests.support import cold, harm

STEP = 0.001 if harm.FULL else 0.02  # seconds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def moments():
    return [number * STEP for number in range(int(cold.LONGEST / STEP) + 1)]


def test_a_run_that_is_cancelled_meanwhile_leaves_nothing_half_started(record_property):
    hits = [cold.cancelled_after(seconds) for seconds in moments()]
    assert any(hits)
    record_property("cancels", sum(hits))


@pytest.mark.parametrize(
    "way",
    [harm.kill, harm.interrupt, harm.terminate, harm.stop_for_a_while],
    ids=lambda way: way.__name__,
)
def test_harm_done_meanwhile_is_made_good(way, record_property):
    chance = random.Random(3)
    hits = [cold.harmed_after(seconds, way, chance) for seconds in moments()]
    assert any(hits)
    record_property("signals", sum(hits))
