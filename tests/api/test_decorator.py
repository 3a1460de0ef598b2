"""The decorator: parameters wired by name, in all its forms."""

import functools

import pytest

import quantum_async
from quantum_async import ExecutionContext, PlanError, QuantumPartitioner, QuantumUnit, UnitState


@pytest.fixture
def flow():
    return QuantumPartitioner()


async def test_bare_it_wires_parameters_to_units_and_input_keys(flow):
    @flow.unit
    async def page(url):
        return f"<{url}>"

    @flow.unit
    def length(page, factor):
        return len(page) * factor

    result = await flow.run({"url": "abc", "factor": 10})
    assert dict(result) == {"page": "<abc>", "length": 50}
    assert length.dependencies == ["page"]


async def test_with_options_it_takes_those_of_add_unit(flow):
    @flow.unit(timeout=5, retries=2, priority=3, cost=4, metadata={"k": 1}, mode="thread", name="x")
    def unit(): ...

    assert isinstance(unit, QuantumUnit)
    assert (unit.id, unit.timeout, unit.retries, unit.priority) == ("x", 5, 2, 3)
    assert (unit.cost, unit.metadata, unit.mode.value) == (4, {"k": 1}, "thread")
    assert flow.units == {"x": unit}


async def test_with_empty_brackets_it_is_the_bare_form(flow):
    @flow.unit()
    async def unit(x):
        return x

    assert (await flow.run({"x": 1}))[unit] == 1


@pytest.mark.parametrize("option", ["after", "dependencies"])
async def test_after_orders_without_data(flow, option):
    order = []

    @flow.unit(**{option: ["setup"]})
    async def work():
        order.append("work")

    @flow.unit
    async def setup():
        order.append("setup")

    await flow.run()
    assert order == ["setup", "work"]
    assert work.dependencies == ["setup"]


async def test_after_takes_handles(flow):
    @flow.unit
    async def setup(): ...

    @flow.unit(after=[setup])
    async def work(setup):
        return setup

    assert work.dependencies == ["setup"]
    assert (await flow.run()).ok


async def test_args_and_kwargs_are_given_exactly(flow):
    @flow.unit
    async def base():
        return 10

    @flow.unit(args=[base, 2], kwargs={"more": [base, {"deep": base}]})
    async def total(a, b, *, more):
        return a, b, more

    assert (await flow.run())[total] == (10, 2, [10, {"deep": 10}])
    assert total.dependencies == ["base"]


async def test_defaults_stand_in_for_what_the_input_does_not_have(flow):
    @flow.unit
    async def unit(a, b=2, *, c=3):
        return a, b, c

    assert (await flow.run({"a": 1}))[unit] == (1, 2, 3)
    assert (await flow.run({"a": 1, "c": 9}))[unit] == (1, 2, 9)


async def test_a_default_does_not_hide_a_unit_of_that_name(flow):
    @flow.unit
    async def user(name="nobody"):
        return name

    @flow.unit
    async def name():
        return "somebody"

    assert (await flow.run())[user] == "somebody"


async def test_positional_only_parameters_are_wired(flow):
    @flow.unit
    async def unit(a, b=2, /, c=3):
        return a, b, c

    assert (await flow.run({"a": 1}))[unit] == (1, 2, 3)
    assert (await flow.run({"a": 1, "b": 5}))[unit] == (1, 5, 3)


async def test_the_context_may_be_positional_only(flow):
    @flow.unit
    async def unit(ctx, /):
        return ctx.unit_id

    assert (await flow.run())[unit] == "unit"


async def test_star_parameters_get_nothing(flow):
    @flow.unit
    async def unit(*args, a, **kwargs):
        return args, a, kwargs

    assert (await flow.run({"a": 1, "b": 2}))[unit] == ((), 1, {})


async def test_the_context_is_known_by_its_name(flow):
    @flow.unit
    async def unit(a, ctx, b):
        return ctx.unit_id, ctx.input, a, b

    given = {"a": 1, "b": 2}
    assert (await flow.run(given))[unit] == ("unit", given, 1, 2)


