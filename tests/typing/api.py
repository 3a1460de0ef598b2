"""The public names as a type checker sees them: read by mypy and pyright, never run.

A line that must be refused has a `type: ignore`, which both checkers report where it is not needed.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from typing import Any, TypedDict, assert_type

import tenacity

from quantum_async import (
    Backpressure,
    CachingQuantumPartitioner,
    Comparison,
    EventBus,
    ExecutionContext,
    ExecutionError,
    ExecutionMode,
    ExecutionPlan,
    FailurePolicy,
    Limit,
    Overloaded,
    PlanDiff,
    PlanError,
    Progress,
    QuantumPartitioner,
    QuantumUnit,
    RetryPolicy,
    RunResult,
    Runtime,
    RunTimeoutError,
    Simulation,
    Strategy,
    UnitRecord,
    UnitState,
    compare,
    project,
    select_execution_strategy,
    select_optimal_workers,
)
from quantum_async.core.effects import Effect
from quantum_async.core.events import Event, UnitCompleted, UnitFailed


class Row(TypedDict):
    page: str


# -- a partitioner needs no annotation, and may have one -----------------------------------------

flow = QuantumPartitioner()
assert_type(flow, QuantumPartitioner[Any, Any])

caching = CachingQuantumPartitioner(max_workers=4)
assert_type(caching.cache_hits, int)

narrow: QuantumPartitioner[Mapping[str, str], int] = QuantumPartitioner(
    8,
    ExecutionMode.THREAD,
    strategy=Strategy.FIFO,
    failure_policy="collect",
    observers=[repr],
    name="narrow",
)
assert_type(narrow.units, dict[str, QuantumUnit[Mapping[str, str], int]])

QuantumPartitioner("8")  # type: ignore[arg-type]
QuantumPartitioner(8, "auto", "fifo")  # type: ignore[call-arg]

# -- the decorator keeps what the function gives -------------------------------------------------


@flow.unit
async def page(ctx: ExecutionContext[Any]) -> str:
    return str(ctx["url"])


@flow.unit(mode="process", timeout=30)
def words(page: str) -> Counter[str]:
    return Counter(page.split())


@flow.unit(name="entities", after=[page, "words"], fallback=[])
async def found(page: str) -> list[str]:
    return [page]


@flow.unit()
def report(words: Counter[str], entities: list[str]) -> tuple[int, int]:
    return len(words), len(entities)


assert_type(page, QuantumUnit[Any, str])
assert_type(words, QuantumUnit[Any, Counter[str]])
assert_type(found, QuantumUnit[Any, list[str]])
assert_type(report, QuantumUnit[Any, tuple[int, int]])

flow.unit(5)  # type: ignore[call-overload]

# -- add_unit gives what its partitioner says ----------------------------------------------------


def length(ctx: ExecutionContext[Mapping[str, str]]) -> int:
    return len(ctx.input["text"])


policy = RetryPolicy(
    stop=tenacity.stop_after_attempt(3),
    wait=tenacity.wait_fixed(1),
    retry=tenacity.retry_if_exception_type(OSError),
)
measured = narrow.add_unit(
    length,
    ["other"],
    "length",
    5,
    metadata={"resource_type": "cpu"},
    priority=2,
    mode=ExecutionMode.THREAD,
    retry=policy,
    fallback=None,
    deadline=20.0,
    cost=0.5,
)
assert_type(measured, QuantumUnit[Mapping[str, str], int])
assert_type(flow.add_unit(len, args=[words]), QuantumUnit[Any, Any])
flow.add_unit(length, [page, words, "report"], kwargs={"ctx": page})

flow.add_unit("length")  # type: ignore[arg-type]
flow.add_unit(length, [3])  # type: ignore[list-item]
flow.add_unit(length, timeout="3 s")  # type: ignore[arg-type]
flow.add_unit(length, retrys=3)  # type: ignore[call-arg]

# -- a handle tells of its declaration and of the last run ---------------------------------------

assert_type(page.name, str)
assert_type(page.dependencies, list[str])
assert_type(page.timeout, float | None)
assert_type(page.mode, ExecutionMode | None)
assert_type(page.state, UnitState)
assert_type(page.result, str | None)
assert_type(page.error, BaseException | None)
assert_type(page.execution_time, float | None)
assert_type(page.can_execute({"other"}), bool)

page.name = "site"  # type: ignore[misc]

# -- a plan is frozen ----------------------------------------------------------------------------

plan = flow.build_execution_plan()
assert_type(plan, ExecutionPlan)
assert_type(plan.levels, list[list[str]])
assert_type(plan.dependents, Mapping[str, frozenset[str]])
assert_type(plan.critical_path, list[str])
assert_type(plan.visualize("mermaid"), str)
assert_type(plan.fingerprint, str)
assert_type(plan.simulate({"page": 2.0}, max_workers=2, strategy="fifo"), Simulation)
assert_type(plan.simulate().makespan, float)
assert_type(select_optimal_workers(flow.units, plan), int)
assert_type(select_execution_strategy(flow.units), ExecutionMode)

# -- a result is typed through the handle --------------------------------------------------------


def listen(event: Event) -> None: ...


async def run(executor: Executor) -> None:
    result = await flow.run({"url": "about:blank"})
    assert_type(result, RunResult)
    assert_type(result[page], str)
    assert_type(result[words], Counter[str])
    assert_type(result[found], list[str])
    assert_type(result[report], tuple[int, int])
    assert_type(result[measured], int)
    assert_type(result["report"], Any)

    result[3]  # type: ignore[call-overload]
    result["report"] = 3  # type: ignore[index]

    assert_type(dict(result), dict[str, Any])
    assert_type(result.ok, bool)
    assert_type(result.states, dict[str, UnitState])
    assert_type(result.errors, dict[str, BaseException])
    assert_type(result.units["page"], UnitRecord)
    assert_type(result.units["page"].waited, float | None)
    assert_type(result.metrics, dict[str, Any])
    assert_type(result.critical_path, list[str])
    assert_type(result.explain(), str)
    assert_type(result.explain(page), str)
    assert_type(result.what_if({"page": 1}, 8, {"api": 2}), Simulation)
    assert_type(result.nested("page"), list[RunResult])
    assert_type(result.units["page"].held_by, str | None)
    result.save("run.json")
    result.save_trace("trace.json")
    loaded = RunResult.load("run.json")
    assert_type(loaded, RunResult)
    assert_type(loaded.diff(result), Comparison)
    assert_type(compare(loaded, result).lines(), list[str])
    assert_type(loaded.plan.diff(result.plan), PlanDiff)

    again = await flow.run(
        None,
        mode="custom",
        max_workers=2,
        custom_executor=executor,
        strategy="adaptive",
        failure_policy=FailurePolicy.COLLECT,
        timeout=60,
        targets=[report, "words"],
        overrides={page: "text", "words": Counter[str]()},
        resume_from=result,
        keep="targets",
        observers=[listen],
        run_id="again",
    )
    assert_type(again, RunResult)

    await flow.run(max_workers="2")  # type: ignore[arg-type]
    await flow.run(worker=2)  # type: ignore[call-arg]


async def stream() -> None:
    async with flow.stream({"url": "about:blank"}, timeout=60) as events:
        async for event in events:
            assert_type(event, Event)
            if isinstance(event, UnitCompleted):
                assert_type(event.unit, str)
                assert_type(event.duration, float)
            elif isinstance(event, UnitFailed):
                assert_type(event.error, BaseException)
    assert_type(events.result, RunResult | None)
    assert_type(events.explain("page"), str)
    assert_type(events.running, dict[str, float])
    async for name, value in flow.results({"url": "about:blank"}, children=True):
        assert_type(name, str)
        assert_type(value, Any)
    if events.result is not None:
        assert_type(events.result[page], str)


async def patterns(ctx: ExecutionContext[Any], recorded: list[Event]) -> None:
    bus = EventBus()

    @bus.on(UnitFailed, unit="page*", tag="slow")
    async def alert(event: UnitFailed) -> None: ...

    @bus.on
    def note(event: Event) -> None: ...

    def count(state: int, event: Event) -> int:
        return state + 1

    assert_type(project(recorded, count, 0), int)
    async with flow.stream() as events:
        async for state in project(events, count, 0):
            assert_type(state, int)
    result = await flow.run(observers=[bus, Progress(rows=3)], dry_run=True)
    assert_type(result.view(Row), Row)
    assert_type(result.effects, tuple[Effect, ...])
    await ctx.perform("email", print, "hello", dry=None)
    ctx.perform_sync("email", print, "hello")
    flow.stream(buffer="8")  # type: ignore[arg-type]


# -- units that are more than a call ------------------------------------------------------------


@flow.resource
async def pool(url: str) -> AsyncIterator[dict[str, int]]:
    yield {url: 1}


@flow.unit
async def lines(pool: dict[str, int]) -> AsyncIterator[str]:
    yield str(pool)


@flow.unit(retries=2, uses={"api": 1})
async def numbers(page: str) -> AsyncIterator[int]:
    yield len(page)


async def parse(line: str, page: str) -> float:
    return float(line)


def half(number: float) -> Counter[float]:
    return Counter([number / 2])


parsed = flow.map(parse, over=lines, ordered=False, max_concurrency=4, timeout=3)
halves = flow.map(half, over=parsed, on_item_error="collect", mode="process")
race = flow.first(page, found, name="race")
strings = flow.first(page, flow.unit(str))
included = flow.include(narrow, "inner", input={"text": page}, dependencies=[words])

assert_type(lines, QuantumUnit[Any, list[str]])
assert_type(numbers, QuantumUnit[Any, list[int]])
assert_type(parsed, QuantumUnit[Any, list[float]])
assert_type(halves, QuantumUnit[Any, list[Counter[float]]])
assert_type(flow.map(half, [1.0, 2.0]), QuantumUnit[Any, list[Counter[float]]])
assert_type(race, QuantumUnit[Any, str | list[str]])
assert_type(strings, QuantumUnit[Any, str])
assert_type(flow.first(page, found, words), QuantumUnit[Any, str | list[str] | Counter[str]])
assert_type(flow.first(page, page, page, page), QuantumUnit[Any, str])
flow.first("page", "words", when=lambda ctx: ctx["url"], priority=2)
assert_type(included, QuantumUnit[Any, RunResult])

flow.map(3, over=lines)  # type: ignore[call-overload]
flow.map(half, over=3)  # type: ignore[call-overload]


def is_wanted(ctx: ExecutionContext[Any]) -> bool:
    return bool(ctx["url"])


@flow.unit(after=[pool], when=is_wanted, trigger="all_done")
async def grown(ctx: ExecutionContext[Any]) -> int:
    async for line in ctx.stream(lines):
        assert_type(line, Any)
    outcome = ctx.outcome(page)
    assert_type(outcome.ok, bool)
    assert_type(outcome.state, UnitState)
    assert_type(outcome.cause, str | None)
    await ctx.run(narrow, {"text": "abc"}, timeout=3)
    raise Backpressure("api", 3)


async def serve() -> None:
    async with Runtime(
        8,
        processes=2,
        threads=4,
        limits={"api": Limit(concurrency=8, rate=500, per=60, burst=50), "gpu": 1},
        observers=[listen],
        max_runs=100,
        queue=10,
    ) as runtime:
        assert_type(runtime, Runtime)
        try:
            result = await flow.run(priority=2)
        except Overloaded:
            return
        assert_type(result[lines], list[str])
        assert_type(result[parsed], list[float])
        assert_type(result[race], str | list[str])
        assert_type(result[included], RunResult)
        assert_type(result[included][measured], int)
        await runtime.drain(grace=3)


# -- the blocking forms --------------------------------------------------------------------------


def execute(executor: Executor) -> None:
    context = {"url": "about:blank"}
    assert_type(flow.execute(context), dict[str, Any])
    assert_type(flow.execute(context, ExecutionMode.CUSTOM, 4, executor), dict[str, Any])
    assert_type(flow.execute_with_strategy(context, "priority"), dict[str, Any])
    assert_type(flow.execute_with_monitoring(context), dict[str, Any])
    assert_type(flow.execute_with_recovery(context), dict[str, Any])
    assert_type(flow.get_partial_results(), dict[str, Any])
    assert_type(flow.get_failed_units(), list[QuantumUnit[Any, Any]])
    assert_type(flow.completed_units, set[str])
    assert_type(flow.failed_units, set[str])
    assert_type(flow.last_result, RunResult | None)
    assert_type(flow.last_execution_metrics, dict[str, Any])

    try:
        flow.execute(context, timeout=3)
    except ExecutionError as error:
        assert_type(error.errors, dict[str, BaseException])
    except RunTimeoutError as error:
        assert_type(error.limit, float)
    except PlanError as error:
        assert_type(error.problems, tuple[PlanError, ...])


# -- the hooks are assigned ----------------------------------------------------------------------

started: list[str] = []
flow.on_unit_start = started.append
flow.on_unit_complete = lambda unit, result: started.append(f"{unit} gave {result}")
flow.on_unit_error = lambda unit, error: started.extend([unit, *error.args])
flow.on_unit_start = 3  # type: ignore[assignment]


# -- a context in a test, and one's own partitioner ----------------------------------------------


class Named(QuantumPartitioner[str, bytes]): ...


assert_type(Named().get_failed_units(), list[QuantumUnit[str, bytes]])

ctx = ExecutionContext(input={"text": "abc"}, unit_results={"page": "…"})
assert_type(ctx, ExecutionContext[dict[str, str]])
assert_type(ctx.input, dict[str, str])
assert_type(ctx[page], Any)
assert_type(ctx.remaining, float)
ctx["page"] = "text"  # type: ignore[index]
length(ExecutionContext(input={"text": "abc"}))
