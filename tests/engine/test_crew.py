"""The worker processes of a loop, with the processes played by the test."""

import asyncio
from types import SimpleNamespace

import pytest

from quantum_async.engine.executors import crew as module
from quantum_async.engine.executors.crew import TRIES, Crew, NoWorkerError, finished
from quantum_async.engine.executors.process import ProcessExecutor


class Played:
    """A worker that does what the test says."""

    def __init__(self, loop, outlet, on_ready):
        self.pid, self.alive, self.error = 0, False, None
        self._on_ready = on_ready
        self._ended = loop.create_future()
        all_played.append(self)

    async def serve(self):
        await self._ended

    def ready(self):
        self.pid, self.alive = len(all_played), True
        self._on_ready(self)

    def leave(self):
        self.end()

    def end(self, error=None):
        self.alive, self.error = False, error
        self._ended.set_result(None)


all_played = []


@pytest.fixture
async def crew(monkeypatch):
    monkeypatch.setattr(module, "Session", Played)
    all_played.clear()
    crew = Crew(asyncio.get_running_loop())
    yield crew
    crew._wanted.clear()
    for one in all_played:
        if not one._ended.done():
            one.end()
    await turns()
    crew.outlet.close()


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_workers_stay_while_another_run_wants_them(crew):
    crew.enter(1)
    crew.enter(1)
    all_played[0].ready()
    await crew.leave(1)
    assert all_played[0].alive
    await crew.leave(1)
    assert not all_played[0].alive


async def test_an_idle_worker_that_dies_is_replaced(crew):
    crew.enter(1)
    all_played[0].ready()
    all_played[0].end()
    await turns()
    assert len(all_played) == 2
    all_played[1].ready()
    assert await crew.take() is all_played[1]


async def test_a_worker_that_died_is_not_lent_though_nobody_has_noticed(crew):
    crew.enter(2)
    first, second = all_played
    first.ready()
    second.ready()
    second.alive = False
    assert await crew.take() is first


async def test_a_worker_that_dies_on_its_way_to_a_call_is_waited_for_no_more(crew):
    crew.enter(1)
    taking = asyncio.ensure_future(crew.take())
    await turns()
    all_played[0].ready()
    all_played[0].end()
    await turns()
    all_played[1].ready()
    assert await taking is all_played[1]


async def test_who_gave_up_waiting_gets_no_worker(crew):
    crew.enter(1)
    first, second = (asyncio.ensure_future(crew.take()) for _ in range(2))
    await turns()
    first.cancel()
    all_played[0].ready()
    assert await second is all_played[0]


async def test_a_worker_is_given_back_by_one_who_gave_up_as_it_came(crew):
    crew.enter(1)
    taking = asyncio.ensure_future(crew.take())
    await turns()
    all_played[0].ready()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await crew.take() is all_played[0]


async def test_all_who_wait_are_told_when_no_worker_can_be_started(crew):
    crew.enter(1)
    waiting, gave_up = (asyncio.ensure_future(crew.take()) for _ in range(2))
    await turns()
    for number in range(TRIES):
        await turns()
        all_played[number].end(OSError(f"no {number}"))
    await asyncio.sleep(0)
    gave_up.cancel()  # and has not come to know it when the others are told
    with pytest.raises(NoWorkerError):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await gave_up
    assert str(crew.start_error) == f"no {TRIES - 1}"


async def test_who_gave_up_warming_is_not_told(crew):
    crew.enter(1)
    warm, gave_up = (asyncio.ensure_future(crew.warm()) for _ in range(2))
    await turns()
    gave_up.cancel()
    all_played[0].ready()
    await warm
    with pytest.raises(asyncio.CancelledError):
        await gave_up


async def test_a_task_of_the_pool_that_is_cancelled_as_well_has_nothing_to_tell():
    theirs = asyncio.ensure_future(asyncio.sleep(3600))
    mine = asyncio.ensure_future(finished(theirs))
    await turns()
    mine.cancel()
    await turns()
    theirs.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mine


async def test_an_executor_that_never_began_ends_at_once():
    await ProcessExecutor(1, SimpleNamespace()).end()
