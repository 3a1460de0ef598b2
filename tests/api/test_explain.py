"""What a run says of itself in words. The runs are made by hand: every time in them is chosen."""

import pytest

from quantum_async.core.errors import UnitTimeoutError
from tests.support.runs import alone, broken, canceled, chain, done, late, made_run, skipped


def explained(flow, rows, duration):
    return made_run(flow, rows, duration).explain().splitlines()


def test_failures_are_named_until_there_are_too_many():
    rows = {f"unit {n}": broken((0, 1), error=OSError(n)) for n in range(7)}
    lines = explained(alone(*rows), rows, 1)
    assert lines[1:7] == [
        *(f"unit {number} failed: OSError: {number}" for number in range(5)),
        "… and 2 more failures",
    ]


def test_what_was_skipped_retried_and_replaced_is_counted():
    rows = {
        "a": broken((0, 1), (2, 3), (4, 5), error=OSError("no")),
        "b": skipped("a"),
        "c": skipped("a"),
    }
    lines = explained(chain(*rows), rows, 5)
    assert lines[2].startswith("2 skipped because ")
    assert "2 further attempts in 1 units" in lines
    rows = {"a": done((0, 1), fallback=True, error=OSError("no"))}
    assert "fallbacks stand in for: a" in explained(alone("a"), rows, 1)


def test_a_run_that_took_no_time_has_no_shares_of_it():
    lines = explained(alone("a"), {"a": canceled(cause="the run was cancelled")}, 0)
    assert lines == [
        "run run: 1 unit in 0.0 ms – 1 canceled",
        "1 canceled: the run was cancelled",
    ]


def test_a_long_critical_path_is_told_by_its_ends():
    rows = {f"u{n}": done((n, n + 1)) for n in range(14)}
    [path] = [line for line in explained(chain(*rows), rows, 14) if line.startswith("critical")]
    assert path.startswith("critical path, 100% of the time: u0 (1.00 s) → u1")
    assert "→ u4 (1.00 s) → … 4 more … → u9 (1.00 s)" in path
    assert path.endswith("→ u13 (1.00 s)")


@pytest.mark.parametrize(
    ("row", "first"),
    [
        (done((0, 1), fallback=True, error=OSError("no")), "completed with its fallback: OSError"),
        (late((0, 1), error=UnitTimeoutError("late", "a", 1, 1.0, "timeout")), "timed out: "),
        (canceled((0, 1), cause="somebody left"), "was canceled (somebody left)"),
    ],
)
def test_how_a_unit_ended_is_its_first_line(row, first):
    text = made_run(alone("a"), {"a": row}, 1).explain("a")
    assert text.startswith(f"a {first}")
