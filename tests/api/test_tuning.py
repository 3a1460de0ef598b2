"""How many CPUs may be used, and how busy the machine is, on systems of several kinds."""

import os
import sys
from types import SimpleNamespace

import pytest

from quantum_async import ExecutionMode, QuantumPartitioner, tuning


@pytest.fixture
def system(monkeypatch):
    """Say what the files of the system have: a mapping from path to text."""
    files = {}

    def read(file):
        if file not in files:
            raise FileNotFoundError(file)
        return files[file]

    monkeypatch.setattr(tuning, "_read", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return files


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 8),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 2),
        (
            {
                "/proc/self/cgroup": "1:cpu:/x\n0::/a\n",
                "/sys/fs/cgroup/a/cpu.max": "300000 100000\n",
                "/sys/fs/cgroup/cpu.max": "500000 100000\n",
            },
            3,
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "what is this\n"}, 8),
        # Version 1 of control groups.
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
    ids=["none", "no limit", "of a parent", "the least", "rubbish", "version 1", "1, no limit"],
)
def test_the_usable_cpus_are_those_of_the_affinity_and_the_control_group(system, files, cpus):
    system.update(files)
    assert tuning.usable_cpus() == cpus


@pytest.mark.parametrize(("count", "cpus"), [(4, 4), (None, 1)])
def test_without_an_affinity_all_cpus_may_be_used(system, monkeypatch, count, cpus):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert tuning.usable_cpus() == cpus


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "file").write_text("1 2\n")
    assert tuning._read(str(tmp_path / "file")) == "1 2\n"


def test_the_load_is_what_the_system_says(system, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0, 0.0, 0.0))
    system["/proc/meminfo"] = "MemTotal: 1000 kB\nMemAvailable: 250 kB\n"
    assert tuning.machine_load() == (0.5, 0.75)


def test_psutil_is_asked_where_the_system_does_not_say(system, monkeypatch):
    monkeypatch.delattr(os, "getloadavg")
    psutil = SimpleNamespace(
        cpu_percent=lambda: 40.0, virtual_memory=lambda: SimpleNamespace(percent=60.0)
    )
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    assert tuning.machine_load() == (0.4, 0.6)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert tuning.machine_load() == (0.0, 0.0)


def test_units_of_a_resource_type_of_the_users_own_have_no_say_in_the_mode():
    flow = QuantumPartitioner()
    for kind in ("gpu", "gpu", "io"):
        flow.add_unit(lambda ctx: None, metadata={"resource_type": kind})
    assert tuning.select_execution_strategy(flow.units) is ExecutionMode.THREAD
