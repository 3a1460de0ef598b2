"""Side effects that units perform through their contexts: done and taken down, or only taken down.

What is kept of one is text and numbers: it travels from worker processes, and holds nothing alive.
"""

import inspect
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from quantum_async.core.errors import described

DONE, FAILED, CANCELED, DRY = "done", "failed", "canceled", "dry"


class Effect(NamedTuple):
    """One side effect.

    Attributes:
        unit: The name of the unit that performed it.
        attempt: In which attempt, from 1: a unit that is tried again performs it again.
        kind: What the unit calls it.
        function: The name of what was called.
        arguments: Their repr, in short.
        outcome: ``"done"``, ``"failed"``, ``"canceled"`` or ``"dry"`` (taken down only).
        detail: The repr of what it gave, in short; or of the stand-in; or the exception.
        started_at: When it began, in seconds since the epoch; 0 in a context made by hand.
        duration: Seconds that it took.
    """

    unit: str
    attempt: int
    kind: str
    function: str
    arguments: str
    outcome: str
    detail: str
    started_at: float
    duration: float


class EffectLog:
    """The effects of one run.

    Args:
        dry: Whether effects are taken down and not performed.
        clock: Seconds since the epoch, which never go back.
        outer: That of the run around it, which gets them too.
        prefix: What comes before the names of units there.
    """

    __slots__ = ("_effects", "_outer", "_prefix", "clock", "dry")

    def __init__(
        self,
        dry: bool = False,
        clock: Callable[[], float] = lambda: 0.0,
        outer: "EffectLog | None" = None,
        prefix: str = "",
    ) -> None:
        self.dry = dry
        self.clock = clock
        self._outer = outer
        self._prefix = prefix
        self._effects: list[Effect] = []

    def add(self, effect: Effect) -> None:
        """Take an effect down; from any thread."""
        self._effects.append(effect)
        if self._outer is not None:
            self._outer.add(effect._replace(unit=self._prefix + effect.unit))

    def __iter__(self) -> Iterator[Effect]:
        # Those of workers, and those that went on at once, come in the order of their ends.
        return iter(sorted(self._effects, key=lambda effect: effect.started_at))

    def __len__(self) -> int:
        return len(self._effects)


class Performance:
    """One effect while it goes on: a context manager around the call.

    Args:
        log: Where it is taken down.
        unit: The unit's name.
        attempt: Which attempt it is.
        kind: What the unit calls it.
        function: What is called.
        arguments: Positional and keyword arguments.

    Raises:
        TypeError: If that cannot be meant.
    """

    __slots__ = ("_began", "_effect", "_log", "outcome", "value")

    def __init__(
        self,
        log: EffectLog,
        unit: str,
        attempt: int,
        kind: Any,
        function: Any,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        if not isinstance(kind, str) or not callable(function):
            raise TypeError(
                f"unit {unit!r} performs an effect as ctx.perform('email', send, *arguments): a "
                f"kind and a function, not {short(kind)} and {short(function)}"
            )
        args, kwargs = arguments
        shown = [short(arg) for arg in args]
        shown += [f"{name}={short(arg)}" for name, arg in kwargs.items()]
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        self._log = log
        self._began = log.clock()
        self._effect = Effect(
            unit, attempt, kind, str(name), ", ".join(shown), DONE, "", self._began, 0.0
        )
        self.outcome = DONE
        self.value: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        outcome, detail = self.outcome, ""
        if error is None:
            detail = short(self.value)
        else:
            # Whatever is no Exception ends the unit from outside.
            outcome = FAILED if isinstance(error, Exception) else CANCELED
            detail = one_line(described(error))
        duration = self._log.clock() - self._began
        self._log.add(self._effect._replace(outcome=outcome, detail=detail, duration=duration))


def refused_awaitable(unit: str, kind: str, value: Any) -> TypeError:
    """Return the error of a plain function that was given something to await."""
    if inspect.iscoroutine(value):
        value.close()
    return TypeError(
        f"unit {unit!r} performed the effect {kind!r} with ctx.perform_sync, and its function gave "
        "something to await: use `await ctx.perform(…)` in a coroutine function"
    )


_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40


def short(value: object) -> str:
    """Return a short repr on one line, whatever the object's own repr does."""
    try:
        return one_line(_SHORT.repr(value))
    except Exception:
        return f"<{type(value).__qualname__}>"


def one_line(text: str) -> str:
    """Escape what ends a line or moves the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
