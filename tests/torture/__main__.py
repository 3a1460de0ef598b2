"""Hard use with fresh seeds, for as long as one likes: ``python -m tests.torture --minutes 10``.

Random graphs in random orders and cancelled at random points, on virtual time, against a plain
oracle and the laws of every run; and on real time, units in worker processes that are killed,
stopped, interrupted and cancelled, and units that treat their workers badly. Each run is told again
from its events. What goes wrong is printed with the line that shows it again.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable

from quantum_async.core.scheduler import Scheduler
from tests.support import replay
from tests.torture import on_real_time, on_virtual_time

Kind = Callable[[int, "Counter[str]"], None]
KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        on_virtual_time.orders,
        on_virtual_time.stories,
        on_virtual_time.points,
        on_real_time.harmed,
        on_real_time.cold_starts,
        on_real_time.slots_in_use,
        on_real_time.hostile_units,
        on_real_time.terminals,
    )
}

_TURNS = 8  # seeds on virtual time, for each one on real time


def check_every_step(counts: "Counter[str]") -> None:
    """Check the scheduler's invariants after each of its steps, from now on."""
    for name in ("complete", "fail", "retry", "wake", "give_up", "cancel_waiting"):
        step: Callable[..., object] = getattr(Scheduler, name)

        def stepped(self, *args, step=step, **options):
            done = step(self, *args, **options)
            self.check_invariants()
            counts["steps"] += 1
            return done

        setattr(Scheduler, name, stepped)


def torture(
    minutes: float, seed: int | None = None, only: str | None = None
) -> tuple["Counter[str]", list[str]]:
    """Go on for some minutes, or through one seed.

    Returns:
        What was done, and what went wrong.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    check_every_step(counts)
    replay.check_every_run()
    logging.disable()  # the floods of hostile units
    until = time.monotonic() + 60 * minutes
    first = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    while not counts["seeds"] or (seed is None and time.monotonic() < until):
        for name, kind in KINDS.items():
            if only in (None, name):
                # Virtual time is quick.
                many = _TURNS if seed is None and kind.__module__ == on_virtual_time.__name__ else 1
                for number in range(first, first + many):
                    wrong += _gone_wrong(kind, number, counts)
        counts["seeds"] += 1
        first += _TURNS
    return counts, wrong


def _gone_wrong(kind: Kind, seed: int, counts: "Counter[str]") -> list[str]:
    try:
        kind(seed, counts)
    except Exception:
        line = f"python -m tests.torture --seed {seed} --only {kind.__name__}"
        return [f"{line}\n{traceback.format_exc()}"]
    return []


def told(counts: "Counter[str]") -> str:
    """Return the counts in words: first those of every run, then the kinds of signals."""
    first = ["seeds", "graphs", "units", "steps", "cancels", "retries", "signals", "kills"]
    order = first + sorted(counts.keys() - first)
    return ", ".join(f"{counts[what]:,} {what}" for what in order)


def main() -> int:
    """Return the exit code: 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="go through one seed, and end")
    parser.add_argument("--only", choices=KINDS, help="only this of what is done with a seed")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # where all that is left over is ours
        counts, wrong = torture(wanted.minutes, wanted.seed, wanted.only)
    sys.stdout.write(told(counts) + "\n")
    sys.stdout.write("".join(f"\n{one}" for one in wrong) or "nothing went wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
