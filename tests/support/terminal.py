"""A script in a session of its own, as in a terminal, and signals to all that is in it."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator

from tests.support import harm
from tests.support.processes import until

Script = subprocess.Popen[str]
To = Callable[[Script, signal.Signals], None]

_SCRIPT = """
    import signal, time
    from quantum_async import QuantumPartitioner

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    flow = QuantumPartitioner(default_execution_mode="process")

    def work(number):
        time.sleep({seconds})
        return number

    for number in range(4):
        flow.add_unit(work, name=f"unit {{number}}", args=[number])

    print("begins", flush=True)
    print(list(flow.execute({{}}).values()), flush=True)
"""


@contextlib.contextmanager
def script(seconds: float) -> Iterator[Script]:
    """Start a script that executes units in worker processes; nothing of it outlives the block.

    Args:
        seconds: How long each unit takes.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(textwrap.dedent(_SCRIPT.format(seconds=seconds)))
        file.flush()
        parent = subprocess.Popen(
            [sys.executable, file.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "begins\n"
            try:
                yield parent
            finally:
                for pid in harm.of_session(parent.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def to_parent(parent: Script, number: signal.Signals) -> None:
    os.kill(parent.pid, number)


def to_its_group(parent: Script, number: signal.Signals) -> None:
    os.killpg(parent.pid, number)


def to_all_its_groups(parent: Script, number: signal.Signals) -> None:
    for group in {os.getpgid(pid) for pid in harm.of_session(parent.pid)}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


TO: list[To] = [to_parent, to_its_group, to_all_its_groups]


def _ended(parent: Script) -> tuple[str, str]:
    """Wait for the end of a script, and of all its processes; return what it wrote."""
    out, err = parent.communicate(timeout=20)
    # The kernel ends the workers of a parent that was killed: nobody is told when.
    asyncio.run(until(lambda: not harm.of_session(parent.pid)))
    return out, err


def ended_by(number: signal.Signals, to: To, chance: random.Random) -> None:
    """Send a signal that ends the script, at a random moment.

    Raises:
        AssertionError: If it ends in another way, or a process of it is left.
    """
    with script(60) as parent:
        time.sleep(chance.random() * 0.4)
        to(parent, number)
        out, err = _ended(parent)
    assert out == ""
    if number == signal.SIGINT:
        assert parent.returncode in (130, -signal.SIGINT), err
        assert err.rstrip().endswith("KeyboardInterrupt"), err
    else:
        assert (parent.returncode, err) == (-number, "")


def goes_on_after_stops(to: To, chance: random.Random) -> None:
    """Stop the script for a while, some times over, as with Ctrl-Z and ``fg``.

    Raises:
        AssertionError: If it gives anything but its values.
    """
    with script(0.1) as parent:
        for _ in range(3):
            time.sleep(chance.random() * 0.1)
            if parent.poll() is None:
                to(parent, signal.SIGSTOP)
                time.sleep(chance.random() * 0.1)
                to(parent, signal.SIGCONT)
        assert _ended(parent) == ("[0, 1, 2, 3]\n", "")


def ended_by_many_interrupts(chance: random.Random) -> None:
    """Press Ctrl-C again and again, from a random moment on.

    Raises:
        AssertionError: If the script does not end by that, or a process of it is left.
    """
    with script(60) as parent:
        time.sleep(chance.random() * 0.4)
        while parent.poll() is None:
            to_its_group(parent, signal.SIGINT)
            time.sleep(chance.random() * 0.05)
        out, err = _ended(parent)
    assert out == ""
    assert parent.returncode != 0
    assert "KeyboardInterrupt" in err, (parent.returncode, err)
