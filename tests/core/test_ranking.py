"""Rankings of small drawn graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_async.core import graph
from quantum_async.core.ranking import Ranking, ranked, ranking_of
from quantum_async.core.states import Strategy


@dataclass
class Drawn:
    """What a ranking looks at."""

    edges_up: Sequence[Sequence[int]]
    priorities: Sequence[float] | None = None
    streams: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def edges_down(self) -> Sequence[Sequence[int]]:
        return graph.inverted(self.edges_up)

    @property
    def order(self) -> Sequence[int]:
        return graph.topological_order(self.edges_up, self.edges_down)


#  a ─→ b ─→ c        numbers: a 0, b 1, c 2, d 3, e 4
#  d ─→ e
CHAINS = [[], [0], [1], [], [3]]
ALIKE = [1.0] * 5
RANKED = [strategy for strategy in Strategy if strategy is not Strategy.FIFO]


def best_first(
    plan: Drawn, strategy: Strategy = Strategy.CRITICAL_PATH, costs: Sequence[float] = ALIKE
) -> list[int]:
    ranking = ranked(plan, strategy, costs)
    assert ranking is not None
    return list(ranking.units)


def test_first_in_first_out_is_no_ranking() -> None:
    assert ranked(Drawn(CHAINS), Strategy.FIFO, ALIKE) is None


def test_the_longest_remaining_path_comes_first() -> None:
    # remaining: a 3, b 2, c 1, d 2, e 1
    assert best_first(Drawn(CHAINS)) == [0, 1, 3, 2, 4]


def test_costs_decide_which_path_is_the_longest() -> None:
    # remaining: a 3, b 2, c 1, d 10, e 9
    assert best_first(Drawn(CHAINS), costs=[1, 1, 1, 1, 9]) == [3, 4, 0, 1, 2]


def test_only_the_proportions_of_costs_matter() -> None:
    costs = [2.0, 1.0, 4.0, 3.0, 3.0]
    assert best_first(Drawn(CHAINS), costs=costs) == best_first(
        Drawn(CHAINS), costs=[1000 * cost for cost in costs]
    )


def test_explicit_priority_beats_the_longest_path() -> None:
    assert best_first(Drawn(CHAINS, [0, 0, 5, 0, 0])) == [2, 0, 1, 3, 4]


def test_a_priority_below_zero_comes_last() -> None:
    assert best_first(Drawn(CHAINS, [-1, 0, 0, 0, 0])) == [1, 3, 2, 4, 0]


def test_equal_priorities_are_ordered_by_the_longest_path() -> None:
    assert best_first(Drawn(CHAINS, [0, 0, 7, 7, 0])) == [3, 2, 0, 1, 4]


def test_priority_alone_ignores_paths_and_falls_back_on_declaration() -> None:
    plan = Drawn(CHAINS, [0, 0, 0, 0, 1])
    assert best_first(plan, Strategy.PRIORITY, [1, 1, 1, 50, 1]) == [4, 0, 1, 2, 3]


def test_priority_without_priorities_is_the_order_of_declaration() -> None:
    assert best_first(Drawn(CHAINS), Strategy.PRIORITY) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("strategy", [Strategy.RESOURCE_BALANCED, Strategy.ADAPTIVE])
def test_balanced_and_adaptive_order_like_the_critical_path(strategy: Strategy) -> None:
    plan, costs = Drawn(CHAINS, [0, 0, 0, 2, 0]), [3.0, 1.0, 4.0, 1.0, 5.0]
    assert best_first(plan, strategy, costs) == best_first(plan, costs=costs)


@pytest.mark.parametrize("strategy", RANKED)
def test_all_alike_is_the_order_of_declaration(strategy: Strategy) -> None:
    assert best_first(Drawn([[]] * 5), strategy) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("strategy", RANKED)
def test_an_empty_plan_has_an_empty_ranking(strategy: Strategy) -> None:
    assert ranked(Drawn([]), strategy, []) == Ranking([], [], [])


def test_a_ranking_has_each_units_rank_and_the_roots_worst_first() -> None:
    assert ranking_of([3, 0, 4, 1, 2], CHAINS) == Ranking(
        units=[3, 0, 4, 1, 2], ranks=[1, 3, 4, 0, 2], roots=[1, 0]
    )


@pytest.mark.slow
@given(st.data())
def test_every_ranking_is_a_permutation_that_knows_its_ranks_and_roots(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    edges = [
        sorted(data.draw(st.sets(st.integers(0, node - 1), max_size=3))) if node else []
        for node in range(count)
    ]
    numbers = st.lists(st.integers(-3, 3), min_size=count, max_size=count)
    plan = Drawn(edges, data.draw(st.none() | numbers))
    costs: list[float] = [abs(cost) for cost in data.draw(numbers)]
    strategy = data.draw(st.sampled_from(RANKED))
    ranking = ranked(plan, strategy, costs)
    assert ranking is not None
    assert sorted(ranking.units) == list(range(count))
    assert [ranking.units[rank] for rank in ranking.ranks] == list(range(count))
    roots: Mapping[int, int] = {ranking.ranks[n]: n for n in range(count) if not edges[n]}
    assert list(ranking.roots) == sorted(roots, reverse=True)
    assert ranked(plan, strategy, costs) == ranking
