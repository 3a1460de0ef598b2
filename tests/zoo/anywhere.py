"""Plain functions that raise and return what nobody should."""

import asyncio
import concurrent.futures
import dataclasses
import pickle
import sys
import threading

import tenacity

from quantum_async import (
    ExecutionError,
    InternalError,
    QuantumPartitioner,
    RemoteError,
    UnitTimeoutError,
)
from tests.support.carried import request
from tests.zoo.animals import AWAY, EVERYWHERE, FAILED, HERE, ON_LOOP, TIMEOUT, animal, in_modes

OTHERS = "SystemExit, GeneratorExit, other BaseException"
THROUGH = "leave through the loop"
TRAVEL = "two-argument `__init__`"
REMOTE = in_modes(AWAY, error=RemoteError)
IN_A_LOOP = (*ON_LOOP, "inline")


# -- raise what is no Exception -------------------------------------------------------------------


@animal(EVERYWHERE, error=SystemExit, says="bye", rows=(OTHERS, THROUGH, TRAVEL))
def calls_sys_exit(ctx):
    sys.exit("bye")


@animal(EVERYWHERE, error=GeneratorExit, rows=(OTHERS,))
def raises_generator_exit(ctx):
    raise GeneratorExit


class OddError(BaseException):
    pass


@animal(EVERYWHERE, error=OddError, says="odd", rows=(OTHERS,))
def raises_a_base_exception_of_its_own(ctx):
    raise OddError("odd")


@animal(EVERYWHERE, error=BaseExceptionGroup, says="2 sub-exceptions", rows=(OTHERS,))
def raises_a_base_exception_group(ctx):
    raise BaseExceptionGroup("both", [asyncio.CancelledError(), SystemExit(3)])


@animal(
    (*HERE, "process"), error=KeyboardInterrupt, escapes=KeyboardInterrupt, rows=(THROUGH, OTHERS)
)
def raises_keyboard_interrupt(ctx):
    raise KeyboardInterrupt


@animal(EVERYWHERE, error=asyncio.CancelledError, rows=("raises CancelledError by itself", TRAVEL))
def raises_cancelled_error(ctx):
    raise asyncio.CancelledError("by myself")


# A future of `concurrent.futures` that is awaited gives asyncio's errors for its own.
@animal(
    EVERYWHERE,
    error=concurrent.futures.CancelledError,
    differs=in_modes(("custom",), error=asyncio.CancelledError),
)
def raises_the_cancelled_error_of_futures(ctx):
    raise concurrent.futures.CancelledError


# -- raise what means something to those around it ------------------------------------------------


@animal(EVERYWHERE, error=(RuntimeError, StopIteration))
def raises_stop_iteration(ctx):
    raise StopIteration(7)


@animal(EVERYWHERE, error=StopAsyncIteration)
def raises_stop_async_iteration(ctx):
    raise StopAsyncIteration


@animal(EVERYWHERE, error=TimeoutError, says="mine")
def raises_timeout_error(ctx):
    raise TimeoutError("mine")


@animal(EVERYWHERE, error=UnitTimeoutError)
def raises_our_timeout_error(ctx):
    raise UnitTimeoutError("mine", "other", 1, 2.0, "timeout")


@animal(EVERYWHERE, error=InternalError)
def raises_our_internal_error(ctx):
    raise InternalError("mine")


@animal(EVERYWHERE, error=tenacity.TryAgain)
def raises_try_again(ctx):
    raise tenacity.TryAgain


@animal(EVERYWHERE, error=BrokenPipeError)
def raises_what_a_dead_worker_raises(ctx):
    raise BrokenPipeError("mine")


@animal(
    EVERYWHERE,
    error=concurrent.futures.InvalidStateError,
    differs=in_modes(("custom",), error=asyncio.InvalidStateError),
)
def raises_invalid_state(ctx):
    raise concurrent.futures.InvalidStateError


@animal(EVERYWHERE, error=MemoryError)
def asks_for_too_much_memory(ctx):
    return bytearray(1 << 56)


@animal(EVERYWHERE, error=RecursionError)
def recurses_without_end(ctx):
    return recurses_without_end(ctx)


# -- raise exceptions that bite -------------------------------------------------------------------


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@animal(EVERYWHERE, error=UnspeakableError, rows=(TRAVEL,))
def raises_what_cannot_be_told(ctx):
    raise UnspeakableError


class UnreducibleError(Exception):
    def __reduce__(self):
        raise RuntimeError("not with me")


@animal(EVERYWHERE, error=UnreducibleError, differs=REMOTE, rows=(TRAVEL,))
def raises_what_cannot_be_pickled(ctx):
    raise UnreducibleError


