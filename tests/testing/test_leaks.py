"""What was left behind is found: in a process, and on a loop."""

import asyncio
import os
import subprocess
import sys
import threading

import anyio
import pytest

from quantum_async import testing
from quantum_async.testing import leaks
from quantum_async.testing.leaks import Resources, begun_tasks


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(leaks, "SECONDS_TO_END", 0.01)


def test_nothing_is_left_of_nothing():
    before = Resources.now()
    left = Resources.left_since(before)
    assert not left
    assert str(left) == ""


def test_a_thread_is_found():
    before, released = Resources.now(), threading.Event()
    thread = threading.Thread(target=released.wait, args=(10,), name="left alone")
    thread.start()
    try:
        assert str(Resources.left_since(before)) == "thread 'left alone'"
    finally:
        released.set()
        thread.join()


def test_a_thread_that_is_about_to_end_gets_the_time(monkeypatch):
    monkeypatch.setattr(leaks, "SECONDS_TO_END", 10)
    before, released = Resources.now(), threading.Event()
    thread = threading.Timer(0.02, released.set)
    thread.start()
    assert not Resources.left_since(before)
    assert released.is_set()
    thread.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of them")
def test_a_descriptor_and_a_child_process_are_found():
    before = Resources.now()
    reading, writing = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=reading)
    try:
        left = Resources.left_since(before)
        assert left.children == {child.pid}
        assert {number for number, _ in left.descriptors} == {reading, writing}
        assert "python" in str(left)
    finally:
        os.close(writing)
        os.close(reading)
        child.wait()
    assert not Resources.left_since(before)


def test_what_only_a_circle_holds_is_closed_first():
    before = Resources.now()

    class Node:
        def __init__(self):
            self.descriptors, self.me = os.pipe(), self

        def __del__(self):
            for descriptor in self.descriptors:
                os.close(descriptor)

    Node()
    assert not Resources.left_since(before)


def test_what_an_open_loop_keeps_can_be_spared():
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        before = Resources.now()
        runner.run(asyncio.to_thread(int))  # this thread is spared by nobody: it is no idle one
        other = asyncio.new_event_loop()
        try:
            left = Resources.left_since(before, spare_open_loops=True)
            assert {thread.name[:7] for thread in left.threads} == {"asyncio"}
            assert not left.descriptors  # of the other loop
            assert Resources.left_since(before).descriptors
        finally:
            other.close()
        assert not loop.is_closed()


def test_nothing_is_spared_when_no_loop_is_open():
    before = Resources.now()
    reading, writing = os.pipe()
    try:
        assert len(Resources.left_since(before, spare_open_loops=True).descriptors) == 2
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_task_that_outlives_its_block_is_found():
    never, left = asyncio.Event(), []
    before = asyncio.create_task(never.wait())
    async with begun_tasks(left):
        one = asyncio.create_task(never.wait(), name="one")
        ended = asyncio.create_task(never.wait(), name="cancelled")
        await asyncio.sleep(0)
        ended.cancel()
    assert left == ["task 'one'"]
    never.set()
    await asyncio.wait([before, one])


async def test_the_task_of_anyios_worker_processes_is_none_of_ours():
    left = []

    async def stay():
        await anyio.sleep_forever()

    async with begun_tasks(left):
        task = asyncio.create_task(stay(), name="AnyIO process pool shutdown task")
    assert left == []
    task.cancel()
    await asyncio.wait([task])


async def test_no_tasks_are_looked_for_after_an_error():
    left, tasks = [], []

    async def broken():
        async with begun_tasks(left):
            tasks.append(asyncio.create_task(asyncio.Event().wait()))
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await broken()
    assert left == []
    tasks[0].cancel()
    await asyncio.wait(tasks)


def test_the_command_of_a_process_that_is_gone_is_not_known():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert leaks._command(child.pid) == "gone by now"


def test_where_the_system_does_not_tell_of_them_none_are_found(monkeypatch):
    monkeypatch.setattr(leaks, "_HAS_CHILDREN", False)
    monkeypatch.setattr(leaks, "_HAS_DESCRIPTORS", False)
    assert list(leaks._children()) == list(leaks._descriptors()) == []


def test_a_name_that_the_kit_does_not_have_is_no_attribute_of_it():
    with pytest.raises(AttributeError, match=r"'quantum_async\.testing' has no attribute 'tset'"):
        testing.tset  # noqa: B018
