"""An agent that decides its tools at run time, and races two providers under rate limits.

A turn of the agent is a graph: two providers are asked what to do next, and whoever answers first
decides; then each tool that the answer names is called, in a unit of its own. The agent is a unit
that runs turns until no tool is wanted any more. How often it will turn, and what it will call, is
not known before.
"""

import asyncio

from quantum_async import Limit, QuantumPartitioner

TOOLS = {
    "calendar": lambda known: "on Monday",
    "maps": lambda known: "in Lyon",
    "weather": lambda known: f"rain {known['maps']} {known['calendar']}",
}


def decide(known):
    """Stand in for a model: which tools are wanted next, now that this is known."""
    if "maps" not in known:
        return ["calendar", "maps"]
    return ["weather"] if "weather" not in known else []


turn = QuantumPartitioner()


@turn.unit(uses="steady")
async def steady_provider(known):
    await asyncio.sleep(0.02)
    return decide(known)


@turn.unit(uses="busy", retries=3)
async def busy_provider(known):
    await asyncio.sleep(60)
    return decide(known)


turn.first(steady_provider, busy_provider, name="wanted")


async def call(tool, known):
    await asyncio.sleep(0.05)
    return tool, TOOLS[tool](known)


turn.map(call, over="wanted", name="tools", uses="tools", timeout=5)

# The limits are those of the whole run: all turns together keep to them.
agent = QuantumPartitioner(
    limits={"steady": Limit(rate=10, per=1, burst=1), "busy": Limit(concurrency=1), "tools": 2}
)


@agent.unit
async def facts(ctx):
    known = {}
    while True:
        result = await ctx.run(turn, {"known": known})
        if not result["tools"]:
            return known
        known = known | dict(result["tools"])


@agent.unit
async def answer(question, facts):
    return f"{question} It will {facts['weather']}."


async def main():
    result = await agent.run({"question": "Will I need an umbrella at the meeting?"})
    print(result["answer"])
    began = result.metrics["start_time"]
    for number, name in enumerate(("facts", "facts/2", "facts/3"), 1):
        record = result.units[f"{name}/steady_provider"]
        tools = [tool for tool, _ in result[f"{name}/tools"]]
        print(
            f"turn {number} after {record.started_at - began:.1f} s: {', '.join(tools) or 'done'}"
        )
    print(f"busy_provider {result.units['facts/busy_provider'].cause}")


if __name__ == "__main__":
    asyncio.run(main())
