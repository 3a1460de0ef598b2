"""Events to whom they concern: by type, by unit, by tag."""

import asyncio
import logging

import pytest

from quantum_async import EventBus, QuantumPartitioner
from quantum_async.core.events import RunFinished, UnitCompleted, UnitEmitted, UnitStarted


@pytest.fixture
def flow():
    inner = QuantumPartitioner()
    inner.add_unit(lambda ctx: 1, name="leaf", metadata={"tags": ["inner"]})
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 1, name="load", metadata={"tags": ["input", "slow"]})
    flow.add_unit(lambda ctx: 1, ["load"], name="load-more", metadata={"tags": "input"})
    flow.map(lambda item: item, [1, 2], name="each", metadata={"tags": ["each"]})
    flow.include(inner, "inside")
    return flow


@pytest.mark.parametrize(
    ("which", "units"),
    [
        ({"unit": "load"}, ["load"]),
        ({"unit": "load*"}, ["load", "load-more"]),
        ({"unit": "each[*]"}, ["each[0]", "each[1]"]),
        ({"unit": "each[1]"}, ["each[1]"]),
        ({"unit": "eac?"}, ["each"]),
        ({"unit": "inside/*"}, ["inside/leaf"]),
        ({"tag": "input"}, ["load", "load-more"]),
        ({"tag": "in"}, []),
        ({"tag": "inner"}, ["inside/leaf"]),
        ({"tag": "each"}, ["each", "each[0]", "each[1]"]),
        ({"tag": "input", "unit": "*more"}, ["load-more"]),
        ({"tag": "nobody"}, []),
    ],
)
async def test_a_subscription_is_for_some_units(flow, which, units):
    bus, heard = EventBus(), []
    bus.subscribe(lambda event: heard.append(event.unit), UnitCompleted, **which)
    await flow.run(observers=[bus])
    assert sorted(heard) == units


async def test_a_subscription_is_for_some_types_or_all(flow):
    bus, kinds, ends = EventBus(), [], []
    bus.on(lambda event: kinds.append(type(event)))

    @bus.on(RunFinished)
    def end(event):
        ends.append(event.state)

    await flow.run(observers=[bus])
    assert {UnitStarted, UnitCompleted, RunFinished} <= set(kinds)
    assert ends == ["completed"]
    assert end.__name__ == "end"


async def test_asynchronous_handlers_have_a_task_of_their_own_and_keep_the_order():
    flow, handled, go_on = QuantumPartitioner(), [], asyncio.Event()

    @flow.unit
    async def counts(ctx):
        for number in range(5):
            ctx.emit(number)

    async with EventBus() as bus:

        @bus.on(UnitEmitted)
        async def slow(event):
            await go_on.wait()
            handled.append(event.value)

        result = await flow.run(observers=[bus])
        assert result.ok
        assert handled == []
        go_on.set()
    assert handled == [0, 1, 2, 3, 4]


async def test_handlers_can_be_waited_for_and_start_again(flow):
    bus, handled = EventBus(), []

    @bus.on(UnitCompleted, unit="load")
    async def note(event):
        await asyncio.sleep(0)
        handled.append(event.unit)

    for runs in (1, 2):
        await flow.run(observers=[bus])
        await bus.wait_idle()
        assert handled == ["load"] * runs


async def test_leaving_with_an_error_cancels_what_handlers_do(flow):
    stopped = []
    with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
        async with EventBus() as bus:

            @bus.on(UnitCompleted)
            async def hang(event):
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.append(event.unit)

            await flow.run(observers=[bus])
            raise KeyError
    assert len(stopped) <= 1


async def test_a_handler_that_raises_is_named_once_and_harms_nobody(flow, caplog):
    bus, heard = EventBus(), []

    @bus.on(UnitCompleted)
    def broken(event):
        raise ValueError("plain")

    @bus.on(UnitCompleted)
    async def broken_later(event):
        raise ValueError("asynchronous")

    bus.subscribe(lambda event: heard.append(event.unit), UnitCompleted, tag="input")
    with caplog.at_level(logging.WARNING, "quantum_async"):
        result = await flow.run(observers=[bus])
        await bus.wait_idle()
    assert result.ok
    assert heard == ["load", "load-more"]
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert "broken of an EventBus raised" in told[0]
    assert "broken_later of an EventBus raised" in told[1]


async def test_a_subscription_can_be_cancelled(flow):
    bus, heard = EventBus(), []
    subscription = bus.subscribe(heard.append, UnitCompleted)
    subscription.cancel()
    subscription.cancel()
    assert bus.event_types == (RunFinished,)
    await flow.run(observers=[bus])
    assert heard == []


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        (["no"], {}, "a handler is a callable"),
        ([print, int], {}, "is no type of event; there are RunStarted"),
        ([print], {"unit": 3}, "unit must be a string, not 3"),
        ([print], {"tag": ["a"]}, "tag must be a string"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, options, told):
    with pytest.raises(TypeError, match=told):
        EventBus().subscribe(*arguments, **options)


async def test_an_observer_whose_on_plan_raises_is_dropped(flow, caplog):
    class Broken:
        heard = 0

        def on_plan(self, run_id, plan, prefix):
            raise ValueError

        def __call__(self, event):
            self.heard += 1

    broken = Broken()
    result = await flow.run(observers=[broken])
    assert result.ok
    assert broken.heard == 0
    assert "hears no more" in caplog.text
