"""States folded from events: the same live, from a stream and from a recorded run."""

from collections import Counter

import pytest

from quantum_async import QuantumPartitioner, project
from quantum_async.core.events import UnitCompleted
from quantum_async.observe.projection import Projection


@pytest.fixture
def flow():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 2, name="two")
    flow.add_unit(lambda ctx: 3, ["two"], name="three")
    return flow


def kinds(state, event):
    return state + Counter([type(event).__name__])


async def test_live_recorded_and_streamed_events_give_the_same_state(flow):
    recorded, live = [], Projection(kinds, Counter())
    await flow.run(observers=[recorded.append, live])
    assert live.state == project(recorded, kinds, Counter())
    assert live.state["UnitCompleted"] == 2
    async with flow.stream() as events:
        states = [state async for state in project(events, kinds, Counter())]
    assert states[-1] == live.state
    assert len(states) == len(recorded)
    assert "Projection: Counter" in repr(live)


async def test_a_projection_may_take_some_events_only(flow):
    total = Projection(lambda state, event: state + event.result, 0, event_types=(UnitCompleted,))
    await flow.run(observers=[total])
    assert total.state == 5


async def test_a_reducer_that_raises_breaks_no_run(flow):
    broken = Projection(lambda state, event: 1 / 0, "before")
    assert (await flow.run(observers=[broken])).ok
    assert broken.state == "before"


def test_without_events_the_state_is_the_first_one():
    assert project([], kinds, "first") == "first"


def test_what_is_no_events_is_refused():
    with pytest.raises(TypeError, match="a list of events or a stream, not 5"):
        project(5, kinds, 0)
