"""A web service that runs a graph for each request.

One partitioner serves all requests, however many at once: it is a definition, and each run has a
state of its own. A run that takes too long is answered with 504. When a client goes away, its run
is cancelled: nothing works on for nobody.
"""

import asyncio
import socket
import time

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from quantum_async import QuantumPartitioner, RunTimeoutError
from quantum_async.core.events import RunFinished


def note_end(event):
    """Print how each run has ended that did not complete."""
    if isinstance(event, RunFinished) and event.state != "completed":
        print(f"  run {event.run_id}: {event.state} after {event.duration:.1f} s")


trip = QuantumPartitioner(observers=[note_end])


@trip.unit
async def weather(city, seconds):
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        print(f"  weather of {city}: stopped")
        raise
    return f"sun in {city}"


@trip.unit
def hotels(city):
    time.sleep(0.05)
    return [f"Hotel {city}", f"Old {city} Inn"]


@trip.unit
def offer(weather, hotels):
    return {"weather": weather, "hotels": hotels}


async def get_trip(request: Request) -> Response:
    city = request.query_params["city"]
    seconds = float(request.query_params.get("seconds", 0.1))
    response = Response(status_code=499)  # what nobody will read
    async with anyio.create_task_group() as watch:
        watch.start_soon(cancel_on_disconnect, request, watch.cancel_scope)
        try:
            result = await trip.run({"city": city, "seconds": seconds}, timeout=0.5, run_id=city)
        except RunTimeoutError as error:
            response = JSONResponse({"error": f"no offer within {error.limit} s"}, 504)
        else:
            response = JSONResponse(result["offer"])
        watch.cancel_scope.cancel()
    return response


async def cancel_on_disconnect(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


app = Starlette(routes=[Route("/trip", get_trip)])


async def call(client: httpx.AsyncClient) -> None:
    cities = ["Rome", "Oslo", "Lima", "Kyiv", "Bonn", "Cork"]
    began = time.perf_counter()
    responses = await asyncio.gather(
        *(client.get("/trip", params={"city": city}) for city in cities)
    )
    print(responses[0].json())
    print(f"{len(cities)} requests of 0.1 s each in {time.perf_counter() - began:.1f} s")

    print("a request that takes too long:")
    response = await client.get("/trip", params={"city": "Quito", "seconds": 60})
    print(f"  {response.status_code}: {response.json()['error']}")

    print("a client that goes away after 0.1 s:")
    try:
        await client.get("/trip", params={"city": "Perth", "seconds": 60}, timeout=0.1)
    except httpx.ReadTimeout:
        await asyncio.sleep(0.2)  # the server sees that the connection is closed


async def main():
    listener = socket.create_server(("127.0.0.1", 0))  # any free port
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    # trust_env: a proxy that the environment names would not find this server.
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await call(client)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
