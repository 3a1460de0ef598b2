"""Every fact that we were told to beware of has an animal in the zoo, or a test that says so."""

import ast
import re
from pathlib import Path

import pytest

from tests.zoo import anywhere, in_workers, on_loop  # noqa: F401 - they fill ANIMALS
from tests.zoo.animals import ANIMALS

ROOT = Path(__file__).parents[2]
FACTS = ROOT.parent / "shared" / "FACTS.md"

# Rows that are not about what a unit does: words of the row, and the tests that hold them.
ELSEWHERE = {
    "a unit costs: plain await": ("tests/test_benchmarks.py", ""),
    "is the way to start uvloop": ("tests/zoo/test_zoo.py", "test_it_harms_nothing_but_itself"),
    "selector jumps to the next timer": ("tests/testing/test_clock.py", ""),
    "**leak on cancelled start**": (
        "tests/engine/test_process.py",
        "test_cancelling_while_workers_start_leaves_nothing_half_started",
    ),
    "parent killed: busy workers": (
        "tests/engine/test_process.py",
        "test_no_orphan_is_left_when_the_parent_is_killed",
    ),
    "an unguarded script runs again": (
        "tests/engine/test_process.py",
        "test_a_script_without_a_guard_is_not_run_again",
    ),
    "pool per loop": (
        "tests/engine/test_process.py",
        "test_a_second_run_on_the_same_runner_works",
    ),
    "the default limiter counts all CPUs": (
        "tests/api/test_tuning.py",
        "test_the_usable_cpus_are_those_of_the_affinity_and_the_control_group",
    ),
    "eager start from inside a parent's step recurses": (
        "tests/engine/test_laws_of_behaviour.py",
        "test_a_deep_chain_needs_no_recursion",
    ),
    "timeout and completion in one tick": (
        "tests/engine/test_laws_of_behaviour.py",
        "test_a_result_in_the_same_tick_as_the_timeout_wins",
    ),
    "running under trio": ("tests/api/test_bad_input.py", "test_trio_is_refused_at_once"),
    "answer correctly on a `RetryCallState`": (
        "tests/core/test_retry.py",
        "test_a_predicate_is_told_the_attempt_and_its_outcome",
    ),
}


def rows(text):
    """Return the rows of all tables of a page, without their heads."""
    table = re.compile(r"^\|(.+)\|$")
    lines = text.splitlines()
    return [
        line
        for number, line in enumerate(lines)
        if table.match(line)
        and not re.match(r"^\|[-|]+\|$", line)
        and not re.match(r"^\|[-|]+\|$", lines[number + 1] if number + 1 < len(lines) else "")
    ]


@pytest.fixture(scope="module")
def facts():
    if not FACTS.exists():
        pytest.skip("the facts are not here")
    return rows(FACTS.read_text())


def test_every_fact_has_an_animal_or_a_test(facts):
    words = {word for one in ANIMALS for word in one.rows} | ELSEWHERE.keys()
    assert not [row[:80] for row in facts if not any(word in row for word in words)]


def test_every_animal_is_about_a_fact_that_is_told(facts):
    words = {word for one in ANIMALS for word in one.rows} | ELSEWHERE.keys()
    assert not [word for word in words if not any(word in row for row in facts)]


@pytest.mark.parametrize(("path", "name"), ELSEWHERE.values())
def test_the_tests_elsewhere_are_there(path, name):
    tree = ast.parse((ROOT / path).read_text())
    tests = [node.name for node in ast.walk(tree) if hasattr(node, "name") and node.name]
    assert any(test.startswith(name or "test_") for test in tests)


def test_no_animal_is_there_twice():
    names = [one.name for one in ANIMALS]
    assert len(set(names)) == len(names)
