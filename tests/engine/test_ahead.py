"""Short units travel to a worker several at a time, and nobody can tell."""

import os
import re
import time
from pathlib import Path

import pytest

from quantum_async import PlanError, QuantumPartitioner, UnitState, WorkerCrashedError
from quantum_async.core.scheduler import Scheduler
from quantum_async.engine.executors.ahead import Ahead
from quantum_async.engine.executors.session import Session

COMPLETED, FAILED, TIMEOUT = UnitState.COMPLETED, UnitState.FAILED, UnitState.TIMEOUT
SKIPPED, CANCELED = UnitState.SKIPPED, UnitState.CANCELED

pytestmark = pytest.mark.slow


@pytest.fixture
def batches(monkeypatch):
    """Take each unit for a short one; return the sizes of the batches that are sent."""
    sizes = []
    parcels = Ahead.parcels

    def counted(self, *args):
        found = parcels(self, *args)
        sizes.append(1 + len(found))
        return found

    monkeypatch.setattr(Ahead, "_is_short", lambda self, job: True)
    monkeypatch.setattr(Ahead, "parcels", counted)
    monkeypatch.setattr("quantum_async.engine.executors.ahead._LONGEST_TRIP", 0.05)
    return sizes


class Watch:
    """Checks from the events that units start when others have ended, and how many run."""

    def __init__(self):
        self.running, self.most, self.order = set(), 0, []

    def __call__(self, event):
        kind = type(event).__name__
        if kind == "UnitStarted":
            self.running.add(event.unit)
            self.most = max(self.most, len(self.running))
            self.order.append(event.unit)
        elif kind in (
            "UnitCompleted", "UnitFailed", "UnitTimedOut", "UnitCanceled", "UnitRetrying"
        ):  # fmt: skip
            self.running.discard(event.unit)


def double(number):
    return 2 * number, os.getpid()


def partitioner(**options):
    return QuantumPartitioner(default_execution_mode="process", failure_policy="collect", **options)


async def test_ready_units_cross_together_and_each_is_a_unit_of_its_own(batches):
    flow, watch = partitioner(), Watch()
    for number in range(60):
        flow.add_unit(double, name=f"unit {number}", args=[number])
    result = await flow.run(observers=[watch])
    assert [value[0] for value in result.values()] == list(range(0, 120, 2))
    assert max(batches) > 1
    assert len(batches) < 60
    assert watch.most == 2
    assert sorted(watch.order) == sorted(f"unit {number}" for number in range(60))
    assert {record.attempts for record in result.units.values()} == {1}
    assert all(record.usage.pid == value[1] for record, value in zip(
        result.units.values(), result.values(), strict=True
    ))  # fmt: skip


async def test_units_that_take_the_context_cross_together_too(batches):
    flow = partitioner()

    def of_context(ctx):
        ctx.record_metric(ctx.unit_id, ctx["base"])
        return ctx["base"] + 1

    for number in range(40):
        flow.add_unit(of_context, name=f"unit {number}")
    result = await flow.run({"base": 6})
    assert set(result.values()) == {7}
    assert result.metrics["unit 39"] == 6
    assert max(batches) > 1


@pytest.mark.parametrize("off", ["partitioner", "unit"])
async def test_it_can_be_switched_off(batches, off):
    flow = partitioner(batch=off != "partitioner")
    for number in range(20):
        flow.add_unit(double, args=[number], batch=off != "unit")
    assert (await flow.run()).ok
    assert set(batches) <= {1}


@pytest.mark.parametrize("batch", [None, 1, "no"])
def test_what_is_not_true_or_false_is_refused(batch):
    with pytest.raises(PlanError, match="batch"):
        QuantumPartitioner(batch=batch)
    with pytest.raises(PlanError, match="batch"):
        QuantumPartitioner().add_unit(double, batch=batch)


async def test_with_as_many_units_as_workers_each_gets_one(batches):
    flow = partitioner()

    def where(_):
        time.sleep(0.1)
        return os.getpid()

    flow.add_unit(where)
    flow.add_unit(where)
    assert len(set((await flow.run({})).values())) == 2


