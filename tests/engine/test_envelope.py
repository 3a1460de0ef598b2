"""How a call is answered in a worker, and what of an answer is believed here."""

import os
import pickle
import sys
import threading
from types import SimpleNamespace

import pytest

from quantum_async import QuantumPartitioner, RemoteError
from quantum_async.engine.executors import envelope
from quantum_async.engine.executors.envelope import UNSENDABLE, any_pickle


@pytest.fixture
def flow():
    return QuantumPartitioner(default_execution_mode="process", failure_policy="collect")


@pytest.mark.slow
async def test_a_metric_that_cannot_travel_is_the_error_of_its_unit(flow):
    def measures(ctx):
        ctx.record_metric("lock", threading.Lock())
        return 1

    flow.add_unit(measures, name="unit")
    result = await flow.run({})
    assert isinstance(result.errors["unit"], TypeError)
    assert "return plain data" in "".join(result.errors["unit"].__notes__)


def test_what_cannot_travel_is_described():
    answered = envelope.answer(lambda: (threading.Lock, (), {}), any_pickle)
    assert answered.how == UNSENDABLE
    kind, message, trace, itself = pickle.loads(answered.content)
    assert (kind, message) == ("TypeError", str(pickle.loads(itself)))
    assert trace.startswith("Traceback")


class MuteError(Exception):
    def __str__(self):
        raise ValueError("I say nothing")


def test_an_exception_without_a_text_is_described_all_the_same():
    kind, message, *_ = pickle.loads(envelope._described(MuteError()))
    assert kind.endswith("MuteError")
    assert message == "<its __str__ raised>"


class StaysError(Exception):
    """Cannot be pickled at all."""

    def __init__(self):
        super().__init__("I stay")
        self.lock = threading.Lock()


def _only_in(pid):
    if os.getpid() != pid:
        raise OSError("not here")
    return LocalError(pid)


class LocalError(Exception):
    """Can be unpickled in its own process only."""

    def __reduce__(self):
        return _only_in, (os.getpid(),)


@pytest.mark.slow
@pytest.mark.parametrize("error", [StaysError, LocalError])
async def test_an_exception_that_cannot_travel_is_told_of(flow, error):
    def fails(_):
        raise error(*[0][: error is LocalError])

    flow.add_unit(fails, name="unit")
    told = (await flow.run({})).errors["unit"]
    assert isinstance(told, RemoteError)
    assert error.__name__ in str(told)
    assert any("in fails" in note for note in told.__notes__)


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_the_peak_is_what_getrusage_says_elsewhere_than_on_linux(monkeypatch, platform, unit):
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=77))
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(envelope.sys, "platform", platform)
    assert envelope._peak() == 77 * unit


def test_no_peak_is_known_where_nobody_tells_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert envelope._peak() == 0
