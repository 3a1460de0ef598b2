"""The plugin, in test suites of others."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TESTS = """
import asyncio, time
import pytest
from quantum_async import QuantumPartitioner

{mark}
async def test_virtual(virtual_clock):
    began = time.monotonic()
    await asyncio.sleep(3600)
    assert asyncio.get_running_loop().time() >= 3600
    assert virtual_clock.time() >= 3600
    assert len(virtual_clock.jumps) >= 1
    assert time.monotonic() - began < 5

{mark}
async def test_real():
    assert type(asyncio.get_running_loop()).__name__ != "VirtualTimeLoop"

{mark}
async def test_partitioner(virtual_clock, partitioner):
    partitioner.add_unit(lambda: asyncio.sleep(60, "slept"), name="unit", args=[])
    partitioner.add_unit(lambda: 1, name="thread", args=[])
    assert (await partitioner.run())["unit"] == "slept"

def test_plain(virtual_clock):
    flow = QuantumPartitioner()
    flow.add_unit(lambda: asyncio.sleep(60, "slept"), name="unit", args=[])
    assert flow.execute()["unit"] == "slept"
    assert virtual_clock.time() >= 60
"""


def run(pytester, source, *options):
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q", *options)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_under_pytest_asyncio(pytester, mode):
    mark = "" if mode == "auto" else "@pytest.mark.asyncio"
    ran = run(
        pytester,
        TESTS.format(mark=mark),
        "-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function",
        "-p", "no:anyio",
    )  # fmt: skip
    ran.assert_outcomes(passed=4)


def test_under_the_plugin_of_anyio(pytester):
    ran = run(pytester, TESTS.format(mark="@pytest.mark.anyio"), "-p", "no:asyncio")
    assert ran.ret == 0, ran.stdout.str()
    assert ran.parseoutcomes()["passed"] >= 4


def test_a_loop_whose_clock_cannot_be_replaced_is_named(pytester):
    ran = run(
        pytester,
        """
        import asyncio, pytest, uvloop

        def test_uvloop(request):
            async def main():
                request.getfixturevalue("virtual_clock")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        """,
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(["*uvloop*whose clock cannot be replaced*"])


def test_a_failed_test_shows_the_timelines_of_its_runs(pytester):
    ran = run(
        pytester,
        """
        from quantum_async import QuantumPartitioner

        def test_it(record_run):
            flow = QuantumPartitioner()
            flow.add_unit(lambda: 1, name="a unit to be seen", args=[])
            assert flow.execute()["a unit to be seen"] == 1
            record_run.check()
            assert len(record_run.results) == 1
            assert False

        def test_good(record_run):
            flow = QuantumPartitioner()
            flow.add_unit(lambda: 1, name="not to be seen", args=[])
            flow.execute()
        """,
    )
    ran.assert_outcomes(failed=1, passed=1)
    ran.stdout.fnmatch_lines(["*run 1*", "*a unit to be seen*"])
    assert "not to be seen" not in ran.stdout.str().partition("run 1")[2].partition("====")[0]


def test_a_partitioner_whose_runs_leave_something_fails_its_test(pytester):
    ran = run(
        pytester,
        """
        import threading, time
        from quantum_async.testing import leaks
        leaks.SECONDS_TO_END = 0.1

        def test_it(partitioner):
            thread = threading.Thread(target=time.sleep, args=(2,), name="left alone")
            partitioner.add_unit(thread.start, args=[])
            partitioner.execute()
        """,
    )
    ran.assert_outcomes(passed=1, errors=1)
    ran.stdout.fnmatch_lines(["*left behind*thread 'left alone'*"])


def test_it_costs_nothing_when_it_is_not_used():
    code = (
        "import sys, quantum_async.testing.plugin; print([m for m in sys.modules if 'anyio' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
