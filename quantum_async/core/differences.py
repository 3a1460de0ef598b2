"""What one plan has that another has not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from quantum_async.core.graph import Edges


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """What the second of two plans has added, removed and changed. False if that is nothing.

    Attributes:
        added: Names of units that only the second plan has.
        removed: Names of units that only the first one has.
        changed: For each unit with other options, both values of each: ``{"timeout": (1, 2)}``.
        edges_added: Dependencies, as (dependency, dependent), that only the second plan has.
        edges_removed: Those that only the first one has.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, Mapping[str, tuple[Any, Any]]] = field(default_factory=dict)
    edges_added: tuple[tuple[str, str], ...] = ()
    edges_removed: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.changed, self.edges_added, self.edges_removed))

    def lines(self) -> list[str]:
        """Return it in words, a line a difference; what comes with a new unit is not told."""
        new, gone = set(self.added), set(self.removed)
        told = [f"+ {_shown(name)}" for name in self.added]
        told += [f"- {_shown(name)}" for name in self.removed]
        for name, options in self.changed.items():
            changes = [f"{what} {_told(a)} → {_told(b)}" for what, (a, b) in options.items()]
            told.append(f"~ {_shown(name)}: {', '.join(changes)}")
        told += [f"+ {_arrow(edge)}" for edge in self.edges_added if new.isdisjoint(edge)]
        told += [f"- {_arrow(edge)}" for edge in self.edges_removed if gone.isdisjoint(edge)]
        return told

    def as_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can hold."""
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": {
                name: {what: list(both) for what, both in options.items()}
                for name, options in self.changed.items()
            },
            "edges_added": [list(edge) for edge in self.edges_added],
            "edges_removed": [list(edge) for edge in self.edges_removed],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines()) or "the plans are the same"


class Comparable(Protocol):
    """What a comparison needs of a plan."""

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def index(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def edges_up(self) -> Edges: ...  # noqa: D102


def difference(
    first: Comparable,
    second: Comparable,
    facts: Sequence[Mapping[str, Any]],
    later: Sequence[Mapping[str, Any]],
) -> PlanDiff:
    """Return what the second plan has added, removed and changed.

    Args:
        first: The plan before.
        second: The plan after.
        facts: What was declared of each unit of the first plan, by number.
        later: The same of the second one.
    """
    changed = {}
    for name, number in second.index.items():
        before = first.index.get(name)
        if before is None:
            continue
        a, b = facts[before], later[number]
        if options := {what: (a[what], b[what]) for what in a if a[what] != b[what]}:
            changed[name] = options
    edges, later_edges = _edges(first), _edges(second)
    return PlanDiff(
        added=tuple(name for name in second.names if name not in first.index),
        removed=tuple(name for name in first.names if name not in second.index),
        changed=changed,
        edges_added=tuple(edge for edge in later_edges if edge not in edges),
        edges_removed=tuple(edge for edge in edges if edge not in later_edges),
    )


def _edges(plan: Comparable) -> dict[tuple[str, str], None]:
    names = plan.names
    return {
        (names[above], names[unit]): None
        for unit, ends in enumerate(plan.edges_up)
        for above in sorted(ends)
    }


def _arrow(edge: tuple[str, str]) -> str:
    return f"{_shown(edge[0])} → {_shown(edge[1])}"


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)
