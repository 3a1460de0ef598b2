"""Coroutine functions that misuse the loop, their task, or what cancels them."""

import asyncio
import gc
import signal
import warnings

import anyio
import tenacity

from quantum_async import UnitTimeoutError
from tests.zoo.animals import CANCELED, COMPLETED, FAILED, TIMEOUT, animal

# A coroutine function is let loose as it is ("task"), and with a time limit ("scope") that it does
# not reach; those that are about a limit have their own.
TASK = ("task",)
BOTH = ("task", "scope")

SWALLOWS = "swallows the cancellation and returns"
CLEAN_UP = "error in clean-up during a cancellation"
BY_ITSELF = "raises CancelledError by itself"
THROUGH = "leave through the loop"
SHIELD = "straight through an anyio shield"
AGAIN = "re-delivers a cancelled scope's cancellation"
OUTSIDE = "cancelled from outside the run"
CALLER = "the caller was cancelled"
SOON = {"timeout": 0.01}


# -- cancel ---------------------------------------------------------------------------------------


@animal(BOTH, state=CANCELED, cause=OUTSIDE, rows=(BY_ITSELF,))
async def cancels_its_own_task(ctx):
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


@animal(BOTH, result="all the same", rows=(BY_ITSELF,))
async def cancels_its_own_task_and_returns(ctx):
    asyncio.current_task().cancel()
    return "all the same"


@animal(BOTH, state=FAILED, error=ValueError, rows=(BY_ITSELF,))
async def cancels_its_own_task_and_raises(ctx):
    asyncio.current_task().cancel()
    raise ValueError


@animal(BOTH, state=CANCELED, cause=OUTSIDE, rows=(SHIELD,))
async def cancels_its_own_task_in_a_shield(ctx):
    with anyio.CancelScope(shield=True):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)


@animal(BOTH, result="went on", rows=(BY_ITSELF, "never `uncancel()` what is not ours"))
async def takes_its_cancellation_back(ctx):
    task = asyncio.current_task()
    task.cancel()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        task.uncancel()
    await asyncio.sleep(0)
    return "went on"


@animal(BOTH, result="went on", rows=("never `uncancel()` what is not ours",))
async def takes_back_cancellations_that_never_were(ctx):
    for _ in range(3):
        asyncio.current_task().uncancel()
    await asyncio.sleep(0)
    return "went on"


@animal(BOTH, error=asyncio.CancelledError, rows=(BY_ITSELF,))
async def awaits_what_was_cancelled(ctx):
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@animal(BOTH, error=asyncio.CancelledError, rows=(BY_ITSELF,))
async def awaits_a_task_that_was_cancelled(ctx):
    task = asyncio.ensure_future(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


@animal(BOTH, state=CANCELED, escapes=asyncio.CancelledError, cause=CALLER)
async def cancels_the_run(ctx):
    ctx["caller"].cancel()
    await asyncio.sleep(60)


@animal(BOTH, state=COMPLETED, result="all the same", escapes=asyncio.CancelledError)
async def cancels_the_run_and_returns(ctx):
    ctx["caller"].cancel()
    return "all the same"


@animal(BOTH, state=CANCELED, escapes=asyncio.CancelledError, cause=CALLER)
async def presses_ctrl_c(ctx):
    signal.raise_signal(signal.SIGINT)  # `asyncio.Runner` makes a cancellation of it
    await asyncio.sleep(60)


@animal(BOTH, state=CANCELED, escapes=asyncio.CancelledError)
async def cancels_everybody(ctx):
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(60)


@animal(BOTH, result="left", rows=(BY_ITSELF,))
async def cancels_a_scope_of_its_own(ctx):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await asyncio.sleep(60)
    return "left"


# -- resist cancellation --------------------------------------------------------------------------


@animal(
    TASK,
    state=TIMEOUT,
    error=UnitTimeoutError,
    options=SOON,
    rows=(SWALLOWS, AGAIN),
)
async def swallows_its_timeout(ctx):
    for _ in range(3):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue
    return "late"


@animal(TASK, result="never noticed", options=SOON, rows=(SHIELD, "completion in one tick"))
async def is_shielded_from_its_timeout_to_the_end(ctx):
    with anyio.CancelScope(shield=True):
        await asyncio.sleep(0.03)
    return "never noticed"


@animal(TASK, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(SHIELD, AGAIN))
async def is_shielded_from_its_timeout_for_a_while(ctx):
    with anyio.CancelScope(shield=True):
        await asyncio.sleep(0.03)
    await asyncio.sleep(60)


@animal(TASK, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(CLEAN_UP,))
async def raises_while_it_is_timed_out(ctx):
    try:
        await asyncio.sleep(60)
    finally:
        raise ValueError("in clean-up")


@animal(TASK, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(CLEAN_UP,))
async def exits_while_it_is_timed_out(ctx):
    try:
        await asyncio.sleep(60)
    finally:
        raise SystemExit("in clean-up")


@animal(
    TASK,
    state=FAILED,
    error=KeyboardInterrupt,
    escapes=KeyboardInterrupt,
    options=SOON,
    rows=(CLEAN_UP, THROUGH),
)
async def is_interrupted_while_it_is_timed_out(ctx):
    try:
        await asyncio.sleep(60)
    finally:
        raise KeyboardInterrupt


@animal(
    TASK,
    state=TIMEOUT,
    error=UnitTimeoutError,
    attempts=2,
    rows=("per-attempt timeout",),
    options={
        "timeout": 0.01,
        "retry": tenacity.Retrying(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none()),
    },
)
async def hangs_at_each_attempt(ctx):
    await asyncio.sleep(60)


@animal(
    TASK,
    error=SystemExit,
    rows=("catch-all predicate",),
    options={
        "retry": tenacity.Retrying(
            stop=tenacity.stop_never, wait=tenacity.wait_none(), retry=lambda state: True
        )
    },
)
async def exits_though_everything_is_tried_again(ctx):
    await asyncio.sleep(0)
    raise SystemExit


# -- policies that misbehave ----------------------------------------------------------------------


def _exits(*_):
    raise SystemExit("from a policy")


def _interrupts(*_):
    raise KeyboardInterrupt


def _policy(**strategies):
    given = {"stop": tenacity.stop_after_attempt(2), "wait": tenacity.wait_none()} | strategies
    return {"retry": tenacity.Retrying(**given)}


@animal(BOTH, error=ValueError, says="the unit's", options=_policy(stop=_exits))
async def has_a_stop_that_exits(ctx):
    raise ValueError("the unit's")


@animal(BOTH, error=ValueError, escapes=KeyboardInterrupt, options=_policy(stop=_interrupts))
async def has_a_stop_that_is_interrupted(ctx):
    raise ValueError("the unit's")


@animal(BOTH, error=ValueError, says="the unit's", options=_policy(wait=lambda _: "long"))
async def has_a_wait_that_is_no_number(ctx):
    raise ValueError("the unit's")


@animal(BOTH, error=SystemExit, says="from a policy", options=_policy(retry=_exits))
async def has_a_predicate_that_exits_over_its_value(ctx):
    return "fine"


@animal(BOTH, error=SystemExit, says="from a policy", options={"fallback": _exits})
async def has_a_fallback_that_exits(ctx):
    raise ValueError("the unit's")


@animal(BOTH, error=KeyboardInterrupt, escapes=KeyboardInterrupt, options={"fallback": _interrupts})
async def has_a_fallback_that_is_interrupted(ctx):
    raise ValueError("the unit's")


# -- leave things behind --------------------------------------------------------------------------


@animal(BOTH, result="left")
async def leaves_a_task_behind(ctx):
    leaves_a_task_behind.task = asyncio.ensure_future(asyncio.sleep(60))
    return "left"


_scopes = []


@animal(BOTH, result="left", tidy=_scopes.clear)
async def leaves_a_scope_open(ctx):
    _scopes.append(anyio.CancelScope())
    _scopes[-1].__enter__()
    return "left"


@animal(BOTH, result="left", tidy=_scopes.clear)
async def leaves_a_cancelled_scope_open(ctx):
    _scopes.append(anyio.CancelScope())
    _scopes[-1].__enter__()
    _scopes[-1].cancel()
    return "left"


@animal(BOTH, result="left")
async def leaves_a_timeout_open(ctx):
    await asyncio.timeout(0.001).__aenter__()
    return "left"


async def _numbers():
    try:
        for number in range(3):
            yield number
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)


