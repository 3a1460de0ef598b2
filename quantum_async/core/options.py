"""What is asked for a unit beside its function and its dependencies, checked."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import Any, Final

from quantum_async.core.binding import CONTEXT, Binding, Handle
from quantum_async.core.checks import check_count, check_number
from quantum_async.core.errors import PlanError, did_you_mean
from quantum_async.core.limits import Needs, needs_of
from quantum_async.core.retry import RetryPolicy
from quantum_async.core.shapes import STREAM, Shape
from quantum_async.core.states import ExecutionMode, parse
from quantum_async.core.triggers import TRIGGERS, Trigger


class _NoFallback:
    """The absence of a fallback: None is a value that a user may want."""

    def __repr__(self) -> str:
        return "…"


NO_FALLBACK: Final = _NoFallback()


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """What was asked for a unit beside its function and dependencies. Times are in seconds."""

    timeout: float | None = None
    deadline: float | None = None
    retries: int = 0
    retry: RetryPolicy | None = None
    fallback: Any = NO_FALLBACK
    priority: float = 0
    mode: ExecutionMode | None = None
    cost: float | None = None
    grace: float = 0.0
    max_result_bytes: int | None = None
    batch: bool = True
    when: Callable[[Any], Any] | None = None
    trigger: Trigger = Trigger.ALL_SUCCESS
    uses: Needs | Callable[[Any], Any] = ()
    streams: tuple[str | Handle, ...] = ()
    shape: Shape | None = None
    binding: Binding = CONTEXT
    # No limit, fallback or retry: the driver has a shorter way for such units.
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        plain = (
            self.timeout is None
            and self.deadline is None
            and self.retry is None
            and self.fallback is NO_FALLBACK
            and self.shape is None
        )
        object.__setattr__(self, "plain", plain)

    @property
    def special(self) -> bool:
        """Whether the driver has to look at the unit before it is ready."""
        opened = self.shape is not None and self.shape is not STREAM
        return opened or self.when is not None or callable(self.uses)

    def needs(self, limits: Collection[str]) -> Needs:
        """Return what it uses of limits, as far as that is known before a run.

        Args:
            limits: The names of the limits. What else a unit for a cluster uses is the cluster's.
        """
        if callable(self.uses):
            return ()
        if self.mode is not ExecutionMode.REMOTE:
            return self.uses
        return tuple((name, tokens) for name, tokens in self.uses if name in limits)


DEFAULT_OPTIONS: Final = UnitOptions()


def make_options(
    unit: str,
    *,
    timeout: float | None = None,
    deadline: float | None = None,
    retries: int = 0,
    retry: Any = None,
    fallback: Any = NO_FALLBACK,
    priority: float = 0,
    mode: ExecutionMode | str | None = None,
    cost: float | None = None,
    grace: float | None = None,
    max_result_bytes: int | None = None,
    batch: bool = True,
    when: Callable[[Any], Any] | None = None,
    trigger: str = "all_success",
    uses: Any = None,
    streams: Any = (),
    metadata: Mapping[str, Any] | None = None,
    binding: Binding = CONTEXT,
    shape: Shape | None = None,
) -> UnitOptions:
    """Check what was asked for a unit, and put it in one object.

    Raises:
        PlanError: For any value that could not be meant, naming the unit and the option.
    """
    if fallback is NO_FALLBACK and metadata and "fallback_value" in metadata:
        fallback = metadata["fallback_value"]
    if not (
        timeout is None
        and deadline is None
        and retry is None
        and mode is None
        and cost is None
        and grace is None
        and max_result_bytes is None
        and batch is True
        and (type(retries), retries) == (int, 0)
        and (type(priority), priority) == (int, 0)
        and fallback is NO_FALLBACK
        and when is None
        and trigger == "all_success"
        and uses is None
        and streams == ()
        and binding is CONTEXT
        and shape is None
    ):
        seconds = {"timeout": timeout, "deadline": deadline, "cost": cost, "grace": grace}
        for option, value in seconds.items():
            check_number(unit, option, value)
        check_count("max_result_bytes", max_result_bytes, unit)
        check_number(unit, "priority", 0 if priority is None else priority, least=-math.inf)
        _check_words(unit, retries, batch)
        return UnitOptions(
            timeout=None if timeout == math.inf else timeout,
            deadline=None if deadline == math.inf else deadline,
            retries=retries,
            retry=_policy(unit, retry, retries),
            fallback=fallback,
            priority=priority or 0,
            mode=None if mode is None else parse(ExecutionMode, mode, f"unit {unit!r}: mode"),
            cost=cost,
            grace=grace or 0.0,
            max_result_bytes=max_result_bytes,
            batch=batch,
            when=_condition(unit, when),
            trigger=_trigger(unit, trigger),
            uses=_uses(unit, uses),
            streams=tuple([streams] if isinstance(streams, str | Handle) else streams),
            binding=binding,
            shape=shape,
        )
    return DEFAULT_OPTIONS


def _check_words(unit: str, retries: Any, batch: Any) -> None:
    if not isinstance(batch, bool):
        raise PlanError(f"unit {unit!r}: batch must be True or False, not {batch!r}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise PlanError(f"unit {unit!r}: retries must be a whole number from 0 up, not {retries!r}")


def _condition(unit: str, when: Any) -> Any:
    if when is not None and (not callable(when) or iscoroutinefunction(when)):
        raise PlanError(
            f"unit {unit!r}: when must be a plain function (ctx) that says whether it runs, not "
            f"{when!r}"
        )
    return when


def _uses(unit: str, uses: Any) -> Any:
    if uses is None:
        return ()
    if iscoroutinefunction(uses):
        raise PlanError(
            f"unit {unit!r}: uses must be a plain function (ctx) if it is one, not {uses!r}"
        )
    return uses if callable(uses) else needs_of(unit, uses)


def _trigger(unit: str, trigger: Any) -> Trigger:
    if isinstance(trigger, Trigger):
        return trigger
    if not isinstance(trigger, str) or trigger not in TRIGGERS:
        known = ", ".join(map(repr, TRIGGERS))
        raise PlanError(
            f"unit {unit!r}: trigger must be one of {known}, not {trigger!r}"
            f"{did_you_mean(trigger, TRIGGERS)}"
        )
    return TRIGGERS[trigger]


def _policy(unit: str, retry: Any, retries: int) -> RetryPolicy | None:
    if retry is None:
        return RetryPolicy.after(retries) if retries else None
    if retries:
        raise PlanError(
            f"unit {unit!r} has both retries= and retry=; the policy's stop strategy says how "
            "often: give one of the two"
        )
    try:
        return RetryPolicy.of(retry)
    except PlanError as error:
        raise PlanError(f"unit {unit!r}: {error}") from None
