"""The pool's side of captured output, with the worker's side played by the test."""

import asyncio
import json
import os

import pytest

from quantum_async.engine.executors import capture
from quantum_async.engine.executors import outlet as module
from quantum_async.engine.executors.capture import CALL, HELLO, LOOK, NUMBER, PAGE_SIZE, READ
from quantum_async.engine.executors.outlet import Outlet

PID = os.getpid()  # where descriptors of a worker that this process plays are found


@pytest.fixture
async def outlet():
    outlet = Outlet.open(asyncio.get_running_loop())
    yield outlet
    outlet.close()


class Played:
    """A worker: its page, and the pipes behind its descriptors 1 and 2."""

    def __init__(self):
        self.page = os.memfd_create("page")
        os.ftruncate(self.page, PAGE_SIZE)
        self.pipes = [os.pipe(), os.pipe()]
        for reading, _ in self.pipes:
            os.set_blocking(reading, False)

    def hello(self, outlet, number=0):
        """Greet, as a worker does that runs a call already."""
        os.pwrite(self.page, NUMBER.pack(number), CALL)
        say(outlet, HELLO, [*(reading for reading, _ in self.pipes), self.page])

    @property
    def is_read(self):
        return NUMBER.unpack(os.pread(self.page, NUMBER.size, READ))[0] == 1

    def die(self):
        """Close the ends that are written to; those to read are the pool's by now."""
        for _, writing in self.pipes:
            os.close(writing)
        self.pipes = [(reading, reading) for reading, _ in self.pipes]

    def close(self):
        for descriptor in {self.page, *sum(self.pipes, ())}:
            os.close(descriptor)


@pytest.fixture
def played():
    workers = [Played(), Played()]
    yield workers
    for one in workers:
        one.close()


def say(outlet, kind, content):
    payload = json.dumps(content).encode()
    frame = capture.HEADER.pack(capture.MAGIC, kind, 3, PID, 0, len(payload)) + payload
    os.write(outlet._writer, frame)


async def all_read(outlet):
    """Wait until what was written by now has been looked at."""
    outlet.expect(99, lambda record: None)
    await outlet.finish(99)


async def test_a_worker_that_died_before_it_was_met_is_none(outlet, played):
    one, _ = played
    say(outlet, HELLO, [1_000_000, 1_000_001, one.page])
    await all_read(outlet)
    assert not one.is_read
    assert outlet._workers == {}


async def test_a_worker_with_the_process_id_of_one_that_is_gone_takes_its_place(outlet, played):
    records = []
    outlet.expect(1, records.append)
    first, second = played
    first.hello(outlet)
    await all_read(outlet)
    second.hello(outlet, number=1)
    await all_read(outlet)
    assert first.is_read
    assert second.is_read
    os.write(second.pipes[0][1], b"mine\n")
    os.write(first.pipes[0][1], b"nobody's\n")
    await outlet.finish(1, PID)
    assert [record.message for record in records] == ["mine"]


@pytest.mark.parametrize("size", [1, 100_000])
async def test_what_a_worker_wrote_before_it_died_comes_though_it_is_looked_at_late(
    outlet, played, size
):
    records, [one, _] = [], played
    outlet.expect(1, records.append)
    one.hello(outlet, number=1)
    await all_read(outlet)
    stdout = one.pipes[0][1]
    os.set_blocking(stdout, False)
    written = os.write(stdout, b"x" * size)
    say(outlet, LOOK, "")
    one.die()
    await outlet.finish(1, PID)
    assert sum(len(record.message) for record in records) == written
    assert outlet._workers == {}


async def test_a_call_may_end_between_two_turns_of_reading(outlet, played, monkeypatch):
    monkeypatch.setattr(module, "_TURN", 0.0)  # one step a turn
    records, [one, _] = [], played
    outlet.expect(1, records.append)
    one.hello(outlet, number=1)
    await all_read(outlet)
    os.write(one.pipes[0][1], b"x\n")
    say(outlet, LOOK, "")
    one.die()
    while not records:
        await asyncio.sleep(0)
    await outlet.finish(1, PID)
    assert [record.message for record in records] == ["x"]
    assert outlet._workers == {}


async def test_one_that_no_longer_waits_for_the_end_of_a_call_harms_nobody(outlet):
    outlet.expect(1, lambda record: None)
    finishing = asyncio.ensure_future(outlet.finish(1, PID))
    await asyncio.sleep(0)
    finishing.cancel()
    await all_read(outlet)
    assert finishing.cancelled()


async def test_an_outlet_may_close_while_workers_live_and_are_waited_for(outlet, played):
    played[0].hello(outlet)
    await all_read(outlet)
    outlet.expect(1, lambda record: None)
    finishing = asyncio.ensure_future(outlet.finish(1, PID))
    await asyncio.sleep(0)
    outlet.close()
    await finishing
    outlet.close()


def test_an_outlet_may_close_after_its_loop():
    loop = asyncio.new_event_loop()
    outlet = Outlet.open(loop)
    loop.remove_reader(outlet._reader)
    loop.close()
    outlet.close()


async def test_where_output_cannot_be_had_nothing_is_expected(monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    outlet = Outlet.open(asyncio.get_running_loop())
    assert outlet.path == ""
    outlet.expect(1, lambda record: None)
    assert outlet.is_finished(1, PID)
    outlet.close()
