"""What an animal is: a unit that misbehaves, where it is let loose, and what must come of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quantum_async import UnitState

COMPLETED, FAILED = UnitState.COMPLETED, UnitState.FAILED
CANCELED, TIMEOUT = UnitState.CANCELED, UnitState.TIMEOUT

# Where a plain function can be let loose. "loop" and "later" wrap it in a coroutine function, which
# calls it at once or after a suspension; "limited" gives that a time limit, and so a cancel scope.
ON_LOOP = ("loop", "later", "limited")
HERE = (*ON_LOOP, "thread", "custom", "inline")
AWAY = ("process", "interpreter")
EVERYWHERE = (*HERE, *AWAY)

ANY = object()  # any result will do


@dataclass(frozen=True)
class Animal:
    """A unit that misbehaves.

    Attributes:
        unit: Its function, whose name is the animal's.
        modes: Where it is let loose.
        state: How it ends, if it is failed by an error and nothing else is said.
        error: The type of its error.
        says: What its error says.
        result: Its result, if it completed.
        cause: What its record says of the cause.
        attempts: How often it is tried.
        options: How it is declared.
        escapes: What `run` raises because of it. All that runs beside it may be cancelled then.
        noise: What it has the event loop complain about: that is the unit's own fault.
        tidy: Called when all is over, to put things back.
        rows: Words of the rows in the tables of FACTS.md that it is about.
        differs: By mode, what is different there.
    """

    unit: Callable[..., Any]
    modes: tuple[str, ...]
    state: UnitState = FAILED
    error: type[BaseException] | tuple[type[BaseException], ...] | None = None
    says: str = ""
    result: Any = ANY
    cause: str = ""
    attempts: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    escapes: type[BaseException] | None = None
    noise: str = ""
    tidy: Callable[[], None] | None = None
    rows: tuple[str, ...] = ()
    differs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.unit.__name__

    def seen_in(self, mode: str) -> "Animal":
        """Return what must come of it in a mode."""
        return replace(self, **self.differs.get(mode, {}))


ANIMALS: list[Animal] = []


def in_modes(modes: tuple[str, ...], **facts: Any) -> dict[str, dict[str, Any]]:
    """Return what is different in some modes."""
    return dict.fromkeys(modes, facts)


def animal(modes: tuple[str, ...], **facts: Any) -> Callable[[Callable[..., Any]], Any]:
    """Put a unit into the zoo; an animal without an error is one that completes."""
    if facts.get("error") is None and "escapes" not in facts:
        facts.setdefault("state", COMPLETED)

    def caught(unit: Callable[..., Any]) -> Callable[..., Any]:
        ANIMALS.append(Animal(unit, modes, **facts))
        return unit

    return caught
