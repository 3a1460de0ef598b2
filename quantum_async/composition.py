"""The declaring of units that are more than one call: maps, partitioners in partitioners, races."""

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, overload

from quantum_async.core.binding import Handle, WiredBinding
from quantum_async.core.checks import check_count
from quantum_async.core.errors import DuplicateUnitError, PlanError
from quantum_async.core.resource import Resource
from quantum_async.core.shapes import RACE, Included, ItemBinding, Mapped
from quantum_async.core.triggers import Trigger
from quantum_async.core.unit import QuantumUnit, R, T
from quantum_async.definition import After, Definition
from quantum_async.result import RunResult

X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")

Items = QuantumUnit[Any, Any] | str | Iterable[Any] | AsyncIterable[Any]


class Composition(Definition[T, R]):
    """Units by name, and those that are made of others."""

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, X]],
        over: Items,
        *,
        name: str | None = ...,
        ordered: bool = ...,
        max_concurrency: int | None = ...,
        on_item_error: str = ...,
        after: After = ...,
        **options: Any,
    ) -> QuantumUnit[Any, list[X]]: ...
    @overload
    def map(
        self,
        fn: Callable[..., X],
        over: Items,
        *,
        name: str | None = ...,
        ordered: bool = ...,
        max_concurrency: int | None = ...,
        on_item_error: str = ...,
        after: After = ...,
        **options: Any,
    ) -> QuantumUnit[Any, list[X]]: ...
    def map(
        self,
        fn: Callable[..., Any],
        over: Items,
        *,
        name: str | None = None,
        ordered: bool = True,
        max_concurrency: int | None = None,
        on_item_error: str = "fail",
        after: After = (),
        **options: Any,
    ) -> QuantumUnit[Any, list[Any]]:
        """Declare a unit that runs a function for each of many items, known only at run time.

        Each item is a unit of its own, called ``name[0]``, ``name[1]`` and so on. Children are made
        as slots come free. Over a streaming unit, another map or an async iterable they start while
        items still come: an item goes through a chain of maps before the next one begins it.

        Args:
            fn: Called with the item. A parameter ``ctx`` gets the `ExecutionContext`; any further
                ones are wired by name, as those of decorated units.
            over: Whose items: a handle, the name of a unit or of a key of the run's input, or the
                items themselves, as an iterable or async iterable.
            name: The unit's name; by default the function's.
            ordered: Whether the results stand in the order of the items; if not, in the order in
                which they came.
            max_concurrency: How many children of this map run at once.
            on_item_error: ``"fail"``: an item that fails makes the map fail when the others have
                ended. ``"collect"``: its exception stands in its place.
            after: Units that must end first although no parameter takes their result.
            options: The options of `add_unit`. ``when``, ``trigger``, ``priority`` and ``cost`` are
                of the map as a whole, the others of each child.

        Returns:
            The handle; its result is a list.

        Raises:
            PlanError: For any value that could not be meant.
        """
        if isinstance(fn, QuantumUnit):
            name, fn = name or fn.id, fn.function
        own = getattr(fn, "__name__", "")
        if name is None:
            free = isinstance(own, str) and own.isidentifier() and own not in self.units
            name = own if free else self._next_name()
        check_count("max_concurrency", max_concurrency, name)
        if on_item_error not in ("fail", "collect"):
            raise PlanError(
                f"unit {name!r}: on_item_error must be 'fail' or 'collect', not {on_item_error!r}"
            )
        if not isinstance(over, Handle | str | Iterable | AsyncIterable):
            raise PlanError(
                f"unit {name!r} maps over {over!r} of type {type(over).__name__}, which cannot be "
                "iterated: give a unit, a name, or items"
            )
        for option in ("args", "kwargs"):
            if options.pop(option, None) is not None:
                raise PlanError(f"unit {name!r}: a map's function gets the item, not {option}=")
        self._refuse_unknown(options)
        return self._declare(
            fn,
            [*after, *(options.pop("dependencies", None) or ())],
            name,
            _item_binding(fn, name),
            options.pop("metadata", None),
            shape=Mapped(over, ordered, max_concurrency, on_item_error == "collect"),
            **options,
        )

    def include(
        self,
        other: Any,
        name: str,
        *,
        input: Any = None,  # noqa: A002 - the contract's name
        dependencies: After | None = None,
        **options: Any,
    ) -> QuantumUnit[Any, RunResult]:
        """Declare a whole partitioner as one unit.

        It shares the run's slots, limits, observers and deadline. Its units are ``name/child``.

        Args:
            other: The partitioner.
            name: The unit's name.
            input: Its input: a value in which handles stand for their results, or a function of
                the `ExecutionContext`. By default the input of the run.
            dependencies: Units that must end first.
            options: ``when``, ``trigger``, ``priority``, ``cost`` and ``metadata`` of `add_unit`.

        Returns:
            The handle; its result is the `RunResult` of the partitioner.

        Raises:
            PlanError: For anything but a partitioner, and one that includes itself.
        """
        if not isinstance(other, Composition):
            raise PlanError(f"unit {name!r}: include() takes a partitioner, not {other!r}")
        _refuse_circle(self, other, name)
        allowed = {"when", "trigger", "priority", "cost", "metadata"}
        for option in options:
            if option not in allowed:
                raise PlanError(f"unit {name!r}: include() has no option {option!r}")
        return self._declare(
            _included,
            dependencies or (),
            name,
            None,
            options.pop("metadata", None),
            shape=Included(other, input),
            **options,
        )

    @overload
    def first(
        self,
        one: QuantumUnit[Any, X],
        two: QuantumUnit[Any, Y],
        /,
        *,
        name: str | None = ...,
        when: Callable[[Any], Any] | None = ...,
        priority: float = ...,
        metadata: dict[str, Any] | None = ...,
    ) -> QuantumUnit[Any, X | Y]: ...
    @overload
    def first(
        self,
        one: QuantumUnit[Any, X],
        two: QuantumUnit[Any, Y],
        three: QuantumUnit[Any, Z],
        /,
        *,
        name: str | None = ...,
        when: Callable[[Any], Any] | None = ...,
        priority: float = ...,
        metadata: dict[str, Any] | None = ...,
    ) -> QuantumUnit[Any, X | Y | Z]: ...
    @overload
    def first(
        self,
        *units: "str | QuantumUnit[Any, X]",
        name: str | None = ...,
        when: Callable[[Any], Any] | None = ...,
        priority: float = ...,
        metadata: dict[str, Any] | None = ...,
    ) -> QuantumUnit[Any, X]: ...
    def first(
        self, *units: "str | QuantumUnit[Any, Any]", name: str | None = None, **options: Any
    ) -> QuantumUnit[Any, Any]:
        """Declare a race: the first of these units that succeeds is the result.

        The others, and whatever only they needed, are cancelled. Failures of units that only races
        need are no failures of the run; if all of them fail, the race does.

        Args:
            units: At least one unit, by name or handle.
            name: The unit's name; by default made of theirs.
            options: ``when``, ``priority`` and ``metadata`` of `add_unit`.

        Raises:
            PlanError: If there is nobody to race.
        """
        if not units:
            raise PlanError("first() needs at least one unit")
        if name is None:
            ids = [unit if isinstance(unit, str) else unit.id for unit in units]
            name = f"first({', '.join(map(str, ids))})"
        for option in options:
            if option not in {"when", "priority", "metadata"}:
                raise PlanError(f"unit {name!r}: first() has no option {option!r}")
        metadata = options.pop("metadata", None)
        return self._declare(
            _race, units, name, None, metadata, shape=RACE, trigger=Trigger.RACE, **options
        )

    @overload
    def resource(self, fn: Callable[..., AsyncIterator[X]], /) -> Resource[X]: ...
    @overload
    def resource(self, fn: Callable[..., AbstractAsyncContextManager[X]], /) -> Resource[X]: ...
    @overload
    def resource(
        self, fn: None = None, /, *, name: str | None = ...
    ) -> Callable[[Callable[..., Any]], Resource[Any]]: ...
    def resource(self, fn: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
        """Declare what units share and what has a life: a pool, a client, a model.

        It is opened when the first unit that takes it would start, and closed when the last one has
        ended, also after failures and cancellations; the last opened is closed first. A unit takes
        it by a parameter of its name, or by its name among the dependencies and ``ctx[name]``.

        Args:
            fn: An asynchronous generator that yields once, or a function that returns an
                asynchronous context manager. Its parameters are wired by name: keys of the input,
                units, other resources.
            name: Its name; by default the function's.

        Raises:
            PlanError: If it cannot be opened, or the name is taken.
        """
        if fn is None:
            return lambda decorated: self.resource(decorated, name=name)
        made = Resource.of(fn, name)
        if made.id in self.units or made.id in self.resources:
            raise DuplicateUnitError(f"there is a unit or resource {made.id!r} already")
        self.resources[made.id] = made
        self._plan = None
        return made


def _included(ctx: Any) -> Any:
    """Stand for an included partitioner, which is run by the engine."""
    raise TypeError("an included partitioner is no function: await its own run")


def _race(ctx: Any) -> Any:
    """Stand for a race, which is decided by the engine."""
    raise TypeError("a race is no function: await a run of its partitioner")


def _item_binding(fn: Callable[..., Any], name: str) -> ItemBinding:
    try:
        wired = WiredBinding.of(fn, name)
    except PlanError:
        return ItemBinding(None, WiredBinding((), (), frozenset(), None))  # some of those in C
    # The item is the first parameter that is not the context's.
    positional = [parameter for parameter in wired.positional if parameter != wired.context]
    if positional:
        others = tuple(p for p in wired.positional if p != positional[0])
        return ItemBinding(
            None, WiredBinding(others, wired.keywords, wired.optional, wired.context)
        )
    if wired.keywords:
        item, *rest = wired.keywords
        return ItemBinding(item, WiredBinding((), tuple(rest), wired.optional, wired.context))
    if _takes_any(fn):
        return ItemBinding(None, wired)
    raise PlanError(f"unit {name!r}: {fn!r} takes no item: give it a parameter for it")


def _takes_any(fn: Callable[..., Any]) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(fn).parameters.values()}
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _refuse_circle(flow: Composition[Any, Any], other: Composition[Any, Any], name: str) -> None:
    """Refuse a partitioner that would include itself, by way of others or not."""
    open_, seen = [other], set[int]()
    while open_:
        inner = open_.pop()
        if inner is flow:
            raise PlanError(
                f"unit {name!r} would include its own partitioner: a run of it could never end; "
                "for recursion with an end call ctx.run in a unit"
            )
        if id(inner) not in seen:
            seen.add(id(inner))
            shapes = [unit.options.shape for unit in inner.units.values()]
            open_ += [shape.flow for shape in shapes if isinstance(shape, Included)]
