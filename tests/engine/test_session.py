"""One worker process as the pool sees it: what is rare, and what other systems do."""

import asyncio
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest

from quantum_async import QuantumPartitioner, WorkerCrashedError
from quantum_async.engine.executors import session as module
from quantum_async.engine.executors.limits import WorkerLimits
from quantum_async.engine.executors.process import ProcessExecutor
from quantum_async.engine.executors.session import Crash, Session


@pytest.fixture
def child():
    """A process that a session may take for its worker."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture
async def session():
    ready = []
    session = Session(asyncio.get_running_loop(), "", ready.append)
    session.ready = ready
    yield session
    session._ended()


def met(pid):
    return pid.to_bytes(8, sys.byteorder)


async def test_a_worker_is_ready_also_where_nobody_watches_its_process(session, child, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    session._take(met(child.pid))
    assert session.ready == [session]
    session.kill()
    assert child.wait() < 0


async def test_one_that_is_not_ready_yet_cannot_be_killed(session):
    session.kill()
    assert not session.alive


async def test_an_answer_to_a_call_that_was_given_up_is_nobodys(session, child):
    session._take(met(child.pid))
    waiting = session.ask(1, "", b"", grace=0, limit=0)
    waiting.cancel()
    session._take(pickle.dumps((1, "returned", b"", b"", 0.0, child.pid, 0.0, 0)))
    assert session.uses == 1
    assert session.alive


async def test_one_that_is_dead_is_not_asked_to_clean_up(session, child):
    session._take(met(child.pid))
    session.kill()
    await asyncio.wait_for(session.clean_up(1, 60.0), 5)


async def test_how_much_memory_a_worker_holds_is_unknown_when_it_is_gone(session, child):
    session._take(met(child.pid))
    assert session.is_used_up(WorkerLimits(max_memory=1))
    child.kill()
    child.wait()
    assert not session.is_used_up(WorkerLimits(max_memory=1))


async def test_a_session_that_is_cancelled_is_cancelled(session, monkeypatch):
    async def run_sync(*_, **__):
        await asyncio.sleep(3600)

    monkeypatch.setattr(module.to_process, "run_sync", run_sync)
    serving = asyncio.ensure_future(session.serve())
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert session.error is None


async def test_an_error_that_knows_of_no_process_leaves_nothing_to_put_away(session, monkeypatch):
    async def run_sync(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(module.to_process, "run_sync", run_sync)
    await session.serve()
    assert str(session.error) == "no more processes"


def test_a_session_may_end_after_its_loop(child):
    loop = asyncio.new_event_loop()
    session = Session(loop, "", lambda session: None)
    loop.run_until_complete(asyncio.to_thread(int))
    session._take(met(child.pid))
    loop.remove_reader(session._watch)
    loop.remove_reader(session._channel._input)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    session._ended()
    assert session._watch == -1


@pytest.mark.parametrize(
    ("code", "told"),
    [(3, "exit code 3"), (-9, "SIGKILL"), (-200, "signal 200"), (None, "")],
)
def test_the_end_of_a_process_in_words(code, told):
    assert module._how_it_ended(SimpleNamespace(returncode=code)) == told


async def test_a_process_that_anyio_does_not_know_has_no_end_that_could_be_told():
    assert module._anyio_process(1) is None
    assert module._how_it_ended(None) == ""


@pytest.mark.slow
async def test_a_call_whose_workers_die_before_it_begins_is_not_sent_again_for_ever(monkeypatch):
    asked = []

    def ask(self, number, *_, **__):
        asked.append(number)
        self.kill()
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(Crash(begun=False, how="SIGKILL"))
        return answer

    monkeypatch.setattr(Session, "ask", ask)
    flow = QuantumPartitioner(failure_policy="collect", default_execution_mode="process")
    flow.add_unit(lambda _: 1, name="unit")
    error = (await flow.run({})).errors["unit"]
    assert isinstance(error, WorkerCrashedError)
    assert "no worker process lived long enough to start unit 'unit'" in str(error)
    assert len(asked) == 5


def test_what_is_under_way_no_more_is_not_dropped_again():
    executor = ProcessExecutor(1, SimpleNamespace())
    executor._drop([("unit", 1)], SimpleNamespace())
    assert executor._early == {}
