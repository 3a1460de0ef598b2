"""What graphs that grow ask of a context that was made by hand, and of a unit's own code."""

import pytest

from quantum_async import ExecutionContext, QuantumPartitioner, UndeclaredDependencyError
from quantum_async.core.limits import Gauge


async def test_a_context_by_hand_streams_the_results_that_it_was_given():
    ctx = ExecutionContext({"numbers": [1, 2]}, unit_id="total")
    assert [number async for number in ctx.stream("numbers")] == [1, 2]
    with pytest.raises(UndeclaredDependencyError, match="'letters'"):
        ctx.stream("letters")
    with pytest.raises(UndeclaredDependencyError, match="'letters'"):
        ctx.outcome("letters")


async def test_a_context_by_hand_runs_a_partitioner_by_itself():
    flow = QuantumPartitioner()

    @flow.unit
    async def double(number):
        return 2 * number

    result = await ExecutionContext(unit_id="by hand").run(flow, {"number": 4})
    assert result["double"] == 8


def test_a_context_by_hand_has_no_item():
    with pytest.raises(LookupError, match="take the item as a parameter"):
        _ = ExecutionContext(unit_id="by hand").item


def test_a_unit_that_reads_a_stream_starts_with_it_however_its_code_names_it():
    flow = QuantumPartitioner()

    @flow.unit
    async def numbers(ctx):
        yield 1

    @flow.unit(after=[numbers])
    async def by_handle(ctx):
        return [number async for number in ctx.stream(numbers)]

    @flow.unit(after=[numbers])
    async def of_another(ctx):
        return [number async for number in ctx.stream(later)]

    later = flow.add_unit(lambda ctx: [], name="later")
    flow.add_unit(lambda ctx: 1, ["numbers"], name="plain")
    assert flow.build_execution_plan().streams == {0: (1,)}


def test_a_gauge_says_what_it_shows():
    assert repr(Gauge(3)) == "<Gauge 0 of 3>"
