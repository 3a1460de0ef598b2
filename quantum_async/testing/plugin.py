"""The pytest plugin: fixtures for tests of code that is built on quantum_async.

Every test run loads it, whether it is used or not: so it imports neither the engine nor asyncio
before a test asks for one of the fixtures.
"""

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from quantum_async import QuantumPartitioner
    from quantum_async.testing.clock import VirtualClock
    from quantum_async.testing.recorder import RunRecorder

_OURS = _RECORD, _PARTITIONER, _CLOCK = "record_run", "partitioner", "virtual_clock"
_RUNNER = "_function_scoped_runner"  # of pytest-asyncio: it starts the test's own loop

_recorder = pytest.StashKey["RunRecorder"]()
_tasks_left = pytest.StashKey[list[str]]()


# -- the fixtures ---------------------------------------------------------------------------------


@pytest.fixture
def virtual_clock(request: pytest.FixtureRequest) -> "Iterator[VirtualClock]":
    """A virtual clock: the test's own loop, and loops that the test starts, live by it.

    An asynchronous test runs on virtual time, under pytest-asyncio and under anyio's plugin. A
    plain test may call ``asyncio.run`` or `execute`.
    """
    from quantum_async.testing.clock import virtual_time, why_not

    if not _is_for_pytest_asyncio(request.node):
        # anyio's plugin starts its loop later, as `asyncio.run` does in a plain test.
        with virtual_time() as clock:
            yield clock
        return
    if _loop_scope(request.node) != "function":
        pytest.fail(
            "virtual_clock: this test shares its loop with others, and they are not to have "
            'virtual time: give it its own with @pytest.mark.asyncio(loop_scope="function")',
            pytrace=False,
        )
    # Only this one loop: those of wider scopes, which may start next, serve other tests too.
    with virtual_time() as clock:
        loop = request.getfixturevalue(_RUNNER).get_loop()
    if not clock.drives(loop):
        pytest.fail(f"virtual_clock: {why_not(loop)}", pytrace=False)
    yield clock


@pytest.fixture
def partitioner(request: pytest.FixtureRequest) -> "Iterator[QuantumPartitioner[Any, Any]]":
    """A fresh partitioner; the test fails if it leaves a task, thread, process or descriptor."""
    from quantum_async import QuantumPartitioner
    from quantum_async.testing.leaks import Resources

    tasks: list[str] = []
    request.node.stash[_tasks_left] = tasks
    before = Resources.now()
    yield QuantumPartitioner()
    left = Resources.left_since(before, spare_open_loops=True)
    told = [*tasks, *([str(left)] if left else [])]
    if told:
        pytest.fail(f"left behind by this test: {'; '.join(told)}", pytrace=False)


@pytest.fixture
def record_run(request: pytest.FixtureRequest) -> "Iterator[RunRecorder]":
    """Records the runs that start in the test; if it fails, the report shows their timelines."""
    from quantum_async.testing.recorder import RunRecorder

    with RunRecorder() as recorder:
        request.node.stash[_recorder] = recorder
        yield recorder


# -- what makes them work -------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, None, None]:
    """Set our fixtures up before the loop starts; let users' loop factories stand back for them."""
    if not any(name in metafunc.fixturenames for name in _OURS):
        return (yield)
    _set_up_first(metafunc)
    factories = getattr(metafunc.config.hook, "pytest_asyncio_loop_factories", None)
    marker = metafunc.definition.get_closest_marker("asyncio")
    if (
        _CLOCK not in metafunc.fixturenames
        or factories is None
        or not factories.get_hookimpls()  # pytest-asyncio then asks asyncio for a loop
        or (marker is not None and "loop_factories" in marker.kwargs)
    ):
        return (yield)
    # For this one test: a plugin that answered always would replace the loops of all others.
    manager, ours = metafunc.config.pluginmanager, _LoopFactories()
    manager.register(ours)
    try:
        return (yield)
    finally:
        manager.unregister(ours)


class _LoopFactories:
    """Tells pytest-asyncio of our loop, while it looks at a test that asks for virtual time."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_asyncio_loop_factories(self) -> "dict[str, Callable[[], Any]]":
        from quantum_async.testing.clock import VirtualTimeLoop

        return {"virtual": VirtualTimeLoop}


def _set_up_first(metafunc: pytest.Metafunc) -> None:
    """Move our fixtures before all others of function scope: these may start the test's loop."""
    names = metafunc.fixturenames
    known = metafunc.definition._fixtureinfo.name2fixturedefs
    ours = [name for name in _OURS if name in names]
    others = [name for name in names if name not in ours]
    wider = [name for name in others if name in known and known[name][-1].scope != "function"]
    names[:] = [*wider, *ours, *(name for name in others if name not in wider)]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Look at the loop on which an asynchronous test runs, and at the tasks that it leaves."""
    given = getattr(item, "funcargs", {})
    place = _coroutine_function(item) if given.keys() & {_CLOCK, _PARTITIONER} else None
    if place is None:
        return (yield)
    owner, name = place
    test = getattr(owner, name)
    setattr(owner, name, _watched(test, given.get(_CLOCK), item.stash.get(_tasks_left, None)))
    try:
        return (yield)
    finally:
        setattr(owner, name, test)


def _watched(
    test: Callable[..., Any], clock: "VirtualClock | None", tasks_left: list[str] | None
) -> Callable[..., Any]:
    from quantum_async.engine.loops import running_loop
    from quantum_async.testing.clock import VirtualClock, why_not
    from quantum_async.testing.leaks import begun_tasks

    @functools.wraps(test)
    async def watched(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        loop = running_loop()
        if isinstance(clock, VirtualClock) and not clock.drives(loop):
            pytest.fail(f"virtual_clock: {why_not(loop)}", pytrace=False)
        if tasks_left is None or loop is None:
            return await test(*args, **kwargs)
        async with begun_tasks(tasks_left):
            return await test(*args, **kwargs)

    return watched


def _coroutine_function(item: pytest.Item) -> tuple[Any, str] | None:
    """Return who holds the coroutine function of an asynchronous test, and by which name."""
    if not isinstance(item, pytest.Function):
        return None
    by_hypothesis = getattr(item.obj, "hypothesis", None)
    place = (item, "obj") if by_hypothesis is None else (by_hypothesis, "inner_test")
    return place if inspect.iscoroutinefunction(getattr(*place)) else None


def _is_for_pytest_asyncio(item: pytest.Function) -> bool:
    return (
        _coroutine_function(item) is not None
        and item.config.pluginmanager.has_plugin("asyncio")
        and item.get_closest_marker("asyncio") is not None
        and "anyio_backend" not in item.fixturenames
    )


def _loop_scope(item: pytest.Item) -> str:
    marker = item.get_closest_marker("asyncio")
    options = {} if marker is None else marker.kwargs
    chosen = options.get("loop_scope") or options.get("scope")
    return str(chosen or item.config.getini("asyncio_default_test_loop_scope"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the timelines of recorded runs into the report of a failed test."""
    report = yield
    if report.failed and (recorder := item.stash.get(_recorder, None)) is not None:
        for number, text in enumerate(recorder.timelines(), 1):
            report.sections.append((f"run {number}", text))
    return report
