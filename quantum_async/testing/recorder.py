"""Keeping the runs of a test, whoever starts them."""

from dataclasses import replace

from quantum_async.core import events
from quantum_async.core.plan import ExecutionPlan
from quantum_async.request import RunRequest
from quantum_async.result import RunResult
from quantum_async.testing.doubles import Block
from quantum_async.testing.laws import broken_laws
from quantum_async.testing.timelines import timeline


class RunRecorder(Block):
    """A ``with`` block that records the runs which start in it, in this task and its children.

    Attributes:
        events: The events of each run, in the order in which the runs began.
    """

    outermost = True
    goes_inside = False

    def __init__(self) -> None:
        self.events: list[list[events.Event]] = []
        self._plans: list[ExecutionPlan] = []
        self._flows: dict[int, object] = {}
        self._results: list[RunResult] = []

    def __exit__(self, *error: object) -> None:
        self._take_results(*self._flows.values())
        super().__exit__(*error)

    def amend(self, flow: object, plan: ExecutionPlan, request: RunRequest) -> RunRequest:
        """Return a run's request with the recorder among the observers."""
        self._take_results(flow)
        log: list[events.Event] = []
        self.events.append(log)
        self._plans.append(plan)
        self._flows[id(flow)] = flow
        return replace(request, observers=[*request.observers, log.append])

    @property
    def results(self) -> list[RunResult]:
        """The results of the runs that have ended, in the order in which they began.

        Of runs of one partitioner that overlap, only the last to end has one here.
        """
        self._take_results(*self._flows.values())
        began = [log[0].run_id for log in self.events if log]
        ours = [result for result in self._results if result.run_id in began]
        return sorted(ours, key=lambda result: began.index(result.run_id))

    def _take_results(self, *flows: object) -> None:
        # A partitioner keeps its last result, so each is taken before the next run can end.
        for flow in flows:
            result: RunResult | None = getattr(flow, "last_result", None)
            if result is not None and all(result is not known for known in self._results):
                self._results.append(result)

    def timelines(self) -> list[str]:
        """Return a picture of each of these runs, as text."""
        return [timeline(result) for result in self.results]

    def check(self) -> None:
        """Check all recorded runs that have ended against the laws of every run.

        Raises:
            AssertionError: If one was broken, with all that were.
        """
        problems = [
            problem
            for plan, log in zip(self._plans, self.events, strict=True)
            if log and isinstance(log[-1], events.RunFinished)
            for problem in broken_laws(plan, log, given=_outside(plan, log))
        ]
        assert not problems, "; ".join(problems)


def _outside(plan: ExecutionPlan, log: list[events.Event]) -> set[str]:
    """Return the units that no event of a run is about."""
    return set(plan.names) - {getattr(event, "unit", "") for event in log}
