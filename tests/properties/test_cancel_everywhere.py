"""Cancelled at every await point in turn, in every way: nothing is left, each unit has an end."""

import itertools
import os
import tempfile

import pytest

from quantum_async.testing import Resources
from tests.support import everywhere, graphs, harm


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("way", everywhere.WAYS)
@pytest.mark.parametrize("make", graphs.GRAPHS, ids=lambda make: make.__name__)
def test_nothing_is_left_and_every_unit_has_one_end(make, way, record_property):
    cancel = everywhere.Everywhere()
    cancel(make, way)
    assert cancel.counts["cancels"] > 10
    for what, count in cancel.counts.items():
        record_property(what, count)


EVERY = 1 if harm.FULL else 3  # steps


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", everywhere.WAYS)
def test_no_worker_process_is_left_busy_or_half_started(way, record_property):
    """On real time, each point with the workers that the one before has left."""

    async def main():
        hits = misses = 0
        for step in itertools.count(1, EVERY):
            done = await everywhere.cancel_at(graphs.in_processes(), step, way)
            hits += done.hit
            misses = 0 if done.hit else misses + 1
            assert set(harm.children()) - others <= set(harm.workers())
            if misses > 2:
                break
        result = await graphs.in_processes().run()
        assert dict(result) == {"u0": 0, "u1": 1, "u2": 2, "u3": 4, "u4": 11}
        return hits

    before, others = Resources.now(), set(harm.children())
    hits = everywhere.run_in(everywhere.RealSteps, main())
    left = Resources.left_since(before)
    assert not left, f"left behind: {left}"
    assert os.listdir(tempfile.gettempdir()) == []
    assert hits > 3
    record_property("cancels", hits)
