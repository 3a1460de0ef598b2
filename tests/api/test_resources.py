"""`@flow.resource`: opened when first needed, shared, closed when nobody needs it any more."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from quantum_async import (
    ExecutionError,
    QuantumPartitioner,
    Runtime,
    RunTimeoutError,
    UnitState,
)

COMPLETED, FAILED, SKIPPED = UnitState.COMPLETED, UnitState.FAILED, UnitState.SKIPPED
CANCELED = UnitState.CANCELED


class Life:
    """What happened to resources, and when."""

    def __init__(self, clock=None):
        self.told = []
        self._clock = clock

    def __call__(self, what):
        self.told.append(what if self._clock is None else (what, round(self._clock.time(), 2)))

    def resource(self, flow, name, *, needs=(), opening=0.0, closing=0.0, fails=None, raises=None):
        """Declare a resource that takes its time, and tells when it is opened and closed."""

        @asynccontextmanager
        async def opens(*taken):
            await asyncio.sleep(opening)
            if fails is not None:
                raise fails
            self(f"open {name}")
            try:
                yield f"<{name}>"
            finally:
                await asyncio.sleep(closing)
                self(f"close {name}")
                if raises is not None:
                    raise raises

        scope = {}
        exec(
            f"def wired({', '.join(needs)}): return opens({', '.join(needs)})",
            {"opens": opens},
            scope,
        )
        return flow.resource(scope["wired"], name=name)

    @property
    def balanced(self):
        """Whether all that was opened was closed, once."""
        words = [what.split() for what in self.told]
        opened = [name for verb, name in words if verb == "open"]
        closed = [name for verb, name in words if verb == "close"]
        return sorted(opened) == sorted(closed) and len(set(opened)) == len(opened)


@pytest.fixture
def flow():
    return QuantumPartitioner(failure_policy="collect")


def uses(flow, name, *resources, after=(), seconds=1.0, life=None, error=None, **options):
    async def works(ctx):
        taken = [ctx[resource] for resource in resources]
        await asyncio.sleep(seconds)
        if life is not None:
            life(f"end {name}")
        if error is not None:
            raise error
        return taken

    return flow.add_unit(works, [*resources, *after], name=name, **options)


# -- opened and closed -------------------------------------------------------------------------


async def test_it_is_opened_for_the_first_that_needs_it_and_closed_after_the_last(virtual_clock):
    flow, life = QuantumPartitioner(), Life(virtual_clock)
    life.resource(flow, "pool")
    uses(flow, "before", seconds=2)
    uses(flow, "one", "pool", after=["before"])
    uses(flow, "two", "pool", after=["one"])
    uses(flow, "after", after=["two"], seconds=3)
    result = await flow.run()
    assert result["one"] == result["two"] == ["<pool>"]
    assert life.told == [("open pool", 2), ("close pool", 4)]
    assert virtual_clock.time() == pytest.approx(7, abs=0.01)


async def test_units_share_what_is_opened_once(flow, virtual_clock):
    life = Life()
    life.resource(flow, "pool", opening=1)
    for number in range(10):
        uses(flow, f"u{number}", "pool")
    assert (await flow.run()).ok
    assert life.told == ["open pool", "close pool"]
    assert virtual_clock.time() == pytest.approx(2, abs=0.01)


async def test_parameters_take_it_on_the_loop_and_in_threads(flow):
    closed = []

    @flow.resource
    async def client(url):
        yield {"url": url}
        closed.append(url)

    @flow.unit
    async def on_loop(client):
        return client["url"]

    @flow.unit
    def in_thread(client, on_loop):
        return client["url"] + on_loop

    @flow.unit
    async def by_context(ctx, in_thread):
        with pytest.raises(KeyError):
            ctx["client"]
        return "client" in ctx

    result = await flow.run({"url": "x"})
    assert dict(result) == {"on_loop": "x", "in_thread": "xx", "by_context": False}
    assert closed == ["x"]
    assert "client" not in result.units


async def test_it_may_be_any_asynchronous_context_manager(flow):
    life = Life()

    class Pool:
        async def __aenter__(self):
            life("open pool")
            return self

        async def __aexit__(self, *exc):
            life("close pool")

    pool = flow.resource(Pool, name="pool")
    uses(flow, "one", "pool", seconds=0)
    assert isinstance((await flow.run())["one"][0], Pool)
    assert life.balanced
    assert repr(pool) == "<Resource 'pool'>"
    async with pool() as alone:
        assert isinstance(alone, Pool)


async def test_independent_ones_open_side_by_side(flow, virtual_clock):
    life = Life(virtual_clock)
    life.resource(flow, "a", opening=3)
    life.resource(flow, "b", opening=2)
    uses(flow, "both", "a", "b")
    assert (await flow.run())["both"] == ["<a>", "<b>"]
    assert life.told[:2] == [("open b", 2), ("open a", 3)]
    assert virtual_clock.time() == pytest.approx(4, abs=0.01)


async def test_they_are_closed_in_the_reverse_order_of_opening(flow, virtual_clock):
    life = Life()
    for number, name in enumerate("abc"):
        life.resource(flow, name, opening=number, closing=1)
    uses(flow, "all", "a", "b", "c")
    await flow.run()
    assert life.told[3:] == ["close c", "close b", "close a"]
    assert virtual_clock.time() == pytest.approx(6, abs=0.01)


async def test_resources_take_resources_units_and_the_input(flow, virtual_clock):
    life = Life(virtual_clock)
    uses(flow, "settings", seconds=2)
    life.resource(flow, "pool", needs=["settings", "url"], opening=1)
    life.resource(flow, "session", needs=["pool"], opening=1)
    life.resource(flow, "log")
    uses(flow, "work", "session", "log")
    assert (await flow.run({"url": "x"}))["work"] == ["<session>", "<log>"]
    assert life.told == [
        ("open log", 2), ("open pool", 3), ("open session", 4),
        ("close session", 5), ("close pool", 5), ("close log", 5),
    ]  # fmt: skip


async def test_what_nobody_needs_is_not_opened(flow):
    life = Life()
    life.resource(flow, "pool")
    uses(flow, "a", "pool", seconds=0)
    uses(flow, "b", seconds=0)
    flow.add_unit(lambda ctx: 1, ["pool"], name="never", when=lambda ctx: False)
    assert (await flow.run(targets=["b", "never"])).ok
    assert (await flow.run(overrides={"a": 1}, targets=["a", "b"])).ok
    assert life.told == []


async def test_it_is_opened_again_in_every_run(flow):
    life = Life()
    life.resource(flow, "pool")
    uses(flow, "a", "pool", seconds=0)
    await asyncio.gather(flow.run(), flow.run())
    assert sorted(life.told) == ["close pool"] * 2 + ["open pool"] * 2


async def test_retries_find_it_open(flow, virtual_clock):
    life = Life()
    life.resource(flow, "pool")

    @flow.unit(retries=2)
    async def flaky(ctx, pool):
        if ctx.attempt < 3:
            raise ValueError
        return pool

    assert (await flow.run())["flaky"] == "<pool>"
    assert life.told == ["open pool", "close pool"]


async def test_children_of_maps_share_it(flow, virtual_clock):
    life = Life()
    life.resource(flow, "pool", opening=1)
    flow.map(lambda item, pool: f"{item} {pool}", [1, 2, 3], name="mapped")
    assert (await flow.run())["mapped"] == ["1 <pool>", "2 <pool>", "3 <pool>"]
    assert life.told == ["open pool", "close pool"]


async def test_a_streaming_unit_and_the_map_behind_it_take_it(flow, virtual_clock):
    life = Life()
    life.resource(flow, "pool")

    @flow.unit
    async def rows(pool):
        for number in range(3):
            yield f"{number} of {pool}"

    flow.map(lambda item: item, rows, name="mapped")
    assert (await flow.run())["mapped"] == ["0 of <pool>", "1 of <pool>", "2 of <pool>"]
    assert life.told == ["open pool", "close pool"]


async def test_each_run_inside_a_run_has_its_own_and_the_outer_ones_stay_open(virtual_clock):
    flow, inner, life, within = QuantumPartitioner(), QuantumPartitioner(), Life(), Life()
    life.resource(flow, "pool")
    within.resource(inner, "pool", opening=1, closing=1)
    uses(inner, "a", "pool")
    flow.include(inner, "one")

    @flow.unit
    async def two(ctx, pool):
        await ctx.run(inner)
        return life.told == ["open pool"]

    assert (await flow.run())["two"] is True
    assert sorted(within.told) == ["close pool"] * 2 + ["open pool"] * 2
    assert life.balanced


async def test_opening_takes_no_slot(virtual_clock):
    flow, life = QuantumPartitioner(max_workers=1), Life()
    life.resource(flow, "pool", opening=5)
    uses(flow, "a", "pool", priority=9)
    uses(flow, "b", seconds=3)
    result = await flow.run()
    assert result.units["b"].waited == pytest.approx(0, abs=0.01)
    assert virtual_clock.time() == pytest.approx(6, abs=0.01)


# -- failures ----------------------------------------------------------------------------------


async def test_one_that_fails_to_open_fails_its_units_and_others_go_on(flow, virtual_clock):
    life, wrong = Life(), ConnectionError("no database")
    life.resource(flow, "pool", opening=1, fails=wrong)
    life.resource(flow, "log")
    uses(flow, "a", "pool", "log", fallback=3, retries=3)
    uses(flow, "b", "pool")
    uses(flow, "below", after=["a"])
    uses(flow, "other", "log", seconds=5)
    result = await flow.run()
    assert result.states == {"a": FAILED, "b": FAILED, "below": SKIPPED, "other": COMPLETED}
    assert result.errors["a"] is result.errors["b"] is wrong
    assert result.units["a"].cause == "a resource could not be opened"
    assert result.units["a"].attempts == 0
    assert any("resource 'pool'" in note for note in wrong.__notes__)
    assert life.balanced
    assert life.told[-1] == "close log"


async def test_that_stops_a_run_which_fails_fast(virtual_clock):
    flow, life, wrong = QuantumPartitioner(failure_policy="fail_fast"), Life(), OSError("no")
    life.resource(flow, "pool", opening=1, fails=wrong)
    life.resource(flow, "log", opening=99)
    uses(flow, "a", "pool")
    uses(flow, "b", "log")
    with pytest.raises(ExecutionError) as failure:
        await flow.run()
    assert failure.value.__cause__ is wrong
    assert failure.value.result.states["b"] is CANCELED
    assert virtual_clock.time() == pytest.approx(1, abs=0.01)


async def test_what_needs_one_that_failed_is_not_opened_and_what_it_needed_is_closed(flow):
    life = Life()
    life.resource(flow, "pool")
    life.resource(flow, "session", needs=["pool"], fails=OSError("no"))
    life.resource(flow, "cursor", needs=["session"])
    uses(flow, "a", "cursor", seconds=0)
    result = await flow.run()
    assert "no" in str(result.errors["a"])
    assert life.told == ["open pool", "close pool"]


@pytest.mark.parametrize("bad", ["yields twice", "yields nothing"])
async def test_generators_must_yield_once(flow, bad, caplog):
    @flow.resource
    async def pool():
        if bad == "yields twice":
            yield 1
            yield 2

    uses(flow, "a", "pool", seconds=0)
    result = await flow.run()
    if bad == "yields nothing":
        assert "didn't yield" in str(result.errors["a"])
    else:
        assert result.ok
        assert "the resource 'pool' raised while it was closed" in caplog.text


async def test_one_that_raises_while_it_is_closed_goes_to_the_log(flow, caplog):
    life = Life()
    life.resource(flow, "pool")
    life.resource(flow, "session", needs=["pool"], raises=OSError("in the end"))
    uses(flow, "a", "session", seconds=0)
    result = await flow.run()
    assert result.ok
    assert life.balanced
    assert "the resource 'session' raised while it was closed" in caplog.text
    assert "in the end" in caplog.text


async def test_it_is_closed_when_units_fail_or_run_out_of_time(flow, virtual_clock):
    life = Life(virtual_clock)
    life.resource(flow, "pool")
    uses(flow, "fails", "pool", error=ValueError())
    uses(flow, "late", "pool", seconds=99, timeout=2)
    uses(flow, "below", "pool", after=["fails"])
    uses(flow, "other", seconds=5)
    await flow.run()
    assert life.told == [("open pool", 0), ("close pool", 2)]


async def test_an_interrupt_while_it_opens_ends_the_run(flow):
    life = Life()
    life.resource(flow, "pool", fails=SystemExit("out"))
    uses(flow, "a", "pool", seconds=0)
    uses(flow, "b", seconds=0)
    result = await flow.run()
    assert result.states == {"a": FAILED, "b": COMPLETED}


# -- ends --------------------------------------------------------------------------------------


def everything(life):
    flow = QuantumPartitioner()
    life.resource(flow, "pool", opening=1, closing=1)
    life.resource(flow, "session", needs=["pool"], opening=1, closing=1)
    life.resource(flow, "log", opening=0.5, closing=2)
    uses(flow, "a", "session", "log", life=None)
    uses(flow, "b", "log", after=["a"])
    uses(flow, "c", after=["b"])
    return flow


@pytest.mark.parametrize("how", ["native", "timeout"])
@pytest.mark.parametrize("moment", [tenth / 4 for tenth in range(36)])
async def test_a_run_that_is_cancelled_at_any_moment_closes_all(virtual_clock, moment, how):
    life = Life()
    flow = everything(life)
    tasks = asyncio.all_tasks()
    run = asyncio.create_task(flow.run(timeout=moment or None if how == "timeout" else None))
    await asyncio.sleep(moment)
    if how == "native":
        run.cancel()
    await asyncio.wait([run])
    assert (
        run.cancelled() or run.exception() is None or isinstance(run.exception(), RunTimeoutError)
    )
    assert life.balanced, life.told
    assert asyncio.all_tasks() == tasks


async def test_a_drained_runtime_closes_all(virtual_clock):
    life = Life()
    async with Runtime() as runtime:
        run = asyncio.create_task(everything(life).run(failure_policy="collect"))
        await asyncio.sleep(2.5)
        await runtime.drain()
        assert (await run).states["b"] is CANCELED
    assert life.balanced


async def test_a_loser_that_waits_for_a_resource_lets_it_go(flow, virtual_clock):
    life = Life()
    life.resource(flow, "pool", opening=99)
    uses(flow, "slow", "pool")
    uses(flow, "fast")
    flow.first("slow", "fast", name="race")
    assert (await flow.run()).ok
    assert life.told == []
    assert virtual_clock.time() == pytest.approx(1, abs=0.01)
