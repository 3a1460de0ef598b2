"""`Runtime`: what runs share in a service, whose turn it is, and how it ends."""

import asyncio

import pytest

from quantum_async import (
    ExecutionError,
    Limit,
    Overloaded,
    PlanError,
    QuantumPartitioner,
    Runtime,
    UnitState,
)
from quantum_async.core import events
from tests.support.scarce import passed

COMPLETED, CANCELED = UnitState.COMPLETED, UnitState.CANCELED


def after(seconds, value=None):
    async def waits(ctx):
        await asyncio.sleep(seconds)
        return value

    return waits


def many(count, seconds=1.0, name="u", **options):
    flow = QuantumPartitioner(failure_policy="collect")
    for number in range(count):
        flow.add_unit(after(seconds), name=f"{name}{number}", **options)
    return flow


class Running:
    """An observer that counts what runs, over all runs."""

    def __init__(self):
        self.now = self.most = 0
        self.order = []
        self.log = []

    def __call__(self, event):
        self.log.append(event)
        if isinstance(event, events.UnitStarted):
            self.now += 1
            self.most = max(self.most, self.now)
            self.order.append(event.run_id)
        elif isinstance(event, events.UnitCompleted):
            self.now -= 1


# -- what is shared ----------------------------------------------------------------------------


async def test_all_runs_together_have_the_slots(virtual_clock):
    seen = Running()
    async with Runtime(max_workers=3, observers=[seen]) as runtime:
        runs = await asyncio.gather(*(many(4).run() for _ in range(6)))
        assert runtime.running == 0
    assert all(run.ok for run in runs)
    assert seen.most == 3
    assert virtual_clock.time() == pytest.approx(8, abs=0.01)


async def test_a_run_may_have_fewer_slots_of_its_own(virtual_clock):
    seen = Running()
    async with Runtime(max_workers=3, observers=[seen]):
        await many(4).run(max_workers=1)
    assert seen.most == 1
    assert virtual_clock.time() == pytest.approx(4, abs=0.01)


@pytest.mark.slow
async def test_threads_and_processes_have_slots_of_their_own():
    seen = Running()
    flow = QuantumPartitioner()
    for number in range(4):
        flow.add_unit(lambda ctx: 1, name=f"t{number}", mode="thread")
        flow.add_unit(lambda ctx: 1, name=f"p{number}", mode="process")
    async with Runtime(threads=1, processes=1, observers=[seen]):
        await asyncio.gather(flow.run(), flow.run())
    assert seen.most <= 2


async def test_limits_of_the_runtime_are_for_all_and_go_before_those_of_partitioners(
    virtual_clock,
):
    seen, shared = Running(), {"api": Limit(concurrency=2)}
    flows = []
    for number in range(3):
        flow = QuantumPartitioner(limits={"api": 99, "own": 1})
        flow.add_unit(after(1), name=f"a{number}", uses={"api": 1})
        flow.add_unit(after(1), name=f"b{number}", uses={"api": 1, "own": 1})
        flows.append(flow)
    async with Runtime(limits=shared, observers=[seen]):
        await asyncio.gather(*(flow.run() for flow in flows))
    uses = {f"{kind}{number}": {"api": 1} for kind in "ab" for number in range(3)}
    assert passed(seen.log, shared, uses) == []
    assert seen.most == 2
    assert virtual_clock.time() == pytest.approx(3, abs=0.01)


async def test_units_may_use_limits_that_only_the_runtime_has(virtual_clock):
    flow = many(3, uses="api")
    with pytest.raises(PlanError, match="no such limit"):
        await flow.run()
    async with Runtime(limits={"api": 1}):
        assert (await flow.run()).ok
    assert virtual_clock.time() == pytest.approx(3, abs=0.01)
    with pytest.raises(PlanError, match="no such limit"):
        await flow.run()


