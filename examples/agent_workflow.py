"""Agents that build on each other's work: retrieval, reasoning, tools side by side, response."""

import asyncio

from quantum_async import QuantumPartitioner


class RetrievalAgent:
    async def process(self, query):
        await asyncio.sleep(0.1)
        return [f"a note about {word}" for word in query.split() if word.istitle()]


class ReasoningAgent:
    def get_required_tools(self):
        return ["calculator", "calendar", "maps"]

    async def process(self, query, notes):
        await asyncio.sleep(0.1)
        return f"to answer {query!r} out of {len(notes)} notes, ask the tools"


class ToolAgent:
    async def process_tool(self, reasoning, tool):
        await asyncio.sleep(0.2)
        return {"calculator": "3 h 20 min", "calendar": "on Monday", "maps": "over the Alps"}[tool]


class ResponseAgent:
    async def generate_response(self, query, reasoning, tool_results):
        await asyncio.sleep(0.05)
        return f"{query} {', '.join(sorted(tool_results.values()))}."


def create_agent_workflow(query, available_agents):
    """Create dependency-based multi-agent workflow."""
    partitioner = QuantumPartitioner(max_workers=len(available_agents))

    # Add retrieval agent unit
    partitioner.add_unit(
        fn=lambda ctx: available_agents["retrieval"].process(ctx["query"]),
        dependencies=[],  # No dependencies
        name="retrieval_agent",
        metadata={"agent_type": "retrieval", "resource_type": "io"},
    )

    # Add reasoning agent unit depending on retrieval
    partitioner.add_unit(
        fn=lambda ctx: available_agents["reasoning"].process(ctx["query"], ctx["retrieval_agent"]),
        dependencies=["retrieval_agent"],
        name="reasoning_agent",
        metadata={"agent_type": "reasoning", "resource_type": "cpu"},
    )

    # Add parallel tool agent units depending on reasoning
    for tool in available_agents["reasoning"].get_required_tools():
        partitioner.add_unit(
            fn=lambda ctx, t=tool: available_agents["tool"].process_tool(
                ctx["reasoning_agent"], tool=t
            ),
            dependencies=["reasoning_agent"],
            name=f"tool_agent_{tool}",
            metadata={"agent_type": "tool", "tool": tool, "resource_type": "io"},
        )

    # Add final response agent depending on all tool agents
    tool_units = [unit_id for unit_id in partitioner.units if unit_id.startswith("tool_agent_")]
    partitioner.add_unit(
        fn=lambda ctx: available_agents["response"].generate_response(
            ctx["query"],
            ctx["reasoning_agent"],
            {unit_id: ctx[unit_id] for unit_id in tool_units},
        ),
        dependencies=["reasoning_agent", *tool_units],
        name="response_agent",
        metadata={"agent_type": "response", "resource_type": "cpu"},
    )

    return partitioner


async def main():
    agents = {
        "retrieval": RetrievalAgent(),
        "reasoning": ReasoningAgent(),
        "tool": ToolAgent(),
        "response": ResponseAgent(),
    }
    query = "How long is the ride from Turin to Lyon?"
    workflow = create_agent_workflow(query, agents)
    result = await workflow.run({"query": query})
    print(result["response_agent"])

    began = result.metrics["start_time"]
    for record in result.units.values():
        start, end = record.started_at - began, record.ended_at - began
        line = " " * round(start * 40) + "#" * max(1, round((end - start) * 40))
        print(f"{record.name:22}{line}")


if __name__ == "__main__":
    asyncio.run(main())
