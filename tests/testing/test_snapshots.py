"""Plans as text: what is in it, that it is stable, and how it is compared and kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import tenacity

from quantum_async import PlanError, QuantumPartitioner, RetryPolicy
from quantum_async.testing import assert_plan_matches, plan_snapshot


@pytest.fixture(autouse=True)
def nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv("QUANTUM_UPDATE_SNAPSHOTS", raising=False)


def make_flow():
    flow = QuantumPartitioner()

    @flow.unit(timeout=5, retries=3)
    async def page(ctx, url, language="en"): ...

    @flow.unit(mode="process", deadline=30.5, priority=2, cost=0.1, grace=1, max_result_bytes=10**9)
    def words(page): ...

    flow.add_unit(print, ["page"], "exact", args=[words, [1, "two"]], kwargs={"sep": {3, 1, 2}})
    flow.add_unit(print, name="line\nend", fallback=None, metadata={"resource_type": "io"})
    policy = RetryPolicy(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_fixed(1),
        retry=tenacity.retry_if_exception_type(OSError),
    )
    flow.add_unit(print, ["line\nend", "words"], retry=policy, fallback=make_flow, batch=False)
    return flow


SNAPSHOT = """
    page
        timeout: 5
        retries: 3
        takes: url, language
    words <- page
        mode: process
        deadline: 30.5
        priority: 2
        cost: 0.1
        grace: 1
        max_result_bytes: 1000000000
    exact <- page, words
        args: (<words>, [1, 'two'])
        kwargs: {'sep': {1, 2, 3}}
    line\\nend
        fallback: None
        metadata: {'resource_type': 'io'}
    unit_4 <- line\\nend, words
        retry.stop: stop_after_attempt(max_attempt_number=3)
        retry.wait: wait_fixed(wait_fixed=1.0)
        retry.retry: retry_if_exception_type(exception_types=OSError)
        fallback: make_flow
        batch: False
"""


def test_names_dependencies_and_options_are_in_it():
    assert_plan_matches(make_flow(), SNAPSHOT)
    assert plan_snapshot(make_flow().build_execution_plan()) == plan_snapshot(make_flow())


def test_what_is_nested_in_values_is_in_it_and_addresses_are_not():
    class Client:
        def __init__(self):
            self.hosts = {"b", "a"}
            self.key = lambda: 1
            self._hidden = 3

    class Silent:
        def __repr__(self):
            raise ValueError

    flow = QuantumPartitioner()
    flow.add_unit(print, args=[Client(), Silent(), {1: (2, [len])}], fallback="x" * 300)
    deep = flow.add_unit(print, args=[[[[[[[[1]]]]]]]])
    exact, fallback, _, nested = plan_snapshot(flow).splitlines()[1:5]
    inside = "test_what_is_nested_in_values_is_in_it_and_addresses_are_not.<locals>."
    assert fallback == (
        f"    args: ({inside}Client(hosts={{'a', 'b'}}), {inside}Silent, {{1: (2, [len])}})"
    )
    assert exact == f"    fallback: '{'x' * 198}…"
    assert deep.id == "unit_1"
    assert nested == "    args: ([[[[[…]]]]])"


def test_an_empty_plan():
    assert plan_snapshot(QuantumPartitioner()) == ""
    assert_plan_matches(QuantumPartitioner(), "")


@pytest.mark.slow
def test_it_does_not_depend_on_the_hash_seed():
    code = (
        "from tests.testing.test_snapshots import make_flow\n"
        "from quantum_async.testing import plan_snapshot\n"
        "print(plan_snapshot(make_flow()))"
    )
    root = Path(__file__).parents[2]
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(texts) == 1


# -- comparing -------------------------------------------------------------------------------------


def test_a_difference_is_told_as_a_diff():
    flow = make_flow()
    flow.add_unit(print, ["page"], "more")
    with pytest.raises(AssertionError) as caught:
        assert_plan_matches(flow, SNAPSHOT)
    message = str(caught.value)
    assert message.startswith("the plan is not what the text says:\n\n--- the text\n+++ the plan\n")
    assert message.endswith("\n+more <- page")


def test_a_path_given_as_a_text_is_pointed_out():
    with pytest.raises(AssertionError, match=r"says; for a file, give a pathlib\.Path"):
        assert_plan_matches(make_flow(), "plan.txt")


def test_a_text_cannot_be_updated(monkeypatch):
    with pytest.raises(ValueError, match="a text in the test cannot be updated"):
        assert_plan_matches(make_flow(), SNAPSHOT, update=True)
    monkeypatch.setenv("QUANTUM_UPDATE_SNAPSHOTS", "1")
    assert_plan_matches(make_flow(), SNAPSHOT)


def test_a_broken_plan_is_an_error_of_its_own():
    flow = make_flow()
    flow.add_unit(print, ["pgae"], "more")
    with pytest.raises(PlanError, match="did you mean 'page'"):
        assert_plan_matches(flow, SNAPSHOT)


# -- files -----------------------------------------------------------------------------------------


def test_a_file_is_written_only_when_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "snapshots" / "plan.txt"
    with pytest.raises(AssertionError, match=r"there is no snapshot .*QUANTUM_UPDATE_SNAPSHOTS=1"):
        assert_plan_matches(make_flow(), path)
    assert not path.parent.exists()
    assert_plan_matches(make_flow(), path, update=True)
    assert path.read_bytes() == f"{plan_snapshot(make_flow())}\n".encode()
    assert_plan_matches(make_flow(), path)

    flow = make_flow()
    flow.add_unit(print, ["page"], "more")
    with pytest.raises(AssertionError, match="if the change is meant, run once with QUANTUM_") as e:
        assert_plan_matches(flow, path)
    assert str(e.value).endswith("+more <- page")
    assert "more" not in path.read_text(encoding="utf-8")

    monkeypatch.setenv("QUANTUM_UPDATE_SNAPSHOTS", "0")
    with pytest.raises(AssertionError):
        assert_plan_matches(flow, path)
    monkeypatch.setenv("QUANTUM_UPDATE_SNAPSHOTS", "1")
    with pytest.raises(AssertionError):
        assert_plan_matches(flow, path, update=False)
    assert_plan_matches(flow, path)
    assert "more <- page" in path.read_text(encoding="utf-8")


def test_line_ends_of_other_systems_are_no_difference(tmp_path):
    path = tmp_path / "plan.txt"
    path.write_bytes(plan_snapshot(make_flow()).replace("\n", "\r\n").encode() + b"\r\n")
    assert_plan_matches(make_flow(), path)
