"""What an observer sets in context variables when something begins, is there for what begins."""

import contextvars

from quantum_async import QuantumPartitioner
from quantum_async.core import events

path: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("path", default=())


def deeper(event):
    match event:
        case events.RunStarted():
            path.set((*path.get(), "run"))
        case events.UnitStarted():
            path.set((*path.get(), f"{event.unit}#{event.attempt}"))


async def seen(ctx):
    return path.get()


async def test_a_unit_has_what_was_set_for_the_run_and_for_its_attempt():
    flow = QuantumPartitioner(observers=[deeper])
    flow.add_unit(seen, name="loop")
    flow.add_unit(lambda ctx: path.get(), name="thread")
    flow.add_unit(seen, ["loop"], name="after")
    result = await flow.run()
    assert result == {name: ("run", f"{name}#1") for name in ("loop", "thread", "after")}
    assert path.get() == ()


async def test_each_attempt_begins_anew():
    flow = QuantumPartitioner(observers=[deeper])

    async def second_time(ctx):
        if ctx.attempt == 1:
            raise OSError
        return path.get()

    flow.add_unit(second_time, name="unit", retries=1)
    assert (await flow.run())["unit"] == ("run", "unit#2")


async def test_what_is_inside_has_it_too():
    inner = QuantumPartitioner()
    inner.add_unit(seen, name="in")

    async def nests(ctx):
        return (await ctx.run(inner, None))["in"]

    async def child(item):
        return path.get()

    flow = QuantumPartitioner(observers=[deeper])
    flow.add_unit(nests, name="unit")
    flow.include(inner, "all")
    flow.map(child, over=["x"], name="map")
    result = await flow.run()
    assert result["unit"] == ("run", "unit#1", "unit/in#1")
    assert result["all"]["in"] == ("run", "all#1", "all/in#1")
    assert result["map"] == [("run", "map#1", "map[0]#1")]


async def test_the_handle_of_what_begins_is_told():
    told = []
    flow = QuantumPartitioner(
        observers=[lambda e: told.append(e) if isinstance(e, events.UnitStarted) else None]
    )
    unit = flow.add_unit(seen, name="unit")
    await flow.run()
    assert [event.handle for event in told] == [unit]
