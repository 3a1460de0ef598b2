"""The explorer finds what holds in one order only."""

import asyncio

import pytest

from quantum_async import QuantumPartitioner
from quantum_async.core import events
from quantum_async.testing import ExplorationError, broken_laws, explore, explorer


def diamond():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: [1], name="a", args=[])
    flow.unit(lambda a: asyncio.sleep(0, a[0] + 1), name="b", retries=2)
    flow.unit(lambda a: asyncio.sleep(0, a[0] + 2), name="c")

    @flow.unit
    async def d(b, c):
        return b + c

    return flow


@pytest.mark.slow
def test_what_holds_in_every_order_is_found_to_hold():
    found = explore(diamond, seeds=60, check=lambda result: result["d"] == 5)
    assert found.runs == 60
    assert found.orders > 5
    assert found.retried > 5
    assert (found.failed, found.canceled) == (0, 0)


def test_a_partitioner_itself_and_an_input_are_taken():
    flow = QuantumPartitioner()
    flow.unit(lambda n: asyncio.sleep(0, n), name="n1", retries=1)
    assert explore(flow, {"n": 1}, seeds=5, check=lambda result: result["n1"] == 1).runs == 5
    given = explore(flow, lambda: {"n": [1]}, seeds=[3, 9], check=lambda r: r["n1"] == [1])
    assert given.runs == 2


def racy():
    flow, order = QuantumPartitioner(), []

    def add(name):
        async def unit():
            order.append(name)
            return list(order)

        flow.add_unit(unit, name=name, args=[])

    add("first")
    add("second")
    return flow


def test_what_hangs_on_the_order_is_told_with_the_line_that_shows_it_again():
    check = lambda result: result["second"] == ["first", "second"]  # noqa: E731
    with pytest.raises(
        ExplorationError, match=r"to run it again: explore\(…, seeds=\[\d+\]\)"
    ) as caught:
        explore(racy, seeds=100, check=check)
    seed = caught.value.seed
    assert caught.value.result["second"] == ["second"]
    with pytest.raises(ExplorationError) as again:
        explore(racy, seeds=[seed], check=check)
    assert str(again.value) == str(caught.value)


def test_what_a_check_raises_is_the_cause():
    with pytest.raises(ExplorationError, match="ZeroDivisionError") as caught:
        explore(racy, seeds=1, check=lambda result: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.slow
def test_failures_and_cancellations_are_explored_if_they_are_asked_for():
    found = explore(diamond, seeds=80, failures=True, cancels=True)
    assert found.failed > 5
    assert found.canceled > 5
    with pytest.raises(ExplorationError, match="failures=True"):
        explore(diamond, seeds=80, failures=True, check=lambda result: result.ok)


def test_the_same_seed_is_the_same_run():
    seen = []
    for _ in range(2):
        log = []
        explore(diamond, seeds=[11], observers=[log.append])
        seen.append(
            [(type(event).__name__, getattr(event, "unit", ""), event.time) for event in log]
        )
    assert seen[0] == seen[1]


def test_no_more_units_run_than_may():
    most = []

    def flow():
        made = diamond()
        made.max_workers = 1
        return made

    explore(flow, seeds=20, check=lambda result: most.append(result.metrics["execution_trace"]))
    assert len(most) == 20


# -- the laws themselves --------------------------------------------------------------------------


def log_of(flow):
    log = []
    asyncio.run(flow.run(observers=[log.append]))
    return log


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda log: log, ""),
        (lambda log: [log[0], *log[2:]], "comes after event 0"),
        (lambda log: log[:-2], "'d' never ended"),
        (lambda log: [e for e in log if getattr(e, "unit", "") != "a"], "'b' started"),
        (lambda log: [*log, *[e for e in log if isinstance(e, events.UnitStarted)]], "had ended"),
        (
            lambda log: [*log, *[e for e in log if isinstance(e, events.UnitCompleted)]],
            "ended twice",
        ),
    ],
)
def test_a_log_that_cannot_be_is_told(break_it, told):
    flow = diamond()
    problems = broken_laws(flow.build_execution_plan(), break_it(log_of(flow)))
    assert bool(problems) == bool(told)
    assert told in "; ".join(problems)


