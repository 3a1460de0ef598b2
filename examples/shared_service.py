"""A web service whose requests share what is scarce, under more load than it can take.

Each request is a run of a graph. All runs share one `Runtime`: so many units at once, a provider
that takes so many calls, so many runs at once and a short queue. A request beyond that is answered
with 503 at once. When the service stops, it drains: what runs may end, nothing new begins.
"""

import asyncio
import contextlib
import socket
import time
from collections import Counter

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from quantum_async import Limit, Overloaded, QuantumPartitioner, Runtime

summary = QuantumPartitioner()
calls = []  # how many calls of the provider go on, whenever one begins
going_on = set()


@summary.unit
async def pages(topic):
    return [f"{topic} {number}" for number in range(4)]


async def embed(ctx, page):
    going_on.add(ctx.run_id + ctx.unit_id)
    calls.append(len(going_on))
    await asyncio.sleep(0.02)
    going_on.discard(ctx.run_id + ctx.unit_id)
    return len(page)


summary.map(embed, over=pages, uses="provider", retries=2)


@summary.unit
async def total(embed):
    return sum(embed)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette):
    limits = {"provider": Limit(concurrency=8)}
    async with Runtime(max_workers=64, limits=limits, max_runs=10, queue=10) as runtime:
        yield {"runtime": runtime}
        await runtime.drain(grace=5)
        print("drained")


async def get_summary(request: Request) -> JSONResponse:
    topic = request.query_params["topic"]
    try:
        result = await summary.run({"topic": topic}, timeout=5)
    except Overloaded:
        return JSONResponse({"error": "come again"}, 503, {"Retry-After": "1"})
    return JSONResponse({"topic": topic, "total": result["total"]})


async def get_load(request: Request) -> JSONResponse:
    runtime = request.state.runtime
    return JSONResponse({"running": runtime.running, "waiting": runtime.waiting})


app = Starlette(
    routes=[Route("/summary", get_summary), Route("/load", get_load)], lifespan=lifespan
)


async def call(client: httpx.AsyncClient) -> None:
    requests = [
        asyncio.create_task(client.get("/summary", params={"topic": f"owl {number}"}))
        for number in range(80)
    ]
    began = time.perf_counter()
    load = (await client.get("/load")).json()
    assert load["running"] <= 10
    responses = await asyncio.gather(*requests)
    codes = Counter(response.status_code for response in responses)
    print(f"80 requests at once: {codes[200]} answered, {codes[503]} refused", end=", ")
    print(f"after {time.perf_counter() - began:.1f} s")
    print(f"calls of the provider at once: at most {max(calls)}")
    print("when the load is over:", (await client.get("/load")).json())


async def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)  # any free port
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    limits = httpx.Limits(max_connections=100)
    # trust_env: a proxy that the environment names would not find this server.
    async with httpx.AsyncClient(base_url=url, trust_env=False, limits=limits) as client:
        await call(client)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
