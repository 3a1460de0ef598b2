"""Virtual time, alone and under the engine."""

import asyncio
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anyio
import pytest
import tenacity
import uvloop

from quantum_async import QuantumPartitioner, RetryPolicy, RunTimeoutError, UnitState
from quantum_async.core.events import UnitRetrying, UnitStarted
from quantum_async.testing import DeadlockError, Jump, VirtualClock, VirtualTimeLoop, virtual_time
from quantum_async.testing.clock import why_not


@pytest.fixture
def later():
    """Call something from another thread, in a moment of real time."""
    timers = []

    def call(function):
        timers.append(threading.Timer(0.05, function))
        timers[-1].start()

    yield call
    for timer in timers:
        timer.join()


# -- time that passes -----------------------------------------------------------------------------


def test_sleeps_take_no_time_and_every_jump_is_recorded():
    async def main():
        loop = asyncio.get_running_loop()
        moments = [loop.time()]
        await asyncio.sleep(10)
        moments.append(loop.time())
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(5))
            group.create_task(anyio.sleep(3_600))
        moments.append(loop.time())
        with anyio.move_on_after(60):
            await asyncio.Event().wait()
        with pytest.raises(TimeoutError), anyio.fail_after(20):
            await anyio.sleep_forever()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):
                await asyncio.Event().wait()
        return [*moments, anyio.current_time()]

    clock, began = VirtualClock(), time.process_time()
    assert clock.run(main()) == [0, 10, 3_610, 3_710]
    assert time.process_time() - began < 1
    ends = [10, 15, 3_610, 3_670, 3_690, 3_710]
    assert clock.jumps == [Jump(*jump) for jump in zip([0, *ends], ends, strict=False)]
    assert (clock.time(), clock.slipped) == (3_710, 0)


def test_back_off_time_limits_and_deadlines_are_virtual():
    flow = QuantumPartitioner(failure_policy="collect")
    waits = RetryPolicy(stop=tenacity.stop_after_attempt(13), wait=tenacity.wait_fixed(12))

    @flow.unit(retry=waits)
    async def stubborn(ctx):
        if ctx.attempt < 13:
            raise ConnectionError
        return ctx.attempt

    @flow.unit(timeout=30)
    async def slow():
        await asyncio.sleep(31)

    @flow.unit(deadline=100, retries=50)
    async def never():
        await asyncio.sleep(7)
        raise ValueError

    clock, began = VirtualClock(), time.process_time()
    result = clock.run(flow.run())
    assert time.process_time() - began < 1
    assert result["stubborn"] == 13
    assert result.units["stubborn"].duration == pytest.approx(144)
    assert result.units["slow"].state is UnitState.TIMEOUT
    assert result.units["slow"].duration == 30
    assert result.units["never"].duration <= 100
    assert clock.time() == result.duration == pytest.approx(144)


def test_the_waits_of_tenacity_are_virtual():
    async def main():
        waits = tenacity.wait_exponential(multiplier=1, max=60)
        async for attempt in tenacity.AsyncRetrying(
            wait=waits, stop=tenacity.stop_after_attempt(9)
        ):
            with attempt:
                if attempt.retry_state.attempt_number < 9:
                    raise ConnectionError
        return asyncio.get_running_loop().time()

    assert VirtualClock().run(main()) == 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60


def test_events_are_told_in_virtual_time():
    flow, events = QuantumPartitioner(), []
    waits = RetryPolicy(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(40))

    @flow.unit(retry=waits)
    async def unit(ctx):
        await asyncio.sleep(2)
        if ctx.attempt == 1:
            raise ConnectionError

    VirtualClock().run(flow.run(observers=[events.append]))
    assert [event.time for event in events if isinstance(event, UnitStarted)] == [0, 42]
    assert [event.time for event in events if isinstance(event, UnitRetrying)] == [2]


def test_the_time_limit_of_a_run_is_virtual():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(10_000), args=[])
    clock = VirtualClock()
    with pytest.raises(RunTimeoutError):
        clock.run(flow.run(timeout=500))
    assert clock.time() == 500


def test_one_clock_may_drive_several_loops_one_after_the_other():
    clock = VirtualClock()
    clock.run(asyncio.sleep(5))
    with asyncio.Runner(loop_factory=clock.loop_factory) as runner:
        runner.run(asyncio.sleep(7))
        assert clock.drives(runner.get_loop())
        runner.run(asyncio.sleep(1))
    assert clock.time() == 13
    assert repr(clock) == "<VirtualClock: 13 s, 3 jumps>"