async def test_long_units_are_not_sent_together(monkeypatch):
    sizes = []
    parcels = Ahead.parcels
    monkeypatch.setattr(
        Ahead, "parcels", lambda self, *args: sizes.append(found := parcels(self, *args)) or found
    )
    flow = partitioner()
    for _ in range(16):
        flow.add_unit(lambda _: time.sleep(0.01))
    assert (await flow.run({})).ok
    assert not any(sizes)


async def test_a_chain_may_run_in_one_trip(batches):
    flow, watch = partitioner(), Watch()
    last = flow.add_unit(lambda: [0], name="link 0", args=[])
    for number in range(1, 12):
        last = flow.add_unit(
            lambda above, number: [*above, number], name=f"link {number}", args=[last, number]
        )
    result = await flow.run(observers=[watch])
    assert result[last] == list(range(12))
    assert result["link 3"] == [0, 1, 2, 3]
    assert max(batches) > 1
    assert watch.most == 1
    assert watch.order == [f"link {number}" for number in range(12)]


@pytest.mark.parametrize("at", [0, 3])
async def test_a_link_that_fails_takes_the_rest_of_the_chain_with_it_and_no_worker(batches, at):
    flow = partitioner()

    def link(above, number):
        if number == at:
            raise ValueError(number)
        return number

    last = None
    for number in range(8):
        last = flow.add_unit(link, name=f"link {number}", args=[last, number])
    other = flow.add_unit(double, name="other", args=[1], dependencies=["late"])
    flow.add_unit(lambda _: time.sleep(0.3), name="late")
    result = await flow.run({})
    states = [result.states[f"link {number}"] for number in range(8)]
    assert states == [COMPLETED] * at + [FAILED] + [SKIPPED] * (7 - at)
    assert result[other][0] == 2


async def test_a_link_that_is_tried_again_or_falls_back_goes_on(batches, tmp_path):
    flow = partitioner()
    noted = tmp_path / "noted"

    def fails_once(above):
        if not noted.exists():
            noted.touch()
            raise ValueError
        return above + 1

    def fails(above):
        raise ValueError

    a = flow.add_unit(lambda: 0, name="a", args=[])
    b = flow.add_unit(fails_once, name="b", args=[a], retries=1)
    c = flow.add_unit(fails, name="c", args=[b], fallback=10)
    d = flow.add_unit(lambda above: above + 1, name="d", args=[c])
    result = await flow.run({})
    assert (result["b"], result[d]) == (1, 11)
    assert result.units["b"].attempts == 2


async def test_a_unit_that_hangs_in_a_batch_is_killed_and_the_others_go_on(batches):
    flow = partitioner(max_workers=1)

    def work(number):
        if number == 3:
            time.sleep(60)
        return number

    for number in range(10):
        flow.add_unit(work, name=f"unit {number}", args=[number], timeout=0.5)
    result = await flow.run({})
    assert result.states.pop("unit 3") is TIMEOUT
    assert set(result.states.values()) <= {COMPLETED, TIMEOUT}
    assert len(result) == 9
    assert max(batches) > 1


async def test_a_crash_in_a_batch_is_that_of_one_unit(batches):
    flow = partitioner(max_workers=1)

    def work(number):
        if number == 3:
            os._exit(7)
        return number

    for number in range(10):
        flow.add_unit(work, name=f"unit {number}", args=[number])
    result = await flow.run({})
    assert isinstance(result.errors["unit 3"], WorkerCrashedError)
    assert list(result.values()) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert {record.attempts for record in result.units.values()} == {1}


async def test_big_results_of_a_batch_do_not_overwrite_each_other(batches):
    flow = partitioner(max_workers=1)
    for number in range(12):
        flow.add_unit(lambda n: bytes([n]) * 300_000, args=[number])
    result = await flow.run({})
    assert list(result.values()) == [bytes([n]) * 300_000 for n in range(12)]
    assert max(batches) > 1


def be_patient(_):
    from quantum_async.engine.executors import capture

    capture._PATIENCE_MS = 10_000  # with a pool that reads late: the machine may be busy


async def test_what_subprocesses_of_a_batch_print_is_each_ones_own(batches, caplog):
    before = partitioner(max_workers=1)
    before.add_unit(be_patient)
    assert (await before.run({})).ok  # in the worker that serves the next run too
    flow = partitioner(max_workers=1)
    for number in range(8):
        flow.add_unit(lambda n: os.system(f"echo said {n}"), name=f"unit {number}", args=[number])
    with caplog.at_level("INFO", "quantum_async"):
        assert (await flow.run({})).ok
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("said")]
    found = {(text.split()[1], re.search(r"unit='unit (\d)'", text)[1]) for text in said}
    assert found == {(str(number), str(number)) for number in range(8)}


