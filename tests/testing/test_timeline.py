"""A run as a picture in plain text. Most runs are made by hand here: every time is chosen."""

import asyncio

import pytest
import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy, UnitTimeoutError
from quantum_async.testing import assert_run, timeline
from quantum_async.testing.clock import VirtualClock
from tests.support.runs import (
    OUTSIDE,
    alone,
    broken,
    canceled,
    chain,
    done,
    given,
    late,
    made_run,
    skipped,
)


def drawn(flow, table, duration, width=50, **options):
    return timeline(made_run(flow, table, duration), width, **options).splitlines()


def test_a_row_a_unit_with_wait_run_retries_state_and_cause():
    rows = {
        "fetch": done((0, 1), (2, 4)),
        "parse": done((5, 8)),
        "rank": broken((8, 10), error=ValueError("no rank")),
        "report": skipped("rank"),
    }
    assert drawn(chain(*rows), rows, 10, 60) == [
        "4 units in 10 s: 2 completed, 1 failed, 1 skipped",
        "        0 s                      10 s",
        "fetch   =x~~~======                    completed, 2 attempts",
        "parse              ...=========        completed",
        "rank                           =====x  failed",
        "        ValueError: no rank",
        "report  skipped; 'rank' failed",
    ]


def test_what_took_no_time_and_what_never_started():
    rows = {
        "a": given(3),
        "b": done((0, 0)),
        "c": done((2, 2), where="cache"),
        "d": canceled(cause="the caller was cancelled"),
    }
    assert drawn(alone(*rows), rows, 4) == [
        "4 units in 4 s: 3 completed, 1 canceled",
        "   0 s                       4 s",
        "a  completed, given",
        "b  |                              completed",
        "c  ..............|                completed, cache",
        "d  canceled; the caller was cancelled",
    ]


def test_a_run_that_took_no_time():
    rows = {"a": done((0, 0)), "b": done((0, 0), fallback=True, error=OSError("down"))}
    assert drawn(alone(*rows), rows, 0) == [
        "2 units in 0 s: 2 completed",
        "   0 s                    0 s",
        "a  |                           completed",
        "b  |                           completed, fallback",
        "   OSError: down",
    ]


def test_units_that_were_stopped():
    error = UnitTimeoutError("too late", "a", 1, 1.0, "timeout")
    rows = {
        "a": late((1, 2), error=error),
        "b": canceled((0, 1), cause="the caller was cancelled", ended=3),  # while it backed off
    }
    assert drawn(alone(*rows), rows, 4) == [
        "2 units in 4 s: 1 canceled, 1 timeout",
        "   0 s                               4 s",
        "a  .........========x                     timeout",
        "   UnitTimeoutError: too late",
        "b  ========x                              canceled",
        "   the caller was cancelled",
    ]


def test_long_names_line_ends_and_units_outside_the_run():
    rows = {
        "a" * 100: done((0, 1e-5)),
        "b\n2": broken((1e-5, 2e-5), error=ValueError("x\ny")),
        "c": OUTSIDE,
    }
    assert drawn(alone(*rows), rows, 5e-5) == [
        "2 units in 50 µs: 1 completed, 1 failed",
        "              0 µs                50 µs",
        "aaaaaaaaaaa…  =====                      completed",
        "b\\n2          .....====x                 failed",
        "              ValueError: x\\ny",
    ]


def test_of_a_thousand_units_the_telling_ones_are_drawn_and_the_rest_is_counted():
    rows = {f"unit_{number}": done((number, number + 1)) for number in range(1000)}
    rows["unit_700"] = broken((700, 701), error=KeyError(3))
    rows["unit_701"] = skipped("unit_700")
    assert drawn(alone(*rows), rows, 1000, 60, rows=4, show=["unit_999"]) == [
        "1000 units in 1000 s: 998 completed, 1 failed, 1 skipped",
        "          0 s                              1000 s",
        "unit_0    |                                        completed",
        "unit_700  ...........................x             failed",
        "          KeyError: 3",
        "unit_701  skipped; 'unit_700' failed",
        "unit_999  ......................................=  completed",
        "… and 996 more: 996 completed",
    ]


