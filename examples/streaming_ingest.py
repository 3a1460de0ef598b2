"""Ingest a stream: read, parse and store each record as it comes, then report on all of them.

The reader is an asynchronous generator; each record goes through the maps after it on its own,
while the reader goes on. When the store is slow, the reader waits: no more than a few records are
held at any time. The store's connection is opened once, and closed when the last record is in.
"""

import asyncio
import json

from quantum_async import QuantumPartitioner

flow = QuantumPartitioner()
moments = []


@flow.resource
async def store():
    print("store opened")
    table = []
    yield table
    print(f"store closed with {len(table)} rows")


@flow.unit
async def lines(count):
    for number in range(count):
        await asyncio.sleep(0)  # the next line arrives
        moments.append(f"read {number}")
        broken = number % 40 == 7
        yield "{broken" if broken else json.dumps({"number": number, "word": "owl" * (number % 3)})


async def parse(line):
    return json.loads(line)


async def save(record, store):
    await asyncio.sleep(0.01)  # a slow store
    store.append(record)
    moments.append(f"saved {record['number']}")
    return len(record["word"])


# What cannot be parsed stands as an exception in the list; the map after it passes it on.
parsed = flow.map(parse, over=lines, on_item_error="collect")
flow.map(save, over=parsed, max_concurrency=8, retries=2)


@flow.unit
def report(lines, parse, save):
    broken = [number for number, record in enumerate(parse) if isinstance(record, Exception)]
    letters = sum(length for length in save if isinstance(length, int))
    return f"{len(lines)} lines, {letters} letters, broken: {broken}"


async def main():
    result = await flow.run({"count": 100})
    print(result["report"])
    first = moments.index("saved 0")
    print(f"the first record was saved when {first} lines had been read")
    print(f"line 7: {result.units['parse[7]'].state.value}, the run: {result.ok=}")


if __name__ == "__main__":
    asyncio.run(main())
