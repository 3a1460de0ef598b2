"""Spans of runs and attempts, as the SDK's in-memory exporter gets them."""

import asyncio
import os
import sys
import threading
import time
from collections import Counter

import pytest
from tenacity import stop_after_attempt, wait_fixed

from quantum_async import (
    ExecutionError,
    QuantumPartitioner,
    RetryPolicy,
    Runtime,
    RunTimeoutError,
)
from quantum_async.observe.otel import OpenTelemetry
from tests.support import traced

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode


class Spans:
    """What was exported."""

    def __init__(self):
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.observer = OpenTelemetry(tracer_provider=self.provider)

    def __iter__(self):
        return iter(self._exporter.get_finished_spans())

    def __getitem__(self, name):
        """The only span of a unit, or of the run if there is no name."""
        (found,) = self.all(name)
        return found

    def all(self, name):
        return [span for span in self if span.attributes.get("quantum_async.unit.name") == name]

    @property
    def run(self):
        (found,) = [span for span in self if "quantum_async.run.units" in span.attributes]
        return found

    def is_child(self, child, parent):
        return child.parent is not None and child.parent.span_id == parent.context.span_id


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
def flow(spans):
    return QuantumPartitioner(name="shop", observers=[spans.observer])


async def fine(ctx):
    return None


async def fail(ctx):
    raise LookupError("nothing there")


async def hang(ctx):
    await asyncio.sleep(60)


# -- who is whose child ----------------------------------------------------------------------------


async def test_caller_run_and_attempt_are_a_chain(flow, spans):
    flow.add_unit(fine, name="unit")
    with spans.provider.get_tracer("web").start_as_current_span("request") as request:
        await flow.run(run_id="r1")
        assert trace.get_current_span() is request
    assert spans.is_child(spans.run, request)
    assert spans.is_child(spans["unit"], spans.run)
    assert spans.run.name == "run shop"
    assert dict(spans.run.attributes) == {
        "quantum_async.run.id": "r1",
        "quantum_async.run.units": 1,
        "quantum_async.partitioner": "shop",
        "quantum_async.run.state": "completed",
        "quantum_async.run.completed": 1,
    }


