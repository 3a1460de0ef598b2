"""Stories: what happened in a run, as lines that can be kept and compared.

The story of a seed is that of one random graph in one random order, on virtual time, with failures
and cancellations. ``python -m tests.support.stories 3 4`` prints those of seeds, as JSON.
"""

import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from quantum_async.core import events
from quantum_async.core.scheduler import Scheduler
from quantum_async.testing import explore
from tests.torture.graphs import random_graph

_TOLD = ("next_start", "next_skip", "complete", "fail", "retry", "wake", "give_up", "free_slot")


class Call(NamedTuple):
    """A call of a scheduler's method, and its answer."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    answer: Any


def lines(log: Iterable[events.Event]) -> list[str]:
    """Return the events of a run as lines, but for what no two runs have in common."""
    told = []
    for event in log:
        who = "" if isinstance(event, events.RunStarted | events.RunFinished) else f" {event.unit}"
        attempt = getattr(event, "attempt", "")
        told.append(f"{event.time:.6f} {type(event).__name__}{who} {attempt}".rstrip())
    return told


def story_of(seed: int) -> list[str]:
    """Run a seed's graph in the seed's order, and return its story."""
    log: list[events.Event] = []
    flow = random_graph(random.Random(seed), threads=False)
    explore(flow, {}, seeds=[seed], failures=True, cancels=True, observers=[log.append])
    return lines(log)


# -- the decision core alone ----------------------------------------------------------------------


def calls_of(seed: int) -> list[Call]:
    """Run a seed, and return all that its scheduler was told, with its answers."""
    with _recorded() as (_, calls):
        story_of(seed)
    return calls


def first_difference(seed: int, calls: Sequence[Call]) -> str | None:
    """Tell a new scheduler of the same run the same, and return where its answer differs."""
    with _recorded() as (made, _):
        story_of(seed)
    args, options = made[0]
    scheduler = Scheduler(*args, **options)
    for number, call in enumerate(calls):
        answer = getattr(scheduler, call.name)(*call.args, **call.options)
        if answer != call.answer:
            given = ", ".join(map(repr, call.args))
            return (
                f"call {number}, {call.name}({given}): {answer!r}, and it was {call.answer!r}; "
                f"seed {seed}"
            )
    return None


@contextmanager
def _recorded() -> Iterator[tuple[list[tuple[Any, Any]], list[Call]]]:
    """Take down how schedulers are made in the block, and what they are told and answer."""
    made: list[tuple[Any, Any]] = []
    calls: list[Call] = []
    before = {name: getattr(Scheduler, name) for name in (*_TOLD, "__init__", "cancel_waiting")}
    depth = 0

    def init(self: Scheduler, *args: Any, **options: Any) -> None:
        made.append((args, options))
        before["__init__"](self, *args, **options)

    def recording(name: str) -> Any:
        def recorded(self: Scheduler, *args: Any, **options: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                answer = before[name](self, *args, **options)
            finally:
                depth -= 1
            if not depth:  # else the scheduler asks itself
                calls.append(Call(name, args, options, answer))
            return answer

        return recorded

    Scheduler.__init__ = init  # type: ignore[method-assign]
    for name in (*_TOLD, "cancel_waiting"):
        setattr(Scheduler, name, recording(name))
    try:
        yield made, calls
    finally:
        for name, method in before.items():
            setattr(Scheduler, name, method)


if __name__ == "__main__":
    for number in sys.argv[1:]:
        sys.stdout.write(json.dumps(story_of(int(number))) + "\n")
