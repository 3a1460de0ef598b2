"""Dependency graphs over whole numbers: orders, levels, paths, circles.

Nodes are 0 … n-1. A graph is two lists of the same edges, one from each side. Everything here
is linear in nodes and edges (an order that must be sorted costs a logarithm more), and nothing
recurses: a chain of a million nodes is an ordinary graph.
"""

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

Edges = Sequence[Sequence[int]]


def inverted(edges: Edges) -> tuple[tuple[int, ...], ...]:
    """Return the same edges from the other side: dependents for dependencies, and back."""
    other: list[list[int] | None] = [None] * len(edges)
    for node, ends in enumerate(edges):
        for end in ends:
            seen = other[end]
            if seen is None:
                other[end] = [node]
            else:
                seen.append(node)
    return tuple(() if ends is None else tuple(ends) for ends in other)


def topological_order(dependencies: Edges, dependents: Edges) -> Sequence[int]:
    """Return the nodes so that each comes after its dependencies, smallest number first.

    Nodes that wait for a circle are left out: the order is shorter than the graph then.
    """
    if all(not ends or max(ends) < node for node, ends in enumerate(dependencies)):
        return range(len(dependencies))
    waiting = [len(ends) for ends in dependencies]
    ready = [node for node, count in enumerate(waiting) if not count]
    heapify(ready)
    order = []
    while ready:
        node = heappop(ready)
        order.append(node)
        for dependent in dependents[node]:
            waiting[dependent] -= 1
            if not waiting[dependent]:
                heappush(ready, dependent)
    return order


def find_cycles(dependencies: Edges, ordered: Iterable[int]) -> list[list[int]]:
    """Return a circle of each knot of nodes that wait for each other, its first node twice.

    Args:
        dependencies: The graph.
        ordered: The nodes that are known to be on no circle.
    """
    cycles = []
    for knot in _knots(dependencies, set(ordered)):
        inside = set(knot)
        node = min(inside)
        trail: dict[int, None] = {}
        while node not in trail:
            trail[node] = None
            # Every node of a knot waits for one that is in the knot too.
            node = next(end for end in dependencies[node] if end in inside)
        circle = list(trail)[list(trail).index(node) :]
        circle.reverse()  # from dependency to dependent: the way the work flows
        first = circle.index(min(circle))
        cycles.append([*circle[first:], *circle[: first + 1]])
    return cycles


def _knots(dependencies: Edges, done: set[int]) -> list[list[int]]:
    """Return the strongly connected components that hold a circle (Tarjan 1972, no recursion)."""
    number: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    knots = []
    for root in range(len(dependencies)):
        if root in done or root in number:
            continue
        walk = [(root, iter(dependencies[root]))]
        number[root] = low[root] = len(number)
        stack.append(root)
        while walk:
            node, ends = walk[-1]
            for end in ends:
                if end in done:
                    continue
                if end not in number:
                    number[end] = low[end] = len(number)
                    stack.append(end)
                    walk.append((end, iter(dependencies[end])))
                    break
                low[node] = min(low[node], number[end])
            else:
                walk.pop()
                if walk:
                    low[walk[-1][0]] = min(low[walk[-1][0]], low[node])
                if low[node] == number[node]:
                    knot: list[int] = []
                    while not knot or knot[-1] != node:
                        knot.append(stack.pop())
                    done.update(knot)
                    if len(knot) > 1 or node in dependencies[node]:
                        knots.append(knot)
    return knots


def levels(dependencies: Edges, order: Iterable[int]) -> list[list[int]]:
    """Return the nodes by their longest distance from a root: a picture, nothing waits for it."""
    depth = [0] * len(dependencies)
    rows: list[list[int]] = []
    for node in order:
        ends = dependencies[node]
        level = 1 + max([depth[end] for end in ends]) if ends else 0
        depth[node] = level
        if level == len(rows):
            rows.append([])
        rows[level].append(node)
    for row in rows:
        row.sort()
    return rows


def remaining_paths(dependents: Edges, order: Sequence[int], costs: Sequence[float]) -> list[float]:
    """Return for each node the cost of the longest path from it to an end, itself included.

    This is the "upward rank" of list scheduling (Topcuoglu, Hariri, Wu: HEFT, IEEE TPDS 13(3),
    2002) without communication costs.
    """
    rank = list(costs)
    for node in reversed(order):
        ends = dependents[node]
        if ends:
            rank[node] += max([rank[end] for end in ends])
    return rank


def critical_path(dependents: Edges, order: Sequence[int], costs: Sequence[float]) -> list[int]:
    """Return the most expensive path from a root to an end; the first one among equals."""
    if not order:
        return []
    rank = remaining_paths(dependents, order, costs)
    node = max(order, key=rank.__getitem__)
    path = [node]
    while dependents[node]:
        node = max(dependents[node], key=rank.__getitem__)
        path.append(node)
    return path


def ancestors(dependencies: Edges, targets: Iterable[int], given: Iterable[int] = ()) -> set[int]:
    """Return the targets and all that they need, not looking behind the nodes in `given`."""
    known = set(given)
    needed: set[int] = set()
    waiting = list(targets)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            if node not in known:
                waiting.extend(dependencies[node])
    return needed