class TwoArgumentsError(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


@animal(EVERYWHERE, error=TwoArgumentsError, differs=REMOTE, says="1 and 2", rows=(TRAVEL,))
def raises_what_takes_two_arguments(ctx):
    raise TwoArgumentsError(1, 2)


class LockedError(Exception):
    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


@animal(EVERYWHERE, error=LockedError, differs=REMOTE, says="locked", rows=(TRAVEL,))
def raises_what_holds_a_lock(ctx):
    raise LockedError


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@animal(EVERYWHERE, error=FrozenError, differs=REMOTE)
def raises_what_is_frozen(ctx):
    raise FrozenError(7)


class StubbornError(Exception):
    def with_traceback(self, traceback):
        raise RuntimeError("no traceback")

    def add_note(self, note):
        raise RuntimeError("no note")


@animal(EVERYWHERE, error=StubbornError)
def raises_what_takes_no_traceback_and_no_note(ctx):
    raise StubbornError


class TellsItsOwnStoryError(Exception):
    __cause__ = property(lambda self: "a string")
    __traceback__ = property(lambda self: "another")
    __notes__ = property(lambda self: 1 / 0)


@animal(EVERYWHERE, error=TellsItsOwnStoryError)
def raises_what_tells_its_own_story(ctx):
    raise TellsItsOwnStoryError


class EqualToAllError(Exception):
    def __eq__(self, other):
        raise RuntimeError("not comparable")

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    def __len__(self):
        raise RuntimeError("no length")

    __hash__ = None


@animal(EVERYWHERE, error=EqualToAllError)
def raises_what_cannot_be_compared(ctx):
    raise EqualToAllError


@animal(EVERYWHERE, error=ValueError, rows=("kept in cycles",))
def raises_its_own_cause(ctx):
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__ = second
    first.itself = first
    raise first


ALWAYS_THE_SAME = ValueError("the same object each time")


@animal(
    HERE,
    error=ValueError,
    options={
        "retry": tenacity.Retrying(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
    },
    attempts=3,
)
def raises_the_same_object_again(ctx):
    raise ALWAYS_THE_SAME


@animal(EVERYWHERE, error=ValueError)
def raises_with_a_long_chain(ctx):
    error = ValueError("the last")
    link = error
    for number in range(2_000):
        link.__context__ = ValueError(number)
        link = link.__context__
    raise error


# -- return what nobody expects -------------------------------------------------------------------


class Unusable:
    """Nothing can be asked of it."""

    def _refuse(self, *_):
        raise RuntimeError("do not ask")

    __eq__ = __bool__ = __len__ = __repr__ = __str__ = __iter__ = __getitem__ = _refuse
    __await__ = __call__ = _refuse
    __hash__ = None


@animal(EVERYWHERE)
def returns_what_cannot_be_asked(ctx):
    return Unusable()


@animal(HERE, rows=("raises CancelledError by itself",))
def returns_a_cancelled_error(ctx):
    return asyncio.CancelledError()


@animal(EVERYWHERE, result=NotImplemented)
def returns_not_implemented(ctx):
    return NotImplemented


@animal(
    EVERYWHERE,
    differs=in_modes(AWAY, state=FAILED, error=TypeError),
)
def returns_a_lock(ctx):
    return threading.Lock()


@animal(
    EVERYWHERE,
    differs=in_modes(AWAY, state=FAILED, error=(RecursionError, pickle.PicklingError)),
)
def returns_what_is_too_deep_to_be_pickled(ctx):
    deep = []
    for _ in range(5_000):
        deep = [deep]
    return deep


async def _fails_later():
    await asyncio.sleep(0)
    raise ValueError("later")


@animal(("thread", "custom", "inline", "process"), error=ValueError, says="later")
def returns_a_coroutine_that_fails(ctx):
    return _fails_later()


# -- do what is not theirs to do ------------------------------------------------------------------


@animal(EVERYWHERE, result="set", rows=("inherits its contextvars",))
def sets_a_context_variable(ctx):
    request.set("left by another")
    return "set"


@animal(
    (*HERE, "process"),
    error=ExecutionError,
    says="inner",
    rows=("a nested run shares a limit of one",),
    differs=in_modes(IN_A_LOOP, error=RuntimeError, says="await"),
)
def executes_a_flow_that_fails(ctx):
    inner = QuantumPartitioner(name="inner", max_workers=1)
    inner.add_unit(lambda _: 1 / 0, name="inner")
    return inner.execute({})


async def _seven():
    return 7


@animal(
    (*HERE, "process"),
    result=7,
    differs=in_modes(IN_A_LOOP, state=FAILED, error=RuntimeError, says="running event loop"),
)
def starts_an_event_loop(ctx):
    coroutine = _seven()
    try:
        return asyncio.run(coroutine)
    finally:
        coroutine.close()


LET_GO = threading.Event()
_KEPT: list[threading.Thread] = []


def _join():
    LET_GO.set()
    while _KEPT:
        _KEPT.pop().join()
    LET_GO.clear()


@animal((*HERE, "process"), result="started", tidy=_join)
def leaves_a_thread_behind(ctx):
    _KEPT.append(threading.Thread(target=LET_GO.wait))
    _KEPT[-1].start()
    return "started"


@animal(
    ("thread",),
    state=TIMEOUT,
    error=UnitTimeoutError,
    options={"timeout": 0.02},
    cause="its thread",
    tidy=_join,
    rows=("gives the token back while the thread still runs",),
)
def outlives_its_timeout(ctx):
    LET_GO.wait(5)
