"""What becomes of a worker's output when its pipe takes no more: the worker goes on.

A process of its own is both sides, so that it is certain when the pipe is full.
"""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from quantum_async.engine.executors.capture import DROPPED, STDOUT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BOTH_SIDES = """
import json, os, resource, sys
from quantum_async.engine.executors import capture
from quantum_async.engine.executors.capture import DROPPED, HEADER, STDOUT, high

reading, writing = os.pipe()
os.set_blocking(reading, False)
capture.install(f"/proc/self/fd/{writing}")
line, real_stdout = capture._line, os.fdopen(os.dup(1), "w")

def read():
    "Return the frames that are there, as kinds and contents."
    data, found = b"", []
    while True:
        try:
            data += os.read(reading, 1 << 20)
        except BlockingIOError:
            break
    while data:
        _, kind, _, _, _, length = HEADER.unpack_from(data)
        found.append((kind, data[HEADER.size:HEADER.size + length].decode()))
        data = data[HEADER.size + length:]
    return found

def fill():
    "Write until the pipe is full to the last byte."
    for piece in (b"x" * 4000, b"x"):
        while line._send(STDOUT, piece):
            pass

def told(value):
    json.dump(value, real_stdout)
    real_stdout.close()

class Room:
    "Says that there is room again, and first makes some if it is to."
    def __init__(self, reads):
        self.reads = reads
        self.asked = 0
    def poll(self, patience):
        self.asked += 1
        return [self.reads and read()]

read()  # the greeting
capture.begin(1)
"""


def come_of(body):
    ran = subprocess.run(
        [sys.executable, "-c", BOTH_SIDES + dedent(body)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    return json.loads(ran.stdout)


def test_what_was_dropped_is_told_as_soon_as_there_is_room():
    lost, frames = come_of("""
        fill()
        print("y" * 99)
        lost = line._allowance.dropped
        read()
        print("z")
        told([lost, read()])
    """)
    assert lost == 4001 + 100
    assert frames == [[DROPPED, str(lost)], [STDOUT, "z\n"]]


def test_a_full_pipe_is_waited_for_and_then_written():
    asked, frames = come_of("""
        fill()
        capture.begin(2)
        line._room = Room(reads=True)
        print("z")
        told([line._room.asked, read()])
    """)
    assert asked == 1
    assert frames == [[STDOUT, "z\n"]]


def test_room_that_another_worker_took_is_not_waited_for_again_and_again():
    asked, dropped = come_of("""
        fill()
        capture.begin(2)
        line._room = Room(reads=False)
        print("z")
        print("z")
        told([line._room.asked, line._allowance.dropped])
    """)
    assert asked == 2
    assert dropped == 4


def test_a_unit_that_closed_the_pipe_goes_on():
    assert (
        come_of("""
        os.close(line._pipe)
        print("lost")
        told("goes on")
    """)
        == "goes on"
    )


def test_a_descriptor_stays_where_it_is_if_there_are_not_so_many():
    assert come_of("""
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        told(high(reading) == reading)
    """)
