"""Random graphs in random orders and cancelled at random points; time is virtual."""

import random
from collections import Counter

from quantum_async.testing import explore
from tests.support import everywhere
from tests.support.replay import differences
from tests.support.stories import lines
from tests.torture.graphs import expected, random_graph


def orders(seed: int, counts: "Counter[str]") -> None:
    """Run a random graph in several orders against a plain oracle, and tell each run again."""
    chance = random.Random(seed)
    flow = random_graph(chance)
    values = expected(flow)

    def right(result) -> bool:
        return all(result[name] == values[name] for name in result)

    bad = {"failures": chance.random() < 0.5, "cancels": chance.random() < 0.5}
    for number in range(seed, seed + 8):
        log = []
        flow.last_result = None
        found = explore(flow, {}, seeds=[number], check=right, observers=[log.append], **bad)
        if flow.last_result is not None:
            told_else = differences(flow.last_result, log)
            assert not told_else, "; ".join(told_else)
        counts["cancels"] += found.canceled
        counts["retries"] += found.retried
        counts["units"] += len(values)
    counts["graphs"] += 1


def stories(seed: int, counts: "Counter[str]") -> None:
    """Run a seed's story twice: it is the same."""
    told = []
    for _ in range(2):
        log = []
        flow = random_graph(random.Random(seed), threads=False)
        explore(flow, {}, seeds=[seed], failures=True, cancels=True, observers=[log.append])
        told.append(lines(log))
    assert told[0] == told[1], "the story of a seed is another one the second time"
    counts["stories"] += 1


def points(seed: int, counts: "Counter[str]") -> None:
    """Cancel a random graph at some of all its points, in a random way."""
    chance = random.Random(seed)
    way, every = chance.choice(everywhere.WAYS), chance.randint(1, 5)

    def make():
        return random_graph(random.Random(seed), most=10)

    cancel = everywhere.Everywhere()
    cancel(make, way, every=every, first=chance.randint(1, every))
    counts["cancels"] += cancel.counts["cancels"]
    counts["graphs"] += 1
