"""Results as an object of a type that the user has: a dataclass, a TypedDict, a pydantic model."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, Union

from quantum_async.core.effects import short
from quantum_async.core.errors import ViewError

S = TypeVar("S")
Why = Callable[[str], str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """One field of a schema.

    Attributes:
        name: What the field is called.
        unit: The unit whose result it is.
        hint: Its type.
        required: Whether it has no default.
    """

    name: str
    unit: str
    hint: Any
    required: bool


def view(schema: type[S], results: Mapping[str, Any], why_not: Why) -> S:
    """Build an object of a type from results.

    Args:
        schema: A dataclass, a TypedDict or a pydantic model.
        results: Results by unit.
        why_not: Says why a unit has no result.

    Raises:
        ViewError: With every problem found, each of which names its unit.
        TypeError: If `schema` is none of these.
    """
    model: Any = schema
    if hasattr(model, "model_validate") and hasattr(model, "model_fields"):
        return _model(model, results, why_not)  # type: ignore[no-any-return]
    if typing.is_typeddict(schema):
        hints = _hints(schema)
        required = model.__required_keys__
        parts = [_Part(key, key, hint, key in required) for key, hint in hints.items()]
    elif isinstance(schema, type) and dataclasses.is_dataclass(schema):
        hints = _hints(schema)
        parts = [
            _Part(one.name, one.metadata.get("unit", one.name), hints[one.name], _needed(one))
            for one in dataclasses.fields(schema)
            if one.init
        ]
    else:
        raise TypeError(
            f"a view is of a dataclass, a TypedDict or a pydantic model, not {short(schema)}"
        )
    values, problems = _found(parts, results, why_not)
    problems += [
        f"{part.unit!r}: {_field(part)}{short(values[part.name])} is no {_told(part.hint)}"
        for part in parts
        if part.name in values and not fits(values[part.name], part.hint)
    ]
    if problems:
        raise ViewError(schema.__name__, problems)
    try:
        return model(**values)  # type: ignore[no-any-return]
    except Exception as error:
        raise ViewError(schema.__name__, [f"it refused the results: {error}"]) from error


def _model(model: Any, results: Mapping[str, Any], why_not: Why) -> Any:
    parts = [
        _Part(str(field.alias or name), str(field.alias or name), None, field.is_required())
        for name, field in model.model_fields.items()
    ]
    values, problems = _found(parts, results, why_not)
    refused = None
    try:
        seen = model.model_validate(values)
    except ValueError as error:
        refused = error
        missing = {part.unit for part in parts if part.required and part.name not in values}
        for one in getattr(error, "errors", list)():
            unit, *below = map(str, one["loc"]) if one["loc"] else ("",)
            if unit not in missing:
                where = f" at {'.'.join(below)}" if below else ""
                problems.append(f"{unit!r}{where}: {one['msg']}, not {short(one['input'])}")
        problems = problems or [f"it refused the results: {error}"]
    if problems:
        raise ViewError(model.__name__, problems) from refused
    return seen


def _found(
    parts: Iterable[_Part], results: Mapping[str, Any], why_not: Why
) -> tuple[dict[str, Any], list[str]]:
    """Return the results that there are by field, and what is wrong with those that are not."""
    values: dict[str, Any] = {}
    problems = []
    for part in parts:
        if part.unit in results:
            values[part.name] = results[part.unit]
        elif part.required:
            problems.append(f"{part.unit!r}: {_field(part)}{why_not(part.unit)}")
    return values, problems


def _field(part: _Part) -> str:
    return "" if part.name == part.unit else f"(field {part.name!r}) "


def _needed(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _hints(schema: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(schema)
    except Exception as error:
        raise TypeError(f"the types of {schema.__name__} cannot be read: {error}") from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a value may be of a type, as far as that can be seen at a glance: not its items."""
    if isinstance(hint, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return fits(value, hint.__value__)
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin in (typing.Annotated, typing.Required, typing.NotRequired, typing.Final):
        return fits(value, typing.get_args(hint)[0])
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = hint if origin is None else origin
    if kind is None:
        return value is None
    if not isinstance(kind, type) or kind is typing.Any:
        return True
    if typing.is_typeddict(kind):
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float)
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that is not for `isinstance`
        return True


def _told(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
