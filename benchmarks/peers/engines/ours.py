"""quantum_async: units of each kind."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from benchmarks.peers.engines import Engine
from benchmarks.peers.work import SLOTS, Work, coroutine, function
from quantum_async import QuantumPartitioner

Built = tuple[QuantumPartitioner[Any, Any], Sequence[Any], dict[str, Any]]


def on_loop(
    node: int, seconds: float, above: Sequence[Any]
) -> Callable[[Any], Coroutine[Any, Any, int]]:
    """Return a unit that reads what it depends on from its context."""

    async def unit(ctx: Any) -> int:
        return await coroutine(node, seconds, *[ctx[one] for one in above])

    return unit


def in_thread(node: int, seconds: float, above: Sequence[Any]) -> Callable[[Any], int]:
    """Return the same as a plain function."""

    def unit(ctx: Any) -> int:
        return function(node, seconds, *[ctx[one] for one in above])

    return unit


class OnLoop(Engine):
    """Coroutines."""

    options: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it

    async def build(self, work: Work) -> Built:
        """Declare, and make the plan."""
        flow: QuantumPartitioner[Any, Any] = QuantumPartitioner()
        handles: list[Any] = []
        for node, seconds, above in work.nodes:
            handles.append(self.add(flow, node, seconds, [handles[one] for one in above]))
        flow.build_execution_plan()
        return flow, [handles[node] for node in work.sinks], self.options if work.sleeps else {}

    def add(
        self, flow: QuantumPartitioner[Any, Any], node: int, seconds: float, above: list[Any]
    ) -> Any:
        """Declare one unit."""
        return flow.add_unit(on_loop(node, seconds, above), above)

    async def run(self, built: Built) -> Iterable[int]:
        """Run it."""
        flow, sinks, options = built
        result = await flow.run(**options)
        return [result[one] for one in sinks]


class InThreads(OnLoop):
    """Plain functions in threads."""

    options = {"max_workers": SLOTS}  # noqa: RUF012 - nobody changes it

    def add(
        self, flow: QuantumPartitioner[Any, Any], node: int, seconds: float, above: list[Any]
    ) -> Any:
        """Declare one unit."""
        return flow.add_unit(in_thread(node, seconds, above), above)


class InProcesses(OnLoop):
    """Plain functions in worker processes."""

    def add(
        self, flow: QuantumPartitioner[Any, Any], node: int, seconds: float, above: list[Any]
    ) -> Any:
        """Declare one unit."""
        return flow.add_unit(function, args=(node, seconds, *above), mode="process")
