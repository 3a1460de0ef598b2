"""The seed's forms of a partitioner: blocking calls, and what the last run left behind."""

from abc import abstractmethod
from collections.abc import Coroutine
from typing import Any

from quantum_async.blocking import run_blocking
from quantum_async.composition import Composition
from quantum_async.core.record import Elsewhere
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy, UnitState
from quantum_async.core.unit import QuantumUnit, R, T
from quantum_async.request import or_else
from quantum_async.result import RunResult

_INTERPRETER = (ExecutionMode.INTERPRETER, ExecutionMode.INTERPRETER.value)


class Forms(Composition[T, R]):
    """Units by name, and runs of them from scripts."""

    @abstractmethod
    def _started(self, context: Any, options: dict[str, Any]) -> Coroutine[Any, Any, RunResult]:
        """Return a call of `run`."""
        raise NotImplementedError

    # -- the seed's blocking forms --------------------------------------------------------------

    def execute(
        self,
        context: Any = None,
        execution_mode: ExecutionMode | str | None = None,
        max_workers: int | None = None,
        custom_executor: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run the units in an event loop of their own, and block until they have ended.

        Args:
            context: The run's input.
            execution_mode: Where units run that do not say it themselves.
            max_workers: How many units run at once.
            custom_executor: A ``concurrent.futures.Executor``, for mode "custom".
            options: Other options of `run`.

        Returns:
            Results by unit name, in plan order. What stays on a cluster is a `RemoteValue`, whose
            method `here` fetches it.

        Raises:
            RuntimeError: If an event loop is running in this thread.
        """
        mode = or_else(execution_mode, options.pop("mode", None))
        if or_else(mode, self.default_execution_mode) in _INTERPRETER:
            import quantum_async.engine.executors.interpreter  # noqa: F401 - `blocking` asks for it
        options |= {
            "mode": mode,
            "max_workers": max_workers,
            "custom_executor": custom_executor,
        }
        result = run_blocking(lambda: self._started(context, options))
        stored = ((name, result._stored(name)) for name in result)
        return {
            name: value.here() if isinstance(value, Elsewhere) and value.is_here else value
            for name, value in stored
        }

    def execute_with_strategy(self, context: Any, strategy: Strategy | str) -> dict[str, Any]:
        """As `execute`, with the ready queue ordered by `strategy`."""
        return self.execute(context, strategy=strategy)

    def execute_with_monitoring(self, context: Any = None) -> dict[str, Any]:
        """As `execute`; afterwards `last_execution_metrics` has times and trace of the units.

        They are there after every run; this is the seed's name for it.
        """
        return self.execute(context)

    def execute_with_recovery(self, context: Any = None) -> dict[str, Any]:
        """As `execute`: units are retried, and fallbacks stand in for those that failed.

        Raises:
            ExecutionError: If a unit without a fallback failed; `get_partial_results` has the
                rest.
        """
        return self.execute(context, failure_policy=FailurePolicy.CONTINUE)

    # -- about the last run that ended ----------------------------------------------------------

    def get_partial_results(self) -> dict[str, Any]:
        """Return the results of the last run that ended, however it did, by unit name."""
        return {} if self.last_result is None else dict(self.last_result)

    def get_failed_units(self) -> list[QuantumUnit[T, R]]:
        """Return the handles of units that failed or timed out in the last run that ended.

        Children of maps have none: their map has.
        """
        failed = self._in_last_run(UnitState.FAILED, UnitState.TIMEOUT)
        return [self.units[name] for name in failed if name in self.units]

    @property
    def completed_units(self) -> set[str]:
        """Names of the units that completed in the last run that ended."""
        return set(self._in_last_run(UnitState.COMPLETED))

    @property
    def failed_units(self) -> set[str]:
        """Names of the units that failed or timed out in the last run that ended."""
        return set(self._in_last_run(UnitState.FAILED, UnitState.TIMEOUT))

    def _in_last_run(self, *states: UnitState) -> list[str]:
        if self.last_result is None:
            return []
        return [name for name, state in self.last_result.states.items() if state in states]

    @property
    def last_execution_metrics(self) -> dict[str, Any]:
        """`RunResult.metrics` of the last run that ended; empty before."""
        return {} if self.last_result is None else self.last_result.metrics
