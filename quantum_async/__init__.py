"""An asyncio-native engine for work with dependencies.

Declare units, `await partitioner.run(ctx)`: each unit starts the moment its last dependency ends.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantum_async.caching import CachingQuantumPartitioner
    from quantum_async.comparison import Comparison, compare
    from quantum_async.core.context import ExecutionContext
    from quantum_async.core.differences import PlanDiff
    from quantum_async.core.errors import (
        Backpressure,
        CircularDependencyError,
        ClusterError,
        DependencyError,
        DuplicateUnitError,
        ExecutionError,
        InternalError,
        MissingInputError,
        Overloaded,
        PlanError,
        QuantumError,
        RemoteError,
        RunTimeoutError,
        StaysRemoteError,
        UndeclaredDependencyError,
        UnitTimeoutError,
        UnknownDependencyError,
        UnpicklableUnitError,
        ViewError,
        WorkerCrashedError,
    )
    from quantum_async.core.limits import Limit
    from quantum_async.core.plan import ExecutionPlan
    from quantum_async.core.record import Outcome, SavedValue
    from quantum_async.core.resource import Resource
    from quantum_async.core.retry import RetryPolicy
    from quantum_async.core.simulate import Simulation
    from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy, UnitState
    from quantum_async.core.unit import QuantumUnit
    from quantum_async.jsonable import RecordedError
    from quantum_async.observe.eventbus import EventBus
    from quantum_async.observe.progress import Progress
    from quantum_async.observe.projection import project
    from quantum_async.partitioner import QuantumPartitioner
    from quantum_async.records import RecordError
    from quantum_async.result import RunResult, UnitRecord
    from quantum_async.runtime import Runtime
    from quantum_async.tuning import select_execution_strategy, select_optimal_workers

__all__ = [
    "Backpressure",
    "CachingQuantumPartitioner",
    "CircularDependencyError",
    "ClusterError",
    "Comparison",
    "DependencyError",
    "DuplicateUnitError",
    "EventBus",
    "ExecutionContext",
    "ExecutionError",
    "ExecutionMode",
    "ExecutionPlan",
    "FailurePolicy",
    "InternalError",
    "Limit",
    "MissingInputError",
    "Outcome",
    "Overloaded",
    "PlanDiff",
    "PlanError",
    "Progress",
    "QuantumError",
    "QuantumPartitioner",
    "QuantumUnit",
    "RecordError",
    "RecordedError",
    "RemoteError",
    "Resource",
    "RetryPolicy",
    "RunResult",
    "RunTimeoutError",
    "Runtime",
    "SavedValue",
    "Simulation",
    "StaysRemoteError",
    "Strategy",
    "UndeclaredDependencyError",
    "UnitRecord",
    "UnitState",
    "UnitTimeoutError",
    "UnknownDependencyError",
    "UnpicklableUnitError",
    "ViewError",
    "WorkerCrashedError",
    "compare",
    "project",
    "select_execution_strategy",
    "select_optimal_workers",
]

# A name is imported when it is first asked for: a worker process starts in half the time for it.
_HOMES = {
    "caching": ("CachingQuantumPartitioner",),
    "comparison": (
        "Comparison",
        "compare",
    ),
    "core.context": ("ExecutionContext",),
    "core.differences": ("PlanDiff",),
    "core.errors": (
        "Backpressure",
        "CircularDependencyError",
        "ClusterError",
        "DependencyError",
        "DuplicateUnitError",
        "ExecutionError",
        "InternalError",
        "MissingInputError",
        "Overloaded",
        "PlanError",
        "QuantumError",
        "RemoteError",
        "RunTimeoutError",
        "StaysRemoteError",
        "UndeclaredDependencyError",
        "UnitTimeoutError",
        "UnknownDependencyError",
        "UnpicklableUnitError",
        "ViewError",
        "WorkerCrashedError",
    ),
    "core.limits": ("Limit",),
    "core.plan": ("ExecutionPlan",),
    "core.record": (
        "Outcome",
        "SavedValue",
    ),
    "core.resource": ("Resource",),
    "core.retry": ("RetryPolicy",),
    "core.simulate": ("Simulation",),
    "core.states": (
        "ExecutionMode",
        "FailurePolicy",
        "Strategy",
        "UnitState",
    ),
    "core.unit": ("QuantumUnit",),
    "observe.eventbus": ("EventBus",),
    "observe.progress": ("Progress",),
    "observe.projection": ("project",),
    "jsonable": ("RecordedError",),
    "partitioner": ("QuantumPartitioner",),
    "records": ("RecordError",),
    "result": (
        "RunResult",
        "UnitRecord",
    ),
    "runtime": ("Runtime",),
    "tuning": (
        "select_execution_strategy",
        "select_optimal_workers",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
