"""The worker's side alone: a process that serves the test, which plays the pool.

Nothing kills it, as the pool would, so that it is seen how it ends by itself.
"""

import asyncio
import contextlib
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantum_async.engine.executors import worker
from quantum_async.engine.executors.channel import Channel
from quantum_async.engine.executors.envelope import RAISED, RETURNED
from quantum_async.engine.executors.packing import dumps
from quantum_async.engine.executors.transport import Segment, inline, load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SERVE = "import sys; from quantum_async.engine.executors.worker import serve; serve(*sys.argv[1:])"


@dataclass
class Served:
    """A worker process, and the pool's end of its channel."""

    process: asyncio.subprocess.Process
    channel: Channel
    frames: "asyncio.Queue[bytes]"

    def send(self, kind, number=0, grace=0.0, rest=b""):
        self.channel.send(worker.HEAD.pack(kind, number, grace, 0) + rest)

    def call(self, function, *args, number=1, grace=0.0, flags=0):
        self.send(worker.CALL | flags, number, grace, inline(dumps((function, args, {}))))

    async def answer(self):
        """Return the number of the call that was answered, how it went, and with what."""
        number, how, content, *_ = pickle.loads(await self.frames.get())
        return number, how, load(content) if how == RETURNED else pickle.loads(content)

    async def ask(self, function, *args, **options):
        self.call(function, *args, **options)
        return (await self.answer())[1:]


@contextlib.asynccontextmanager
async def serving(**options):
    frames = asyncio.Queue()
    channel = Channel(asyncio.get_running_loop(), frames.put_nowait)
    with Segment.create() as arguments, Segment.create() as results:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SERVE, "", arguments.path, results.path, *channel.paths),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            **options,
        )
        assert int.from_bytes(await frames.get(), sys.byteorder) == process.pid
        channel.connected()
        served = Served(process, channel, frames)
        yield served
        served.send(worker.EXIT)
        await process.wait()
        channel.close()


@pytest.fixture
async def served():
    async with serving() as served:
        yield served


async def test_it_ends_when_it_is_told_to(served):
    assert await served.ask(pow, 2, 10) == (RETURNED, 1024)
    served.send(worker.EXIT)
    assert await served.process.wait() == 0


async def test_it_goes_back_to_anyio_when_it_is_told_to_leave(served):
    served.send(worker.LEAVE)
    assert await served.process.wait() == 0  # here there is no loop of anyio's around it


async def test_calls_that_come_together_need_no_outlet(served):
    served.call(str, 1, number=1)
    served.call(str, 2, number=2, flags=worker.BEHIND)
    assert [await served.answer(), await served.answer()] == [
        (1, RETURNED, "1"),
        (2, RETURNED, "2"),
    ]


def with_clean_up(descriptor):
    try:
        os.write(descriptor, b"began")
        signal.pause()
    finally:
        os.write(descriptor, b"tidied")


async def test_one_with_a_grace_that_is_asked_to_end_cleans_up_and_serves_on():
    reading, writing = os.pipe()
    async with serving(pass_fds=[writing]) as served:
        served.call(with_clean_up, writing, grace=5.0)
        assert await asyncio.to_thread(os.read, reading, 100) == b"began"
        served.process.send_signal(signal.SIGTERM)
        number, how, (kind, message, *_) = await served.answer()
        assert (number, how, kind, message) == (1, RAISED, "SystemExit", str(128 + signal.SIGTERM))
        assert os.read(reading, 100) == b"tidied"
        assert await served.ask(signal.getsignal, signal.SIGTERM) == (RETURNED, signal.SIG_DFL)
    os.close(reading)
    os.close(writing)


async def test_a_unit_that_closes_what_is_not_its_own_ends_the_worker(served):
    served.call(os.closerange, 3, 4096)
    assert await served.process.wait() == os.EX_SOFTWARE
    assert served.frames.empty()


@pytest.mark.parametrize("leads", [True, False])
async def test_it_leads_a_process_group_of_its_own(leads):
    async with serving(start_new_session=leads) as served:
        assert await served.ask(os.getpgrp) == (RETURNED, served.process.pid)


def test_no_signal_at_the_parents_death_is_asked_for_elsewhere_than_on_linux(monkeypatch):
    monkeypatch.setattr(worker.sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "ctypes", None)  # it would raise
    worker._die_with_parent()
