"""A few seconds of `tests.torture`, in a process of its own: it changes the scheduler."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_few_seconds_of_it_find_nothing():
    command = [sys.executable, "-m", "tests.torture", "--minutes", "0.1"]
    root = Path(__file__).parent.parent
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "nothing went wrong" in ran.stdout
    for what in ("graphs", "steps", "cancels", "signals", "stories", "cold starts"):
        assert f" {what}" in ran.stdout


@pytest.mark.slow
def test_what_goes_wrong_is_told_with_the_line_that_shows_it_again():
    """A scheduler that loses a step is found, and the line that is printed finds it again."""
    root = Path(__file__).parent.parent
    broken = (
        "import sys; from quantum_async.core.scheduler import Scheduler; "
        "Scheduler.wake = lambda self, unit: None; "
        "import tests.torture.__main__ as torture; sys.exit(torture.main())"
    )
    told = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", broken, "--seed", "3", "--only", "orders"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert ran.returncode == 1, ran.stdout + ran.stderr
        assert "\npython -m tests.torture --seed 3 --only orders\n" in ran.stdout
        told.append(ran.stdout.splitlines()[0])
    assert told[0] == told[1]
