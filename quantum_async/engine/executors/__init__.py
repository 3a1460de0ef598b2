"""Where a unit runs. One file a place, all behind the one method of `Executor`."""

from quantum_async.engine.executors.base import Executor, Job

__all__ = ["Executor", "Job"]
