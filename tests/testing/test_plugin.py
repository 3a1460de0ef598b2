"""The plugin, in test suites of others."""

import subprocess
import sys
from textwrap import dedent

import pytest

pytestmark = pytest.mark.slow

HEAD = """
import asyncio, os, socket, threading, time
import anyio, pytest, pytest_asyncio, uvloop
from quantum_async import QuantumPartitioner
from quantum_async.testing import VirtualTimeLoop, virtual_time

def kind():
    return type(asyncio.get_running_loop()).__name__
"""
# Of no use here, and they take a second to load.
WITHOUT = ("no:cacheprovider", "no:hypothesispytest", "no:pytest_cov")
ASYNCIO = ("-p", "no:anyio", "-o", "asyncio_default_fixture_loop_scope=function")
ANYIO = ("-p", "no:asyncio")


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run a test suite in a process of its own."""
    # Where these are set, pytest tells each failure at length in its summary too.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)

    def run(source, *options):
        pytester.makepyfile(HEAD + dedent(source))
        left_out = [word for name in WITHOUT for word in ("-p", name)]
        return pytester.runpytest_subprocess("-W", "error", *left_out, *options)

    return run


ON_VIRTUAL_TIME = """
{marker}
async def test_virtual(virtual_clock):
    began = time.process_time()
    assert anyio.current_time() == 0
    await asyncio.sleep(3600)
    with anyio.move_on_after(60):
        await anyio.sleep_forever()
    assert asyncio.get_running_loop().time() == anyio.current_time() == virtual_clock.time() == 3660
    assert len(virtual_clock.jumps) == 2
    assert time.process_time() - began < 1

{marker}
async def test_real():
    assert kind() != "VirtualTimeLoop"

{fixture}
async def client():
    yield kind()

{fixture}
async def on_time(virtual_clock):
    await asyncio.sleep(5)
    yield virtual_clock.time()

{marker}
async def test_asynchronous_fixtures_live_on_it_too(client, on_time, virtual_clock):
    assert (client, on_time) == ("VirtualTimeLoop", 5)

{marker}
async def test_asynchronous_fixtures_of_others_do_not(client):
    assert client != "VirtualTimeLoop"

{marker}
@pytest.mark.usefixtures("virtual_clock")
@pytest.mark.parametrize("seconds", [1, 2])
async def test_it_need_not_be_an_argument(seconds):
    await asyncio.sleep(seconds)
    assert asyncio.get_running_loop().time() == seconds

class TestClass:
    {marker}
    async def test_method(self, virtual_clock, client):
        await asyncio.sleep(60)
        assert virtual_clock.time() == 60

{marker}
async def test_units(virtual_clock, partitioner):
    partitioner.add_unit(lambda: asyncio.sleep(60, "slept"), name="unit", args=[])
    partitioner.add_unit(lambda: 1, name="thread", args=[])
    result = await partitioner.run()
    assert result["unit"] == "slept"
    assert result.duration == 60

def test_plain(virtual_clock):
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(60, "slept"), name="unit", args=[])
    assert flow.execute()["unit"] == "slept"
    asyncio.run(asyncio.sleep(40))
    assert virtual_clock.time() == 100

def test_nothing_is_left_of_it():
    async def main():
        assert kind() != "VirtualTimeLoop"
    asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_under_pytest_asyncio(suite, mode):
    marker = "" if mode == "auto" else "@pytest.mark.asyncio"
    source = ON_VIRTUAL_TIME.format(marker=marker, fixture="@pytest_asyncio.fixture")
    ran = suite(source, "-o", f"asyncio_mode={mode}", *ASYNCIO)
    ran.assert_outcomes(passed=10)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_under_the_plugin_of_anyio(suite, mode):
    backend = """
    @pytest.fixture
    def anyio_backend():
        return "asyncio"
    """
    marker = "" if mode == "auto" else "@pytest.mark.anyio"
    source = ON_VIRTUAL_TIME.format(marker=marker, fixture="@pytest.fixture")
    ran = suite(dedent(backend) + source, "-o", f"anyio_mode={mode}", *ANYIO)
    ran.assert_outcomes(passed=10)