def test_the_loop_is_a_factory_by_itself():
    async def main():
        await asyncio.sleep(60)
        return asyncio.get_running_loop().clock.time()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == 60


def test_a_timer_that_is_always_due_does_not_stop_time():
    async def main():
        loop = asyncio.get_running_loop()

        def again():
            loop.call_at(loop.time(), again)

        again()
        await asyncio.sleep(0.001)
        return loop.time()

    assert VirtualClock().run(main()) >= 0.001


def test_a_leaky_bucket_lets_through_what_its_rate_says():
    # As aiolimiter does it: it asks the time, and is woken when there should be room.
    class Bucket:
        def __init__(self, rate):
            self.rate, self.level, self.checked = rate, 0.0, 0.0

        def has_room(self):
            now = asyncio.get_running_loop().time()
            self.level = max(0.0, self.level - (now - self.checked) * self.rate)
            self.checked = now
            return self.level + 1 <= 1

        async def acquire(self):
            loop = asyncio.get_running_loop()
            while not self.has_room():
                woken = loop.create_future()
                loop.call_at(loop.time() + self.level / self.rate, woken.set_result, None)
                await woken
            self.level += 1

    async def main():
        bucket = Bucket(rate=0.3)
        for _ in range(100):
            await bucket.acquire()
        return asyncio.get_running_loop().time()

    assert VirtualClock().run(main()) == pytest.approx(99 / 0.3, rel=1e-4)


@pytest.mark.parametrize("years", [1, 30, 1_000_000])
def test_timers_work_however_long_it_has_been(years):
    async def main():
        await asyncio.sleep(years * 31_536_000)
        for _ in range(10):
            await asyncio.sleep(1e-9)
        async with asyncio.timeout(5):
            await asyncio.sleep(1)

    clock = VirtualClock()
    clock.run(main())
    assert clock.time() == pytest.approx(years * 31_536_000 + 1)


def test_the_same_program_makes_the_same_jumps():
    async def main():
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(asyncio.sleep(number * 0.1))
                group.create_task(asyncio.to_thread(int))

    clocks = [VirtualClock(), VirtualClock()]
    for clock in clocks:
        clock.run(main())
    assert clocks[0].jumps == clocks[1].jumps
    assert len(clocks[0].jumps) == 49


# -- what holds the clock back --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["anyio", "asyncio", "executor", "unit", "own"])
def test_a_thread_in_flight_holds_the_jump_back(how, later):
    clock, seen, goes_on = VirtualClock(), [], threading.Event()

    def blocking():
        goes_on.wait(10)
        seen.append(clock.time())

    def own_thread(loop, done, work):
        blocking()
        loop.call_soon_threadsafe(done.set)
        work.end()

    async def in_thread():
        loop = asyncio.get_running_loop()
        later(goes_on.set)
        if how == "anyio":
            await anyio.to_thread.run_sync(blocking)
        elif how == "asyncio":
            await asyncio.to_thread(blocking)
        elif how == "executor":
            await loop.run_in_executor(None, blocking)
        elif how == "own":
            done, work = asyncio.Event(), clock.outside_work("a thread of mine")
            assert repr(clock) == "<VirtualClock: 0 s, 0 jumps, held by a thread of mine>"
            thread = threading.Thread(target=own_thread, args=(loop, done, work))
            thread.start()
            await done.wait()
            thread.join()
        else:
            flow = QuantumPartitioner()
            flow.add_unit(blocking, args=[], timeout=0.001)
            await flow.run()

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1_000))
            group.create_task(in_thread())

    clock.run(main())
    assert seen == [0]
    assert (clock.time(), len(clock.jumps), clock.slipped) == (1_000, 1, 0)


@pytest.mark.parametrize("how", ["anyio", "executor", "custom unit"])
def test_a_thread_that_nobody_waits_for_any_more_holds_it_back_too(how, later):
    clock, seen, goes_on, began = VirtualClock(), [], threading.Event(), threading.Event()

    def blocking():
        began.set()
        goes_on.wait(10)
        seen.append(clock.time())

    async def wait_for_it(pool):
        if how == "anyio":
            await anyio.to_thread.run_sync(blocking, abandon_on_cancel=True)
        elif how == "executor":
            await asyncio.get_running_loop().run_in_executor(pool, blocking)
        else:
            flow = QuantumPartitioner(failure_policy="fail_fast")
            flow.add_unit(blocking, name="unit", args=[], timeout=60)
            await flow.run(mode="custom", custom_executor=pool, timeout=60)

    async def main(pool):
        task = asyncio.create_task(wait_for_it(pool))
        while not began.is_set():
            await asyncio.sleep(0)
        task.cancel()
        later(goes_on.set)
        await asyncio.sleep(1_000)

    with ThreadPoolExecutor(1) as pool:
        clock.run(main(pool))
    assert seen == [0]


