"""Functions that only a process of its own can bear."""

import asyncio
import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

from quantum_async import UnitTimeoutError, WorkerCrashedError
from tests.support.carried import NotHereError, RaisesHere
from tests.zoo.animals import TIMEOUT, animal

PROCESS = ("process",)
DEATH = "death says nothing"
POISON = "poisoned worker"
HANG = "**hangs**"
SIGINTS = "**wrong results** after Ctrl-C"
KEEP = "keep the environment, cwd"
ENDLESS = "`cancellable=False`"
SOON = {"timeout": 0.3}


# -- die ------------------------------------------------------------------------------------------


@animal(PROCESS, error=WorkerCrashedError, says="exit code 3", rows=(DEATH,))
def leaves_at_once(ctx):
    os._exit(3)


@animal(PROCESS, error=WorkerCrashedError, says="exit code 0", rows=(DEATH,))
def leaves_as_if_all_were_well(ctx):
    os._exit(0)


@animal(PROCESS, error=WorkerCrashedError, says="SIGKILL", rows=(DEATH,))
def kills_itself(ctx):
    os.kill(os.getpid(), signal.SIGKILL)


@animal(PROCESS, error=WorkerCrashedError, says="SIGSEGV", rows=(DEATH,))
def reads_where_nothing_is(ctx):
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


@animal(PROCESS, error=WorkerCrashedError, says="SIGTERM", rows=(DEATH,))
def terminates_itself(ctx):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@animal(PROCESS, error=WorkerCrashedError, rows=(DEATH,))
def closes_every_descriptor(ctx):
    os.closerange(0, 1024)


# -- do not end -----------------------------------------------------------------------------------


@animal(PROCESS, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(ENDLESS,))
def turns_for_ever(ctx):
    while True:
        pass


@animal(PROCESS, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(HANG,))
def stops_itself(ctx):
    os.kill(os.getpid(), signal.SIGSTOP)


@animal(PROCESS, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(ENDLESS,))
def is_deaf_to_signals(ctx):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)


@animal(PROCESS, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(ENDLESS,))
async def swallows_everything_in_a_loop_of_its_own(ctx):
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            continue


@animal(PROCESS, state=TIMEOUT, error=UnitTimeoutError, options=SOON, rows=(HANG,))
def waits_for_a_child_that_hangs(ctx):
    subprocess.run(["sleep", "60"])


# -- write and read where others do ---------------------------------------------------------------


@animal(PROCESS, result="wrote", rows=(HANG,))
def floods_its_standard_streams(ctx):
    for number in (1, 2):
        os.write(number, b"x" * 400_000)
    return "wrote"


@animal(PROCESS, result="", rows=(HANG,))
def reads_its_standard_input(ctx):
    return sys.stdin.read()


@animal(PROCESS, result=0, rows=(HANG,))
def has_a_child_that_reads_standard_input(ctx):
    return subprocess.run(["cat"]).returncode


@animal(PROCESS, result="closed")
def closes_its_standard_streams(ctx):
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
    sys.stdout = None
    return "closed"


@animal(
    PROCESS,
    error=ValueError,
    says="limit is",
    options={"max_result_bytes": 1_000_000},
    rows=(HANG,),
)
def returns_more_than_it_may(ctx):
    return bytes(5_000_000)


@animal(PROCESS, result=b"\1" * 5_000_000, rows=(HANG, "pickling runs on the event loop"))
def returns_much(ctx):
    return b"\1" * 5_000_000


# -- values that do not travel --------------------------------------------------------------------


@animal(PROCESS, error=NotHereError, rows=(POISON,))
def returns_what_cannot_be_unpickled_here(ctx):
    return RaisesHere()


class _TakesTheWorkerAlong:
    def __reduce__(self):
        os._exit(4)


@animal(PROCESS, error=WorkerCrashedError, says="exit code 4", rows=(DEATH,))
def dies_while_its_result_is_pickled(ctx):
    return _TakesTheWorkerAlong()


@animal(
    PROCESS,
    error=NotHereError,
    rows=(POISON,),
    options={"args": [RaisesHere(), b"x" * 2_000_000]},
)
def takes_what_cannot_be_unpickled_there(one, two):
    return "ran"


class _SaysItIsAnother:
    def __reduce__(self):
        return sys.exit, ("while it is unpickled",)


@animal(PROCESS, error=SystemExit, rows=(POISON,))
def returns_what_exits_when_it_is_unpickled(ctx):
    return _SaysItIsAnother()


# -- leave the worker in a state ------------------------------------------------------------------


@animal(PROCESS, result="interrupted", rows=(SIGINTS,))
def interrupts_itself(ctx):
    os.kill(os.getpid(), signal.SIGINT)
    return "interrupted"


@animal(PROCESS, result="/", rows=(KEEP,))
def changes_the_folder(ctx):
    os.chdir("/")
    return os.getcwd()


@animal(PROCESS, result="set", rows=(KEEP,))
def sets_an_alarm(ctx):
    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    return "set"


@animal(PROCESS, result="set", rows=(KEEP,))
def sets_signal_handlers(ctx):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "set"


@animal(PROCESS, result="forked")
def forks_and_both_return(ctx):
    os.fork()
    return "forked"


@animal(PROCESS, result="forked")
def forks_and_raises_in_the_child(ctx):
    if os.fork() == 0:
        raise ValueError("in the child")
    return "forked"


def _hang():
    time.sleep(60)


@animal(PROCESS, result="left")
def leaves_threads_and_children(ctx):
    threading.Thread(target=_hang).start()
    subprocess.Popen(["sleep", "60"])
    return "left"


@animal(PROCESS, error=WorkerCrashedError, options={"timeout": 5})
def breaks_pickle(ctx):
    def refuse(*_, **__):
        raise RuntimeError("no pickles today")

    pickle.dumps = pickle.loads = refuse
    pickle.Pickler = pickle.Unpickler = refuse
    return "broken"


@animal(PROCESS, result="set")
def allows_hardly_any_recursion(ctx):
    sys.setrecursionlimit(60)
    gc.disable()
    return "set"


@animal(PROCESS, error=OSError)
async def closes_the_selector_of_its_own_loop(ctx):
    os.close(asyncio.get_running_loop()._selector.fileno())
    await asyncio.sleep(0.01)
