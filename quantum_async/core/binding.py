"""How a unit's function gets its arguments.

Three ways: `fn(ctx)` (the seed's), the exact arguments given with ``args=``/``kwargs=``, and
parameters wired by name (the decorator's). A binding knows what the unit needs, and turns an
`ExecutionContext` into positional and keyword arguments.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quantum_async.core.errors import PlanError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Binding(Protocol):
    """What turns a context into a call's arguments."""

    def bind(self, ctx: Any) -> Arguments:
        """Return positional and keyword arguments for the call."""
        ...


@dataclass(frozen=True, slots=True)
class ContextBinding:
    """The function is called with the context alone."""

    def bind(self, ctx: Any) -> Arguments:
        """Return the context as the only argument."""
        return (ctx,), {}


CONTEXT = ContextBinding()


class Handle:
    """Base of `QuantumUnit`: what is replaced by a result where it stands among arguments."""

    __slots__ = ()
    id: str


@dataclass(frozen=True, slots=True)
class ExactBinding:
    """The function is called with given arguments; handles in them become their results.

    Handles are found at the top and inside lists, tuples and dictionaries, at any depth.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def handles(self) -> Iterator[Handle]:
        """Yield the handles among the arguments, in order."""
        return handles_in([*self.args, *self.kwargs.values()])

    def bind(self, ctx: Any) -> Arguments:
        """Return the arguments with each handle replaced by its unit's result."""
        return (
            tuple(filled(value, ctx) for value in self.args),
            {name: filled(value, ctx) for name, value in self.kwargs.items()},
        )


def handles_in(values: Sequence[Any]) -> Iterator[Handle]:
    """Yield the handles among values, and inside lists, tuples and dictionaries among them."""
    for value in values:
        if isinstance(value, Handle):
            yield value
        elif type(value) in (list, tuple):
            yield from handles_in(value)
        elif type(value) is dict:
            yield from handles_in(list(value.values()))


def filled(value: Any, ctx: Any) -> Any:
    """Return a value with each handle in it replaced by its result."""
    if isinstance(value, Handle):
        return ctx[value]
    kind = type(value)
    # Containers without a handle stay the objects that they are.
    if kind in (list, tuple) and any(handles_in(value)):
        return kind(filled(item, ctx) for item in value)
    if kind is dict and any(handles_in(list(value.values()))):
        return {key: filled(item, ctx) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class WiredBinding:
    """Each parameter gets the result or the input key of its own name.

    Attributes:
        positional: Names of positional-only parameters, in order, the context's too.
        keywords: Names of all other parameters, without the context's.
        optional: Those of both that have a default value.
        context: The parameter that gets the `ExecutionContext`, or None.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...]
    optional: frozenset[str]
    context: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are wired, without the one for the context."""
        return tuple(n for n in self.positional if n != self.context) + self.keywords

    def bind(self, ctx: Any) -> Arguments:
        """Look each parameter up in the context."""
        kwargs = {
            name: ctx[name] for name in self.keywords if name not in self.optional or name in ctx
        }
        args = []
        for name in self.positional:
            if name == self.context:
                args.append(ctx)
            elif name in self.optional and name not in ctx:
                break
            else:
                args.append(ctx[name])
        if self.context is not None and self.context not in self.positional:
            kwargs[self.context] = ctx
        return tuple(args), kwargs

    @classmethod
    def of(cls, fn: Callable[..., Any], unit: str) -> "WiredBinding":
        """Read the parameters of `fn`.

        Raises:
            PlanError: If the parameters of `fn` cannot be read.
        """
        try:
            parameters = inspect.signature(fn).parameters.values()
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"unit {unit!r}: the parameters of {fn!r} cannot be read ({error}), so they "
                "cannot be wired by name; use add_unit(fn, args=…)"
            ) from error
        wired = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        context = next((p.name for p in wired if _takes_context(p)), None)
        keywords = [p for p in wired if p.kind is not p.POSITIONAL_ONLY and p.name != context]
        return cls(
            positional=tuple(p.name for p in wired if p.kind is p.POSITIONAL_ONLY),
            keywords=tuple(p.name for p in keywords),
            optional=frozenset(p.name for p in wired if p.default is not p.empty),
            context=context,
        )


def _takes_context(parameter: inspect.Parameter) -> bool:
    annotation = parameter.annotation
    # Annotations may be strings (PEP 563), types, or subscripted: `ExecutionContext[dict]`.
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    named = text.partition("[")[0].rpartition(".")[2]
    return parameter.name == "ctx" or named == "ExecutionContext"