async def test_an_attempt_says_what_ran_where(flow, spans):
    flow.add_unit(fine, name="unit")
    await flow.run(run_id="r1")
    span, code = spans["unit"], fine.__code__
    assert span.name == "unit"
    assert dict(span.attributes) == {
        "quantum_async.run.id": "r1",
        "quantum_async.unit.name": "unit",
        "quantum_async.unit.attempt": 1,
        "quantum_async.unit.where": "loop",
        "quantum_async.unit.state": "completed",
        "code.function.name": f"{fine.__module__}.fine",
        "code.file.path": code.co_filename,
        "code.line.number": code.co_firstlineno,
        "thread.id": threading.get_ident(),
        "thread.name": threading.current_thread().name,
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_spans_that_a_unit_makes_are_its_attempts(flow, spans):
    def make(ctx):
        with spans.provider.get_tracer("unit").start_as_current_span(f"in {ctx.unit_id}"):
            pass

    async def make_here(ctx):
        make(ctx)

    flow.add_unit(make_here, name="loop")
    flow.add_unit(make, name="thread")
    await flow.run()
    made = {span.name: span for span in spans}
    for name in ("loop", "thread"):
        assert spans.is_child(made[f"in {name}"], spans[name])
    assert spans["thread"].attributes["quantum_async.unit.where"] == "thread"


async def test_an_attempt_in_the_custom_executor_is_current_there(flow, spans):
    from concurrent.futures import ThreadPoolExecutor

    flow.add_unit(
        lambda _: trace.get_current_span().get_span_context().span_id, name="unit", mode="custom"
    )
    with ThreadPoolExecutor(1) as pool:
        result = await flow.run(custom_executor=pool)
    assert result["unit"] == spans["unit"].context.span_id


@pytest.mark.slow
async def test_an_attempt_in_a_worker_process_is_the_parent_there(flow, spans):
    for number in range(40):  # so many short ones would travel together
        flow.add_unit(traced.span_made, name=f"{number}", mode="process")
    flow.add_unit(traced.fails, name="fails", mode="process")
    result = await flow.run(failure_policy="collect", max_workers=1)
    pids = {span.attributes["process.pid"] for span in spans if span.name != "run shop"}
    assert len(pids) == 1
    assert pids != {os.getpid()}
    assert spans["fails"].attributes["quantum_async.unit.cpu_time"] >= 0
    for name, (trace_id, parent) in result.items():
        context = spans[name].context
        assert (trace_id, parent) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    (told,) = spans["fails"].events
    assert told.attributes["exception.type"] == "ValueError"
    assert "bad luck" in told.attributes["exception.stacktrace"]


async def test_runs_inside_units_are_under_them(flow, spans):
    inner = QuantumPartitioner(name="inner")
    inner.add_unit(fine, name="first")
    inner.add_unit(fine, ["first"], name="second")

    async def nests(ctx):
        with spans.provider.get_tracer("unit").start_as_current_span("phase"):
            await ctx.run(inner, None)

    flow.include(inner, "all")
    flow.add_unit(nests, name="unit")
    await flow.run()
    (phase,) = [span for span in spans if span.name == "phase"]
    assert spans.is_child(phase, spans["unit"])
    assert spans.is_child(spans["unit/first"], phase)
    assert spans.is_child(spans["all/first"], spans["all"])
    assert spans.is_child(spans["all"], spans.run)
    assert spans["all/first"].name == "first"
    for prefix in ("all", "unit"):
        (link,) = spans[f"{prefix}/second"].links
        assert link.context == spans[f"{prefix}/first"].context


async def test_children_of_a_map_are_under_it(flow, spans):
    async def items(ctx):
        return [1, 2, 3]

    async def child(item):
        if item == 2:
            raise LookupError
        return item

    flow.add_unit(items, name="items")
    flow.map(child, over="items", name="map", on_item_error="collect")
    await flow.run()
    (link,) = spans["map"].links
    assert link.context == spans["items"].context
    for index in range(3):
        span = spans[f"map[{index}]"]
        assert spans.is_child(span, spans["map"])
        assert span.name == "map"
        assert span.links == ()
    assert spans["map[1]"].status.status_code is StatusCode.ERROR


# -- links -----------------------------------------------------------------------------------------


async def test_an_attempt_is_linked_to_what_it_depends_on(flow, spans):
    for name in ("a", "b"):
        flow.add_unit(fine, name=name)
    flow.add_unit(fine, ["a", "b"], name="unit")
    await flow.run()
    linked = {link.context.span_id for link in spans["unit"].links}
    assert linked == {spans[name].context.span_id for name in ("a", "b")}
    assert spans["a"].links == ()


async def test_what_was_given_is_not_linked_to(flow, spans):
    flow.add_unit(fine, name="given")
    flow.add_unit(fine, ["given"], name="unit")
    await flow.run(overrides={"given": 3})
    assert spans["unit"].links == ()


async def test_the_last_attempt_is_linked_to(flow, spans):
    async def second_time(ctx):
        if ctx.attempt == 1:
            raise OSError("once")

    policy = RetryPolicy(stop=stop_after_attempt(2), wait=wait_fixed(0.01))
    flow.add_unit(second_time, name="flaky", retry=policy)
    flow.add_unit(fine, ["flaky"], name="unit")
    await flow.run()
    first, second = spans.all("flaky")
    assert [link.context for link in spans["unit"].links] == [second.context]
    assert first.attributes["quantum_async.unit.state"] == "retrying"
    assert first.attributes["quantum_async.unit.retry_wait"] > 0
    assert first.status.status_code is StatusCode.ERROR
    assert first.events[0].attributes["exception.message"] == "once"
    assert second.status.status_code is StatusCode.UNSET
    assert second.attributes["quantum_async.unit.attempt"] == 2
    assert first.end_time <= second.start_time


# -- how things end --------------------------------------------------------------------------------


async def test_failures_are_recorded_and_what_was_skipped_is_noted(flow, spans):
    flow.add_unit(fail, name="bad")
    flow.add_unit(fine, ["bad"], name="below")
    with pytest.raises(ExecutionError):
        await flow.run()
    span = spans["bad"]
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "nothing there",
    )
    assert span.attributes["error.type"] == "LookupError"
    (told,) = span.events
    assert told.name == "exception"
    assert "nothing there" in told.attributes["exception.stacktrace"]
    assert spans.all("below") == []
    assert spans.run.status.status_code is StatusCode.ERROR
    assert spans.run.attributes["error.type"] == "ExecutionError"
    assert spans.run.attributes["quantum_async.run.skipped"] == 1
    (skipped,) = spans.run.events
    assert skipped.name == "unit skipped"
    assert skipped.attributes["quantum_async.unit.root"] == "bad"


async def test_a_fallback_makes_no_failure(flow, spans):
    flow.add_unit(fail, name="unit", fallback=3)
    await flow.run()
    span = spans["unit"]
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes["quantum_async.unit.fallback_used"] is True
    assert [event.attributes["exception.type"] for event in span.events] == ["LookupError"]


async def test_a_timeout_is_an_error(flow, spans):
    flow.add_unit(hang, name="unit", timeout=0.01)
    await flow.run(failure_policy="collect")
    span = spans["unit"]
    assert span.attributes["quantum_async.unit.state"] == "timeout"
    assert span.attributes["error.type"] == "quantum_async.core.errors.UnitTimeoutError"


