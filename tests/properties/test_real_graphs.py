"""Task graphs of real programs on virtual time, against the simulator and known optima."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from quantum_async import QuantumPartitioner
from quantum_async.testing import VirtualClock, broken_laws

HERE = Path(__file__).parent.parent
OURS = sorted((HERE / "data/graphs").glob("*.json"))
SHARED = HERE.parent.parent / "shared/graphs"
OTHERS = sorted(SHARED.glob("*.json*")) if SHARED.is_dir() else []
MOST = 3_000  # nodes


def read(path):
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def built(graph):
    flow = QuantumPartitioner()
    for node in graph["nodes"]:
        seconds = node["duration"]
        seconds = 1.0 if seconds is None else float(seconds)

        async def unit(ctx, seconds=seconds):
            await asyncio.sleep(seconds)

        flow.add_unit(unit, node["deps"], node["id"], cost=seconds)
    return flow


def check(path, workers):
    graph = read(path)
    if "nodes" not in graph or len(graph["nodes"]) > MOST:
        pytest.skip("more nodes than a test needs")
    flow, log = built(graph), []
    plan = flow.build_execution_plan()
    simulated = plan.simulate(max_workers=workers)
    result = VirtualClock().run(flow.run(max_workers=workers, observers=[log.append]))
    assert len(result.states) == len(graph["nodes"])
    assert broken_laws(plan, log, max_running=workers) == []
    took = result.metrics["total_duration"]
    # Each timer is at least a microsecond ahead on virtual time.
    assert took == pytest.approx(simulated.makespan, rel=1e-3, abs=1e-2)
    known = graph.get("optimal", {}).get(str(workers))
    if known:
        # Graham's bound for list scheduling.
        assert known * (1 - 1e-6) <= simulated.makespan <= known * (2 - 1 / workers) * (1 + 1e-6)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
@pytest.mark.parametrize("workers", [2, 8])
def test_graphs_that_come_with_the_tests(path, workers):
    check(path, workers)


@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason="the shared graphs are not here")
def test_there_are_shared_graphs():
    assert len(OTHERS) > 100


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_shared_graphs(path):
    check(path, 4)
