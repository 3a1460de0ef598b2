"""Ask several model providers at once, and aggregate what they answer."""

import asyncio
import time
from dataclasses import dataclass

from quantum_async import ExecutionError, ExecutionMode, QuantumPartitioner


@dataclass
class HostedProvider:
    """Answers over the network; its client is asynchronous."""

    id: str
    seconds: float
    score: float

    async def generate(self, query):
        await asyncio.sleep(self.seconds)
        return {"provider": self.id, "score": self.score, "text": f"{self.id} on {query!r}"}


@dataclass
class LocalProvider:
    """Answers from a library that blocks."""

    id: str
    seconds: float
    score: float

    def generate(self, query):
        time.sleep(self.seconds)
        return {"provider": self.id, "score": self.score, "text": f"{self.id} on {query!r}"}


@dataclass
class BrokenProvider:
    """Has no answer today."""

    id: str

    async def generate(self, query):
        raise ConnectionError(f"{self.id} is down")


def aggregate_responses(ctx):
    """Choose the best of the answers: `ctx.unit_results` has those of all dependencies."""
    best = max(ctx.unit_results.values(), key=lambda response: response["score"])
    return {"best": best["text"], "answers": len(ctx.unit_results)}


def create_provider_execution_plan(providers, query, max_workers=3):
    """Create execution plan for parallel provider operations."""
    partitioner = QuantumPartitioner(
        max_workers=max_workers, default_execution_mode=ExecutionMode.THREAD
    )

    # Create parallel units for each provider
    for provider in providers:
        partitioner.add_unit(
            # An asynchronous client's coroutine is awaited by the engine, within the timeout.
            fn=lambda ctx, p=provider: p.generate(ctx["query"]),
            dependencies=[],  # No dependencies
            name=f"provider_{provider.id}",
            timeout=10.0,  # 10-second timeout
            metadata={"resource_type": "io", "provider": provider.id},
        )

    # Add aggregation unit that depends on all provider units
    provider_units = [f"provider_{p.id}" for p in providers]
    partitioner.add_unit(
        fn=lambda ctx: aggregate_responses(ctx),
        dependencies=provider_units,
        name="aggregate_responses",
    )

    return partitioner


def main():
    query = "Why is the sky blue?"
    providers = [
        HostedProvider("alpha", seconds=0.15, score=0.7),
        LocalProvider("beta", seconds=0.20, score=0.9),
        HostedProvider("gamma", seconds=0.10, score=0.4),
    ]
    partitioner = create_provider_execution_plan(providers, query)
    results = partitioner.execute({"query": query})
    print(results["aggregate_responses"])
    asked = [unit for unit in partitioner.units.values() if "provider" in unit.metadata]
    for unit in asked:
        print(f"  {unit.name}: {unit.execution_time:.2f} s")
    summed = sum(unit.execution_time for unit in asked)
    taken = partitioner.last_execution_metrics["total_duration"]
    print(f"  one after another {summed:.2f} s, together {taken:.2f} s")

    # One provider fails: the others' answers are there all the same.
    providers[0] = BrokenProvider("alpha")
    partitioner = create_provider_execution_plan(providers, query)
    try:
        partitioner.execute({"query": query})
    except ExecutionError as error:
        print(f"failed: {', '.join(error.errors)} ({error.__cause__})")
        print(f"kept:   {', '.join(partitioner.get_partial_results())}")


if __name__ == "__main__":
    main()
