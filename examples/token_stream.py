"""Tokens of a language model in a browser, as they come: server-sent events from one run.

A unit hands out each token with `ctx.emit`. The server takes a run's events as a stream of
aiostream, picks tokens and ends of units out of it, and sends each as a server-sent event. When
the browser closes the page, the stream is closed, and with it the run.

It needs the extra `streams`. The model is a few lines here; nothing goes over a network.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import uvicorn
from aiostream import pipe
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route

from quantum_async import QuantumPartitioner
from quantum_async.core.events import RunFinished, UnitCompleted, UnitEmitted
from quantum_async.streams import events

PAGE = """<!doctype html><title>Tokens</title><p id="answer"></p><script>
const source = new EventSource("/answer?topic=owls");
source.addEventListener("token", e => {
  document.getElementById("answer").append(JSON.parse(e.data).value);  // as text, never as HTML
});
source.addEventListener("end", () => source.close());
</script>"""

ends: asyncio.Queue[str] = asyncio.Queue()


def note_end(event):
    if isinstance(event, RunFinished):
        ends.put_nowait(event.state)


flow = QuantumPartitioner(observers=[note_end])


@flow.unit
async def facts(topic):
    return f"{topic} hunt at night, and {topic} hardly make a sound."


@flow.unit
async def answer(ctx, facts):
    try:
        for word in facts.split():
            await asyncio.sleep(0.02)  # the model thinks
            ctx.emit(f"{word} ")
    except asyncio.CancelledError:
        print("  the model was stopped")
        raise
    return facts


def message(event) -> str:
    """Return an event of the run as a server-sent event."""
    match event:
        case UnitEmitted():
            kind, data = "token", {"unit": event.unit, "value": event.value}
        case UnitCompleted():
            kind, data = "unit", {"unit": event.unit, "seconds": round(event.duration, 3)}
        case _:
            kind, data = "end", {"state": event.state}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def told(event) -> bool:
    return isinstance(event, UnitEmitted | UnitCompleted | RunFinished)


async def get_answer(request: Request) -> StreamingResponse:
    topic = request.query_params["topic"]

    async def body() -> AsyncIterator[str]:
        # A failure is told of by the last event; it is no failure of the server.
        run = events(flow, {"topic": topic}, failure_policy="collect")
        messages = run | pipe.filter(told) | pipe.map(message)
        async with messages.stream() as stream:
            async for text in stream:
                yield text

    return StreamingResponse(
        body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def get_page(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


app = Starlette(routes=[Route("/", get_page), Route("/answer", get_answer)])


async def read(client: httpx.AsyncClient, topic: str, most: int) -> list[str]:
    """Do what a browser does: read server-sent events, and go away after `most` tokens."""
    tokens: list[str] = []
    async with client.stream("GET", "/answer", params={"topic": topic}) as response:
        kind = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data" and kind == "token":
                tokens.append(json.loads(value)["value"])
                if len(tokens) == most:
                    break
            elif name == "data":
                print(f"  {kind}: {value}")
    return tokens


async def main():
    listener = socket.create_server(("127.0.0.1", 0))  # any free port
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    # trust_env: a proxy that the environment names would not find this server.
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        print("a browser that reads to the end:")
        tokens = await read(client, "owls", most=1000)
        print(f"  {len(tokens)} tokens: {''.join(tokens)}")
        print(f"  its run: {await ends.get()}")
        print("a browser that closes the page after 2 tokens:")
        print(f"  {''.join(await read(client, 'bats', most=2))}")
        print(f"  its run: {await ends.get()}")  # when the server has seen it
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
