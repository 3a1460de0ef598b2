"""The pytest plugin: fixtures for tests of code that is built on quantum_async.

Nothing of the engine is imported before a test asks for one of the fixtures.
"""

import asyncio
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from quantum_async import QuantumPartitioner
    from quantum_async.testing.clock import VirtualClock
    from quantum_async.testing.recorder import RunRecorder

_FIXTURE = "virtual_clock"
# The clock of the test that runs: whichever is set up first, its fixture or its loop, makes it.
_current: "list[VirtualClock]" = []
_recorders = pytest.StashKey["RunRecorder"]()


def _new_loop() -> asyncio.AbstractEventLoop:
    from quantum_async.testing.clock import VirtualClock

    if not _current:
        _current.append(VirtualClock())
    return _current[0].new_loop()


class _LoopFactories:
    """Tells pytest-asyncio of our loop, while it looks at a test that asks for virtual time."""

    @pytest.hookimpl(tryfirst=True, specname="pytest_asyncio_loop_factories")
    def loop_factories(self) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        return {"virtual": _new_loop}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """Give tests that ask for virtual time a loop on it."""
    if _FIXTURE not in metafunc.fixturenames:
        return (yield)
    if "anyio_backend" in metafunc.fixturenames:
        # One that was chosen for uvloop or trio cannot be on virtual time: ours goes over it.
        metafunc.parametrize(
            "anyio_backend", [("asyncio", {"loop_factory": _new_loop})], ids=["virtual"]
        )
    manager = metafunc.config.pluginmanager
    if not hasattr(metafunc.config.hook, "pytest_asyncio_loop_factories"):
        return (yield)
    ours = _LoopFactories()
    manager.register(ours)
    try:
        return (yield)
    finally:
        manager.unregister(ours)


@pytest.fixture
def virtual_clock(request: pytest.FixtureRequest) -> "Iterator[VirtualClock]":
    """A virtual clock: the test's own loop, and loops that the test starts, live by it.

    An asynchronous test runs on virtual time, under pytest-asyncio and under anyio's plugin. A
    plain test may call ``asyncio.run`` or `execute`.
    """
    from quantum_async.engine.loops import running_loop
    from quantum_async.testing.clock import VirtualClock, VirtualTimeLoop, virtual_time

    loop = running_loop()
    if loop is not None and not isinstance(loop, VirtualTimeLoop):
        kind = f"{type(loop).__module__}.{type(loop).__name__}"
        pytest.fail(
            f"virtual_clock: this test runs on {kind}, whose clock cannot be replaced; a loop that "
            "is shared between tests, or a uvloop one, cannot be on virtual time",
            pytrace=False,
        )
    try:
        if loop is not None:
            yield loop.clock
            return
        if not _current:
            _current.append(VirtualClock())
        with virtual_time(_current[0]) as clock:
            yield clock
    finally:
        _current.clear()


@pytest.fixture
def partitioner() -> "Iterator[QuantumPartitioner[Any, Any]]":
    """A fresh partitioner; the test fails if its runs leave a thread, process or descriptor."""
    from quantum_async import QuantumPartitioner
    from quantum_async.testing.leaks import Resources

    before = Resources.now()
    yield QuantumPartitioner()
    left = Resources.now().beyond(before).but_for_a_loop()
    if left:
        left = Resources.left_since(before).but_for_a_loop()
    if left:
        pytest.fail(f"left behind by the runs of this test: {left}", pytrace=False)


@pytest.fixture
def record_run(request: pytest.FixtureRequest) -> "Iterator[RunRecorder]":
    """Records the runs that start in the test; if it fails, the report shows their timelines."""
    from quantum_async.testing.recorder import RunRecorder

    recorder = RunRecorder()
    request.node.stash[_recorders] = recorder
    with recorder:
        yield recorder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the timelines of recorded runs into the report of a failed test."""
    report = yield
    if report.failed and (recorder := item.stash.get(_recorders, None)) is not None:
        for number, text in enumerate(recorder.timelines(), 1):
            report.sections.append((f"run {number}", text))
    return report