async def test_the_context_is_known_by_its_annotation(flow):
    @flow.unit
    async def plain(context: ExecutionContext):
        return context.unit_id

    @flow.unit
    async def subscripted(context: ExecutionContext[dict]):
        return context.unit_id

    @flow.unit
    async def dotted(context: quantum_async.ExecutionContext):
        return context.unit_id

    @flow.unit
    async def text(context: "ExecutionContext[dict[str, int]]"):
        return context.unit_id

    @flow.unit
    async def dotted_text(context: "quantum_async.ExecutionContext[flow.x]"):
        return context.unit_id

    result = await flow.run()
    assert all(result[name] == name for name in flow.units)


async def test_a_parameter_may_be_named_after_a_unit_that_is_declared_later(flow):
    @flow.unit
    async def last(first):
        return first + 1

    assert last.dependencies == []

    @flow.unit
    async def first():
        return 1

    assert last.dependencies == ["first"]
    assert (await flow.run())[last] == 2


async def test_the_handle_stays_callable_as_the_plain_function(flow):
    @flow.unit
    def double(x):
        return 2 * x

    @flow.unit
    async def later(x):
        return x

    assert double(4) == 8
    assert double(x=4) == 8
    assert await later(5) == 5
    assert double.state is UnitState.PENDING


async def test_a_unit_can_call_another_ones_function(flow):
    @flow.unit
    def double(x):
        return 2 * x

    @flow.unit
    def four_times(x):
        return double(double(x))

    assert (await flow.run({"x": 3}))[four_times] == 12


def test_a_function_without_a_name_gets_a_number(flow):
    units = [
        flow.unit(lambda: 1),
        flow.unit(functools.partial(divmod, 1, 2)),
        flow.unit(lambda: 3, name="named"),
        flow.unit(lambda: 4),
    ]
    assert [unit.id for unit in units] == ["unit_0", "unit_1", "named", "unit_3"]


async def test_a_partial_is_wired_by_what_is_left_of_it(flow):
    def scale(factor, value):
        return factor * value

    unit = flow.unit(functools.partial(scale, 3), name="scaled")
    assert (await flow.run({"value": 5}))[unit] == 15


async def test_methods_and_callable_objects_are_wired(flow):
    class Tools:
        async def fetch(self, url):
            return f"fetched {url}"

        def __call__(self, url):
            return f"called {url}"

    tools = Tools()
    flow.unit(tools.fetch)
    flow.unit(tools, name="tools")
    result = await flow.run({"url": "u"})
    assert dict(result) == {"fetch": "fetched u", "tools": "called u"}


async def test_one_function_can_be_a_unit_of_two_partitioners(flow):
    other = QuantumPartitioner()

    @other.unit
    @flow.unit
    def double(x):
        return 2 * x

    assert (await flow.run({"x": 1}))["double"] == 2
    assert (await other.run({"x": 2}))["double"] == 4


def test_an_unknown_option_is_refused_with_the_nearest(flow):
    with pytest.raises(PlanError, match="'retires'; did you mean 'retries'"):
        flow.unit(retires=3)(print)
    assert flow.units == {}


def test_a_function_whose_parameters_cannot_be_read_says_so(flow):
    with pytest.raises(PlanError, match=r"cannot be read.*add_unit"):
        flow.unit(type)


async def test_annotations_that_mean_nothing_do_no_harm(flow):
    @flow.unit
    async def unit(x: "no such type", y: 5, z: [1]) -> "neither":  # noqa: F722, F821
        return x, y, z

    assert (await flow.run({"x": 1, "y": 2, "z": 3}))[unit] == (1, 2, 3)


@pytest.mark.parametrize("name", ["Straße", "数", "a b", "x" * 10_000, "line\nbreak", "\ud800"])
async def test_any_text_can_be_a_name(flow, name):
    flow.add_unit(lambda ctx: 1, name=name)
    flow.add_unit(lambda ctx: ctx[name], [name], name="after")
    result = await flow.run()
    assert result["after"] == 1
    assert isinstance(result.explain() + result.explain(name) + repr(flow.units[name]), str)
    for kind in ("dot", "mermaid", "svg"):
        assert flow.build_execution_plan().visualize(kind)
