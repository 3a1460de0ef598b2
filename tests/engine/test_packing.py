"""What travels to worker processes, and what is said of that which cannot."""

import pickle
import sys
import threading
from types import ModuleType

import pytest

from quantum_async import ExecutionError, PlanError, QuantumPartitioner
from quantum_async.core.errors import UnpicklableUnitError
from quantum_async.engine.executors.packing import dumps, importable
from quantum_async.engine.executors.shares import quickly_packed
from quantum_async.engine.executors.transport import SPILL

LOCK = threading.Lock()


def plain(value):
    return value


@pytest.fixture
def made(monkeypatch):
    """A module that is nowhere but in this process."""
    module = ModuleType("made_for_a_test")
    monkeypatch.setitem(sys.modules, "made_for_a_test", module)
    exec("def triple(number):\n    return 3 * number", module.__dict__)
    importable.cache_clear()
    yield module
    importable.cache_clear()


@pytest.mark.parametrize("gone", [False, True])
def test_what_a_module_of_this_process_alone_defines_travels_by_value(made, monkeypatch, gone):
    dumps(made.triple)
    if gone:
        monkeypatch.delitem(sys.modules, "made_for_a_test")
    blob = dumps(made.triple)
    monkeypatch.delitem(sys.modules, "made_for_a_test", raising=False)
    assert pickle.loads(blob)(2) == 6


# -- what cannot travel, in words -------------------------------------------------------------


class Holder:
    def __init__(self):
        self.lock = threading.Lock()

    def method(self, ctx):
        return self.lock


def of_closure():
    a_number, lock = 1, threading.Lock()
    return lambda ctx: (a_number, lock)


def of_defaults(ctx, number=1, lock=LOCK):
    return number, lock


def of_keyword_defaults(ctx, *, number=1, lock=LOCK):
    return number, lock


# As if it were defined in a script: what stands beside it travels along.
of_global = eval("lambda ctx: (str(one), lock)", {"one": 1, "lock": LOCK, "__name__": "__main__"})


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (Holder().method, r"the object that it is a method of \(.*Holder\) is to blame"),
        (of_closure(), r"its variable 'lock' \(_thread.lock\) is to blame"),
        (of_global, r"the global 'lock' that it uses \(_thread.lock\) is to blame"),
    ],
)
def test_a_plan_names_what_a_unit_cannot_take_along(function, told):
    flow = QuantumPartitioner()
    flow.add_unit(function, name="unit", mode="process")
    with pytest.raises(PlanError, match=told):
        flow.build_execution_plan()


@pytest.mark.parametrize("function", [of_defaults, of_keyword_defaults])
def test_a_plan_names_default_values_that_cannot_travel(function):
    function.__module__ = "__main__"
    flow = QuantumPartitioner()
    flow.add_unit(function, name="unit", mode="process")
    with pytest.raises(PlanError, match=r"a default value of its \(_thread.lock\) is to blame"):
        flow.build_execution_plan()


class Callable:
    """Has no code that could be looked into, and cannot travel for no visible reason."""

    def __call__(self, ctx):
        return None

    def __reduce__(self):
        raise TypeError("I stay here")


def with_an_attribute():
    def function(ctx):
        return plain(str(ctx))

    function.stays_here = Callable()
    return function


@pytest.mark.parametrize("function", [Callable(), with_an_attribute()])
def test_a_plan_says_why_if_there_is_nobody_to_blame(function):
    flow = QuantumPartitioner()
    flow.add_unit(function, name="unit", mode="process")
    with pytest.raises(PlanError, match=r"cannot be sent to one: I stay here\. Pass plain data"):
        flow.build_execution_plan()


@pytest.mark.slow
@pytest.mark.parametrize("takes", ["its name", "the context", "an argument"])
async def test_a_run_names_what_a_unit_is_called_with_and_cannot_be_sent(takes):
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: threading.Lock(), name="lock", mode="thread")
    flow.add_unit(lambda ctx: 1, name="one", mode="thread")
    if takes == "its name":
        flow.unit(lambda one, lock: one, name="unit", mode="process")
    elif takes == "the context":
        flow.add_unit(lambda ctx: ctx["one"], ["one", "lock"], name="unit", mode="process")
    else:
        flow.add_unit(plain, name="unit", args=[flow.units["lock"]], mode="process")
    with pytest.raises(ExecutionError) as caught:
        await flow.run({"number": 1})
    error = caught.value.errors["unit"]
    assert isinstance(error, UnpicklableUnitError)
    who = "0" if takes == "an argument" else "lock"
    assert f"to blame: '{who}' (_thread.lock)." in str(error)
    assert "name what it needs as parameters" in str(error)


@pytest.mark.slow
async def test_an_input_that_cannot_be_shared_is_the_error_of_those_that_take_it():
    flow = QuantumPartitioner(failure_policy="collect", default_execution_mode="process")
    flow.unit(lambda lock: lock, name="takes")
    flow.unit(lambda number: number, name="leaves")
    result = await flow.run({"lock": threading.Lock(), "number": 1})
    assert "to blame: 'lock' (_thread.lock)" in str(result.errors["takes"])
    assert result["leaves"] == 1


@pytest.mark.parametrize(("count", "is_quick"), [(2, True), (32, False)])
def test_a_plain_call_is_packed_quickly_only_while_it_is_small(count, is_quick):
    strings = [chr(64 + place) * 10_000 for place in range(count)]
    assert (10_000 * count < SPILL) is is_quick
    assert (quickly_packed((dumps, (strings,), {})) is not None) is is_quick


def test_what_is_no_function_of_a_module_is_not_packed_quickly():
    assert quickly_packed((pow, (1, 2), {})) is None
