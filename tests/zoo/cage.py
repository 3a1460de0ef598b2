"""A run with an animal in it, and what is wrong afterwards.

Beside the animal there are innocent units, in its own place and on the loop, before and after it:
whatever it does, they must end as if it were not there.
"""

import asyncio
import concurrent.futures
import re
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from quantum_async import ExecutionMode, QuantumPartitioner, RunResult, UnitState
from quantum_async.testing import broken_laws
from tests.support.carried import request
from tests.zoo.animals import ANY, CANCELED, COMPLETED, FAILED, TIMEOUT, Animal

_OF_RUN = {"thread": "thread", "custom": "custom", "inline": "sequential", "process": "process"}


def _at_once(unit: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def at_once(ctx):
        return unit(ctx)

    return at_once


def _later(unit: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def later(ctx):
        await asyncio.sleep(0)
        return unit(ctx)

    return later


def _innocent(ctx):
    return ctx.unit_id, request.get()


async def _innocent_on_loop(ctx):
    await asyncio.sleep(0)
    return ctx.unit_id, request.get()


class Cage:
    """Units around some animals, in one mode.

    Args:
        animals: The animals.
        mode: Where they are let loose.
    """

    def __init__(self, animals: Iterable[Animal], mode: str) -> None:
        self.animals = [one.seen_in(mode) for one in animals]
        self.mode, self.on_loop = _OF_RUN.get(mode, "auto"), mode in ("task", "scope")
        self.flow = flow = QuantumPartitioner(failure_policy="collect", name="zoo")
        self.log: list[Any] = []
        self.noise: list[str] = []
        self.left: list[str] = []
        self.innocent: list[str] = []
        place = ExecutionMode(mode) if mode in ("process", "interpreter") else None
        self._innocent("loop before", _innocent_on_loop)
        self._innocent("before", _innocent, mode=place)
        for one in self.animals:
            unit, options = one.unit, dict(one.options)
            if mode in ("loop", "later", "limited"):
                unit = _at_once(unit) if mode == "loop" else _later(unit)
            if mode in ("limited", "scope"):
                options["timeout"] = 60
            flow.add_unit(unit, ["before", "loop before"], one.name, mode=place, **options)
            flow.add_unit(_innocent_on_loop, [one.name], f"after {one.name}")
        self._innocent("beside", _innocent, ["before"], mode=place)
        self._innocent("beyond", _innocent, ["beside"], mode=place)
        self._innocent("loop beside", _innocent_on_loop, ["loop before"])
        self._innocent("loop beyond", _innocent_on_loop, ["loop beside", "beside"], timeout=60)

    def _innocent(self, name: str, *declared: Any, **options: Any) -> None:
        self.innocent.append(name)
        unit, *above = declared
        self.flow.add_unit(unit, *above, name=name, **options)

    def open(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> list[str]:
        """Run it on a loop of its own; return what is wrong."""
        escaped: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.get_loop().set_exception_handler(self._complained)
                escaped = runner.run(self._run())
        except BaseException as error:  # it left through the loop
            escaped = error
        return [*self._wrong(escaped), *self._wrong_noise()]

    def _complained(self, loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        self.noise.append(f"{what.get('message')}: {what.get('exception')!r}")

    async def _run(self) -> BaseException | None:
        escaped: BaseException | None = None
        # Only those on the loop get at the run's own task: it cannot travel.
        context = {"caller": asyncio.current_task()} if self.on_loop else {}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            try:
                await self.flow.run(
                    context,
                    mode=self.mode,
                    custom_executor=pool if self.mode == "custom" else None,
                    observers=[self.log.append],
                    run_id="zoo",
                )
            except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
                escaped = error
            finally:
                for one in self.animals:
                    if one.tidy is not None:
                        one.tidy()
        with suppress(asyncio.CancelledError):  # one that came when all was over
            await asyncio.sleep(0)
        names = [task.get_name() for task in asyncio.all_tasks()]
        self.left = [name for name in names if name.startswith("zoo/")]
        return escaped

    # -- afterwards ---------------------------------------------------------------------------

    def _wrong(self, escaped: BaseException | None) -> Iterable[str]:
        due = {one.escapes for one in self.animals} - {None}
        if escaped is not None and type(escaped) not in due:
            yield f"the run raised {escaped!r}"
        if escaped is None and due:
            yield f"the run did not raise {due}"
        result = self.flow.last_result
        if result is None:
            yield "there is no result"
            return
        yield from (f"task {name!r} was left" for name in self.left)
        yield from broken_laws(self.flow.build_execution_plan(), self.log)
        for one in self.animals:
            yield from (f"{one.name} {what}" for what in _wrong_animal(one, result))
            yield from self._wrong_dependent(one, result)
        ends = {COMPLETED, CANCELED} if due else {COMPLETED}
        for name in self.innocent:
            if result.states[name] not in ends:
                yield f"innocent {name!r} is {result.states[name]}: {result.errors.get(name)!r}"
            elif name in result and result[name] != (name, None):
                yield f"innocent {name!r} returned {result[name]!r}"

    def _wrong_dependent(self, one: Animal, result: RunResult) -> Iterable[str]:
        record = result.units[f"after {one.name}"]
        if one.escapes is not None:
            ends = {COMPLETED, CANCELED, UnitState.SKIPPED}
        else:
            ends = {COMPLETED if one.state is COMPLETED else UnitState.SKIPPED}
        if record.state not in ends:
            yield f"what depends on {one.name} is {record.state}"
        elif record.state is UnitState.SKIPPED and repr(one.name) not in record.cause:
            yield f"what depends on {one.name} blames {record.cause!r}"
        elif record.state is COMPLETED and record.result != (record.name, None):
            yield f"what depends on {one.name} returned {record.result!r}"

    def _wrong_noise(self) -> list[str]:
        due = [one.noise for one in self.animals if one.noise]
        return [
            f"the loop complained: {what}"
            for what in self.noise
            if not any(noise in what for noise in due)
        ]


def _wrong_animal(one: Animal, result: RunResult) -> Iterable[str]:
    record = result.units[one.name]
    if record.state is not one.state:
        yield f"is {record.state}, not {one.state}: {_told(record.error)}"
        return
    if record.attempts != one.attempts:
        yield f"was tried {record.attempts} times, not {one.attempts}"
    if not re.search(one.cause, record.cause or ""):
        yield f"has the cause {record.cause!r}"
    if one.state in (FAILED, TIMEOUT):
        if one.error is not None and not isinstance(record.error, one.error):
            yield f"has the error {_told(record.error)}"
        if not re.search(one.says, _told(record.error)):
            yield f"says {_told(record.error)}"
    elif one.state is COMPLETED and one.result is not ANY and record.result != one.result:
        yield f"returned {record.result!r}"


def _told(error: BaseException | None) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__
