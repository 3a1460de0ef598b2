"""How many CPUs may be used."""

import os

import pytest

from quantum_async import tuning


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [
        (8, "max 100000", 8),
        (8, "200000 100000", 2),
        (8, "150000 100000", 2),  # one and a half: two workers have something to do
        (2, "800000 100000", 2),
        (8, "1000 100000", 1),
        (8, "rubbish", 8),
        (8, None, 8),
    ],
)
def test_cpus_are_those_that_affinity_and_control_groups_grant(
    monkeypatch, tmp_path, affinity, quota, usable
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(tuning, "_CGROUPS", str(tmp_path))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert tuning.usable_cpus() == usable


@pytest.mark.parametrize(("quota", "usable"), [("-1", 8), ("300000", 3)])
def test_the_first_version_of_control_groups_is_asked_too(monkeypatch, tmp_path, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(tuning, "_CGROUPS", str(tmp_path))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert tuning.usable_cpus() == usable
