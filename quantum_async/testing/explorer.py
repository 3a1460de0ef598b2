"""One graph under many orders: ready queues, completions, retries, failures, cancellations.

Each seed is one run on virtual time. It shuffles the ready queue, lets units take random times, has
attempts fail that are tried again, and perhaps limits how many units run at once. All of these are
orders that the real world may bring about; what must hold in all of them is checked after each.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from quantum_async.core import events
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import ExecutionError, RunTimeoutError
from quantum_async.core.plan import ExecutionPlan, Unit
from quantum_async.engine.attempt import Compute, Layer
from quantum_async.request import RunRequest
from quantum_async.result import RunResult
from quantum_async.testing.clock import VirtualClock
from quantum_async.testing.doubles import Block, Flow
from quantum_async.testing.faults import InjectedError, layered
from quantum_async.testing.laws import broken_laws

_LONGEST = 10.0  # virtual seconds that a unit is held up


class ExplorationError(AssertionError):
    """Raised when something does not hold in one of the orders.

    Attributes:
        seed: The seed of that order.
        result: The result of that run; None if there is none.
    """

    def __init__(self, message: str, seed: int, result: RunResult | None) -> None:
        super().__init__(message)
        self.seed = seed
        self.result = result


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was explored.

    Attributes:
        runs: How many runs there were.
        orders: How many different orders of starts and ends these had.
        retried: How many attempts were made to fail and tried again.
        failed: How many runs had a unit that failed.
        canceled: How many runs were cancelled.
    """

    runs: int
    orders: int
    retried: int
    failed: int
    canceled: int


@dataclass(slots=True)
class _Order(Block):
    """What one seed changes in a run."""

    seed: int
    failures: bool
    cancels: bool
    log: list[events.Event] = field(default_factory=list)
    max_workers: int | None = None
    cancels_at: tuple[str, int] | None = None
    task: "asyncio.Task[Any] | None" = None

    outermost = True
    goes_inside = False

    def amend(self, flow: object, plan: ExecutionPlan, request: RunRequest) -> RunRequest:
        """Return a run's request in this order."""
        chance = random.Random(self.seed)
        order = list(range(plan.unit_count))
        chance.shuffle(order)
        self.max_workers = request.max_workers
        if chance.random() < 0.5 and plan.unit_count > 1:
            fewest = chance.randint(1, plan.unit_count)
            self.max_workers = min(fewest, request.max_workers or fewest)
        if self.cancels and chance.random() < 0.5 and plan.unit_count:
            self.cancels_at = chance.choice(plan.names), chance.randint(0, 1)
        self.task = asyncio.current_task()
        return replace(
            request,
            order=order,
            max_workers=self.max_workers,
            around=self._around(request.around),
            observers=[*request.observers, self.log.append],
        )

    def _around(
        self, before: Callable[[Unit], Layer | None] | None
    ) -> Callable[[Unit], Layer | None]:
        def around(unit: Unit) -> Layer | None:
            async def layer(ctx: ExecutionContext[Any], compute: Compute) -> Any:
                # A unit's chance is its own: it does not hang on the order of the others.
                chance = random.Random(f"{self.seed} {ctx.unit_id}")
                policy, fails = unit.options.retry, 0
                if policy is not None and chance.random() < 0.5:
                    fails = 1
                if self.failures and chance.random() < 1 / 4:
                    fails = 1_000_000
                await self._pause(chance)
                self._cancel(ctx.unit_id, 0)
                if ctx.attempt <= fails:
                    raise InjectedError(f"unit {ctx.unit_id!r} fails in this order")
                result = await compute()
                self._cancel(ctx.unit_id, 1)
                await self._pause(chance)
                return result

            return layered(layer, None if before is None else before(unit))

        return around

    async def _pause(self, chance: random.Random) -> None:
        kind = chance.randrange(4)
        if kind == 1:
            await asyncio.sleep(0)
        elif kind > 1:
            await asyncio.sleep(chance.choice((0.001, 1.0, _LONGEST * chance.random())))

    def _cancel(self, unit: str, moment: int) -> None:
        if self.cancels_at == (unit, moment) and self.task is not None:
            self.task.cancel()


