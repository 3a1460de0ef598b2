"""How a function gets its arguments: the context, exactly what was given, or wired by name."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import quantum_async
from quantum_async.core.binding import CONTEXT, ExactBinding, WiredBinding
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import PlanError
from quantum_async.core.unit import QuantumUnit

Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - a plain one is what is tested
Unit = QuantumUnit[Any, Any]

a: Unit = QuantumUnit("a", len)
b: Unit = QuantumUnit("b", len)


def context(
    results: Mapping[str, Any] | None = None, /, **keys: Any
) -> ExecutionContext[dict[str, Any]]:
    return ExecutionContext(results, input=keys)


def wired(fn: Callable[..., Any]) -> WiredBinding:
    return WiredBinding.of(fn, "unit")


def call(fn: Callable[..., Any], ctx: ExecutionContext[Any]) -> Any:
    args, kwargs = wired(fn).bind(ctx)
    return fn(*args, **kwargs)


# --- the context alone ----------------------------------------------------------------------------


def test_the_context_is_the_only_argument() -> None:
    ctx = context()
    assert CONTEXT.bind(ctx) == ((ctx,), {})


# --- exact arguments ------------------------------------------------------------------------------


def test_arguments_are_passed_on_exactly() -> None:
    binding = ExactBinding((1, "two"), {"three": 3})
    assert binding.bind(context()) == ((1, "two"), {"three": 3})
    assert list(binding.handles()) == []


def test_handles_become_results() -> None:
    binding = ExactBinding((a, 1), {"other": b})
    assert binding.bind(context({"a": "A", "b": "B"})) == (("A", 1), {"other": "B"})


def test_handles_are_found_at_any_depth_in_order() -> None:
    binding = ExactBinding(([1, (a, {"deep": [b]})],), {"again": {"it": a}})
    assert list(binding.handles()) == [a, b, a]
    assert binding.bind(context({"a": "A", "b": "B"})) == (
        ([1, ("A", {"deep": ["B"]})],),
        {"again": {"it": "A"}},
    )


def test_containers_without_handles_stay_the_objects_that_they_are() -> None:
    given: Any = [[1, 2], {"x": (3,)}, (4, [5])]
    (bound,), _ = ExactBinding((given,), {}).bind(context())
    assert bound is given


def test_what_was_given_is_not_changed_by_filling_it_in() -> None:
    given = [a, {"b": b}]
    ExactBinding((given,), {}).bind(context({"a": 1, "b": 2}))
    assert given == [a, {"b": b}]


def test_a_result_that_is_none_or_empty_is_a_result() -> None:
    assert ExactBinding((a, [b]), {}).bind(context({"a": None, "b": []})) == ((None, [[]]), {})


def test_only_plain_containers_are_looked_into() -> None:
    pair = Pair(a, b)
    binding = ExactBinding((pair, {a}), {})
    assert list(binding.handles()) == []
    assert binding.bind(context())[0][0] is pair


def test_names_are_no_handles() -> None:
    assert ExactBinding(("a",), {}).bind(context({"a": 1})) == (("a",), {})


# --- wired by name --------------------------------------------------------------------------------


def test_parameters_get_results_and_input_keys_of_their_names() -> None:
    def fn(page: str, url: str) -> tuple[str, str]:
        return page, url

    assert call(fn, context({"page": "text"}, url="https://…")) == ("text", "https://…")
    assert wired(fn).names == ("page", "url")


def test_a_parameter_called_ctx_gets_the_context() -> None:
    ctx = context({"page": "text"})
    assert call(lambda ctx, page: (ctx, page), ctx) == (ctx, "text")
    assert wired(lambda ctx, page: None).names == ("page",)


def by_type(where: ExecutionContext[Any]) -> object:
    return where


def by_dotted_type(where: quantum_async.ExecutionContext[Any]) -> object:
    return where


def by_optional_type(where: ExecutionContext[Any] | None) -> object:
    return where


def by_evaluated_type(where: Any) -> object:
    return where


by_evaluated_type.__annotations__["where"] = ExecutionContext


def by_subscripted_type(where: Any) -> object:
    return where


by_subscripted_type.__annotations__["where"] = ExecutionContext[dict[str, int]]


@pytest.mark.parametrize(
    "fn",
    [by_type, by_dotted_type, by_optional_type, by_evaluated_type, by_subscripted_type],
)
def test_a_parameter_annotated_as_context_gets_it_whatever_its_name(fn: Any) -> None:
    ctx = context()
    assert call(fn, ctx) is ctx
    assert wired(fn).names == ()


def test_a_context_annotated_with_a_dotted_type_argument_is_one() -> None:
    def fn(where: ExecutionContext[functools.partial[int]]) -> object:
        return where

    assert wired(fn).names == ()


def test_a_positional_only_ctx_gets_the_context() -> None:
    def fn(ctx: Any, /, page: str) -> Any:
        return ctx, page

    ctx = context({"page": "text"})
    assert call(fn, ctx) == (ctx, "text")


def test_a_parameter_with_a_default_takes_it_only_where_nothing_has_its_name() -> None:
    def fn(page: str, size: int = 10, *, deep: bool = False) -> Any:
        return page, size, deep

    assert call(fn, context({"page": "text"})) == ("text", 10, False)
    assert call(fn, context({"page": "text"}, deep=True)) == ("text", 10, True)
    assert call(fn, context({"page": "text", "size": None})) == ("text", None, False)
    assert wired(fn).optional == {"size", "deep"}


def test_a_parameter_that_nothing_provides_is_a_missing_key() -> None:
    with pytest.raises(KeyError, match="'page'"):
        wired(lambda page: None).bind(context())


def test_positional_only_parameters_are_passed_by_position() -> None:
    def fn(left: int, right: int = 5, /, other: int = 0) -> Any:
        return left, right, other

    assert wired(fn).positional == ("left", "right")
    assert call(fn, context(left=1)) == (1, 5, 0)
    assert call(fn, context(left=1, right=2, other=3)) == (1, 2, 3)


def test_positional_only_parameters_after_a_missing_optional_one_keep_their_defaults() -> None:
    def fn(left: int = 1, right: int = 2, /) -> Any:
        return left, right

    assert call(fn, context(right=9)) == (1, 2)


def test_star_parameters_are_left_alone() -> None:
    def fn(page: str, *rest: Any, **more: Any) -> Any:
        return page, rest, more

    assert call(fn, context({"page": "text"}, rest=1, more=2)) == ("text", (), {})


def test_a_function_without_parameters_gets_none() -> None:
    assert wired(lambda: None).bind(context(any=1)) == ((), {})


def test_what_a_partial_has_given_already_may_be_overridden_by_name() -> None:
    def fn(page: str, size: int) -> Any:
        return page, size

    partial = functools.partial(fn, size=3)
    assert call(partial, context({"page": "text"})) == ("text", 3)


def test_a_bound_method_is_wired_without_its_self() -> None:
    class Crawler:
        def fetch(self, url: str) -> str:
            return url.upper()

    assert call(Crawler().fetch, context(url="x")) == "X"


def test_the_signature_behind_a_decorator_is_the_one_that_counts() -> None:
    def fn(page: str) -> str:
        return page

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    assert call(wrapper, context({"page": "text"})) == "text"


def test_parameters_that_cannot_be_read_are_refused_with_the_way_out() -> None:
    class Closed:
        __signature__ = "none of your business"

        def __call__(self, *args: Any) -> None: ...

    with pytest.raises(PlanError, match=r"unit 'odd'.*cannot be read.*add_unit\(fn, args=…\)"):
        WiredBinding.of(Closed(), "odd")
