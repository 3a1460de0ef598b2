"""Orders, levels, paths and circles, by hand and against slow and simple oracles."""

from __future__ import annotations

import graphlib
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_async.core import graph

Dependencies = Sequence[Sequence[int]]
LONG = 100_000


def order_of(dependencies: Dependencies) -> list[int]:
    return list(graph.topological_order(dependencies, graph.inverted(dependencies)))


def cycles_of(dependencies: Dependencies) -> list[list[int]]:
    return graph.find_cycles(dependencies, order_of(dependencies))


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    """Any graph, circles and self-loops included."""
    count = draw(st.integers(0, 9))
    ends = st.sets(st.integers(0, count - 1), max_size=3) if count else st.just(set())
    return [sorted(draw(ends)) for _ in range(count)]


@st.composite
def acyclic(draw: st.DrawFn) -> list[list[int]]:
    """A graph without circles, its numbers not in the order of its edges."""
    count = draw(st.integers(0, 9))
    place = draw(st.permutations(range(count)))
    dependencies: list[list[int]] = [[] for _ in range(count)]
    for node in range(1, count):
        ends = draw(st.sets(st.integers(0, node - 1), max_size=4))
        dependencies[place[node]] = sorted(place[end] for end in ends)
    return dependencies


def reachable(edges: Dependencies, start: int) -> set[int]:
    """Return what can be reached from a node by one edge or more."""
    found: set[int] = set()
    waiting = list(edges[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(edges[node])
    return found


def all_paths(dependencies: Dependencies) -> list[list[int]]:
    """Return every path from a root to an end."""
    dependents = graph.inverted(dependencies)
    paths = [[node] for node, ends in enumerate(dependencies) if not ends]
    done = []
    while paths:
        path = paths.pop()
        if dependents[path[-1]]:
            paths += [[*path, dependent] for dependent in dependents[path[-1]]]
        else:
            done.append(path)
    return done


# --- edges from the other side --------------------------------------------------------------------


def test_inverted_edges_lead_the_other_way() -> None:
    assert graph.inverted([[], [0], [0, 1]]) == ((1, 2), (2,), ())


def test_an_empty_graph_has_no_edges_order_levels_path_or_circles() -> None:
    assert graph.inverted([]) == ()
    assert order_of([]) == []
    assert graph.levels([], []) == []
    assert graph.critical_path([], [], []) == []
    assert cycles_of([]) == []


@given(graphs())
def test_inverting_twice_gives_the_same_edges(dependencies: list[list[int]]) -> None:
    assert graph.inverted(graph.inverted(dependencies)) == tuple(map(tuple, dependencies))


# --- orders ---------------------------------------------------------------------------------------


def test_an_order_that_holds_already_is_kept() -> None:
    assert order_of([[], [0], [], [1, 2]]) == [0, 1, 2, 3]


def test_each_node_comes_after_its_dependencies_and_the_smallest_number_first() -> None:
    assert order_of([[4], [], [1], [], [3]]) == [1, 2, 3, 4, 0]


def test_nodes_on_a_circle_and_behind_it_are_left_out_of_the_order() -> None:
    # 0 ⇄ 1 → 2, and 3 → 2
    assert order_of([[1], [0], [1, 3], []]) == [3]


@given(acyclic())
def test_the_order_is_the_one_a_slow_and_simple_search_finds(dependencies: list[list[int]]) -> None:
    done: list[int] = []
    while len(done) < len(dependencies):
        done.append(
            min(
                node
                for node, ends in enumerate(dependencies)
                if node not in done and set(ends) <= set(done)
            )
        )
    assert order_of(dependencies) == done


@given(graphs())
def test_an_order_is_complete_exactly_where_graphlib_finds_no_circle(
    dependencies: list[list[int]],
) -> None:
    try:
        list(graphlib.TopologicalSorter(dict(enumerate(dependencies))).static_order())
    except graphlib.CycleError:
        complete = False
    else:
        complete = True
    assert (len(order_of(dependencies)) == len(dependencies)) is complete
    assert bool(cycles_of(dependencies)) is not complete


@given(graphs())
def test_what_is_left_out_of_the_order_is_on_a_circle_or_behind_one(
    dependencies: list[list[int]],
) -> None:
    on_circle = {n for n in range(len(dependencies)) if n in reachable(dependencies, n)}
    stuck = {n for n in range(len(dependencies)) if on_circle & ({n} | reachable(dependencies, n))}
    assert set(range(len(dependencies))) - set(order_of(dependencies)) == stuck


# --- circles --------------------------------------------------------------------------------------


def test_a_circle_is_told_in_the_way_the_work_flows_from_its_first_node() -> None:
    # 0 waits for 2, 2 for 1, 1 for 0: work would flow 0 → 1 → 2 → 0
    assert cycles_of([[2], [0], [1]]) == [[0, 1, 2, 0]]


def test_a_node_that_waits_for_itself_is_a_circle() -> None:
    assert cycles_of([[], [1, 0]]) == [[1, 1]]


def test_separate_circles_are_all_found() -> None:
    found = cycles_of([[1], [0], [3], [2], [4], []])
    assert sorted(found) == [[0, 1, 0], [2, 3, 2], [4, 4]]


def test_circles_that_share_nodes_are_told_once() -> None:
    # 0 ⇄ 1 and 1 ⇄ 2 are one knot; taking one edge out and looking again shows the next
    found = cycles_of([[1], [0, 2], [1]])
    assert found in ([[0, 1, 0]], [[1, 2, 1]])


def test_nodes_behind_a_circle_are_not_reported() -> None:
    # 0 ⇄ 1 → 2 → 3
    assert cycles_of([[1], [0], [1], [2]]) == [[0, 1, 0]]


def test_a_circle_behind_a_circle_is_reported_too() -> None:
    # 0 ⇄ 1 → 2 ⇄ 3
    assert sorted(cycles_of([[1], [0], [1, 3], [2]])) == [[0, 1, 0], [2, 3, 2]]


@given(graphs())
def test_each_knot_gives_one_true_circle(dependencies: list[list[int]]) -> None:
    nodes = range(len(dependencies))
    behind = [reachable(dependencies, node) for node in nodes]
    knots = {
        frozenset(other for other in behind[node] if node in behind[other])
        for node in nodes
        if node in behind[node]
    }
    found = cycles_of(dependencies)
    for circle in found:
        assert circle[0] == circle[-1] == min(circle)
        assert len(set(circle)) == len(circle) - 1
        assert all(first in dependencies[second] for first, second in pairwise(circle))
    homes = [next(knot for knot in knots if circle[0] in knot) for circle in found]
    assert all(set(circle) <= home for circle, home in zip(found, homes, strict=True))
    assert len(homes) == len(set(homes)) == len(knots)


# --- levels and paths -----------------------------------------------------------------------------


def test_a_level_is_the_longest_distance_from_a_root() -> None:
    r"""A short way and a long way to the same node.

    0 → 1 → 2
     \_____↗
    """
    dependencies = [[], [0], [0, 1], []]
    assert graph.levels(dependencies, order_of(dependencies)) == [[0, 3], [1], [2]]


def test_levels_list_their_nodes_by_number() -> None:
    dependencies: Dependencies = [[3], [2], [], []]
    assert graph.levels(dependencies, order_of(dependencies)) == [[2, 3], [0, 1]]


@given(acyclic())
def test_levels_are_one_more_than_those_of_the_dependencies(dependencies: list[list[int]]) -> None:
    rows = graph.levels(dependencies, order_of(dependencies))
    level = {node: number for number, row in enumerate(rows) for node in row}
    assert sorted(level) == list(range(len(dependencies)))
    for node, ends in enumerate(dependencies):
        assert level[node] == 1 + max((level[end] for end in ends), default=-1)


@given(acyclic(), st.data())
def test_the_critical_path_costs_what_the_dearest_of_all_paths_costs(
    dependencies: list[list[int]], data: st.DataObject
) -> None:
    count = len(dependencies)
    costs = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    dependents, order = graph.inverted(dependencies), order_of(dependencies)
    path = graph.critical_path(dependents, order, costs)
    paths = all_paths(dependencies)
    assert path in paths or not paths
    assert sum(costs[n] for n in path) == max(
        (sum(costs[n] for n in one) for one in paths), default=0
    )
    remaining = graph.remaining_paths(dependents, order, costs)
    for node in range(count):
        behind = [one[one.index(node) :] for one in paths if node in one]
        assert remaining[node] == max(sum(costs[n] for n in one) for one in behind)


def test_of_equally_dear_paths_the_first_is_critical() -> None:
    assert graph.critical_path(((2,), (2,), (3, 4), (), ()), range(5), [1.0] * 5) == [0, 2, 3]


# --- ancestors ------------------------------------------------------------------------------------


def test_ancestors_are_the_targets_and_all_that_they_need() -> None:
    assert graph.ancestors([[], [0], [], [1], [2]], [3]) == {0, 1, 3}


def test_ancestors_do_not_look_behind_what_is_given() -> None:
    assert graph.ancestors([[], [0], [1], [1]], [2], given=[1]) == {1, 2}


@given(acyclic(), st.data())
def test_ancestors_are_the_closure_over_dependencies(
    dependencies: list[list[int]], data: st.DataObject
) -> None:
    targets = data.draw(st.sets(st.sampled_from(range(len(dependencies) or 1)))) & set(
        range(len(dependencies))
    )
    closure = targets.union(*(reachable(dependencies, target) for target in targets))
    assert graph.ancestors(dependencies, targets) == closure


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_chain_of_a_hundred_thousand_nodes_needs_no_recursion() -> None:
    # each waits for the next, so that no shortcut holds
    dependencies = [(node + 1,) for node in range(LONG - 1)] + [()]
    dependents = graph.inverted(dependencies)
    order = graph.topological_order(dependencies, dependents)
    assert order == list(range(LONG - 1, -1, -1))
    assert len(graph.levels(dependencies, order)) == LONG
    assert graph.critical_path(dependents, order, [1.0] * LONG) == list(order)
    assert len(graph.ancestors(dependencies, [0])) == LONG


@pytest.mark.slow
def test_a_circle_of_a_hundred_thousand_nodes_needs_no_recursion() -> None:
    dependencies = [((node - 1) % LONG,) for node in range(LONG)]
    assert cycles_of(dependencies) == [[*range(LONG), 0]]