def test_under_both(suite):
    source = ON_VIRTUAL_TIME.format(
        marker="@pytest.mark.asyncio", fixture="@pytest_asyncio.fixture"
    )
    again = """
    @pytest.mark.anyio
    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_by_anyio(virtual_clock, anyio_backend):
        await asyncio.sleep(60)
        assert virtual_clock.time() == 60
    """
    ran = suite(source + dedent(again), *ASYNCIO[2:])
    ran.assert_outcomes(passed=11)


def test_tests_by_hypothesis(suite):
    test = """
    from hypothesis import HealthCheck, given, settings, strategies

    {marker}
    @settings(max_examples=5, suppress_health_check=list(HealthCheck), database=None)
    @given(seconds=strategies.integers(1, 9))
    async def test_virtual(virtual_clock, seconds{arguments}):
        before = virtual_clock.time()
        await asyncio.sleep(seconds)
        assert virtual_clock.time() == before + seconds
    """
    source = dedent(test).format(marker="@pytest.mark.asyncio", arguments="")
    suite(source, *ASYNCIO).assert_outcomes(passed=1)


def test_anyio_may_be_given_our_loop_by_hand(suite):
    ran = suite(
        """
        pytestmark = pytest.mark.anyio

        @pytest.fixture(scope="module")
        def anyio_backend():
            return "asyncio", {"loop_factory": VirtualTimeLoop}

        async def test_without_the_fixture():
            await anyio.sleep(60)
            assert anyio.current_time() == 60

        async def test_with_it(virtual_clock):
            await anyio.sleep(60)
            assert virtual_clock.time() == 60
        """,
        *ANYIO,
    )
    ran.assert_outcomes(passed=2)


# -- loops of wider scope, and loops of users -----------------------------------------------------


def test_fixtures_of_wider_scope_keep_their_loop_and_are_not_set_up_again(suite):
    ran = suite(
        """
        loops = []

        @pytest_asyncio.fixture(scope="session", loop_scope="session")
        async def database():
            loops.append(kind())
            yield loops
            loops.append("closed")

        @pytest_asyncio.fixture(loop_scope="session")
        async def row(database):
            yield kind()

        @pytest.mark.asyncio
        async def test_virtual(virtual_clock, row):
            assert kind() == "VirtualTimeLoop" != row

        @pytest.mark.asyncio(loop_scope="session")
        async def test_real(database):
            assert kind() != "VirtualTimeLoop"

        @pytest.mark.asyncio
        async def test_virtual_again(database, virtual_clock):
            assert kind() == "VirtualTimeLoop"
            assert len(database) == 1 and "VirtualTimeLoop" not in database
        """,
        *ASYNCIO,
    )
    ran.assert_outcomes(passed=3)


@pytest.mark.parametrize("how", ["marker", "option"])
def test_a_loop_that_is_shared_by_tests_is_refused(suite, how):
    options = ("-o", "asyncio_default_test_loop_scope=module") if how == "option" else ()
    marker = '(loop_scope="module")' if how == "marker" else ""
    ran = suite(
        f"""
        @pytest.mark.asyncio{marker}
        async def test_virtual(virtual_clock):
            pass

        @pytest.mark.asyncio{marker}
        async def test_real():
            assert kind() != "VirtualTimeLoop"
        """,
        *ASYNCIO,
        *options,
    )
    ran.assert_outcomes(passed=1, errors=1)
    ran.stdout.fnmatch_lines(['*give it its own with @pytest.mark.asyncio(loop_scope="function")'])


def test_a_loop_that_anyio_shares_is_refused(suite):
    ran = suite(
        """
        pytestmark = pytest.mark.anyio

        @pytest.fixture(scope="module")
        def anyio_backend():
            return "asyncio"

        @pytest.fixture(scope="module")
        async def database():
            yield

        async def test_virtual(database, virtual_clock):
            pass
        """,
        *ANYIO,
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["virtual_clock: *SelectorEventLoop runs here, which was started *"])


