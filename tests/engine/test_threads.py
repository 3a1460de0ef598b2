"""`engine.threads`: units in threads that take the next one by themselves."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from quantum_async.core import graph
from quantum_async.core.errors import InternalError
from quantum_async.core.scheduler import NOBODY, Scheduler
from quantum_async.engine.threads import ThreadDriver


@dataclass
class Plan:
    """A graph of functions."""

    works: Sequence[Callable[[], Any]]
    edges_up: Sequence[tuple[int, ...]]

    @property
    def edges_down(self) -> graph.Edges:
        return graph.inverted(self.edges_up)

    @property
    def in_degrees(self) -> list[int]:
        return [len(ends) for ends in self.edges_up]


class Host:
    """Has the units' functions called, and keeps what they return in the order of their ends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ended: dict[int, Any] = {}

    def begin(self, unit: int) -> Callable[[], Any]:
        assert all(above in self.ended for above in self.plan.edges_up[unit])
        return self.plan.works[unit]

    def completed(self, unit: int, value: Any) -> None:
        self.ended[unit] = value


def driver_of(
    works: Sequence[Callable[[], Any]],
    edges_up: Sequence[tuple[int, ...]] | None = None,
    workers: int = 2,
    pool: ThreadPoolExecutor | None = None,
) -> tuple[ThreadDriver, Host]:
    plan = Plan(works, [()] * len(works) if edges_up is None else edges_up)
    host = Host(plan)
    spawn = None if pool is None else pool.submit
    return ThreadDriver(Scheduler(plan, None), host, workers, spawn), host


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 11])
def test_each_unit_runs_once_and_after_what_it_needs(workers: int) -> None:
    ran: list[int] = []
    works = [lambda number=number: ran.append(number) or -number for number in range(500)]
    edges_up = [tuple({number // 2, number // 3} - {number}) for number in range(500)]
    driver, host = driver_of(works, edges_up, workers)
    driver.run()
    assert driver.failed is None
    assert sorted(ran) == list(range(500))
    assert host.ended == {number: -number for number in range(500)}


def test_a_chain_stays_in_one_thread() -> None:
    works = [threading.get_ident] * 100
    driver, host = driver_of(works, [(), *((number,) for number in range(99))], workers=4)
    driver.run()
    assert len(set(host.ended.values())) == 1


def test_who_waits_is_woken_when_more_is_ready() -> None:
    # One, then two that only end together, again and again: the second thread waits between.
    works: list[Callable[[], Any]] = []
    edges_up: list[tuple[int, ...]] = []
    for step in range(20):
        barrier = threading.Barrier(2, timeout=10)
        works += [int, barrier.wait, barrier.wait]
        edges_up += [(3 * step - 2, 3 * step - 1) if step else (), (3 * step,), (3 * step,)]
    driver, host = driver_of(works, edges_up)
    driver.run()
    assert driver.failed is None
    assert len(host.ended) == 60


def test_the_first_failure_is_kept_and_ends_the_run() -> None:
    def fail() -> None:
        raise ValueError("no")

    driver, host = driver_of([int, fail, int], [(), (0,), (1,)])
    driver.run()
    assert driver.failed is not None
    unit, error = driver.failed
    assert (unit, str(error)) == (1, "no")
    assert list(host.ended) == [0]


def test_no_further_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def once(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", once)
    driver, host = driver_of([int] * 5, workers=3)
    driver.run()
    assert len(host.ended) == 5


def test_no_thread_at_all_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", never)
    driver, host = driver_of([int] * 5)
    with pytest.raises(RuntimeError, match="start new thread"):
        driver.run()
    assert host.ended == {}


def test_a_bug_of_the_host_ends_the_run() -> None:
    driver, host = driver_of([int, int])
    host.completed = None  # type: ignore[assignment, method-assign]
    driver.run()
    assert driver.failed is not None
    assert driver.failed[0] == NOBODY
    assert isinstance(driver.failed[1], TypeError)


def test_a_run_that_is_stuck_says_so() -> None:
    driver, _ = driver_of([int, int, int], [(), (2,), (1,)])
    driver.run()
    assert driver.failed is not None
    with pytest.raises(InternalError, match="the run is stuck"):
        raise driver.failed[1]


def test_a_run_inside_a_full_pool() -> None:
    with ThreadPoolExecutor(1) as pool:

        def inner() -> dict[int, Any]:
            driver, host = driver_of([int, int], pool=pool)
            driver.run()
            return host.ended

        driver, host = driver_of([inner, int], pool=pool)
        driver.run()
        assert host.ended == {0: {0: 0, 1: 0}, 1: 0}


def test_a_run_that_was_stopped_before() -> None:
    driver, host = driver_of([int])
    driver.stop()
    driver.run()
    assert host.ended == {}


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads")
def test_an_interruption_waits_for_what_runs() -> None:
    def interrupts() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.wait(10)
        return "ended"

    stopped = threading.Event()
    driver, host = driver_of([interrupts, int], [(), (0,)])
    stop = driver.stop

    def stops() -> None:
        stop()
        stopped.set()

    driver.stop = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        driver.run()
    assert host.ended == {0: "ended"}
