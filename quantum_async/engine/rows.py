"""The units of one run by number: those of the plan, then the children that the run grows."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.core.shapes import Mapped


class Rows:
    """What stands behind a unit's number.

    Args:
        plan: The plan.

    Attributes:
        count: How many units the plan has; children have numbers from here on.
        handles: The handle of each unit; children of one map share one.
        names: The name of each unit.
    """

    __slots__ = (
        "_children", "_index", "_indices", "_items", "_order", "_parents", "count", "handles",
        "names",
    )  # fmt: skip

    def __init__(self, plan: ExecutionPlan) -> None:
        self.count = plan.unit_count
        self._order = plan.order
        self._index = plan.index
        self._children: dict[tuple[int | None, int], int] = {}
        self._parents = array("L")
        self._indices = array("L")
        self._items: list[Any] = []
        grows = plan.has_maps
        self.handles: Sequence[Unit] = list(plan.handles) if grows else plan.handles
        self.names: Sequence[str] = _Names(plan.names, self) if grows else plan.names

    def add(self, child: int, parent: int, index: int, item: Any, handle: Unit) -> None:
        """Say what a child's number stands for, perhaps one that stood for another before."""
        at = child - self.count
        if at == len(self._items):
            self._parents.append(parent)
            self._indices.append(index)
            self._items.append(item)
            self.handles.append(handle)  # type: ignore[attr-defined]
        else:
            self._parents[at], self._indices[at], self._items[at] = parent, index, item
            self.handles[child] = handle  # type: ignore[index]

    def parent(self, child: int) -> int:
        """Return the number of the map that a child belongs to."""
        return self._parents[child - self.count]

    def is_collected(self, unit: int) -> bool:
        """Return whether a unit is a child whose map takes its exception for a result."""
        if unit < self.count:
            return False
        shape = self.handles[self.parent(unit)].options.shape
        return isinstance(shape, Mapped) and shape.collect

    def index(self, child: int) -> int:
        """Return a child's index among the items of its map."""
        return self._indices[child - self.count]

    def item(self, child: int) -> Any:
        """Return the item that a child is for."""
        return self._items[child - self.count]

    def forget_item(self, child: int) -> None:
        """Let go of a child's item."""
        self._items[child - self.count] = None

    def number(self, name: object) -> int | None:
        """Return a unit's number by name, ``map[3]`` for a child; None if there is none."""
        unit = self._index.get(name)  # type: ignore[call-overload]
        if unit is not None or not self._items or not isinstance(name, str):
            return unit  # type: ignore[no-any-return]
        parent, bracket, rest = name.rpartition("[")
        if not bracket or not rest.endswith("]") or not rest[:-1].isdecimal():
            return None
        key = self._index.get(parent), int(rest[:-1])
        for _ in range(2):
            child = self._children.get(key)
            if child is not None and (self.parent(child), self.index(child)) == key:
                return child
            self._children = {
                (its, index): self.count + at
                for at, (its, index) in enumerate(zip(self._parents, self._indices, strict=True))
            }
        return None

    def in_order(self) -> Iterator[int]:
        """Yield the units in plan order, each map before its children."""
        if not self._items:
            yield from self._order
            return
        children: dict[int, list[int]] = {}
        for at, parent in enumerate(self._parents):
            children.setdefault(parent, []).append(self.count + at)
        for unit in self._order:
            yield unit
            yield from sorted(children.get(unit, ()), key=self.index)


class _Names(Sequence[str]):
    """Names of units; those of children are made when they are asked for."""

    def __init__(self, names: Sequence[str], rows: Rows) -> None:
        self._names = names
        self._rows = rows

    def __getitem__(self, unit: Any) -> Any:
        rows = self._rows
        if unit < rows.count:
            return self._names[unit]
        return f"{self._names[rows.parent(unit)]}[{rows.index(unit)}]"

    def __len__(self) -> int:
        return len(self._rows.handles)