async def test_a_pause_is_for_the_runs_of_all_partitioners(virtual_clock):
    class BusyError(Exception):
        retry_after = 30

    teller, other = QuantumPartitioner(failure_policy="collect"), many(1, uses="api")

    @teller.unit(uses="api")
    async def told():
        raise BusyError

    async with Runtime(limits={"api": 5}):
        await teller.run()
        await other.run()
    assert virtual_clock.time() == pytest.approx(31, abs=0.01)


async def test_observers_of_the_runtime_hear_every_run(virtual_clock):
    heard = []
    async with Runtime(observers=[heard.append]):
        await many(1).run(run_id="one", observers=[heard.append])
        await many(1).run(run_id="two")
    starts = [event.run_id for event in heard if isinstance(event, events.RunStarted)]
    assert starts == ["one", "one", "two"]


async def test_runs_of_other_tasks_use_it_as_in_a_web_framework(virtual_clock):
    seen, ready, over = Running(), asyncio.Event(), asyncio.Event()

    async def lifespan():
        async with Runtime(max_workers=1, observers=[seen]):
            ready.set()
            await over.wait()

    server = asyncio.create_task(lifespan())
    await ready.wait()
    await asyncio.gather(many(2).run(), many(2).run())
    over.set()
    await server
    assert len(seen.order) == 4
    assert virtual_clock.time() == pytest.approx(4, abs=0.01)
    await many(2).run()
    assert len(seen.order) == 4  # it is left


async def test_the_inner_of_two_is_used(virtual_clock):
    outer, inner = Running(), Running()
    async with Runtime(max_workers=4, observers=[outer]):
        async with Runtime(max_workers=1, observers=[inner]):
            await many(2).run()
        await many(3).run()
    assert (inner.most, outer.most) == (1, 3)
    assert (len(inner.order), len(outer.order)) == (2, 3)


async def test_a_runtime_is_entered_once_and_not_used_before():
    runtime = Runtime(max_workers=1)
    assert (await many(2, 0).run()).ok
    async with runtime:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        await runtime.__aenter__()
    assert repr(runtime) == "<Runtime: 0 runs, 0 waiting>"


async def test_nested_runs_need_no_admission_and_no_second_slot(virtual_clock):
    inner = many(2)
    flow = QuantumPartitioner()
    flow.include(inner, "whole")

    @flow.unit
    async def calls(ctx):
        return (await ctx.run(inner)).ok

    async with Runtime(max_workers=1, max_runs=1):
        result = await flow.run()
    assert result.ok
    assert result["calls"] is True


# -- fairness ----------------------------------------------------------------------------------


async def test_a_small_run_does_not_wait_for_all_units_of_a_big_one(virtual_clock):
    async with Runtime(max_workers=2):
        big = asyncio.create_task(many(50).run())
        await asyncio.sleep(0.5)
        await many(2).run()
        assert virtual_clock.time() < 5
        await big


async def test_runs_take_turns(virtual_clock):
    seen = Running()
    async with Runtime(max_workers=1, observers=[seen]):
        await asyncio.gather(*(many(5).run(run_id=str(number)) for number in range(3)))
    for at in range(3, 12, 3):
        assert set(seen.order[at : at + 3]) == {"0", "1", "2"}, seen.order


async def test_runs_take_turns_at_a_rate_too(virtual_clock):
    seen = Running()
    async with Runtime(limits={"api": Limit(rate=1, per=1)}, observers=[seen]):
        await asyncio.gather(*(many(5, 0, uses="api").run(run_id=str(n)) for n in range(3)))
    for at in range(3, 12, 3):
        assert set(seen.order[at : at + 3]) == {"0", "1", "2"}, seen.order


async def test_a_run_with_priority_goes_first(virtual_clock):
    seen = Running()
    async with Runtime(max_workers=1, observers=[seen]):
        low = asyncio.create_task(many(5).run(run_id="low"))
        await asyncio.sleep(0.5)
        high = asyncio.create_task(many(3).run(run_id="high", priority=1))
        await asyncio.gather(low, high)
    assert seen.order == ["low", "high", "high", "high", "low", "low", "low", "low"]


# -- how many runs -----------------------------------------------------------------------------


