"""Units that are more than one call: maps, included partitioners, races, streams."""

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from quantum_async.core.binding import Handle, WiredBinding


@dataclass(frozen=True, slots=True)
class Mapped:
    """One child for each item.

    Attributes:
        over: Where the items come from: a unit, an input key or a unit by name, or the items.
        ordered: Whether results stand in the order of the items, not in that in which they came.
        max_concurrency: How many children may run at once; None for no limit of their own.
        collect: Whether exceptions of items take the place of their results.
    """

    over: "Handle | str | Iterable[Any] | AsyncIterable[Any]"
    ordered: bool = True
    max_concurrency: int | None = None
    collect: bool = False


@dataclass(frozen=True, slots=True)
class Included:
    """A whole partitioner as one unit.

    Attributes:
        flow: The partitioner.
        input: Its input; handles in it stand for results. None for the input of the run.
    """

    flow: Any
    input: Any = None


@dataclass(frozen=True, slots=True)
class Raced:
    """The first success among its dependencies is its result."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """An asynchronous generator: items come while it runs, and their list is its result."""


Shape = Mapped | Included | Raced | Streamed
RACE: Final = Raced()
STREAM: Final = Streamed()


@dataclass(frozen=True, slots=True)
class ItemBinding:
    """How a child of a map gets its arguments: the item first, the others by name.

    Attributes:
        item: The parameter that takes the item; None if it is the first positional one.
        others: How the other parameters are wired.
    """

    item: str | None
    others: WiredBinding
    _is_alone: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        alone = not (self.item or self.others.names or self.others.context)
        object.__setattr__(self, "_is_alone", alone)

    def bind(self, ctx: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Look the item up, and each other parameter in the context."""
        item = ctx.view.item(ctx.number)
        if self._is_alone:
            return (item,), {}
        args, kwargs = self.others.bind(ctx)
        if self.item is None:
            return (item, *args), kwargs
        return args, {self.item: item, **kwargs}
