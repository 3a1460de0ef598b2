"""What runs, and what was given up and runs on, never takes more slots than there are."""

import asyncio
import contextlib
import pickle
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from quantum_async.core.record import Usage
from quantum_async.engine.executors.envelope import RETURNED, Answer
from quantum_async.engine.executors.session import Session
from quantum_async.tuning import usable_cpus
from tests.support import harm, slots
from tests.support.processes import alive, until

SEEDS = range(40 if harm.FULL else 3)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2, 3, 7, None])
@pytest.mark.parametrize("seed", SEEDS)
async def test_threads_that_run_and_those_given_up_share_the_slots(seed, most):
    threads = slots.Threads()
    flow = slots.slow_flow(random.Random(seed), 60, threads)
    result = await flow.run(max_workers=most)
    assert threads.most <= (most or min(32, usable_cpus() + 4))
    assert any(record.state.value == "timeout" for record in result.units.values())
    await until(lambda: threads.now == 0)
    await until(lambda: result._ledger.scheduler.used == 0)
    assert result._ledger.scheduler.lane_used == [0] * len(result._ledger.where)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2, None])
@pytest.mark.parametrize("seed", SEEDS)
async def test_processes_that_run_and_those_killed_share_the_slots(seed, most, tmp_path):
    threads = slots.Threads()
    flow = slots.slow_flow(random.Random(seed), 40, threads, str(tmp_path))
    result = await flow.run(max_workers=most)
    counted = [result[name] for name in result if name.startswith("p")]
    assert max(counted) <= min(most or usable_cpus(), usable_cpus())
    # Who was killed left a file: it is really gone.
    assert not any(alive(left.name) for left in tmp_path.iterdir())
    await until(lambda: threads.now == 0)
    await until(lambda: result._ledger.scheduler.used == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_run_that_is_cancelled_gives_all_slots_back(seed, tmp_path):
    chance, threads = random.Random(seed), slots.Threads()
    flow = slots.slow_flow(chance, 60, threads, str(tmp_path))
    running = asyncio.create_task(flow.run())
    await asyncio.sleep(chance.random() * 0.2)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert threads.now == 0
    assert flow.last_result._ledger.scheduler.used == 0
    assert not any(alive(left.name) for left in tmp_path.iterdir())


# -- an answer is used for its own call only ------------------------------------------------------


@settings(max_examples=60)
@given(
    asked=st.integers(1, 6),
    frames=st.lists(st.one_of(st.integers(-2, 9), st.binary(max_size=6)), max_size=12),
)
def test_an_answer_is_used_for_its_own_call_only(asked, frames):
    """Whatever comes out of a worker, in whatever order, and however often."""

    async def main():
        session = Session(asyncio.get_running_loop(), "", lambda _: None)
        killed = []
        session.kill = lambda: killed.append(True)
        sent = []
        session._channel.send = sent.append
        session.pid = 1
        waiting = {
            number: session.ask(number, "", b"call", grace=0, limit=0)
            for number in range(1, asked + 1)
        }
        answered = set()
        try:
            for frame in frames:
                if isinstance(frame, int):
                    told = (frame, RETURNED, f"of {frame}", (), 0.0, *Usage(1, 0.0, 0))
                    blob = pickle.dumps(told)
                else:
                    blob = frame
                session._take(blob)
                if killed:
                    # It comes again, of no call, or it makes no sense.
                    assert not isinstance(frame, int) or frame in answered or frame not in waiting
                    break
                answered.add(frame)
        finally:
            session._ended()
        for number, future in waiting.items():
            outcome = future.result()
            if number in answered:
                assert isinstance(outcome, Answer)
                assert outcome.content == f"of {number}"
            else:
                assert not isinstance(outcome, Answer)

    asyncio.run(main())