async def test_when_runs_and_queue_are_full_a_run_is_refused_at_once(virtual_clock):
    async with Runtime(max_runs=2, queue=1) as runtime:
        runs = [asyncio.create_task(many(1).run()) for _ in range(3)]
        await asyncio.sleep(0)
        assert (runtime.running, runtime.waiting) == (2, 1)
        with pytest.raises(Overloaded, match=r"2 runs go on and 1 wait.*max_runs=2, queue=1"):
            await many(1).run()
        assert virtual_clock.time() == 0
        assert all(run.ok for run in await asyncio.gather(*runs))
        assert virtual_clock.time() == pytest.approx(2, abs=0.01)
        assert (await many(1).run()).ok


async def test_without_a_queue_too():
    async with Runtime(max_runs=1):
        run = asyncio.create_task(many(1, 0).run())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 runs go on, which is all"):
            await many(1).run()
        await run


async def test_the_queue_is_first_in_first_out_and_priorities_go_first(virtual_clock):
    seen = Running()
    async with Runtime(max_runs=1, queue=9, observers=[seen]):
        runs = []
        for run_id, priority in [("a", 0), ("b", 0), ("c", 0), ("d", 5), ("e", 5)]:
            runs.append(asyncio.create_task(many(1).run(run_id=run_id, priority=priority)))
            await asyncio.sleep(0)
        await asyncio.gather(*runs)
    assert seen.order == ["a", "d", "e", "b", "c"]


async def test_a_run_that_is_cancelled_while_it_waits_gives_its_place_away(virtual_clock):
    async with Runtime(max_runs=1, queue=2) as runtime:
        first = asyncio.create_task(many(1).run())
        waits = [asyncio.create_task(many(1).run()) for _ in range(2)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.sleep(0)
        assert runtime.waiting == 1
        third = asyncio.create_task(many(1).run())
        await asyncio.gather(first, waits[1], third)
        assert (runtime.running, runtime.waiting) == (0, 0)


async def test_a_run_that_is_cancelled_just_as_it_is_let_in_passes_its_turn_on(virtual_clock):
    async with Runtime(max_runs=1, queue=2) as runtime:
        waits = []
        flow = QuantumPartitioner()

        @flow.unit
        async def cancels():
            await asyncio.sleep(1)
            # When this run ends, the first in the queue is let in; it is cancelled in that turn.
            asyncio.get_running_loop().call_later(0, asyncio.create_task, cancel_when_let_in())

        async def cancel_when_let_in():
            while runtime.waiting == 2:
                await asyncio.sleep(0)
            waits[0].cancel()

        first = asyncio.create_task(flow.run())
        await asyncio.sleep(0)
        waits += [asyncio.create_task(many(1).run()) for _ in range(2)]
        await first
        assert (await waits[1]).ok
        with pytest.raises(asyncio.CancelledError):
            await waits[0]
        assert runtime.running == 0


async def test_runs_that_are_refused_or_fail_give_their_place_back(virtual_clock):
    bad, fails = QuantumPartitioner(), QuantumPartitioner()
    bad.add_unit(after(0), ["none"], name="a")

    @fails.unit
    async def broken():
        raise ValueError

    async with Runtime(max_runs=1) as runtime:
        with pytest.raises(PlanError):
            await bad.run()
        with pytest.raises(ExecutionError):
            await fails.run()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await many(1).run()
        assert runtime.running == 0
        assert (await many(1).run()).ok


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_workers": 0},
        {"processes": -1},
        {"threads": 1.5},
        {"max_runs": True},
        {"queue": -1},
        {"queue": None},
        {"limits": {"a": 0}},
        {"limits": 3},
        {"observers": [3]},
    ],
)
def test_a_runtime_refuses_what_cannot_be_meant(options):
    with pytest.raises(PlanError, match=next(iter(options)).rstrip("s")):
        Runtime(**options)


@pytest.mark.parametrize("priority", ["high", float("nan"), True])
async def test_a_run_refuses_a_priority_that_is_no_number(priority):
    with pytest.raises(PlanError, match="priority"):
        await many(1, 0).run(priority=priority)