def test_loop_factories_of_users_stand_back_for_tests_on_virtual_time_only(suite, pytester):
    pytester.makeconftest(
        """
        import uvloop

        def pytest_asyncio_loop_factories(config, item):
            return {"uvloop": uvloop.new_event_loop}
        """
    )
    ran = suite(
        """
        pytestmark = pytest.mark.asyncio

        async def test_virtual(virtual_clock):
            await asyncio.sleep(60)
            assert virtual_clock.time() == 60

        async def test_uvloop():
            assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        """,
        *ASYNCIO,
    )
    ran.assert_outcomes(passed=2)


def test_a_factory_that_the_test_names_is_not_replaced_but_refused(suite, pytester):
    pytester.makeconftest(
        """
        import asyncio, uvloop

        def pytest_asyncio_loop_factories(config, item):
            return {"uvloop": uvloop.new_event_loop}
        """
    )
    ran = suite(
        """
        @pytest.mark.asyncio(loop_factories=["uvloop"])
        async def test_virtual(virtual_clock):
            pass
        """,
        *ASYNCIO,
    )
    ran.assert_outcomes(errors=1)
    ran.stdout.fnmatch_lines(["virtual_clock: uvloop.Loop runs here, *use an asyncio loop*"])


def test_an_event_loop_policy_of_uvloop_stands_back(suite):
    ran = suite(
        """
        pytestmark = pytest.mark.asyncio

        @pytest.fixture(scope="session")
        def event_loop_policy():
            return uvloop.EventLoopPolicy()

        async def test_virtual(virtual_clock):
            assert kind() == "VirtualTimeLoop"

        async def test_uvloop():
            assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        """,
        *ASYNCIO,
        "-W",
        "ignore::DeprecationWarning",
    )
    ran.assert_outcomes(passed=2)


def test_uvloop_by_anyio_is_refused(suite):
    ran = suite(
        """
        pytestmark = pytest.mark.anyio

        @pytest.fixture(params=[True, False], ids=["uvloop", "asyncio"])
        def anyio_backend(request):
            return "asyncio", {"use_uvloop": request.param}

        async def test_it(virtual_clock):
            assert kind() == "VirtualTimeLoop"
        """,
        *ANYIO,
    )
    ran.assert_outcomes(passed=1, failed=1)
    ran.stdout.fnmatch_lines(
        ["virtual_clock: uvloop.Loop runs here, *no use_uvloop in anyio_back*"]
    )


def test_a_running_uvloop_is_named(suite):
    ran = suite(
        """
        def test_uvloop(request):
            async def main():
                request.getfixturevalue("virtual_clock")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        """,
        *ASYNCIO,
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        ["*uvloop.Loop runs here, whose clock is in C and cannot be replaced*"]
    )


def test_a_deadlock_fails_one_test(suite):
    ran = suite(
        """
        pytestmark = pytest.mark.asyncio

        async def test_deadlock(virtual_clock):
            await asyncio.Event().wait()

        async def test_good(virtual_clock):
            await asyncio.sleep(1)
        """,
        *ASYNCIO,
    )
    ran.assert_outcomes(passed=1, failed=1)
    ran.stdout.fnmatch_lines(
        ["*DeadlockError: deadlock at 0 s of virtual time*", "*test_deadlock*"]
    )


def test_a_real_time_limit_of_tests_still_holds(suite):
    ran = suite(
        """
        pytestmark = pytest.mark.asyncio

        async def test_it(virtual_clock):
            virtual_clock.outside_work("somebody who never comes back")
            await asyncio.Event().wait()
        """,
        *ASYNCIO,
        "--timeout=0.5",
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["*Timeout (>0.5s) from pytest-timeout*"])


# -- record_run -----------------------------------------------------------------------------------