async def test_a_run_that_stops_leaves_no_call_of_a_batch_behind(batches, tmp_path):
    flow = QuantumPartitioner(default_execution_mode="process", max_workers=1)

    def work(number):
        Path(tmp_path, str(number)).touch()
        if number == 2:
            raise ValueError
        time.sleep(0.01)

    for number in range(30):
        flow.add_unit(work, name=f"unit {number}", args=[number])
    with pytest.raises(Exception, match="unit 2"):
        await flow.run({}, failure_policy="fail_fast")
    last = flow.last_result
    assert last.states["unit 29"] is CANCELED
    after = len(list(tmp_path.iterdir()))
    assert (await partitioner().run({})).ok
    assert len(list(tmp_path.iterdir())) == after


async def test_workers_that_die_in_batches_cost_no_value(batches, monkeypatch):
    killed = []
    ask = Session.ask

    def sometimes(self, number, *args, **options):
        if number % 17 == 0:
            killed.append(number)
            self._loop.call_soon(self.kill)
        return ask(self, number, *args, **options)

    monkeypatch.setattr(Session, "ask", sometimes)
    flow = partitioner()
    for number in range(80):
        flow.add_unit(double, name=f"unit {number}", args=[number], retries=5)
    result = await flow.run({})
    assert [value[0] for value in result.values()] == list(range(0, 160, 2))
    assert killed


async def test_a_parameter_with_a_default_keeps_it_in_a_chain(batches):
    flow = partitioner(max_workers=1)
    flow.unit(lambda: 1, name="a")
    flow.unit(lambda a, other=5: a + other, name="b")
    flow.unit(lambda b, given=5: b + given, name="c")
    assert (await flow.run({"given": 7}))["c"] == 1 + 5 + 7
    assert max(batches) == 3


@pytest.mark.parametrize(
    ("options", "goes_along"),
    [
        ({"fn": lambda ctx: ctx["a"], "dependencies": ["a"]}, False),  # it sees results
        ({"fn": lambda a: a, "args": ["a"], "batch": False}, False),
        ({"fn": lambda a, _: a, "args": ["a", b"x" * 100_000]}, False),  # it is no small call
        ({"fn": lambda a: a, "args": ["a"]}, True),
    ],
    ids=["takes the context", "must not", "has big arguments", "may"],
)
async def test_a_link_goes_along_only_if_it_may(batches, options, goes_along):
    flow = partitioner(max_workers=1)
    first = flow.add_unit(lambda: 1, name="a", args=[])
    if "args" in options:
        options["args"] = [first, *options["args"][1:]]
    flow.add_unit(**options, name="b")
    assert (await flow.run({}))["b"] == 1
    assert max(batches) == 1 + goes_along


class Moody(dict):
    """An input that does not give what it says it has."""

    def __getitem__(self, key):
        if key == "mood":
            raise ValueError("not today")
        return super().__getitem__(key)


async def test_arguments_that_cannot_be_had_are_the_error_of_their_unit_alone(batches):
    flow = partitioner(max_workers=1)
    for number in range(6):
        flow.unit(lambda n, number=number: n + number, name=f"good {number}")
    flow.unit(lambda mood: mood, name="bad", priority=1)
    for number in range(6):
        flow.unit(lambda n, number=number: n + number, name=f"also good {number}", priority=2)
    result = await flow.run(Moody(mood=0, n=1))
    assert isinstance(result.errors["bad"], ValueError)
    assert len(result) == 12
    assert max(batches) > 1


async def test_a_queue_may_hold_less_than_it_seems(batches, monkeypatch):
    # Units that were given up are still counted.
    monkeypatch.setattr(Scheduler, "ready_in", lambda self, lane: 100)
    # As if the trip took a second, and units no time.
    monkeypatch.setattr(Ahead, "learn", lambda self, *_: setattr(self, "_trip", 1.0))
    flow = partitioner(max_workers=1)
    for number in range(5):
        flow.add_unit(double, args=[number])
    assert (await flow.run({})).ok
    assert batches == [1, 4]
