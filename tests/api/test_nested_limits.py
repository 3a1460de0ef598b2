"""Limits of a run and of the partitioners inside it."""

import asyncio

import pytest

from quantum_async import ExecutionError, QuantumPartitioner


def asking(*, most=None, **limits):
    """A map over a limit called api; it fails if more than `most` of its items run at once."""
    flow, running = QuantumPartitioner(limits=limits), set()

    async def ask(number):
        me = object()
        running.add(me)
        await asyncio.sleep(0)
        assert len(running) <= most
        running.remove(me)
        return number

    flow.map(ask, over=range(4), uses="api")
    return flow


def around(inner, **limits):
    flow = QuantumPartitioner(limits=limits)
    flow.include(inner, "included")

    @flow.unit
    async def running(ctx):
        return await ctx.run(inner)

    return flow


@pytest.mark.parametrize(
    ("outer", "inner"),
    [({"api": 1}, {}), ({}, {"api": 1}), ({"api": 1}, {"api": 3})],
    ids=["of the run around", "its own", "the one around goes first"],
)
async def test_units_of_nested_runs_use_limits(outer, inner):
    result = await around(asking(most=1, **inner), **outer).run()
    assert result["included"]["ask"] == result["running"]["ask"] == [0, 1, 2, 3]


async def test_a_limit_that_neither_has_is_refused_where_the_run_would_begin():
    with pytest.raises(ExecutionError, match="no such limit"):
        await around(asking()).run()


async def test_a_plan_that_was_made_inside_a_run_is_checked_again_outside():
    inner = asking(most=1)
    assert (await around(inner, api=1).run()).ok
    with pytest.raises(ValueError, match="no such limit"):
        await inner.run()
