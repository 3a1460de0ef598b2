"""Signals to the parent and to everything in a terminal, at random moments of a blocking `execute`.

Whatever hits the parent, none of its processes is left: they are looked for by their session.
`QUANTUM_CHAOS=1` in the environment gives the full counts.
"""

import random
import signal
import sys

import pytest

from tests.support import harm, terminal

SEEDS = range(60 if harm.FULL else 2)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sys.platform != "linux", reason="only Linux ends children with their parent"
    ),
]


@pytest.mark.parametrize("to", terminal.TO, ids=lambda to: to.__name__)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_survives(name, to, record_property):
    for seed in SEEDS:
        terminal.ended_by(getattr(signal, name), to, random.Random(seed))
    record_property("signals", len(SEEDS))


@pytest.mark.parametrize("to", terminal.TO, ids=lambda to: to.__name__)
def test_what_is_stopped_for_a_while_goes_on(to):
    for seed in SEEDS:
        terminal.goes_on_after_stops(to, random.Random(seed))


def test_ctrl_c_again_and_again_ends_it_too():
    for seed in SEEDS:
        terminal.ended_by_many_interrupts(random.Random(seed))
