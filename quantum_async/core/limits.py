"""What is scarce: slots, and the named limits that units use.

A `Gauge` counts slots of one kind. A `Limit` is what a user declares under a name: so many at
once, so many in any window of time, or both; `Budget` is the state of a set of them, shared by all
runs that use it. Tokens are taken all together or not at all, so nobody holds some while waiting
for others.

A rate is kept by two clocks together. The log of the window holds any window of `per` seconds to
`rate`; the bucket (the generic cell rate algorithm, ITU-T I.371) lets `burst` start at once and
spaces the rest evenly.

No large request starves: when others were given twice a limit's capacity since it was first
refused, it claims all the limits that it needs, and they give nothing to anybody else until it has
started. It claims all of them at once or none, so that two never wait for each other; and none
while it waits for another one besides, in which it was not overtaken: that would keep things idle.
"""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from quantum_async.core.checks import check_number
from quantum_async.core.errors import PlanError, did_you_mean

_TINY = 1e-9  # share of a rate that rounding may cost
_PATIENCE = 2  # how many times a limit's capacity others may get before one that waits


class Gauge:
    """Slots of one kind, and how many are in use.

    Attributes:
        capacity: How many may be in use at once.
        used: How many are.
        version: Grows whenever one is given back.
    """

    __slots__ = ("capacity", "used", "version")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self.version = 0

    @property
    def has_room(self) -> bool:
        """Whether anything is left."""
        return self.used < self.capacity

    def __repr__(self) -> str:
        return f"<Gauge {self.used} of {self.capacity}>"


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of a resource may be used: at once, in a window of time, or both.

    Args:
        concurrency: Tokens that may be in use at once; None for no such limit.
        rate: Tokens that may be taken in any window of `per` seconds; None for no such limit.
        per: Seconds of the window.
        burst: Tokens that may be taken at once; the rest are spaced evenly over the window. By
            default all of `rate`.

    Raises:
        PlanError: For zero, negative numbers and NaN, and for a limit that limits nothing.

    Example:
        >>> Limit(concurrency=8, rate=500, per=60, burst=50).most
        8
    """

    concurrency: float | None = None
    rate: float | None = None
    per: float = 1.0
    burst: float | None = None

    def __post_init__(self) -> None:
        for option in ("concurrency", "rate", "per", "burst"):
            value = getattr(self, option)
            check_number("", f"Limit: {option}", value)
            if value == 0 or (value == math.inf and option == "per"):
                raise PlanError(f"Limit: {option} must be more than 0 and finite, not {value!r}")
        if self.concurrency is None and self.rate is None:
            raise PlanError("Limit: give a concurrency, or a rate and the seconds it is per")
        if self.burst is not None and self.rate is None:
            raise PlanError("Limit: burst= caps how much of a rate= comes at once; give a rate")

    @property
    def most(self) -> float:
        """The most tokens that one unit may use: with more it would wait for ever."""
        known = (self.concurrency, self.rate, self.burst)
        return min(value for value in known if value is not None)

    @classmethod
    def of(cls, value: Any, name: str) -> "Limit":
        """Return a limit as it is, and a number as a concurrency.

        Raises:
            PlanError: If it is neither.
        """
        if isinstance(value, Limit):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise PlanError(f"limit {name!r} must be a number or a Limit, not {value!r}")
        try:
            return Limit(concurrency=value)
        except PlanError as error:
            raise PlanError(f"limit {name!r}: {error}") from None


# What a unit uses, by name of the limit; sorted, so that it is a key.
Needs = tuple[tuple[str, float], ...]


def checked_limits(limits: Any) -> dict[str, Limit]:
    """Return limits by name, each as a `Limit`.

    Raises:
        PlanError: If they are no mapping, or one cannot be meant.
    """
    if limits is None:
        return {}
    if not isinstance(limits, Mapping):
        raise PlanError(f"limits must be a mapping of name to Limit, not {limits!r}")
    for name in limits:
        if not isinstance(name, str) or not name:
            raise PlanError(f"a limit's name must be a string that is not empty, not {name!r}")
    return {name: Limit.of(value, name) for name, value in limits.items()}


def needs_of(unit: str, uses: Any) -> Needs:
    """Return what a unit says it uses: a name, or a mapping of name to tokens.

    Raises:
        PlanError: For anything else, negative numbers and NaN.
    """
    if isinstance(uses, str):
        return ((uses, 1),)
    if not isinstance(uses, Mapping):
        raise PlanError(
            f"unit {unit!r}: uses must be the name of a limit, a mapping of names to tokens, or a "
            f"function (ctx) that returns one, not {uses!r}"
        )
    for name, tokens in uses.items():
        if tokens is None:
            raise PlanError(f"unit {unit!r}: its tokens of {name!r} must be a number, not None")
        check_number(unit, f"its tokens of {name!r}", tokens)
    return tuple(sorted((str(name), tokens) for name, tokens in uses.items() if tokens))


def unmet(unit: str, needs: Needs, limits: Mapping[str, Limit]) -> PlanError | None:
    """Return why a unit could never start under these limits, or None if it can."""
    for name, tokens in needs:
        limit = limits.get(name)
        if limit is None:
            known = ", ".join(map(repr, sorted(limits))) or "none"
            return PlanError(
                f"unit {unit!r} uses {name!r}, and there is no such limit (known: {known})"
                f"{did_you_mean(name, limits)}"
            )
        if tokens > limit.most:
            return PlanError(
                f"unit {unit!r} needs {tokens:g} of {name!r}, and the limit has {limit.most:g}: it "
                "would wait for ever"
            )
    return None


class _Tokens:
    """The state of one limit."""

    __slots__ = (
        "_log", "_logged", "claimed_by", "full_at", "gauge", "given", "limit", "paused_until",
        "refused", "used",
    )  # fmt: skip

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.used = 0.0
        self.given = 0.0  # in all
        self.paused_until = -math.inf
        self.full_at = -math.inf  # when the bucket will be full again
        self._log: deque[tuple[float, float]] = deque()  # moment, tokens
        self._logged = 0.0
        # Who was refused, with how much had been given when that first happened.
        self.refused: dict[Hashable, float] = {}
        self.claimed_by: Hashable = None
        self.gauge = Gauge(1)  # its version grows when who was refused may ask again

    def wait(self, tokens: float, now: float, *, again: bool = False) -> float:
        """Return seconds until so many may be taken; infinite if some must be given back first."""
        limit = self.limit
        if limit.concurrency is not None and self.used + tokens > limit.concurrency:
            return math.inf
        if again:
            return 0.0  # the rate has counted them
        at = max(now, self.paused_until)
        if limit.rate is not None:
            at = max(at, self._window_opens(tokens, limit.rate, at))
            burst = limit.rate if limit.burst is None else limit.burst
            at = max(at, self.full_at - (burst - tokens) * limit.per / limit.rate)
        return at - now

    def _window_opens(self, tokens: float, rate: float, now: float) -> float:
        per, log = self.limit.per, self._log
        while log and log[0][0] + per <= now:
            self._logged -= log.popleft()[1]
        if not log:
            self._logged = 0.0  # no rounding error outlives its window
        over, opens = self._logged + tokens - rate, now
        for moment, taken in log:
            if over <= _TINY * rate:
                break
            over -= taken
            opens = moment + per
        return opens

    def take(self, tokens: float, now: float, *, again: bool = False) -> None:
        self.used += tokens
        if again:
            return
        self.given += tokens
        if self.limit.rate is not None:
            self._log.append((now, tokens))
            self._logged += tokens
            self.full_at = max(self.full_at, now) + tokens * self.limit.per / self.limit.rate

    def stamp(self, now: float) -> None:
        if self._log:
            self._log[-1] = now, self._log[-1][1]


class Budget:
    """The state of a set of limits.

    Args:
        limits: The limits by name.
        clock: Monotonic seconds.
    """

    def __init__(self, limits: Mapping[str, Limit], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.scarcest = ""  # the limit that was waited for, when `wait` last said so
        self._tokens = {name: _Tokens(limit) for name, limit in limits.items()}

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits by name."""
        return {name: tokens.limit for name, tokens in self._tokens.items()}

    def with_shared(self, shared: "Budget") -> "Budget":
        """Return a budget with the limits of both, where the other's go before."""
        both = Budget({}, self.clock)
        both._tokens = self._tokens | shared._tokens
        return both

    def wait(self, who: Hashable, needs: Needs, *, again: bool = False) -> float:
        """Return seconds until `who` may take what it needs: 0 now, infinite if nobody knows.

        Args:
            who: Who asks. It is remembered until it takes, or is forgotten.
            needs: What it needs.
            again: Whether it took that before and gave it back meanwhile. A rate has counted it,
                and what has begun goes before the claims of what has not.
        """
        now = self.clock()
        wait = 0.0
        for name, tokens in needs:
            limit = self._tokens[name]
            claimed = limit.claimed_by not in (None, who) and not again
            longer = math.inf if claimed else limit.wait(tokens, now, again=again)
            if longer > wait:
                wait, self.scarcest = longer, name
        if wait > 0 and not again:
            self._refuse(who, needs, now)
        return wait

    def lacking(self, needs: Needs) -> dict[str, float]:
        """Return which limits of `needs` have not enough left, and for how many seconds.

        Infinite if nobody knows. Nothing is remembered of the question.
        """
        now = self.clock()
        waits = {name: self._tokens[name].wait(tokens, now) for name, tokens in needs}
        return {name: wait for name, wait in waits.items() if wait > 0}

    def _refuse(self, who: Hashable, needs: Needs, now: float) -> None:
        limits = [(self._tokens[name], tokens) for name, tokens in needs]
        claims = True
        for limit, tokens in limits:
            before = limit.refused.setdefault(who, limit.given)
            overtaken = limit.given - before >= _PATIENCE * max(limit.limit.most, tokens)
            free = limit.claimed_by is None
            claims = claims and free and (overtaken or not limit.wait(tokens, now))
        if claims:
            for limit, _ in limits:
                limit.claimed_by = who

    def take(self, who: Hashable, needs: Needs, *, again: bool = False) -> None:
        """Take all of it; `wait` has just said 0."""
        now = self.clock()
        for name, tokens in needs:
            self._tokens[name].take(tokens, now, again=again)
        if not again:
            self.forget(who, needs)

    def stamp(self, needs: Needs) -> None:
        """What was taken last counts from now on: the unit has begun only now."""
        for name, _ in needs:
            self._tokens[name].stamp(self.clock())

    def give_back(self, needs: Needs) -> None:
        """Give back what was in use; what a rate counts stays counted."""
        for name, tokens in needs:
            limit = self._tokens[name]
            limit.used -= tokens
            limit.gauge.version += 1

    def forget(self, who: Hashable, needs: Needs) -> None:
        """`who` waits for these no more."""
        for name, _ in needs:
            limit = self._tokens[name]
            limit.refused.pop(who, None)
            if limit.claimed_by == who:
                limit.claimed_by = None
                limit.gauge.version += 1

    def gauges(self, needs: Needs) -> Iterable[Gauge]:
        """Return what says when somebody who was refused may ask again."""
        return [self._tokens[name].gauge for name, _ in needs]

    def pause(self, name: str, seconds: float) -> bool:
        """Give nothing of a limit for so many seconds; return whether there is such a limit."""
        limit = self._tokens.get(name)
        if limit is not None:
            limit.paused_until = max(limit.paused_until, self.clock() + seconds)
        return limit is not None

    def used(self, name: str) -> float:
        """Return how many tokens of a limit are in use."""
        return self._tokens[name].used

    @property
    def idle(self) -> bool:
        """Whether nothing is in use."""
        return not any(limit.used for limit in self._tokens.values())


def seconds_of(error: BaseException) -> float:
    """Return for how long an error says that it should not be tried again (`retry_after`).

    0 if it does not. It may be a number of seconds, a text of one (an HTTP header's), a time delta.
    """
    try:
        given: Any = getattr(error, "retry_after", None)
        seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)
    except Exception:  # a date, nothing at all, or a property of the user's that raises
        return 0.0
    return seconds if 0 < seconds < math.inf else 0.0