def explore(
    flow_or_factory: "Flow | Callable[[], Flow]",
    context: Any = None,
    *,
    seeds: int | Iterable[int] = 500,
    check: Callable[[RunResult], object] | None = None,
    failures: bool = False,
    cancels: bool = False,
    **options: Any,
) -> Exploration:
    """Run a graph under many legal orders, on virtual time, and check what must always hold.

    Whatever the order: each unit starts after its dependencies and once an attempt, ends once, and
    no more units run than may. Retries are part of every exploration, as far as the units' policies
    make them good again; failures for good and cancellations are, if they are asked for.

    Args:
        flow_or_factory: A partitioner, or a function that makes one for each run.
        context: The run's input, or a function that makes it for each run.
        seeds: How many orders, or which.
        check: Called with the result of each run that was not cancelled. What it raises, or
            returning False, ends the exploration.
        failures: Whether units may fail for good.
        cancels: Whether runs may be cancelled at a random moment.
        options: Other options of `run`.

    Returns:
        What was explored.

    Raises:
        ExplorationError: If something does not hold, with the line that runs that order again.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit(retries=1)
        ... async def numbers(): return [1, 2, 3]
        >>> @flow.unit
        ... async def total(numbers): return sum(numbers)
        >>> explore(flow, seeds=20, check=lambda result: result["total"] == 6).runs
        20
    """
    orders: set[tuple[tuple[str, str], ...]] = set()
    runs = retried = failed = canceled = 0
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        order = _Order(seed, failures, cancels)
        flow = flow_or_factory if hasattr(flow_or_factory, "units") else flow_or_factory()
        given = context() if callable(context) else context
        with _same_chance(seed):
            outcome = VirtualClock().run(_run(flow, given, order, options))  # type: ignore[arg-type]
        runs += 1
        orders.add(_steps(order.log))
        retried += sum(isinstance(event, events.UnitRetrying) for event in order.log)
        result: RunResult | None = flow.last_result  # type: ignore[union-attr]
        canceled += outcome == "canceled"
        failed += result is not None and not result.ok and outcome != "canceled"
        plan = flow.build_execution_plan()  # type: ignore[union-attr]
        problems = broken_laws(
            plan, order.log, given=_not_run(result), max_running=order.max_workers
        )
        if problems:
            _refuse(seed, failures, cancels, "; ".join(problems), result, None)
        if check is not None and result is not None and outcome != "canceled":
            try:
                good = check(result)
            except Exception as error:
                _refuse(seed, failures, cancels, f"{type(error).__name__}: {error}", result, error)
            if good is False:
                _refuse(seed, failures, cancels, "the check returned False", result, None)
    return Exploration(runs, len(orders), retried, failed, canceled)


async def _run(flow: Flow, given: Any, order: _Order, options: dict[str, Any]) -> str:
    with order:
        try:
            await flow.run(given, **{"failure_policy": "collect"} | options)
        except (ExecutionError, RunTimeoutError):
            return "failed"
        except asyncio.CancelledError:
            if order.cancels_at is None:
                raise
            return "canceled"
    return "ended"


@contextmanager
def _same_chance(seed: int) -> Iterator[None]:
    """Have the global `random` begin at the seed: back-offs take their jitter from it."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


def _steps(log: list[events.Event]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (type(event).__name__, event.unit)
        for event in log
        if not isinstance(event, events.RunStarted | events.RunFinished)
    )


def _not_run(result: RunResult | None) -> list[str]:
    if result is None:
        return []
    return [
        name
        for name, record in result.units.items()
        if record.ran_on == "given" or (record.state.value == "pending")
    ]


def _refuse(
    seed: int,
    failures: bool,
    cancels: bool,
    what: str,
    result: RunResult | None,
    cause: Exception | None,
) -> None:
    more = ", failures=True" * failures + ", cancels=True" * cancels
    raise ExplorationError(
        f"in the order of seed {seed}: {what}\nto run it again: explore(…, seeds=[{seed}]{more})",
        seed,
        result,
    ) from cause
