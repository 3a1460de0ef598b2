"""Around every test: what it began must have ended. And the profiles of hypothesis."""

import functools
import os
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings

from quantum_async.core import express as core_express
from quantum_async.core.scheduler import Scheduler
from quantum_async.engine import express as engine_express
from quantum_async.testing.leaks import Resources
from tests.support import measured, replay

pytest_plugins = ["pytester"]

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

if measured.is_measured():
    measured.let_idle_workers_exit()


@pytest.fixture(scope="session", autouse=True)
def _libuv_is_ready() -> None:
    """Have libuv open the pipe that it keeps, for signals, from its first loop on."""
    with suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture(scope="session", autouse=True)
def _scheduler_is_checked() -> None:
    """Check the invariants of every scheduler after each of its steps, where that is quick."""
    for name in ("complete", "fail", "give_up", "retry", "wake", "cancel_waiting"):
        step: Callable[..., Any] = getattr(Scheduler, name)

        @functools.wraps(step)
        def checked(
            self: Scheduler, *args: Any, step: Callable[..., Any] = step, **options: Any
        ) -> Any:
            done = step(self, *args, **options)
            if len(self.phase) <= 40:
                self.check_invariants()
            return done

        setattr(Scheduler, name, checked)

    def checked_express(scheduler: Scheduler, going: Container[int]) -> Iterator[int]:
        for unit in core_express.express(scheduler, going):
            if len(scheduler.phase) <= 40:
                scheduler.check_invariants()
            yield unit

    engine_express.express = checked_express


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that a test starts be as quick as they are without coverage."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _runs_are_told_again() -> None:
    """Fold the events of every small run that somebody listens to, and compare with its result."""
    replay.check_every_run()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or a file descriptor behind.

    Fixtures of a module or session are set up before this one, and an event loop is closed before
    it looks, so that only the test's own things are counted.
    """
    before = Resources.now()
    yield
    left = Resources.left_since(before)
    if left:
        pytest.fail(f"left behind: {left}", pytrace=False)
