"""Results as an object of a type that the user has."""

import sys
import typing
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Protocol,
    TypedDict,
    TypeVar,
)

import pytest

from quantum_async import QuantumPartitioner, ViewError
from quantum_async.views import fits


@dataclass
class Report:
    count: float
    words: list[str]
    note: str | None = None
    second: int = field(default=0, metadata={"unit": "each[1]"})


class Row(TypedDict):
    count: int
    words: Annotated[list[str], "of the text"]
    missing: NotRequired[int]


@pytest.fixture
async def result():
    flow = QuantumPartitioner()
    flow.add_unit(lambda ctx: 3, name="count")
    flow.add_unit(lambda ctx: ["a", "b"], name="words")
    flow.add_unit(lambda ctx: 1 / 0, name="broken")
    flow.add_unit(lambda ctx: 1, ["broken"], name="skipped")
    flow.map(lambda item: item * 10, [1, 2], name="each")
    return await flow.run(failure_policy="collect")


async def test_a_dataclass_is_made_of_results(result):
    assert result.view(Report) == Report(3, ["a", "b"], None, 20)


async def test_a_typed_dict_is_made_of_results(result):
    assert result.view(Row) == {"count": 3, "words": ["a", "b"]}


async def test_all_problems_are_told_with_their_units(result):
    @dataclass
    class Wrong:
        count: str
        words: dict[str, int]
        broken: int
        skipped: int
        conut: int
        other: Literal["x"] = field(metadata={"unit": "each[0]"})

    with pytest.raises(ViewError) as caught:
        result.view(Wrong)
    problems = caught.value.problems
    assert caught.value.schema == "Wrong"
    assert len(problems) == 6
    assert set(problems[3:]) == {
        "'count': 3 is no str",
        "'words': ['a', 'b'] is no dict[str, int]",
        "'each[0]': (field 'other') 10 is no typing.Literal['x']",
    }
    assert "unit 'broken' has no result: it is failed" in problems[0]
    assert "'skipped'" in problems[1]
    assert "did you mean 'count'" in problems[2]
    assert str(caught.value).startswith("the results do not fit Wrong:\n  'broken'")


async def test_a_class_that_refuses_the_results_is_told(result):
    @dataclass
    class Picky:
        count: Any

        def __post_init__(self):
            raise ValueError("not three")

    with pytest.raises(ViewError, match="it refused the results: not three"):
        result.view(Picky)


@pytest.mark.parametrize("schema", [int, "Report", None, Report(1, [])])
async def test_what_is_no_schema_is_refused(result, schema):
    with pytest.raises(TypeError, match="a dataclass, a TypedDict or a pydantic model"):
        result.view(schema)


async def test_types_that_cannot_be_read_are_refused(result):
    @dataclass
    class Unknown:
        count: "Nowhere"  # noqa: F821

    with pytest.raises(TypeError, match="the types of Unknown cannot be read"):
        result.view(Unknown)


async def test_a_pydantic_model_is_made_of_results(result):
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Model(pydantic.BaseModel):
        count: int
        words: list[str]
        second: int = pydantic.Field(alias="each[1]")
        note: str = "none"

    model = result.view(Model)
    assert (model.count, model.second, model.note) == (3, 20, "none")


async def test_what_pydantic_refuses_is_told_with_its_unit(result):
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Model(pydantic.BaseModel):
        count: int = pydantic.Field(gt=5)
        words: list[int]
        broken: int

    with pytest.raises(ViewError) as caught:
        result.view(Model)
    told = "\n".join(caught.value.problems)
    assert "'broken': unit 'broken' has no result" in told
    assert "'count': Input should be greater than 5, not 3" in told
    assert "'words' at 0: Input should be a valid integer" in told
    assert isinstance(caught.value.__cause__, pydantic.ValidationError)


class Named(Protocol):
    name: str


@pytest.mark.parametrize(
    ("value", "hint", "it_fits"),
    [
        (None, None, True),
        (None, type(None), True),
        (1, None, False),
        (1, int | str, True),
        (1.5, int | None, False),
        (None, int | None, True),
        (1, float, True),
        ("1", float, False),
        ({"a": 1}, Row, True),
        ([], Row, False),
        ([1], list[str], True),
        ((1,), list[int], False),
        (1, Any, True),
        (1, TypeVar("T"), True),
        (1, Named, True),
        (1, Annotated[int, "any"], True),
        ("1", Annotated[int, "any"], False),
        (2, Literal[1, 2], True),
        (3, Literal[1, 2], False),
    ],
)
def test_a_value_fits_a_type_as_far_as_can_be_seen_at_a_glance(value, hint, it_fits):
    assert fits(value, hint) is it_fits


@pytest.mark.skipif(sys.version_info < (3, 12), reason="types have aliases since Python 3.12")
def test_an_alias_is_what_it_stands_for():
    alias = typing.TypeAliasType("Count", int)
    assert fits(1, alias)
    assert not fits("1", alias)
