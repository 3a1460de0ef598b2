"""When a unit starts, given how its dependencies ended: the table in docs/triggers.md.

A dependency ends in one of three ways: with a result (success), because of a failure (it failed,
timed out, or was skipped because something above it did), or because of a choice (its condition was
false, it lost a race, or was skipped because of either). A unit that ended badly has a *root*: the
unit that is to blame, itself or one above it. Triggers look at roots, never at states alone.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

NOBODY: Final = -1


class Trigger(IntEnum):
    """What a unit waits for. RACE is what `first` uses: one success, or the end of all."""

    ALL_SUCCESS = 0
    ALL_DONE = 1
    NONE_FAILED = 2
    ONE_SUCCESS = 3
    RACE = 4

    @property
    def word(self) -> str:
        """Its name in a declaration."""
        return self.name.lower()


TRIGGERS: Final = {trigger.word: trigger for trigger in list(Trigger)[:4]}

WAIT, START, SKIP = range(3)
_FIRST: Final = (Trigger.ONE_SUCCESS, Trigger.RACE)


class Triggers:
    """What units have heard of their dependencies, in a run where not all wait for success.

    Args:
        codes: The `Trigger` of each unit.

    Attributes:
        winners: For units that start at the first success, whose that was.
        choices: Roots that are choices: false conditions, losers of races.
        roots: For units that had a loss, the root that is to blame; a failure before a choice.
    """

    def __init__(self, codes: Sequence[int]) -> None:
        self.codes = codes
        self.winners: dict[int, int] = {}
        self.choices: set[int] = set()
        self.roots: dict[int, int] = {}

    def success(self, unit: int, source: int, left: int) -> int:
        """A dependency has a result, `left` have not ended; return START or WAIT."""
        if self.codes[unit] in _FIRST:
            self.winners[unit] = source
            return START
        return WAIT if left else START

    def loss(self, unit: int, root: int, left: int) -> int:
        """A dependency ended without a result because of `root`; return START, SKIP or WAIT."""
        code = self.codes[unit]
        known = self.roots.get(unit, NOBODY)
        if known == NOBODY or (known in self.choices and root not in self.choices):
            self.roots[unit] = root
        if code == Trigger.ALL_SUCCESS:
            return SKIP
        if code == Trigger.NONE_FAILED and root not in self.choices:
            return SKIP
        if left:
            return WAIT
        return SKIP if code == Trigger.ONE_SUCCESS else START
