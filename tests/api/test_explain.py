"""What a run says of itself in words. The runs are made by hand: every time in them is chosen."""

import asyncio

import pytest

from quantum_async import QuantumPartitioner
from quantum_async.core.errors import UnitTimeoutError
from quantum_async.testing import VirtualClock
from tests.support.recorded import HOSTILE, run_of_everything
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


# -- where the time went, and what would help -----------------------------------------------------


def crowd(count=6, **options):
    flow = QuantumPartitioner(**options)

    async def second(ctx):
        await asyncio.sleep(1)

    for number in range(count):
        flow.add_unit(second, name=f"u{number}", uses="api" if "limits" in options else None)
    return VirtualClock().run(flow.run(run_id="r1"))


def line_of(result, start):
    [line] = [line for line in result.explain().splitlines() if line.startswith(start)]
    return line


def test_the_time_of_all_units_is_told_by_what_they_did():
    rows = {
        "a": broken((0, 1), error=OSError("no"), ended=1),
        "b": done((2, 3)),
    }
    assert line_of(made_run(alone(*rows), rows, 3), "time of all") == (
        "time of all units: 2.00 s running, 2.00 s waiting for a slot"
    )


def test_how_many_ran_at_once_is_drawn():
    rows = {"a": done((0, 1)), "b": done((0, 2)), "c": done((3, 4))}
    told = line_of(made_run(alone(*rows), rows, 4), "units at once")
    assert (
        told == f"units at once: {'█' * 10}{'▄' * 10}{'·' * 10}{'▄' * 10} 1.0 on average, 2 at most"
    )


def test_more_workers_would_help_where_units_wait_for_slots():
    told = line_of(crowd(max_workers=2), "what would help")
    assert told.startswith(
        "what would help most, where the model gives 3.00 s: max_workers=4 (2.00 s)"
    )


def test_a_higher_limit_would_help_where_units_wait_for_it():
    told = line_of(crowd(limits={"api": 3}), "what would help")
    assert told.split(": ")[1].startswith("twice the limit 'api' (1.00 s)")


def test_a_shorter_unit_would_help_where_nothing_is_waited_for():
    rows = {"a": done((0, 4)), "b": done((4, 5))}
    told = line_of(made_run(chain(*rows), rows, 5), "what would help")
    assert told.endswith("'a' twice as fast (3.00 s); or 'b' twice as fast (4.50 s)")


def test_attempts_of_a_unit_and_their_errors_are_told():
    text = run_of_everything().explain("flaky")
    assert "attempt 1 ran 500.0 ms: ValueError: not yet; backed off " in text
    assert "\nattempt 2 ran 500.0 ms" in text


def test_what_a_unit_waited_for_is_told():
    text = crowd(2, limits={"api": 1}).explain("u1")
    assert "waited 1.00 s for the limit 'api'" in text
    assert "it is on the critical path" in text


def test_nothing_in_names_and_messages_reaches_the_terminal():
    result = run_of_everything()
    for unit in (None, *result.units):
        assert all(line.isprintable() for line in result.explain(unit).split("\n"))
    assert "it's" in result.explain(HOSTILE)


def test_units_of_nested_runs_are_part_of_it():
    result = run_of_everything()
    assert result.explain("inside/y").startswith("inside/y completed\n")
    assert result.spans("inside/y")[0][0] >= result.spans("inside/x")[0][1]
    assert [run.run_id for run in result.nested("inside")] == ["r1/inside"]


def test_more_threads_would_help_where_units_wait_for_them():
    flow = QuantumPartitioner()
    for number in range(200):
        flow.add_unit(lambda ctx: asyncio.sleep(1), name=f"u{number}")
    assert " slots for thread (" in line_of(VirtualClock().run(flow.run()), "what would help")


def test_very_big_runs_are_not_simulated(monkeypatch):
    monkeypatch.setattr("quantum_async.explain._MOST_MODELLED", 5)
    assert "what would help" not in crowd(6, max_workers=2).explain()
    assert "what would help" in crowd(5, max_workers=2).explain()


def test_a_unit_that_ended_while_it_backed_off_says_so():
    rows = {"a": canceled((0, 1), cause="somebody left", ended=3)}
    text = made_run(alone("a"), rows, 3).explain("a")
    assert text.splitlines()[0] == "a was canceled (somebody left)"
    told = line_of(made_run(alone("a"), rows, 3), "time of all")
    assert told == "time of all units: 1.00 s running, 2.00 s backing off"
