"""What no other test of these files comes to: the rest of every branch of `core/`."""

import dataclasses

import pytest

from quantum_async import CircularDependencyError, PlanError, QuantumPartitioner, Strategy
from quantum_async.core import errors, events
from quantum_async.core.compile import compile_plan
from quantum_async.core.context import DetachedRun, ExecutionContext
from quantum_async.core.errors import InternalError
from quantum_async.core.layout import _head
from quantum_async.core.options import make_options
from quantum_async.core.ranking import ranking_of
from quantum_async.core.scheduler import READY, Scheduler
from quantum_async.core.states import UnitState
from quantum_async.core.unit import is_generator_function


class UnspeakableError(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_exception_whose_text_raises_is_described_all_the_same():
    assert errors.message_of(UnspeakableError()) == "(its __str__ raised)"
    assert errors.described(ValueError("bad")) == "ValueError: bad"
    assert errors.described(ValueError()) == "ValueError"


def test_a_circle_may_be_told_in_words():
    assert CircularDependencyError("round and round").cycle == ()


def test_every_kind_of_event_is_listed():
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type)]
    named = {
        kind for kind in kinds if issubclass(kind, tuple) and kind.__module__ == events.__name__
    }
    assert named == set(events.EVENT_TYPES)


def test_a_context_that_was_made_by_hand_has_a_view():
    assert isinstance(ExecutionContext({}, unit_id="a").view, DetachedRun)


def test_a_text_that_has_room_is_not_cut():
    assert _head("abc", 5) == "abc"
    assert _head("abcdef", 3) == "abc"


def test_a_plan_answers_what_runs_ask_of_it():
    flow = QuantumPartitioner()
    flow.unit(lambda a=1: a, name="wired")
    flow.add_unit(lambda ctx: 1, name="plain")
    plan = compile_plan(flow.units, [], {})
    assert plan.wired == (0,)
    assert plan.placements == {}
    assert plan.sendable == set()
    assert plan.sequence.units == plan.order
    assert plan.ranking(Strategy.FIFO) is None
    assert plan.index == dataclasses.replace(plan).index == {"wired": 0, "plain": 1}


@pytest.mark.parametrize(
    "option", [{"batch": 1}, {"grace": -1}, {"max_result_bytes": 0}, {"max_result_bytes": True}]
)
def test_options_for_workers_that_cannot_be_meant_are_refused(option):
    with pytest.raises(PlanError, match="unit 'a': "):
        make_options("a", **option)


def test_what_has_no_code_is_no_generator_function():
    assert not is_generator_function(len)


class Plan:
    edges_up = ((), (0,))
    edges_down = ((1,), ())
    in_degrees = (0, 1)


def test_a_scheduler_tells_what_became_ready_if_somebody_listens_and_what_is_wrong():
    scheduler = Scheduler(Plan(), ranking_of(range(2), Plan.edges_up))
    scheduler.just_ready = []
    assert scheduler.next_start() == 0
    scheduler.complete(0)
    assert scheduler.just_ready == [1]
    assert scheduler.state(0) is UnitState.COMPLETED
    assert repr(scheduler) == "<Scheduler 1 ready, 1 completed; 0 slots used>"
    scheduler.phase[0] = READY
    with pytest.raises(InternalError, match="broken invariant: unfinished counts"):
        scheduler.check_invariants()


def test_an_empty_scheduler_says_so():
    class Empty:
        edges_up = edges_down = in_degrees = ()

    assert "empty" in repr(Scheduler(Empty(), None))
