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
