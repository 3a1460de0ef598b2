"""What several calls of a run need travels to each worker once."""

import os

import pytest

from quantum_async import ExecutionError, QuantumPartitioner

LOADED = "QUANTUM_LOADED"


class Counted:
    """Counts in a worker's environment how often it was unpickled there."""

    def __init__(self, size):
        self.content = b"x" * size

    def __reduce__(self):
        return _loaded, (self.content,)


def _loaded(content):
    os.environ[LOADED] = str(int(os.environ.get(LOADED, 0)) + 1)
    return Counted(len(content))


def seen(value):
    return len(value.content), os.getpid(), int(os.environ[LOADED])


def of_context(ctx):
    return seen(ctx["corpus"])


def of_parameter(corpus):
    return seen(corpus)


@pytest.mark.parametrize("size", [5_000, 500_000])
async def test_the_input_travels_at_most_once_a_worker_and_run(size):
    flow = QuantumPartitioner()
    for number in range(10):
        flow.add_unit(of_context, name=f"context {number}", mode="process")
        flow.unit(of_parameter, name=f"parameter {number}", mode="process")
    for run in (1, 2):
        result = await flow.run({"corpus": Counted(size), "other": 1})
        assert {one[0] for one in result.values()} == {size}
        assert max(one[2] for one in result.values()) <= run


async def test_an_input_that_is_no_mapping_travels_too():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: len(ctx.input), name="small", mode="process")
    flow.add_unit(lambda ctx: len(ctx.input), name="again", mode="process")
    assert (await flow.run("x" * 100_000))["again"] == 100_000
    assert (await flow.run([1, 2]))["small"] == 2


async def test_the_same_object_twice_in_the_input_is_the_same_there():
    shared = list(range(2_000))
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: ctx["a"] is ctx["b"], name="same", mode="process")
    assert (await flow.run({"a": shared, "b": shared}))["same"]


class Unloadable:
    def __init__(self):
        self.content = "x" * 10_000

    def __setstate__(self, state):
        raise ValueError("not here")


async def test_an_input_that_cannot_be_unpickled_fails_the_units_that_take_it():
    flow = QuantumPartitioner()
    flow.unit(lambda bad: bad, name="takes", mode="process")
    flow.unit(lambda good: good, name="leaves", mode="process")
    with pytest.raises(ExecutionError) as caught:
        await flow.run({"bad": Unloadable(), "good": 1})
    assert list(caught.value.errors) == ["takes"]
    assert isinstance(caught.value.errors["takes"], ValueError)
    assert caught.value.result["leaves"] == 1


async def test_a_closure_is_sent_as_it_is_at_each_call():
    calls = []

    def count(_):
        calls.append(1)
        return len(calls)

    flow = QuantumPartitioner(max_workers=1)
    for _ in range(3):
        flow.add_unit(count, mode="process")
    assert list((await flow.run()).values()) == [1, 1, 1]