async def test_a_run_whose_time_is_up_cancels_its_units(flow, spans):
    flow.add_unit(hang, name="unit")
    flow.add_unit(fine, ["unit"], name="below")
    with pytest.raises(RunTimeoutError):
        await flow.run(timeout=0.01)
    assert spans.run.attributes["error.type"] == "RunTimeoutError"
    assert spans["unit"].attributes["quantum_async.unit.state"] == "canceled"
    assert "time limit" in spans["unit"].attributes["quantum_async.unit.cause"]
    assert spans["unit"].status.status_code is StatusCode.UNSET
    assert [event.name for event in spans.run.events] == ["unit canceled"]


async def test_a_run_that_is_cancelled_ends_all_its_spans(flow, spans):
    started = asyncio.Event()

    async def hang(ctx):
        started.set()
        await asyncio.sleep(60)

    flow.add_unit(hang, name="unit")
    running = asyncio.ensure_future(flow.run())
    await started.wait()
    running.cancel()
    await asyncio.wait([running])
    assert spans.run.attributes["quantum_async.run.state"] == "canceled"
    assert spans["unit"].attributes["quantum_async.unit.state"] == "canceled"


async def test_a_unit_that_fails_before_it_starts_has_a_moment(flow, spans):
    flow.add_unit(fine, name="unit", when=lambda ctx: 1 / 0)
    await flow.run(failure_policy="collect")
    span = spans["unit"]
    assert spans.is_child(span, spans.run)
    assert span.attributes["quantum_async.unit.attempt"] == 0
    assert span.attributes["error.type"] == "ZeroDivisionError"


async def test_losers_of_a_race_are_canceled(flow, spans):
    slow = flow.add_unit(hang, name="slow")
    fast = flow.add_unit(fine, name="fast")
    flow.first(slow, fast, name="race")
    await flow.run()
    assert spans["slow"].attributes["quantum_async.unit.state"] == "canceled"
    assert spans["race"].attributes["quantum_async.unit.where"] == "race"
    assert "code.function.name" not in spans["race"].attributes


# -- many runs, odd names --------------------------------------------------------------------------


async def test_runs_of_a_runtime_do_not_mix(spans):
    flow = QuantumPartitioner(name="shop")
    flow.add_unit(fine, name="a")
    flow.add_unit(fine, ["a"], name="b")
    async with Runtime(max_workers=2, observers=[spans.observer]):
        await asyncio.gather(*(flow.run(run_id=f"r{number}") for number in range(5)))
    runs = {span.context.span_id: span for span in spans if span.name == "run shop"}
    assert len(runs) == 5
    units = [span for span in spans if span.name != "run shop"]
    assert Counter(span.parent.span_id for span in units) == dict.fromkeys(runs, 2)
    for span in units:
        run = runs[span.parent.span_id]
        assert span.attributes["quantum_async.run.id"] == run.attributes["quantum_async.run.id"]
        assert all(link.context.trace_id == span.context.trace_id for link in span.links)


@pytest.mark.parametrize("name", ['"quoted"', "<b>", "a\nb\x1b[31m", "\ud800", "a/b[3]"])
async def test_any_name_can_be_exported(spans, name):
    flow = QuantumPartitioner(name=name, observers=[spans.observer])
    flow.add_unit(fail, name=name)
    flow.add_unit(fine, [name], name="below")
    await flow.run(failure_policy="collect", run_id=name)
    for span in spans:
        assert span.to_json().encode()
        assert span.name.encode()


class UntellableError(Exception):
    """It raises whatever it is asked."""

    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


async def test_an_exception_that_cannot_be_told_is_recorded_by_its_type(flow, spans):
    async def untellable(ctx):
        raise UntellableError

    flow.add_unit(untellable, name="unit")
    await flow.run(failure_policy="collect")
    assert spans["unit"].attributes["error.type"].endswith("UntellableError")


async def test_times_are_those_of_the_clock_on_the_wall(flow, spans):
    before = time.time_ns()
    flow.add_unit(fine, name="unit")
    await flow.run()
    span, run, slack = spans["unit"], spans.run, 1_000_000
    assert before - slack <= run.start_time <= span.start_time
    assert span.start_time <= span.end_time <= run.end_time <= time.time_ns() + slack


async def test_nothing_is_kept_of_a_run_that_has_ended(flow, spans):
    flow.add_unit(fine, name="unit")
    await flow.run()
    assert repr(spans.observer) == "<OpenTelemetry: 0 runs>"


def test_without_the_library_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ImportError, match=r"pip install 'quantum-async\[otel\]'"):
        OpenTelemetry()
