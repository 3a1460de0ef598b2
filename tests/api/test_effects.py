"""Side effects that units perform: taken down in order, and not performed in a dry run."""

import asyncio

import pytest

from quantum_async import (
    CachingQuantumPartitioner,
    ExecutionContext,
    PlanError,
    QuantumPartitioner,
)

sent = []


@pytest.fixture(autouse=True)
def _nothing_was_sent():
    sent.clear()


async def send(to, *, subject):
    sent.append((to, subject))
    return f"receipt for {to}"


def charge(cents):
    sent.append(cents)
    return cents * 2


def fail():
    raise OSError("no route\nto host")


def in_worker(ctx):
    return ctx.perform_sync("charge", charge, 7, dry=-1)


@pytest.fixture
def flow():
    flow = QuantumPartitioner()

    @flow.unit
    async def mail(ctx):
        return await ctx.perform(
            "email", send, "ann@example.org", subject="hello", dry="no receipt"
        )

    @flow.unit(after=[mail])
    def pay(ctx):
        return ctx.perform_sync("charge", charge, 250, dry=0)

    return flow


async def test_effects_are_performed_and_taken_down_in_order(flow):
    result = await flow.run()
    assert dict(result) == {"mail": "receipt for ann@example.org", "pay": 500}
    assert sent == [("ann@example.org", "hello"), 250]
    mail, pay = result.effects
    assert mail[:7] == (
        "mail", 1, "email", "send", "'ann@example.org', subject='hello'", "done",
        "'receipt for ann@example.org'",
    )  # fmt: skip
    assert pay[:7] == ("pay", 1, "charge", "charge", "250", "done", "500")
    assert result.metrics["start_time"] <= mail.started_at <= pay.started_at
    assert mail.started_at + mail.duration <= pay.started_at + 1e-3


async def test_a_dry_run_performs_nothing_and_gives_the_stand_ins(flow):
    result = await flow.run(dry_run=True)
    assert dict(result) == {"mail": "no receipt", "pay": 0}
    assert sent == []
    assert [(e.kind, e.outcome, e.detail) for e in result.effects] == [
        ("email", "dry", "'no receipt'"),
        ("charge", "dry", "0"),
    ]


async def test_without_a_stand_in_a_dry_effect_gives_none():
    flow = QuantumPartitioner()

    @flow.unit
    def pay(ctx):
        assert ctx.dry_run
        return ctx.perform_sync("charge", charge, 1)

    assert (await flow.run(dry_run=True))["pay"] is None


async def test_each_attempt_performs_again_and_failures_are_told():
    flow = QuantumPartitioner()

    @flow.unit(retries=1, fallback="none")
    def flaky(ctx):
        ctx.perform_sync("call", fail)

    result = await flow.run()
    assert [(e.attempt, e.outcome, e.detail) for e in result.effects] == [
        (1, "failed", r"OSError: no route\nto host"),
        (2, "failed", r"OSError: no route\nto host"),
    ]


async def test_an_effect_that_is_cut_off_is_told_of():
    flow = QuantumPartitioner()

    @flow.unit(timeout=0.01)
    async def slow(ctx):
        await ctx.perform("wait", asyncio.Event().wait)

    result = await flow.run(failure_policy="collect")
    assert [(e.kind, e.outcome) for e in result.effects] == [("wait", "canceled")]


@pytest.mark.slow
@pytest.mark.parametrize("dry", [False, True])
async def test_effects_come_back_from_worker_processes(dry):
    flow = QuantumPartitioner()
    flow.add_unit(in_worker, name="pay", mode="process")
    result = await flow.run(dry_run=dry)
    assert result["pay"] == (-1 if dry else 14)
    [effect] = result.effects
    assert effect[:6] == ("pay", 1, "charge", "charge", "7", "dry" if dry else "done")
    assert abs(effect.started_at - result.metrics["start_time"]) < 60


async def test_runs_inside_a_dry_run_are_dry_and_their_effects_are_told(flow):
    outer = QuantumPartitioner()
    outer.include(flow, "inside")

    @outer.unit
    async def asks(ctx):
        return dict(await ctx.run(flow))

    outer.map(lambda ctx, item: ctx.perform_sync("charge", charge, item), [5], name="each")
    result = await outer.run(dry_run=True)
    assert sent == []
    assert sorted(e.unit for e in result.effects) == [
        "asks/mail", "asks/pay", "each[0]", "inside/mail", "inside/pay",
    ]  # fmt: skip
    assert result["asks"] == {"mail": "no receipt", "pay": 0}


async def test_a_cache_does_not_remember_stand_ins():
    flow = CachingQuantumPartitioner()
    flow.add_unit(in_worker, name="pay", mode="thread", metadata={"cacheable": True})
    assert (await flow.run(dry_run=True))["pay"] == -1
    assert (await flow.run())["pay"] == 14
    assert (await flow.run(dry_run=True))["pay"] == 14


class Hostile:
    def __repr__(self):
        raise RuntimeError

    def __call__(self, what):
        return what


async def test_what_cannot_be_shown_is_shown_by_its_type():
    ctx = ExecutionContext(unit_id="a")
    hostile = Hostile()
    assert await ctx.perform("call", hostile, hostile) is hostile
    assert ctx.perform_sync("call", hostile, "\x1b[31m" + "x" * 1000)
    one, two = ctx.view.effects
    assert one.function == "Hostile"
    assert one.arguments.startswith("<Hostile")
    assert len(two.arguments) < 100
    assert "\x1b" not in two.arguments


@pytest.mark.parametrize(("kind", "function"), [(send, "email"), ("email", None), (None, send)])
async def test_what_cannot_be_meant_is_refused(kind, function):
    ctx = ExecutionContext(unit_id="mail")
    with pytest.raises(TypeError, match="unit 'mail' performs an effect as"):
        await ctx.perform(kind, function)
    assert not ctx.view.effects


async def test_a_class_that_only_has_the_name_of_a_list_is_shown_by_its_type():
    ctx = ExecutionContext(unit_id="a")
    ctx.perform_sync("call", str, type("list", (), {})())
    [effect] = ctx.view.effects
    assert effect.arguments == "<list>"


async def test_a_future_is_refused_in_a_plain_function():
    ctx = ExecutionContext(unit_id="mail")
    future = asyncio.get_running_loop().create_future()
    with pytest.raises(TypeError, match="gave something to await"):
        ctx.perform_sync("email", lambda: future)
    assert not future.cancelled()


def test_something_to_await_is_refused_in_a_plain_function():
    ctx = ExecutionContext(unit_id="mail")
    with pytest.raises(TypeError, match=r"use `await ctx\.perform"):
        ctx.perform_sync("email", send, "ann", subject="x")
    assert [effect.outcome for effect in ctx.view.effects] == ["failed"]
    assert sent == []


def test_dry_run_is_true_or_false(flow):
    with pytest.raises(PlanError, match="dry_run must be True or False, not 'yes'"):
        flow.execute(dry_run="yes")
