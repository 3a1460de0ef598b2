"""Threads, and executors that users bring along: work that nobody waits for any more."""

import asyncio
import concurrent.futures
import threading
from types import SimpleNamespace

import pytest

from quantum_async.engine.executors.base import Job
from quantum_async.engine.executors.futures import FuturesExecutor
from quantum_async.engine.executors.thread import _Call


def job(function, *args, told=None):
    made = Job("unit", 1, function, SimpleNamespace(), args)
    if told is not None:
        made.returned = told.append
    return made


@pytest.fixture
def busy():
    """An executor whose one thread is busy until it is let go."""
    go_on = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(go_on.wait)
        yield pool, go_on
        go_on.set()


async def test_what_has_not_begun_in_a_users_executor_is_taken_back(busy):
    pool, go_on = busy
    ran, told = [], []
    one = job(ran.append, 1, told=told)
    running = asyncio.ensure_future(FuturesExecutor(pool).run(one))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    pool.submit(int).result()
    assert (one.late, ran, told) == (False, [], [])


def test_a_call_that_was_given_up_before_its_thread_came_to_it_is_not_made():
    ran, told = [], []
    one = job(ran.append, 1, told=told)
    call = _Call(one)
    call.abandon()
    assert call() is None
    assert (one.late, ran, told) == (False, [], [])


def test_a_call_that_was_given_up_after_its_end_is_not_late():
    told = []
    one = job(int, told=told)
    call = _Call(one)
    assert call() == 0
    call.abandon()
    assert (one.late, told) == (False, [])
