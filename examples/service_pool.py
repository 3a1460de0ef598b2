"""A pool of service processes behind a queue, each with one event loop and one `Runtime`.

For graphs whose coroutines need more than one CPU. A request waits in the parent's queue until a
service has room for it. A service that dies fails the requests that it had, and another one takes
its place. When the pool is closed, services drain: what runs may end, nothing new begins.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
from collections import Counter
from multiprocessing.connection import Connection

from quantum_async import QuantumPartitioner, Runtime

RUNS = 4  # at once in each service

summary = QuantumPartitioner(name="summary")


@summary.unit
async def page(topic):
    if topic == "poison":
        os._exit(1)
    await asyncio.sleep(0.01)
    return f"all about {topic}"


@summary.unit
async def words(page):
    return len(page.split())


@summary.unit
async def answer(page, words):
    return {"page": page, "words": words, "service": os.getpid()}


# -- in a service ----------------------------------------------------------------------------------


def serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    loop, ends = asyncio.get_running_loop(), asyncio.Event()
    async with Runtime(max_workers=16, max_runs=RUNS) as runtime, asyncio.TaskGroup() as requests:

        async def respond(number, topic):
            try:
                result = await summary.run({"topic": topic})
                told = number, result["answer"], None
            except Exception as error:
                told = number, None, str(error)
            with contextlib.suppress(OSError):  # the parent is gone
                pipe.send(told)

        def receive():
            try:
                request = pipe.recv()
            except (EOFError, OSError):
                request = None
            if request is None:
                loop.remove_reader(pipe.fileno())
                ends.set()
            else:
                requests.create_task(respond(*request))

        loop.add_reader(pipe.fileno(), receive)
        await ends.wait()
        await runtime.drain(grace=5)


# -- in the parent ---------------------------------------------------------------------------------


class ServiceDiedError(Exception):
    """The service that had the request is gone; another may do better, or die of it too."""


class Service:
    """One process, and the requests that it has not answered yet."""

    def __init__(self, died):
        self._died, self._numbers, self._requests = died, itertools.count(), {}
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve, args=(theirs,))
        self._process.start()
        theirs.close()
        self._loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        self._loop.add_reader(self._pipe.fileno(), self._receive)

    def send(self, topic):
        """Return the answer, as a future."""
        number = next(self._numbers)
        answer = self._requests[number] = self._loop.create_future()
        with contextlib.suppress(OSError):  # it has died, as we shall read in a moment
            self._pipe.send((number, topic))
        return answer

    def _receive(self):
        try:
            number, result, error = self._pipe.recv()
        except (EOFError, OSError):
            self._end()
            return
        answer = self._requests.pop(number)
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(RuntimeError(error))

    def _end(self):
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self.ended.set()
        for answer in self._requests.values():
            answer.set_exception(ServiceDiedError("the service with this request is gone"))
        self._died()

    async def close(self):
        """Have it drain, and wait for its end."""
        self._died = int  # nobody is to take its place
        if not self.ended.is_set():
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            await self.ended.wait()
        await asyncio.to_thread(self._process.join)


class Pool:
    """So many services, and the queue in front of them."""

    def __init__(self, services):
        self._count, self._services, self._room = services, set(), asyncio.Queue()

    async def __aenter__(self):
        for _ in range(self._count):
            self._open()
        return self

    async def __aexit__(self, *_):
        await asyncio.gather(*(service.close() for service in self._services))

    def _open(self):
        service = Service(died=self._open)
        self._services.add(service)
        for _ in range(RUNS):
            self._room.put_nowait(service)

    async def run(self, topic):
        service = await self._room.get()
        while service.ended.is_set():
            service = await self._room.get()
        answer = service.send(topic)

        def answered(answer):
            answer.exception()  # perhaps nobody else asks for it any more
            self._room.put_nowait(service)

        answer.add_done_callback(answered)
        # Who is cancelled does not wait; the service is busy until it has answered.
        return await asyncio.shield(answer)


async def main():
    async with Pool(services=2) as pool:
        topics = [f"topic {number}" for number in range(40)]
        answers = await asyncio.gather(*map(pool.run, topics))
        share = Counter(answer["service"] for answer in answers)
        print(f"{len(answers)} answers from {len(share)} services; the last: {answers[-1]['page']}")

        topics[20] = "poison"
        outcomes = await asyncio.gather(*map(pool.run, topics), return_exceptions=True)
        lost = [one for one in outcomes if isinstance(one, ServiceDiedError)]
        print(f"a service died: {len(outcomes) - len(lost)} answers, {len(lost)} lost")
        print(f"and then: {(await pool.run('owls'))['page']}")
    print("drained")


if __name__ == "__main__":
    asyncio.run(main())