def test_a_failed_test_shows_the_timelines_of_its_runs(suite):
    ran = suite(
        """
        def a_flow(name="a unit to be seen"):
            flow = QuantumPartitioner()
            flow.add_unit(lambda: 1, name=name, args=[])
            return flow

        def seen(record_run):
            record_run.check()
            return len(record_run.results)

        def test_plain(record_run):
            a_flow().execute()
            assert seen(record_run) == "to be"

        @pytest.mark.asyncio
        async def test_asyncio(record_run):
            await a_flow().run()
            assert seen(record_run) == "to be"

        @pytest.fixture
        async def other(anyio_backend):
            yield

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_anyio(other, record_run):
            await a_flow().run()
            assert seen(record_run) == "to be"

        def test_good(record_run):
            a_flow("not to be seen").execute()
            assert seen(record_run) == 1
        """,
        *ASYNCIO[2:],
    )
    ran.assert_outcomes(failed=3, passed=1)
    shown = ran.stdout.str()
    assert shown.count("--- run 1 ---") == 3
    assert shown.count("a unit to be seen  ") == 3
    assert "not to be seen  " not in shown
    assert shown.count("assert 1 == 'to be'") == 3


# -- partitioner ----------------------------------------------------------------------------------


def test_a_partitioner_whose_runs_leave_something_fails_its_test(suite):
    ran = suite(
        """
        from quantum_async.testing import leaks

        leaks.SECONDS_TO_END = 0.05
        never, kept = threading.Event(), []

        def leave_a_thread():
            threading.Thread(target=never.wait, name="left alone", daemon=True).start()

        def leave_a_socket():
            kept.append(socket.socketpair())

        @pytest.mark.parametrize("leave", [leave_a_thread, leave_a_socket])
        def test_plain(partitioner, leave):
            partitioner.add_unit(leave, args=[])
            partitioner.execute()

        @pytest.mark.asyncio
        @pytest.mark.parametrize("leave", [leave_a_thread, leave_a_socket])
        async def test_asyncio(partitioner, leave):
            partitioner.add_unit(leave, args=[])
            await partitioner.run()

        async def leave_a_task():
            kept.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))

        @pytest.mark.asyncio
        async def test_task(partitioner):
            partitioner.add_unit(leave_a_task, args=[])
            await partitioner.run()

        @pytest.mark.anyio
        @pytest.mark.parametrize("anyio_backend", ["asyncio"])
        async def test_task_by_anyio(partitioner, anyio_backend):
            partitioner.add_unit(leave_a_task, args=[])
            await partitioner.run()

        @pytest.mark.asyncio
        async def test_nothing(partitioner):
            partitioner.add_unit(lambda: 1, name="thread", args=[])
            partitioner.add_unit(os.getpid, name="process", args=[], mode="process")
            await partitioner.run()
        """,
        *ASYNCIO[2:],
    )
    ran.assert_outcomes(passed=7, errors=6)
    ran.stdout.fnmatch_lines_random(
        [
            "left behind by this test: thread 'left alone'",
            "left behind by this test: file descriptor *socket*",
            "left behind by this test: task 'forgotten'",
        ]
    )


def test_what_a_shared_loop_keeps_for_its_next_test_is_not_left_behind(suite):
    ran = suite(
        """
        from quantum_async.testing import leaks

        leaks.SECONDS_TO_END = 0.05
        pytestmark = pytest.mark.asyncio(loop_scope="module")

        async def test_nothing(partitioner):
            partitioner.add_unit(lambda: 1, name="thread", args=[])
            partitioner.add_unit(os.getpid, name="process", args=[], mode="process")
            await partitioner.run()

        async def test_thread(partitioner):
            thread = threading.Thread(target=time.sleep, args=(60,), name="alone", daemon=True)
            partitioner.add_unit(thread.start, args=[])
            await partitioner.run()
        """,
        *ASYNCIO,
    )
    ran.assert_outcomes(passed=2, errors=1)
    ran.stdout.fnmatch_lines(["left behind by this test: thread 'alone'"])


# -- without it -----------------------------------------------------------------------------------


def test_it_costs_nothing_when_it_is_not_used():
    code = """
import sys, pytest
before = set(sys.modules)
import quantum_async.testing.plugin
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        ["quantum_async", "quantum_async.testing", "quantum_async.testing.plugin"]
    )


def test_pytest_loads_it_and_no_test_needs_it(suite):
    ran = suite(
        """
        def test_fixtures_are_there(request):
            assert request.config.pluginmanager.has_plugin("quantum_async")
        """,
        "-p", "no:asyncio", "-p", "no:anyio",
    )  # fmt: skip
    ran.assert_outcomes(passed=1)
