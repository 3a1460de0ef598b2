"""The test kit as a type checker sees it: read by mypy and pyright, never run.

A line that must be refused has a `type: ignore`, which both checkers report where it is not needed.
"""

from pathlib import Path
from typing import Any, assert_type

from quantum_async import ExecutionContext, QuantumPartitioner, RunResult, UnitState
from quantum_async.testing import (
    Faults,
    Fired,
    RunAssertions,
    assert_plan_matches,
    assert_run,
    plan_snapshot,
    run_unit,
    timeline,
    value,
)

flow = QuantumPartitioner()


@flow.unit
async def page(ctx: ExecutionContext[Any]) -> str:
    return str(ctx["url"])


@flow.unit
def length(page: str) -> int:
    return len(page)


# -- one unit alone, doubles -----------------------------------------------------------------------


async def alone() -> None:
    assert_type(await run_unit(flow, length, {page: "text"}), int)
    assert_type(await run_unit(flow, page, {"url": "…"}, mode="sequential"), str)
    assert_type(await run_unit(flow, "length", {"page": "text"}), Any)
    await run_unit(flow, 3)  # type: ignore[call-overload]
    await run_unit(None, page)  # type: ignore[call-overload]


with flow.override({"page": "text", length: len, "other": value(len)}):
    pass
flow.override(3)  # type: ignore[arg-type]


# -- faults ----------------------------------------------------------------------------------------


def status(ctx: ExecutionContext[Any]) -> OSError:
    return OSError(ctx.attempt)


faults = Faults().fail("page", attempts=[1, 2], error=ConnectionError()).delay(length, 3)
faults.hang(page).kill_worker("length", attempts=range(1, 3)).cancel_run_at(length)
assert_type(faults, Faults)
assert_type(faults.fired, list[Fired])
assert_type(faults.unfired, list[str])
faults.fail(page, error=OSError).fail(page, error=status)
faults.fail(page, error="no")  # type: ignore[arg-type]
faults.delay(page)  # type: ignore[call-arg]


async def with_faults() -> None:
    assert_type(await flow.run({"url": "…"}, faults=faults), RunResult)
    with Faults().hang(page) as block:
        assert_type(block, Faults)
    with faults.on(flow):
        pass
    await flow.run(faults=3)  # type: ignore[arg-type]


# -- assertions, pictures, snapshots ---------------------------------------------------------------


def look(result: RunResult) -> None:
    run = assert_run(result).completed("page", length).failed("page", OSError, match="x")
    assert_type(run, RunAssertions)
    run.failed(page, (OSError, ValueError)).skipped("b", because=page).timed_out(page)
    run.state(page, UnitState.COMPLETED).only("failed", page).result(length, 3)
    run.started_after(length, "page").overlapped("d", "e").max_running(3, on="loop")
    run.failed(page, "OSError")  # type: ignore[arg-type]
    run.max_running("3")  # type: ignore[arg-type]
    assert_run(dict(result))  # type: ignore[arg-type]

    assert_type(timeline(result, 100, rows=10, show=["page", length]), str)
    assert_type(plan_snapshot(flow), str)
    plan_snapshot(flow.build_execution_plan())
    assert_plan_matches(flow, "page")
    assert_plan_matches(flow, Path("plan.txt"), update=True)
    plan_snapshot(result)  # type: ignore[arg-type]
