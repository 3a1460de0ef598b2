"""Whether a failed attempt is repeated, and after how long: decided by tenacity's strategies.

tenacity decides, the engine waits. Its own loop (`AsyncRetrying`) would sleep inside the unit,
holding a slot, and catches cancellations; so its strategies are asked about a `RetryCallState`
that we fill in, and nothing here sleeps.
"""

import inspect
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tenacity
from tenacity.retry import retry_all, retry_any, retry_base
from tenacity.stop import stop_all, stop_any, stop_base
from tenacity.wait import wait_base, wait_chain, wait_combine

from quantum_async.core.errors import PlanError, described

StopStrategy = Callable[[tenacity.RetryCallState], bool]
WaitStrategy = Callable[[tenacity.RetryCallState], float]
RetryPredicate = Callable[[tenacity.RetryCallState], bool]

_FIRST_WAIT, _LONGEST_WAIT, _JITTER = 0.1, 5.0, 0.1  # seconds


def _default_wait() -> WaitStrategy:
    backoff = tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT - _JITTER)
    return backoff + tenacity.wait_random(0, _JITTER)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often a unit is tried again, in tenacity's strategies.

    Args:
        stop: When to give up, for example ``tenacity.stop_after_attempt(4)``.
        wait: Seconds to the next attempt; by default exponential from 0.1 s to at most 5 s, with
            up to 0.1 s of jitter.
        retry: Which outcomes are tried again; by default every `Exception`.

    Raises:
        PlanError: If strategies of different kinds are mixed up, or a predicate is asynchronous.

    Example:
        >>> policy = RetryPolicy(
        ...     stop=tenacity.stop_after_attempt(3),
        ...     retry=tenacity.retry_if_exception_type(OSError),
        ... )
        >>> flow.add_unit(fetch, retry=policy)  # doctest: +SKIP
    """

    stop: StopStrategy = field(default_factory=lambda: tenacity.stop_after_attempt(3))
    wait: WaitStrategy = field(default_factory=_default_wait)
    retry: RetryPredicate = field(default_factory=tenacity.retry_if_exception_type)

    def __post_init__(self) -> None:
        _check_tree("stop", self.stop, stop_base, (stop_all, stop_any), "stops")
        _check_tree("wait", self.wait, wait_base, (wait_chain, wait_combine), "strategies")
        _check_tree("retry", self.retry, retry_base, (retry_all, retry_any), "retries")

    @classmethod
    def after(cls, retries: int) -> "RetryPolicy":
        """Return the policy of ``retries=n``: n more attempts after the first."""
        return cls(stop=tenacity.stop_after_attempt(retries + 1))

    @classmethod
    def of(cls, given: Any) -> "RetryPolicy":
        """Return `given` as a policy: itself, or a `Retrying`'s or `AsyncRetrying`'s strategies.

        Only stop, wait and retry are read: the object is never run, and its callbacks
        (``before_sleep``, ``after``, ``retry_error_callback``) are not called.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, tenacity.BaseRetrying):
            return cls(stop=given.stop, wait=given.wait, retry=given.retry)
        raise PlanError(
            "retry must be a RetryPolicy(stop=…, wait=…, retry=…) or a tenacity Retrying or "
            f"AsyncRetrying, not {given!r}; for a number of further attempts use retries=…"
        )

    def next_wait(
        self,
        attempt: int,
        *,
        error: BaseException | None = None,
        value: object = None,
        elapsed: float = 0.0,
    ) -> float | None:
        """Decide about an attempt that ended.

        Args:
            attempt: Its number, from 1.
            error: What it raised; None if it returned `value`.
            value: What it returned.
            elapsed: Seconds since the first attempt started.

        Returns:
            Seconds until the next attempt, or None if there is to be none.
        """
        # Cancellation, SystemExit and KeyboardInterrupt are nothing to be persuaded about:
        # a catch-all predicate would let a cancelled task go on.
        if error is not None and not isinstance(error, Exception):
            return None
        state = _call_state(attempt, error, value, elapsed)
        if not self.retry(state):
            return None
        # tenacity computes the wait first: `stop_before_delay` looks at it.
        state.upcoming_sleep = wait = max(0.0, float(self.wait(state)))
        return None if self.stop(state) else wait

    def wants_again(self, attempt: int, value: object, elapsed: float) -> bool:
        """Return whether the predicate turns down a returned value (``retry_if_result``)."""
        return bool(self.retry(_call_state(attempt, None, value, elapsed)))


def _call_state(
    attempt: int, error: BaseException | None, value: object, elapsed: float
) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(_NOBODY, None, (), {})
    state.attempt_number = attempt
    state.outcome = _outcome(attempt, error, value)
    state.outcome_timestamp = state.start_time + elapsed
    return state


def _outcome(attempt: int, error: BaseException | None, value: object) -> tenacity.Future:
    outcome = tenacity.Future(attempt)
    if error is None:
        outcome.set_result(value)
    else:
        outcome.set_exception(error)
    return outcome


def given_up_on(attempt: int, value: object) -> tenacity.RetryError:
    """Return the error of a unit whose last value its predicate still turned down."""
    return tenacity.RetryError(_outcome(attempt, None, value))


def why_again(error: BaseException | None, value: object) -> str:
    """Return in words why an attempt is made good: the exception itself would hold its data."""
    try:
        return f"turned down {reprlib.repr(value)}" if error is None else described(error)
    except BaseException:  # both may be the user's
        return type(value if error is None else error).__name__


_NOBODY = tenacity.Retrying()


def _check_tree(
    role: str, strategy: Any, kind: type, containers: tuple[type, ...], children: str
) -> None:
    """Refuse a strategy that has one of another kind inside it.

    ``stop_after_attempt(3) & retry_if_exception_type(OSError)`` builds silently in tenacity and
    means something else: its three algebras mix.
    """
    waiting = [strategy]
    while waiting:
        node = waiting.pop()
        if isinstance(node, containers):
            waiting.extend(getattr(node, children, ()) or getattr(node, "wait_funcs", ()))
            continue
        if isinstance(node, type):
            raise PlanError(
                f"the {role} strategy {_name(node)} is a class: make a strategy of it, with ()"
            )
        asked = (node, type(node).__call__, getattr(node, "predicate", None))
        if any(map(inspect.iscoroutinefunction, asked)):
            raise PlanError(
                f"the {role} strategy {_name(node)} is asynchronous; it is asked between attempts "
                "and must answer at once: give a plain function"
            )
        stranger = isinstance(node, (stop_base, wait_base, retry_base)) and not isinstance(
            node, kind
        )
        if stranger:
            raise PlanError(
                f"{_name(node)} was given as (part of) the {role} strategy, and means something "
                "else there; do not join the kinds with & or |, put them side by side: "
                "RetryPolicy(stop=…, wait=…, retry=…)"
            )
        if not callable(node):
            raise PlanError(f"the {role} strategy must be one of tenacity's, not {node!r}")


def _name(strategy: object) -> str:
    return getattr(strategy, "__name__", type(strategy).__name__)
