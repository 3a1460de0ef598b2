"""Resources while a run goes on: each is opened once, and closed when nobody uses it any more.

A resource lives in a task of its own, which enters the context manager, waits, and leaves it: what
is entered in one task must be left in the same. Resources that are not needed any more are closed
one after the other, the last opened first.
"""

import asyncio
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from quantum_async.core.context import ExecutionContext
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.resource import Resource
from quantum_async.engine.bus import Complain
from quantum_async.engine.view import View


class _Surroundings:
    """The run as a resource sees it: as the unit that needs it first, with all that is open."""

    def __init__(self, view: View) -> None:
        self._view = view

    def results(self, unit: int) -> Mapping[str, Any]:
        """Return results and resources."""
        return ChainMap(dict(self._view.opened), dict(self._view.results(unit)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


class _Live:
    """One resource that is being opened, open, or closed."""

    __slots__ = ("closing", "error", "name", "opened", "task", "unneeded")

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.opened: asyncio.Future[bool] = loop.create_future()
        self.closing: asyncio.Future[None] = loop.create_future()
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.unneeded = False


class Resources:
    """The resources of one run.

    Args:
        plan: The plan.
        view: Where the open ones are put.
        will_run: Whether each unit is to run.
        told: Called with a unit whose resources are all open, or with the error of one that is not.
        complain: Takes a sentence about one that could not be closed.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        view: View,
        will_run: Callable[[int], bool],
        told: Callable[[int, BaseException | None], None],
        complain: Complain,
    ) -> None:
        self._plan = plan
        self._view = view
        self._told = told
        self._complain = complain
        self._live: dict[str, _Live] = {}  # in the order in which they were open
        self._closer: asyncio.Task[None] | None = None
        self._users: dict[str, set[int | str]] = {name: set() for name in plan.resources}
        for unit, names in plan.uses_resources.items():
            if will_run(unit):
                for name in names:
                    self._users[name].add(unit)
        for name, resource in plan.resources.items():
            for below in self._below(resource):
                self._users[below].add(name)

    def _below(self, resource: Resource[Any]) -> list[str]:
        return [name for name in resource.binding.names if name in self._plan.resources]

    def need(self, unit: int) -> bool:
        """Return whether all that a unit takes is open; if not, `told` is called once it is."""
        names = self._plan.uses_resources.get(unit, ())
        if all(name in self._view.opened for name in names):
            return True
        opened = [self._open(name, unit).opened for name in names]
        waiting = asyncio.gather(*opened)
        waiting.add_done_callback(lambda _: self._tell(unit, names))
        return False

    def _tell(self, unit: int, names: tuple[str, ...]) -> None:
        errors = [self._live[name].error for name in names if name in self._live]
        self._told(unit, next((error for error in errors if error is not None), None))

    def _open(self, name: str, unit: int) -> _Live:
        live = self._live.get(name)
        if live is None:
            loop = asyncio.get_running_loop()
            below = [self._open(it, unit) for it in self._below(self._plan.resources[name])]
            live = self._live[name] = _Live(name, loop)
            live.task = asyncio.Task(self._keep(live, below, unit), loop=loop)
        return live

    async def _keep(self, live: _Live, below: list[_Live], unit: int) -> None:
        resource = self._plan.resources[live.name]
        try:
            for other in below:
                await asyncio.shield(other.opened)
                if other.error is not None:
                    raise other.error
            surroundings: Any = _Surroundings(self._view)
            args, kwargs = resource.binding.bind(ExecutionContext.of(surroundings, unit, 1))
            async with resource.opens(*args, **kwargs) as value:
                self._view.opened[live.name] = value
                self._live[live.name] = self._live.pop(live.name)
                live.opened.set_result(True)
                await live.closing
                self._view.opened.pop(live.name, None)
        except BaseException as error:
            self._ended_badly(live, error)
        finally:
            self._view.opened.pop(live.name, None)

    def _ended_badly(self, live: _Live, error: BaseException) -> None:
        if live.opened.done():
            self._complain(f"the resource {live.name!r} raised while it was closed", error)
            return
        live.error = error
        if not isinstance(error, asyncio.CancelledError):
            with suppress(Exception):  # an exception may be frozen
                error.add_note(f"raised while the resource {live.name!r} was opened")
        live.opened.set_result(False)

    def unit_over(self, unit: int) -> None:
        """A unit has ended: what only it used is closed."""
        for name in self._plan.uses_resources.get(unit, ()):
            self._release(name, unit)

    def _release(self, name: str, user: int | str) -> None:
        users = self._users[name]
        users.discard(user)
        live = self._live.get(name)
        if not users and live is not None and not live.unneeded:
            live.unneeded = True
            if self._closer is None:
                self._closer = asyncio.Task(self._close_unneeded())

    async def _close_unneeded(self) -> None:
        """Close those that nobody uses, the last opened first."""
        while True:
            unneeded = [live for live in self._live.values() if live.unneeded]
            if not unneeded:
                break
            live = unneeded[-1]
            assert live.task is not None  # it was opened
            if not live.opened.done():
                live.task.cancel()  # nobody waits for it to open any more
            if not live.closing.done():
                live.closing.set_result(None)
            await asyncio.wait([live.task])
            del self._live[live.name]
            for below in self._below(self._plan.resources[live.name]):
                self._release(below, live.name)
        self._closer = None

    async def close(self) -> None:
        """Close all that is left, when every unit has ended."""
        for name, live in list(self._live.items()):
            self._users[name] = {user for user in self._users[name] if user in self._live}
            if not self._users[name] and not live.unneeded:
                live.unneeded = True
        if self._live and self._closer is None:
            self._closer = asyncio.Task(self._close_unneeded())
        while self._closer is not None:
            await asyncio.wait([self._closer])