def test_the_end_of_the_default_executor_is_waited_for_in_real_time(later):
    # asyncio gives its threads 300 s, and warns.
    goes_on = threading.Event()

    async def main():
        asyncio.get_running_loop().run_in_executor(None, goes_on.wait, 10)
        later(goes_on.set)

    clock = VirtualClock()
    clock.run(main())
    assert clock.jumps == []


def test_a_custom_executor_holds_the_jump_back():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: time.sleep(0.02), name="works", args=[], timeout=10)
    flow.add_unit(lambda: asyncio.sleep(1_000), name="sleeps", args=[])
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            result = VirtualClock().run(flow.run(mode="custom", custom_executor=pool))
        assert result.units["works"].duration == 0


@pytest.mark.slow
def test_a_worker_process_in_flight_holds_the_jump_back_and_an_idle_one_does_not():
    flow = QuantumPartitioner()
    waits = RetryPolicy(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(100))

    def stubborn(ctx):
        if ctx.attempt < 3:
            raise ConnectionError

    flow.add_unit(lambda: time.sleep(0.2), name="works", args=[], mode="process", timeout=60)
    flow.add_unit(lambda: asyncio.sleep(1_000), name="sleeps", args=[])
    flow.add_unit(lambda: 1, ["works", "sleeps"], name="again", args=[], mode="process")
    flow.add_unit(stubborn, name="stubborn", mode="process", retry=waits)
    clock = VirtualClock()
    result = clock.run(flow.run())
    assert result.units["works"].duration == 0
    assert result.units["stubborn"].duration == pytest.approx(200)
    assert result.units["sleeps"].duration == 1_000
    assert result["again"] == 1
    assert clock.slipped == 0


@pytest.mark.slow
def test_calls_of_anyios_worker_processes_hold_the_jump_back():
    async def main():
        loop = asyncio.get_running_loop()
        sleeping = asyncio.create_task(asyncio.sleep(1_000))
        with anyio.fail_after(1):  # its start too
            assert await anyio.to_process.run_sync(abs, -3) == 3
            await anyio.to_process.run_sync(time.sleep, 0.05)
        assert loop.time() == 0
        await sleeping  # while the worker is idle
        return loop.time()

    clock = VirtualClock()
    assert clock.run(main()) == 1_000
    assert clock.slipped == 0


@pytest.mark.slow
@pytest.mark.parametrize("start", ["exec", "shell"])
def test_a_subprocess_in_flight_holds_the_jump_back(start):
    async def main():
        async with asyncio.TaskGroup() as group:
            sleeping = group.create_task(asyncio.sleep(1_000))
            async with asyncio.timeout(1):
                if start == "exec":
                    process = await asyncio.create_subprocess_exec("sleep", "0.1")
                else:
                    process = await asyncio.create_subprocess_shell("sleep 0.1; exit 0")
                assert await process.wait() == 0
            assert asyncio.get_running_loop().time() == 0
            await sleeping

    VirtualClock().run(main())


@pytest.mark.slow
def test_the_end_of_an_idle_worker_is_waited_for(monkeypatch):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "60")
        monkeypatch.setattr("quantum_async.testing.clock.idle_processes", lambda _: {process.pid})
        await asyncio.sleep(1_000)
        process.kill()
        return await process.wait()

    clock = VirtualClock()
    assert clock.run(main()) == -signal.SIGKILL
    assert clock.time() == 1_000


def test_real_sockets_come_before_timers():
    async def main():
        async def answer(reader, writer):
            for _ in range(50):
                writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server, asyncio.timeout(0.001):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            lines = []
            for _ in range(50):
                writer.write(b"hello\n")
                lines.append(await reader.readline())
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(3_600)
        return lines

    clock = VirtualClock()
    assert clock.run(main()) == [b"hello\n"] * 50
    assert clock.jumps == [Jump(0, 3_600)]


# -- what does not hold it back for ever ----------------------------------------------------------


@contextmanager
def talking_sockets(loop):
    """Have two sockets send a byte to and fro without end."""
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
        loop.add_reader(end, lambda end=end: end.send(end.recv(1)))
    pair[0].send(b"!")
    try:
        yield
    finally:
        for end in pair:
            loop.remove_reader(end)
            end.close()


