"""How many workers, and of which kind: the seed's two selectors, and the CPUs that may be used."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.states import ExecutionMode
from quantum_async.core.unit import QuantumUnit, is_coroutine_function


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by affinity and cgroup quota; at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def _cgroup_quota() -> float | None:
    """Return the CPUs that control groups (version 2, then 1) grant, or None for no limit."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        limits = []
        folder = root / own.lstrip("/")
        while folder.is_relative_to(root):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
                if quota != "max":
                    limits.append(int(quota) / int(period))
            folder = folder.parent
        if limits:
            return min(limits)
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None


def select_optimal_workers(
    units: Mapping[str, QuantumUnit[Any, Any]], execution_plan: ExecutionPlan
) -> int:
    """Return how many workers suit a plan.

    For mostly CPU-bound units no more than there are usable CPUs, else twice as many; in both
    cases no more than the plan can ever use at once, and at least 1.

    Args:
        units: The units by name; ``metadata["resource_type"] == "cpu"`` marks CPU-bound ones.
        execution_plan: Their plan.
    """
    cpus = usable_cpus()
    cpu_bound = sum(unit.metadata.get("resource_type") == "cpu" for unit in units.values())
    most = cpus if cpu_bound > len(units) - cpu_bound else 2 * cpus
    return max(1, min(execution_plan.max_parallel_units, most))


def select_execution_strategy(units: Mapping[str, QuantumUnit[Any, Any]]) -> ExecutionMode:
    """Return the mode that suits most of the units.

    ASYNC if most are coroutine functions (or marked ``resource_type: "async"``), THREAD if more
    are marked "io" than "cpu", else PROCESS. Unmarked plain functions count as CPU-bound.

    Args:
        units: The units by name.
    """
    counts = {"cpu": 0, "io": 0, "async": 0}
    for unit in units.values():
        is_async = is_coroutine_function(unit.function)
        kind = unit.metadata.get("resource_type", "async" if is_async else "cpu")
        if kind in counts:
            counts[kind] += 1
    if counts["async"] > counts["cpu"] + counts["io"]:
        return ExecutionMode.ASYNC
    return ExecutionMode.THREAD if counts["io"] > counts["cpu"] else ExecutionMode.PROCESS
