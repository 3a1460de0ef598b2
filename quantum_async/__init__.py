"""An asyncio-native engine for work with dependencies.

Declare units, `await partitioner.run(ctx)`: each unit starts the moment its last dependency ends.
"""

from quantum_async.caching import CachingQuantumPartitioner
from quantum_async.core.context import ExecutionContext
from quantum_async.core.errors import (
    CircularDependencyError,
    DuplicateUnitError,
    ExecutionError,
    InternalError,
    MissingInputError,
    PlanError,
    QuantumError,
    RemoteError,
    RunTimeoutError,
    UndeclaredDependencyError,
    UnitTimeoutError,
    UnknownDependencyError,
    UnpicklableUnitError,
    WorkerCrashedError,
)
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.retry import RetryPolicy
from quantum_async.core.simulate import Simulation
from quantum_async.core.states import ExecutionMode, FailurePolicy, Strategy, UnitState
from quantum_async.core.unit import QuantumUnit
from quantum_async.partitioner import QuantumPartitioner
from quantum_async.result import RunResult, UnitRecord
from quantum_async.tuning import select_execution_strategy, select_optimal_workers

__all__ = [
    "CachingQuantumPartitioner",
    "CircularDependencyError",
    "DuplicateUnitError",
    "ExecutionContext",
    "ExecutionError",
    "ExecutionMode",
    "ExecutionPlan",
    "FailurePolicy",
    "InternalError",
    "MissingInputError",
    "PlanError",
    "QuantumError",
    "QuantumPartitioner",
    "QuantumUnit",
    "RemoteError",
    "RetryPolicy",
    "RunResult",
    "RunTimeoutError",
    "Simulation",
    "Strategy",
    "UndeclaredDependencyError",
    "UnitRecord",
    "UnitState",
    "UnitTimeoutError",
    "UnknownDependencyError",
    "UnpicklableUnitError",
    "WorkerCrashedError",
    "select_execution_strategy",
    "select_optimal_workers",
]