def test_sockets_that_are_always_busy_do_not_stop_time():
    async def main():
        with talking_sockets(asyncio.get_running_loop()):
            await asyncio.sleep(0.05)

    clock = VirtualClock(patience=0.01)
    began = time.monotonic()
    clock.run(main())
    assert time.monotonic() - began >= 0.05  # as on a real clock
    assert clock.slipped >= 0.05


def test_code_that_polls_the_time_gets_there():
    async def main():
        loop = asyncio.get_running_loop()
        while loop.time() < 0.05:
            await asyncio.sleep(0)

    VirtualClock(patience=0.01).run(main())


def test_a_thread_that_hangs_meets_its_time_limit():
    released = threading.Event()
    flow = QuantumPartitioner(failure_policy="collect")
    flow.add_unit(lambda: released.wait(10), name="hangs", args=[], timeout=0.05)
    clock = VirtualClock(patience=0)
    try:
        result = clock.run(flow.run())
        assert result.states["hangs"] is UnitState.TIMEOUT
        assert result.units["hangs"].duration >= 0.05
        assert clock.slipped > 0
    finally:
        released.set()


def test_work_that_comes_back_within_our_patience_meets_no_time_limit(later):
    goes_on = threading.Event()

    async def main():
        later(goes_on.set)
        with anyio.fail_after(0.001):
            assert await asyncio.to_thread(goes_on.wait, 10)

    clock = VirtualClock()
    clock.run(main())
    assert (clock.time(), clock.slipped) == (0, 0)


def test_what_a_debugger_takes_is_not_counted(monkeypatch):
    monkeypatch.setattr("quantum_async.testing.clock._LONGEST_TURN", 0.001)

    async def main():
        async with asyncio.timeout(1):
            time.sleep(0.06)  # as at a breakpoint
            await asyncio.sleep(0)
        return asyncio.get_running_loop().time()

    assert VirtualClock(patience=0.05).run(main()) == 0


@pytest.mark.parametrize("patience", [-1, math.nan])
def test_patience_is_seconds(patience):
    with pytest.raises(ValueError, match="patience must be real seconds"):
        VirtualClock(patience=patience)


# -- deadlocks ------------------------------------------------------------------------------------


HERE = r"\w+\.<locals>\."


def test_a_deadlock_is_an_error_that_says_who_waits_where():
    flow = QuantumPartitioner()
    never = asyncio.Event()

    @flow.unit
    async def patient():
        await asyncio.sleep(3)
        await never.wait()

    async def main():
        other = asyncio.create_task(never.wait(), name="the other one")
        await flow.run(run_id="r")
        await other

    with pytest.raises(DeadlockError) as caught:
        VirtualClock().run(main())
    headline, *waiting = str(caught.value).splitlines()
    assert headline.startswith("deadlock at 3 s of virtual time: no timer is set and nothing is")
    mains, patients, others = sorted(
        waiting, key=lambda line: ("Task" not in line, "r/" not in line)
    )
    assert re.fullmatch(rf"  'Task-\d+' in {HERE}main, {re.escape(__file__)}:\d+", mains)
    assert re.fullmatch(rf"  'r/patient#1' in {HERE}patient, {re.escape(__file__)}:\d+", patients)
    assert others.startswith("  'the other one' in Event.wait, ")


def test_a_deadlock_of_many_names_some():
    async def main():
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(asyncio.Event().wait())

    with pytest.raises(DeadlockError, match=r"and 31 more$"):
        VirtualClock().run(main())


@pytest.mark.parametrize("wait", [lambda: asyncio.sleep(math.inf), anyio.sleep_forever])
def test_to_sleep_for_ever_is_a_deadlock(wait):
    async def main():
        await wait()

    with pytest.raises(DeadlockError, match=r"'Task-\d+' in \S+main, "):
        VirtualClock().run(main())


def test_a_loop_with_nothing_to_do_is_in_a_deadlock():
    loop = VirtualTimeLoop()
    try:
        with pytest.raises(DeadlockError, match="no task"):
            loop.run_forever()
    finally:
        loop.close()


@pytest.mark.slow
def test_silent_sockets_do_not_hide_a_deadlock():
    async def main():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()

    with pytest.raises(
        DeadlockError, match="nothing came through open sockets or pipes for 1 real"
    ):
        VirtualClock(patience=0).run(main())