def test_all_that_are_asked_for_are_drawn_even_if_they_are_more_than_the_rows():
    flow, rows = alone(*"abcd"), dict.fromkeys("abcd", done((0, 1)))
    shown = drawn(flow, rows, 1, rows=1, show=["d", flow.units["b"], "c"])
    assert [line[0] for line in shown[2:]] == ["b", "c", "d", "…"]


def test_an_empty_run():
    assert drawn(QuantumPartitioner(), {}, 0) == ["0 units in 0 s: nothing to do"]


@pytest.mark.parametrize("width", [40, 41, 60, 80, 200])
def test_no_line_is_wider_than_asked_for(width):
    rows = {
        "n" * 70: done((0, 0.5), (0.7, 3), fallback=True, where="cache", error=OSError("x" * 300)),
        "m": broken((0, 3), error=OSError("x" * 300), cause="y" * 300),
        "k": canceled(cause="z" * 300),
    }
    shown = drawn(alone(*rows), rows, 3, width)
    assert max(map(len, shown)) <= width
    assert shown == drawn(alone(*rows), rows, 3, width)


@pytest.mark.parametrize("options", [{"width": 39}, {"rows": 0}])
def test_too_small_a_picture_is_refused(options):
    with pytest.raises(ValueError, match="40 columns and 1 row"):
        timeline(made_run(alone("a"), {"a": done((0, 1))}, 1), **options)


# -- of real runs ----------------------------------------------------------------------------------


async def test_a_real_run_tells_when_each_attempt_ran():
    flow = QuantumPartitioner(max_workers=1)
    policy = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())

    @flow.unit(retry=policy)
    async def a(ctx):
        if ctx.attempt < 3:
            raise OSError

    @flow.unit
    async def b(a): ...

    result = await flow.run()
    spans = result.spans(a)
    assert len(spans) == 3
    moments = [moment for span in (*spans, *result.spans("b")) for moment in span]
    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert moments[-1] <= result.duration
    assert "completed, 3 attempts" in timeline(result)
    with pytest.raises(KeyError, match="did you mean 'a'"):
        result.spans("aa")


def test_a_run_on_a_virtual_clock_gives_the_same_picture_each_time():
    def run():
        flow = QuantumPartitioner(max_workers=1, failure_policy="collect")
        policy = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(2))

        @flow.unit
        async def begin(): ...

        @flow.unit(retry=policy, priority=1)
        async def fetch(begin, ctx):
            await asyncio.sleep(2)
            if ctx.attempt == 1:
                raise OSError

        @flow.unit
        async def other(begin):
            await asyncio.sleep(6)

        result = VirtualClock().run(flow.run())
        assert_run(result).max_running(1).never_overlapped("fetch", "other")
        return timeline(result, 50)

    assert run().splitlines() == [
        "3 units in 10 s: 3 completed",
        "       0 s             10 s",
        "begin  |                     completed",
        "fetch  ===x~~~~~~~~~~~~====  completed, 2 attempts",
        "other  ....============      completed",
    ]
    assert run() == run()


async def test_a_unit_that_died_in_its_back_off_has_no_open_span():
    flow = QuantumPartitioner(failure_policy="fail_fast")
    policy = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(60))

    @flow.unit(retry=policy)
    async def backs_off():
        raise OSError

    @flow.unit(after=["late"])
    async def never(): ...

    @flow.unit(name="late")
    async def fails_later():
        await asyncio.sleep(0)
        raise ValueError

    with pytest.raises(Exception, match="late"):
        await flow.run()
    result = flow.last_result
    [(start, end)] = result.spans("backs_off")
    assert start <= end <= result.duration
    assert result.spans("never") == []


async def test_the_roots_of_skipped_units():
    flow = QuantumPartitioner(failure_policy="collect")

    @flow.unit
    async def root():
        raise ValueError

    @flow.unit
    async def middle(root): ...

    @flow.unit
    async def leaf(middle): ...

    assert (await flow.run()).roots == {"middle": "root", "leaf": "root"}
