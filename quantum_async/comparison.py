"""Two runs side by side: which unit, and which wait, made the second one slower or faster."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantum_async.account import (
    BACK_OFF,
    LIMIT,
    OPENED,
    RUNNING,
    SLOT,
    Recorded,
    every_unit,
    printable,
    slices_of,
    spent,
)
from quantum_async.core.differences import PlanDiff
from quantum_async.wording import seconds

_KINDS = (RUNNING, SLOT, LIMIT, BACK_OFF)
_WORDS = {
    RUNNING: "running",
    SLOT: "waiting for a slot",
    LIMIT: "waiting for a limit",
    BACK_OFF: "backing off",
}
_MOST = 10  # units that are named
_LEAST = 0.01  # of the longer run; less is not told
_NOISE = 0.001  # seconds


@dataclass(frozen=True, slots=True)
class Change:
    """How much longer one unit took for one thing.

    Attributes:
        unit: The unit's name.
        kind: ``"running"``, ``"slot"``, ``"limit"`` or ``"back-off"``.
        before: Seconds in the first run; 0 if the unit did not run there.
        after: Seconds in the second run.
        critical: Whether the unit is on the critical path of the second run, or of the first one
            if the second does not have it.
    """

    unit: str
    kind: str
    before: float
    after: float
    critical: bool

    @property
    def seconds(self) -> float:
        """How much longer it took; less than 0 if it took less."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        before: Seconds that the first run took.
        after: Seconds that the second run took.
        changes: What took longer or shorter, the most important first: what is on the critical
            path goes before what is not, and more seconds before fewer.
        states: Units that ended otherwise, with both states; None where there is no such unit.
        plan: What the plan of the second run has added, removed and changed.
    """

    before: float
    after: float
    changes: tuple[Change, ...]
    states: Mapping[str, tuple[str | None, str | None]]
    plan: PlanDiff

    @property
    def seconds(self) -> float:
        """How much longer the second run took; less than 0 if it was faster."""
        return self.after - self.before

    def lines(self) -> list[str]:
        """Return it in words, the most important first."""
        told = [self._verdict()]
        least = max(_NOISE, _LEAST * max(self.before, self.after))
        telling = [change for change in self.changes if abs(change.seconds) >= least]
        told += [_told(change) for change in telling[:_MOST]]
        if len(telling) > _MOST:
            told.append(f"… and {len(telling) - _MOST} more units or waits")
        ended = [(name, *both) for name, both in self.states.items()]
        for name, before, after in ended[:_MOST]:
            told.append(f"{name}: {before or 'not there'} → {after or 'not there'}")
        if len(ended) > _MOST:
            told.append(f"… and {len(ended) - _MOST} more that ended otherwise")
        told += [f"plan: {line}" for line in self.plan.lines()]
        return [printable(line) for line in told]

    def _verdict(self) -> str:
        took = f"{seconds(self.before)} → {seconds(self.after)}"
        if abs(self.seconds) < max(_NOISE, _LEAST * max(self.before, self.after)):
            return f"as fast as before: {took}"
        how = "slower" if self.seconds > 0 else "faster"
        return f"{seconds(abs(self.seconds))} {how}: {took}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as data that JSON can hold."""
        return {
            "before": self.before,
            "after": self.after,
            "seconds": self.seconds,
            "changes": [
                {
                    "unit": it.unit,
                    "kind": it.kind,
                    "before": it.before,
                    "after": it.after,
                    "seconds": it.seconds,
                    "critical": it.critical,
                }
                for it in self.changes
            ],
            "states": {name: list(both) for name, both in self.states.items()},
            "plan": self.plan.as_dict(),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())


def compare(before: Recorded, after: Recorded) -> Comparison:
    """Compare two runs, also of different plans, and loaded ones.

    Args:
        before: The first run.
        after: The second one, which the answer is about.

    Example:
        >>> print(compare(RunResult.load("monday.json"), result))  # doctest: +SKIP
        1.20 s slower: 2.00 s → 3.20 s
        embed: 1.00 s longer waiting for a limit, on the critical path: 0.0 ms → 1.00 s
    """
    first, second = _spent(before), _spent(after)
    # Units that are only in the first run cost it time on its own critical path.
    critical = set(after.critical_path) | (set(before.critical_path) - second.keys())
    changes = []
    for name in [*second, *(name for name in first if name not in second)]:
        a, b = first.get(name, {}), second.get(name, {})
        for kind in _KINDS:
            change = Change(name, kind, a.get(kind, 0.0), b.get(kind, 0.0), name in critical)
            if abs(change.seconds) > 1e-9:
                changes.append(change)
    changes.sort(key=lambda it: (not it.critical, -abs(it.seconds)))
    return Comparison(
        before.duration,
        after.duration,
        tuple(changes),
        _other_states(before, after),
        before.plan.diff(after.plan),
    )


def _spent(result: Recorded) -> dict[str, Mapping[str, float]]:
    # What is open takes the time of others.
    return {
        name: spent(slices_of(result, name))
        for name in every_unit(result)
        if result.units[name].ran_on not in OPENED
    }


def _other_states(before: Recorded, after: Recorded) -> dict[str, tuple[str | None, str | None]]:
    a, b = (
        {name: result.units[name].state.value for name in every_unit(result)}
        for result in (before, after)
    )
    return {name: (a.get(name), b.get(name)) for name in {**b, **a} if a.get(name) != b.get(name)}


def _told(change: Change) -> str:
    how = "longer" if change.seconds > 0 else "less"
    path = ", on the critical path" if change.critical else ""
    return (
        f"{change.unit}: {seconds(abs(change.seconds))} {how} {_WORDS[change.kind]}{path}: "
        f"{seconds(change.before)} → {seconds(change.after)}"
    )