def test_an_answer_from_outside_is_waited_for_without_a_timer(later):
    async def main():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            later(lambda: theirs.send(b"hello\n"))
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                return await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()

    assert VirtualClock().run(main()) == b"hello\n"


def test_a_busy_thread_is_no_deadlock(later):
    goes_on = threading.Event()

    async def main():
        later(goes_on.set)
        return await anyio.to_thread.run_sync(goes_on.wait, 10)

    assert VirtualClock(patience=0).run(main())


# -- blocks ---------------------------------------------------------------------------------------


async def kind_of_loop():
    return type(asyncio.get_running_loop())


def test_a_block_of_virtual_time_is_for_the_loops_that_start_in_it():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(3_600, "done"), name="unit", args=[])
    before = asyncio.events.new_event_loop, asyncio.new_event_loop
    with virtual_time() as clock:
        assert flow.execute()["unit"] == "done"
        asyncio.run(asyncio.sleep(100))
        with asyncio.Runner() as runner:
            runner.run(asyncio.sleep(20))
        anyio.run(anyio.sleep, 3)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.sleep(7))
        loop.close()
    assert clock.time() == 3_730
    assert (asyncio.events.new_event_loop, asyncio.new_event_loop) == before
    assert asyncio.run(kind_of_loop()) is not VirtualTimeLoop


def test_a_block_ends_with_an_error_too():
    before = asyncio.events.new_event_loop, asyncio.new_event_loop
    with pytest.raises(ZeroDivisionError), virtual_time():
        _ = 1 / 0
    assert (asyncio.events.new_event_loop, asyncio.new_event_loop) == before


def test_blocks_can_be_nested():
    with virtual_time() as outer:
        with virtual_time() as inner:
            asyncio.run(asyncio.sleep(5))
        asyncio.run(asyncio.sleep(7))
        with virtual_time(inner):
            asyncio.run(asyncio.sleep(1))
    assert (outer.time(), inner.time()) == (7, 6)


def test_a_block_inside_a_loop_on_virtual_time_is_that_loops():
    async def main():
        with virtual_time() as clock:
            await asyncio.sleep(3)
            with pytest.raises(RuntimeError, match="before the event loop starts"):
                virtual_time(VirtualClock()).__enter__()
            return clock

    clock = VirtualClock()
    assert clock.run(main()) is clock


def test_blocks_of_several_threads_do_not_meet():
    before = asyncio.events.new_event_loop
    entered, left = threading.Event(), threading.Event()
    found = []

    def in_thread():
        found.append(asyncio.run(kind_of_loop()))
        with virtual_time() as clock:
            entered.set()
            left.wait(10)
            asyncio.run(asyncio.sleep(5))
            found.append(clock.time())

    thread = threading.Thread(target=in_thread)
    with virtual_time() as clock:
        thread.start()
        entered.wait(10)
        asyncio.run(asyncio.sleep(7))
    left.set()
    thread.join()
    assert found[0] is not VirtualTimeLoop
    assert (clock.time(), found[1]) == (7, 5)
    assert asyncio.events.new_event_loop is before


async def test_a_loop_that_runs_already_is_refused():
    with pytest.raises(RuntimeError, match=r"before the event loop starts.*around asyncio\.run"):
        virtual_time().__enter__()


def test_uvloop_is_told_that_it_cannot():
    async def late():
        virtual_time().__enter__()

    async def inside(clock):
        clock.time()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with pytest.raises(RuntimeError, match=r"uvloop\.Loop runs here.*use an asyncio loop"):
            runner.run(late())
        with (
            virtual_time() as clock,
            pytest.raises(RuntimeError, match=r"not virtual time: uvloop\.Loop"),
        ):
            runner.run(inside(clock))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there are no eager tasks")
def test_eager_tasks_live_on_virtual_time():
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(asyncio.sleep(number))

    clock = VirtualClock()
    clock.run(main(), debug=True)
    assert clock.time() == 9


def test_a_signal_reaches_a_loop_that_waits_for_a_thread(later):
    # As pytest-timeout's: virtual time does not keep a real limit away.
    released = threading.Event()

    def give_up(*_):
        released.set()
        raise ZeroDivisionError

    async def main():
        later(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        await anyio.to_thread.run_sync(released.wait, 10)

    before = signal.signal(signal.SIGUSR1, give_up)
    try:
        with pytest.raises(ZeroDivisionError):
            VirtualClock().run(main())
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_where_no_loop_of_asyncio_runs_the_clock_of_trio_is_named():
    assert "trio.testing.MockClock" in why_not(None)
