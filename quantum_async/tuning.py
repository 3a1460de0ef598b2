"""How many workers, and of which kind: the seed's two selectors, and the CPUs that may be used."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.states import ExecutionMode
from quantum_async.core.unit import QuantumUnit


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by affinity and cgroup quota; at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


_CGROUPS = "/sys/fs/cgroup"


def _cgroup_quota() -> float | None:
    """Return the CPUs that control groups (version 2, then 1) grant, or None for no limit."""
    limits = [quota for folder in _own_cgroups() if (quota := _quota(f"{folder}/cpu.max"))]
    if limits:
        return min(limits)
    try:
        quota = float(_read(f"{_CGROUPS}/cpu/cpu.cfs_quota_us"))
        period = float(_read(f"{_CGROUPS}/cpu/cpu.cfs_period_us"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


def _own_cgroups() -> list[str]:
    """Return the folders of this process's control group and of those above it."""
    try:
        lines = _read("/proc/self/cgroup").splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part]
    return ["/".join([_CGROUPS, *parts[:depth]]) for depth in range(len(parts) + 1)]


def _quota(file: str) -> float | None:
    try:
        quota, period = _read(file).split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _read(file: str) -> str:
    with open(file, encoding="ascii") as lines:
        return lines.read()


def machine_load() -> tuple[float, float]:
    """Return runnable tasks a usable CPU (a minute's average), and the share of memory in use.

    What the system does not tell by itself is asked of psutil (extra ``adaptive``); without it
    the answer is 0.
    """
    return _cpu_load(), _memory_used()


def _cpu_load() -> float:
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0] / usable_cpus()
    return _ask_psutil(lambda psutil: psutil.cpu_percent() / 100)


def _memory_used() -> float:
    with suppress(OSError, ValueError, KeyError):
        rows = (row.partition(":") for row in _read("/proc/meminfo").splitlines())
        kib = {key: int(rest.split()[0]) for key, _, rest in rows}
        return 1 - kib["MemAvailable"] / kib["MemTotal"]
    return _ask_psutil(lambda psutil: psutil.virtual_memory().percent / 100)


def _ask_psutil(question: Callable[[Any], float]) -> float:
    try:
        import psutil
    except ImportError:
        return 0.0
    return question(psutil)


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
        kind = unit.metadata.get("resource_type", "async" if unit.is_async else "cpu")
        if kind in counts:
            counts[kind] += 1
    if counts["async"] > counts["cpu"] + counts["io"]:
        return ExecutionMode.ASYNC
    return ExecutionMode.THREAD if counts["io"] > counts["cpu"] else ExecutionMode.PROCESS
