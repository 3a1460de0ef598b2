"""The pipes between the pool and a worker, with the worker's side played by a thread."""

import asyncio
import os
import sys

import pytest

from quantum_async.engine.executors import channel as module
from quantum_async.engine.executors.channel import Channel, WorkerEnd, frames_in

BIG = os.urandom(1_000_000)


@pytest.fixture(params=["this platform", "named pipes"])
def platform(request, monkeypatch, tmp_path):
    if request.param == "named pipes":
        monkeypatch.setattr(module.sys, "platform", "other")
        monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))


def echo(paths):
    end = WorkerEnd(paths, lambda descriptor: descriptor)
    while frame := end.receive():
        end.send(frame)
    end.close()


@pytest.mark.parametrize("frames", [[b"x"], [b"a", b"bc", b"def"], [BIG, b"after"]])
async def test_frames_come_back_whole_and_in_order(platform, frames, tmp_path):
    taken = asyncio.Queue()
    channel = Channel(asyncio.get_running_loop(), taken.put_nowait)
    worker = asyncio.create_task(asyncio.to_thread(echo, channel.paths))
    for frame in frames:
        channel.send(frame)
    assert [await taken.get() for _ in frames] == frames
    channel.send(b"")
    await worker
    channel.close()
    assert list(tmp_path.iterdir()) == []


async def test_what_was_not_read_is_known_and_a_dead_worker_is_no_error():
    channel = Channel(asyncio.get_running_loop(), lambda frame: None)
    assert channel.unread() == 0
    channel.send(b"12345678")
    assert channel.unread() == 16
    channel.send(BIG)  # more than a pipe holds
    assert channel.unread() == 16 + 8 + len(BIG)
    channel.connected()  # nobody reads any more
    await asyncio.sleep(0)
    channel.send(b"lost")
    channel.drain()
    channel.close()
    channel.close()
    channel.send(b"lost too")
    channel.drain()
    assert channel.unread() == 0


async def test_a_full_pipe_is_written_again_when_there_is_room():
    channel = Channel(asyncio.get_running_loop(), lambda frame: None)
    end = WorkerEnd(channel.paths, lambda descriptor: descriptor)
    channel.connected()
    frame = b"x" * 4088  # with its head a page: so many fill the pipe, and none is torn
    count = 0
    while not channel._unsent:
        channel.send(frame)
        count += 1
    channel._send_rest()  # as when another writer took the room
    received = await asyncio.to_thread(lambda: [end.receive() for _ in range(count)])
    assert received == [frame] * count
    end.close()
    channel.close()


async def test_what_a_worker_did_not_take_before_it_died_is_let_go():
    channel = Channel(asyncio.get_running_loop(), lambda frame: None)
    end = WorkerEnd(channel.paths, lambda descriptor: descriptor)
    channel.connected()
    channel.send(BIG)
    end.close()
    channel._send_rest()  # the loop would do it
    assert not channel._unsent
    channel.close()


async def test_all_that_has_come_is_taken_however_little_is_read_at_once(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 16)
    frames = []
    channel = Channel(asyncio.get_running_loop(), frames.append)
    end = WorkerEnd(channel.paths, lambda descriptor: descriptor)
    end.send(b"x" * 24)
    end.send(b"y")
    channel.drain()
    assert frames == [b"x" * 24, b"y"]
    end.close()
    channel.close()


def test_a_channel_may_close_after_its_loop():
    loop = asyncio.new_event_loop()
    channel = Channel(loop, lambda frame: None)
    loop.remove_reader(channel._input)
    loop.close()
    channel.close()


def test_a_worker_whose_pool_is_gone_is_told():
    reading, writing = os.pipe()
    base = f"/proc/{os.getpid()}/fd" if sys.platform == "linux" else "/dev/fd"
    end = WorkerEnd((f"{base}/{reading}", f"{base}/{writing}"), lambda descriptor: descriptor)
    os.close(writing)
    os.close(end._output)
    with pytest.raises(EOFError):
        end.receive()
    end.close()
    os.close(reading)


def test_frames_are_cut_off_the_front():
    data = bytearray(
        (3).to_bytes(8, sys.byteorder) + b"abc" + (2).to_bytes(8, sys.byteorder) + b"d"
    )
    assert frames_in(data) == [b"abc"]
    assert frames_in(data) == []
    data += b"e"
    assert frames_in(data) == [b"de"]
    assert not data
