"""Task graphs as units of ours."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.shapes import Graph
from quantum_async import QuantumPartitioner

Flow = QuantumPartitioner[Any, Any]
Unit = Callable[..., Any]


def declare(graph: Graph, unit: Unit | Sequence[Unit], **options: Any) -> Flow:
    """Declare a graph's nodes as units: all run one function, or each its own."""
    flow: Flow = QuantumPartitioner()
    functions = [unit] * len(graph) if callable(unit) else unit
    handles: list[Any] = []
    for function, above in zip(functions, graph.dependencies, strict=True):
        after = [handles[one] for one in above] if above else None
        handles.append(flow.add_unit(function, after, **options))
    return flow


def with_costs(graph: Graph, functions: Sequence[Unit], **options: Any) -> Flow:
    """Declare a graph whose durations are known, and make its plan."""
    flow: Flow = QuantumPartitioner()
    handles: list[Any] = []
    facts = zip(functions, graph.dependencies, graph.durations, strict=True)
    for function, above, cost in facts:
        after = [handles[one] for one in above]
        handles.append(flow.add_unit(function, after, cost=cost, **options))
    flow.build_execution_plan()
    return flow


def planned(graph: Graph, unit: Unit | Sequence[Unit], **options: Any) -> Flow:
    """Declare a graph, and make its plan."""
    flow = declare(graph, unit, **options)
    flow.build_execution_plan()
    return flow
