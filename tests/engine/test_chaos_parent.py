"""Signals to the parent and to everything in a terminal, at random moments of a blocking `execute`.

Whatever hits the parent, none of its processes is left: they are looked for by their session.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.support import harm
from tests.support.processes import until

SEEDS = range(60 if harm.FULL else 2)
SCRIPT = """
    import sys, time
    from quantum_async import QuantumPartitioner

    flow = QuantumPartitioner(default_execution_mode="process")

    def work(number):
        time.sleep({seconds})
        return number

    for number in range(4):
        flow.add_unit(work, name=f"unit {{number}}", args=[number])

    print("begins", flush=True)
    print(list(flow.execute({{}}).values()), flush=True)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        sys.platform != "linux", reason="only Linux ends children with their parent"
    ),
]


@contextlib.contextmanager
def script(tmp_path, seconds):
    """Start the script in a session of its own; see to it that nothing of it is left."""
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT.format(seconds=seconds)))
    parent = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with parent:
        assert parent.stdout.readline() == "begins\n", parent.stderr.read()
        try:
            yield parent
        finally:
            left = harm.of_session(parent.pid)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def to_parent(parent, number):
    os.kill(parent.pid, number)


def to_its_group(parent, number):
    os.killpg(parent.pid, number)


def to_all_its_groups(parent, number):
    for group in {os.getpgid(pid) for pid in harm.of_session(parent.pid)}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)


TO = [to_parent, to_its_group, to_all_its_groups]


def ended(parent):
    """Wait for the end of a script, and of all its processes; return what it wrote."""
    out, err = parent.communicate(timeout=20)
    # The kernel ends the workers of a parent that was killed: nobody is told when.
    asyncio.run(until(lambda: not harm.of_session(parent.pid)))
    return out, err


@pytest.mark.parametrize("to", TO, ids=lambda to: to.__name__)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_survives(name, to, tmp_path, record_property):
    number = getattr(signal, name)
    for seed in SEEDS:
        with script(tmp_path, 60) as parent:
            time.sleep(random.Random(seed).random() * 0.4)
            to(parent, number)
            out, err = ended(parent)
        assert out == "", f"seed {seed}"
        if name == "SIGINT":
            assert parent.returncode in (130, -signal.SIGINT), f"seed {seed}: {err}"
            assert err.rstrip().endswith("KeyboardInterrupt"), f"seed {seed}: {err}"
        else:
            assert parent.returncode == -number, f"seed {seed}: {err}"
            assert err == "", f"seed {seed}"
    record_property("signals", len(SEEDS))


@pytest.mark.parametrize("to", TO, ids=lambda to: to.__name__)
def test_what_is_stopped_for_a_while_goes_on(to, tmp_path):
    """As with Ctrl-Z and `fg`."""
    for seed in SEEDS:
        with script(tmp_path, 0.1) as parent:
            chance = random.Random(seed)
            for _ in range(3):
                time.sleep(chance.random() * 0.1)
                if parent.poll() is None:
                    to(parent, signal.SIGSTOP)
                    time.sleep(chance.random() * 0.1)
                    to(parent, signal.SIGCONT)
            out, err = ended(parent)
        assert (out, err) == ("[0, 1, 2, 3]\n", ""), f"seed {seed}"


def test_ctrl_c_again_and_again_ends_it_too(tmp_path):
    for seed in SEEDS:
        with script(tmp_path, 60) as parent:
            chance = random.Random(seed)
            time.sleep(chance.random() * 0.4)
            while parent.poll() is None:
                to_its_group(parent, signal.SIGINT)
                time.sleep(chance.random() * 0.05)
            out, err = ended(parent)
        assert out == "", f"seed {seed}"
        assert parent.returncode != 0, f"seed {seed}"
        assert "KeyboardInterrupt" in err, f"seed {seed}: {err}"