@animal(BOTH, result=0)
async def leaves_an_asynchronous_generator_open(ctx):
    leaves_an_asynchronous_generator_open.left = numbers = _numbers()
    return await anext(numbers)


@animal(BOTH, result="left", noise="never retrieved")
async def leaves_an_error_unread(ctx):
    future = asyncio.get_running_loop().create_future()
    future.set_exception(ValueError("unread"))
    del future
    gc.collect()
    return "left"


# -- tasks of their own ---------------------------------------------------------------------------


async def _fail_at_once():
    raise ValueError("at once")


async def _exit_soon():
    await asyncio.sleep(0)
    raise SystemExit("from a child")


@animal(BOTH, error=ExceptionGroup, rows=("failed before its first suspension",))
async def has_a_task_group_that_fails_at_once(ctx):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(_fail_at_once())


@animal(BOTH, error=ExceptionGroup, rows=("failed before its first suspension",))
async def has_a_task_group_of_anyio_that_fails_at_once(ctx):
    async with anyio.create_task_group() as group:
        group.start_soon(asyncio.sleep, 60)
        group.start_soon(_fail_at_once)


@animal(TASK, state=CANCELED, escapes=SystemExit, noise="never retrieved", rows=(THROUGH,))
async def has_a_task_that_exits(ctx):
    # Not a task of ours: this leaves through the loop, and the program ends.
    task = asyncio.get_running_loop().create_task(_exit_soon())
    await asyncio.sleep(60)
    await task


@animal(BOTH, result="collected", rows=("only weakly held",))
async def is_looked_at_by_the_collector(ctx):
    loop = asyncio.get_running_loop()
    for _ in range(2):
        loop.call_soon(gc.collect)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return "collected"


@animal(BOTH, error=RuntimeError, says="await on itself")
async def awaits_itself(ctx):
    await asyncio.current_task()


class _Odd:
    def __await__(self):
        yield "not a future"


@animal(BOTH, error=RuntimeError, says="bad yield")
async def yields_what_is_no_future(ctx):
    await _Odd()


# -- the loop -------------------------------------------------------------------------------------


@animal(BOTH, error=RuntimeError, says="running")
async def closes_the_loop(ctx):
    asyncio.get_running_loop().close()


@animal(BOTH, error=RuntimeError, says="running")
async def runs_the_loop_again(ctx):
    loop = asyncio.get_running_loop()
    loop.run_until_complete(loop.create_future())


@animal(TASK, state=CANCELED, escapes=RuntimeError)
async def stops_the_loop(ctx):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)


def _refuse(*_, **__):
    raise RuntimeError("no tasks today")


@animal(BOTH, result="broken", tidy=lambda: asyncio.get_running_loop().set_task_factory(None))
async def breaks_the_task_factory(ctx):
    asyncio.get_running_loop().set_task_factory(_refuse)
    await asyncio.sleep(0)
    return "broken"


@animal(BOTH, error=UserWarning, says="mine")
async def warns(ctx):
    warnings.warn("mine", UserWarning, stacklevel=1)