def test_a_run_goes_on_after_somebody_else_cancelled_a_unit():
    flow = QuantumPartitioner(failure_policy="collect")

    async def cancels_itself(ctx):
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    flow.add_unit(cancels_itself, name="canceled")
    flow.add_unit(lambda ctx: asyncio.sleep(0), name="above")
    flow.add_unit(lambda ctx: asyncio.sleep(0), ["above"], name="below")
    log = log_of(flow)
    assert any(isinstance(event, events.UnitCanceled) for event in log)
    assert broken_laws(flow.build_execution_plan(), log) == []


def test_more_units_at_once_than_there_are_slots_are_told():
    flow = diamond()
    log, plan = log_of(flow), flow.build_execution_plan()
    problems = broken_laws(plan, log, max_running=0, slots={"loop": 0})
    assert any("more than 0 units ran in place 'loop'" in problem for problem in problems)
    assert any(problem.endswith("more than 0 units ran") for problem in problems)


def log_made_of(*facts):
    """Return events of a run of a → b: a type, a unit, an attempt, and what else is to be set."""
    return [
        kind(*[None] * len(kind._fields))._replace(
            seq=seq, time=seq, unit=unit, attempt=attempt, **more
        )
        for seq, (kind, unit, attempt, more) in enumerate((*fact, {})[:4] for fact in facts)
    ]


BEGAN, DONE, AGAIN = events.UnitStarted, events.UnitCompleted, events.UnitRetrying
SKIPPED, CANCELED = events.UnitSkipped, events.UnitCanceled


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ([(BEGAN, "a", 1), (BEGAN, "a", 2)], "'a' started although it was running"),
        ([(BEGAN, "a", 1), (DONE, "a", 2)], "'a' ended attempt 2, and ran 1"),
        ([(BEGAN, "a", 1), (AGAIN, "a", 1, {"wait": 5.0}), (BEGAN, "a", 2)], "its back-off"),
        ([(BEGAN, "a", 1), (AGAIN, "a", 1, {"wait": 1.0}), (BEGAN, "a", 2)], "never ended"),
        ([(CANCELED, "b", 0), (BEGAN, "a", 1)], "'a' started after the run was cancelled"),
        ([(DONE, "a", 1)], "'a' ended and did not run"),
        ([(SKIPPED, "b", 0, {"root": "a"})], "'b' blames 'a', which did not fail"),
    ],
)
def test_what_breaks_one_law_is_told(facts, told):
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="a")
    flow.add_unit(lambda ctx: 2, ["a"], name="b")
    problems = broken_laws(flow.build_execution_plan(), log_made_of(*facts))
    assert told in "; ".join(problems)
    assert ("back-off" in "; ".join(problems)) is ("back-off" in told)


def test_a_broken_law_is_told_with_the_order_that_breaks_it(monkeypatch):
    monkeypatch.setattr(explorer, "broken_laws", lambda *_, **__: ["'b' ended twice"])
    with pytest.raises(ExplorationError, match=r"'b' ended twice\nto run it again: .*seeds=\[4\]"):
        explore(diamond, seeds=[4])


def test_a_run_that_raises_is_one_that_failed():
    found = explore(diamond, seeds=20, failures=True, failure_policy="continue")
    assert 0 < found.failed < 20


def test_a_cancellation_that_nobody_asked_the_explorer_for_is_raised():
    flow = QuantumPartitioner()

    async def cancels(ctx):
        asyncio.get_running_loop().call_soon(run.cancel)
        await asyncio.sleep(1)

    async def main():
        nonlocal run
        run = asyncio.current_task()
        await original({})

    run, original = None, flow.run
    flow.run = lambda *_, **__: main()
    flow.add_unit(cancels, name="cancels")
    with pytest.raises(asyncio.CancelledError):
        explore(flow, seeds=1)
