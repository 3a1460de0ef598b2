"""Random graphs, and what they must give."""

import random

from quantum_async import QuantumPartitioner


def random_graph(
    chance: random.Random, *, threads: bool = True, most: int = 30
) -> QuantumPartitioner:
    """Make a graph of coroutines and plain functions; ``u7`` gives 7 and what it depends on.

    Args:
        chance: The seed's.
        threads: Whether some are plain functions: these take real time.
        most: The most units.
    """
    flow = QuantumPartitioner(
        max_workers=chance.choice([None, 1, 2, 5]),
        strategy=chance.choice(["critical_path", "fifo", "priority"]),
    )
    for number in range(chance.randint(1, most)):
        few = range(min(number, chance.randint(0, 4)))
        above = sorted({f"u{chance.randrange(number)}" for _ in few}) if number else []

        async def on_loop(ctx, number=number, above=tuple(above)):
            return number + sum(ctx[name] for name in above)

        def in_thread(ctx, number=number, above=tuple(above)):
            return number + sum(ctx[name] for name in above)

        flow.add_unit(
            in_thread if chance.random() < 0.1 and threads else on_loop,
            above,
            f"u{number}",
            retries=chance.choice([0, 0, 2]),
            timeout=chance.choice([None, 10_000]),
            priority=chance.randint(-2, 2),
        )
    return flow


def expected(flow: QuantumPartitioner) -> dict[str, int]:
    """Return what a graph's units give, worked out one after the other."""
    values: dict[str, int] = {}
    for name, unit in flow.units.items():
        values[name] = int(name[1:]) + sum(values[above] for above in unit.dependencies)
    return values
