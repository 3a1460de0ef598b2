"""Virtual time, alone and under the engine."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import tenacity

from quantum_async import QuantumPartitioner, RetryPolicy, RunTimeoutError, UnitState
from quantum_async.testing import DeadlockError, Jump, VirtualClock, virtual_time


def test_sleeps_take_no_time_and_every_jump_is_recorded():
    async def main():
        await asyncio.sleep(10)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(5))
            group.create_task(anyio.sleep(3_600))
        with anyio.move_on_after(60):
            await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    clock, began = VirtualClock(), time.monotonic()
    assert clock.run(main()) == pytest.approx(3_670)
    assert time.monotonic() - began < 2
    assert [jump.start for jump in clock.jumps] == [0, *(jump.end for jump in clock.jumps[:-1])]
    assert clock.jumps[0] == Jump(0, 10)
    assert clock.time() == clock.jumps[-1].end


def test_back_off_timeouts_and_deadlines_are_virtual():
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

    began = time.monotonic()
    clock = VirtualClock()
    result = clock.run(flow.run())
    assert result["stubborn"] == 13
    assert result.units["stubborn"].duration == pytest.approx(144)
    assert result.units["slow"].state is UnitState.TIMEOUT
    assert result.units["slow"].duration == pytest.approx(30)
    assert result.units["never"].duration <= 100
    assert clock.time() == pytest.approx(144)
    assert time.monotonic() - began < 2


def test_the_time_limit_of_a_run_is_virtual():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(10_000), args=[])
    clock = VirtualClock()
    with pytest.raises(RunTimeoutError):
        clock.run(flow.run(timeout=500))
    assert clock.time() == pytest.approx(500)


@pytest.mark.parametrize("how", ["anyio", "asyncio", "executor", "unit"])
def test_a_thread_in_flight_holds_the_jump_back(how):
    clock, seen = VirtualClock(), []
    goes_on = threading.Event()

    def blocking():
        goes_on.wait(10)
        seen.append(clock.time())

    async def in_thread():
        loop = asyncio.get_running_loop()
        # A real timer, of another thread: virtual time must not pass meanwhile.
        threading.Timer(0.05, goes_on.set).start()
        if how == "anyio":
            await anyio.to_thread.run_sync(blocking)
        elif how == "asyncio":
            await asyncio.to_thread(blocking)
        elif how == "executor":
            await loop.run_in_executor(None, blocking)
        else:
            flow = QuantumPartitioner()
            flow.add_unit(blocking, args=[], timeout=60)
            await flow.run()

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1_000))
            group.create_task(in_thread())

    clock.run(main())
    assert seen == [0.0]
    assert clock.time() == pytest.approx(1_000)


def test_a_custom_executor_holds_the_jump_back():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: time.sleep(0.02), name="works", args=[], timeout=10)
    flow.add_unit(lambda: asyncio.sleep(1_000), name="sleeps", args=[])
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            result = VirtualClock().run(flow.run(mode="custom", custom_executor=pool))
        assert result.units["works"].duration < 1


@pytest.mark.slow
def test_a_worker_process_in_flight_holds_the_jump_back():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: time.sleep(0.2), name="works", args=[], mode="process", timeout=60)
    flow.add_unit(lambda: asyncio.sleep(1_000), name="sleeps", args=[])
    flow.add_unit(lambda: 1, ["works", "sleeps"], name="again", args=[], mode="process")
    clock = VirtualClock()
    result = clock.run(flow.run())
    assert result.units["works"].duration < 1
    assert result.units["sleeps"].duration == pytest.approx(1_000)
    assert result["again"] == 1


@pytest.mark.slow
def test_a_subprocess_in_flight_holds_the_jump_back():
    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1_000))
            process = await asyncio.create_subprocess_exec("sleep", "0.1")
            assert await process.wait() == 0
            return asyncio.get_running_loop().time()

    clock = VirtualClock()
    assert clock.run(main()) < 1


def test_a_deadlock_is_an_error_that_says_who_waits():
    async def main():
        task = asyncio.current_task()
        task.set_name("the one that waits")
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"(?s)the one that waits.*wait"):
        VirtualClock().run(main())


def test_a_timer_that_is_always_due_does_not_stop_time():
    async def main():
        loop = asyncio.get_running_loop()

        def again():
            loop.call_at(loop.time(), again)

        again()
        await asyncio.sleep(0.001)
        return loop.time()

    assert VirtualClock().run(main()) >= 0.001


@pytest.mark.slow
def test_real_sockets_work():
    async def main():
        async def answer(reader, writer):
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            line = await reader.readline()
            writer.close()
            await writer.wait_closed()
        return line

    assert VirtualClock().run(main()) == b"hello\n"


def test_a_block_of_virtual_time_is_for_the_loops_that_start_in_it():
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(3_600, "done"), name="unit", args=[])
    before = asyncio.events.new_event_loop
    with virtual_time() as clock:
        assert flow.execute()["unit"] == "done"
        asyncio.run(asyncio.sleep(100))
    assert clock.time() == pytest.approx(3_700)
    assert asyncio.events.new_event_loop is before


def test_another_thread_has_real_time():
    kinds = []

    async def kind():
        kinds.append(type(asyncio.get_running_loop()).__name__)

    with virtual_time():
        thread = threading.Thread(target=lambda: asyncio.run(kind()))
        thread.start()
        thread.join()
        asyncio.run(kind())
    assert kinds[1] == "VirtualTimeLoop" != kinds[0]


async def test_a_loop_that_runs_already_is_refused():
    with pytest.raises(RuntimeError, match="before the event loop starts"), virtual_time():
        pass
