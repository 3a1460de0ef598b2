"""First steps: declare units, run them, read the results."""

import asyncio
from collections import Counter

from quantum_async import QuantumPartitioner

flow = QuantumPartitioner()


@flow.unit(timeout=5, retries=3)
async def page(ctx):  # a coroutine: on the event loop
    if ctx.attempt == 1:
        raise ConnectionError("the line is busy")
    return f"{ctx['greeting']}, world! Hello, moon! Goodbye, world!"


@flow.unit(mode="process", timeout=30)
def words(page):  # CPU-bound: in a worker process, which is killed after 30 s
    return Counter(page.lower().replace(",", " ").replace("!", " ").split())


@flow.unit
def length(page):  # a plain function may block: in a thread
    return len(page)


@flow.unit(fallback=["nothing found"])
async def names(page):
    raise RuntimeError("the model is down")


@flow.unit
def report(words, length, names):  # waits for all three, and for nothing else
    return f"{length} characters, most often {words.most_common(2)}, names: {names}"


async def main():
    result = await flow.run({"greeting": "Hello"})
    print(result["report"])
    for record in result.units.values():
        print(f"{record.name:7}{record.state.value} ({record.ran_on}), attempts: {record.attempts}")


if __name__ == "__main__":
    asyncio.run(main())
