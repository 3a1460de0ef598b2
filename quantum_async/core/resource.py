"""What units share: opened for the first that needs it, closed after the last."""

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

from quantum_async.core.binding import Handle, WiredBinding
from quantum_async.core.errors import PlanError

R = TypeVar("R")


class Resource(Handle, Generic[R]):
    """A resource of one partitioner; `QuantumPartitioner.resource` makes these.

    Args:
        id: The resource's name: of the parameter that takes it, or of the key in the context.
        opens: Gives the asynchronous context manager.
        binding: How that function gets its arguments.
    """

    __slots__ = ("binding", "id", "opens")

    def __init__(
        self,
        id: str,  # noqa: A002 - as units have it
        opens: Callable[..., AbstractAsyncContextManager[R]],
        binding: WiredBinding,
    ) -> None:
        self.id = id
        self.opens = opens
        self.binding = binding

    @classmethod
    def of(cls, fn: Callable[..., Any], name: str | None) -> "Resource[Any]":
        """Return the resource that a function opens.

        Raises:
            PlanError: If the function gives no asynchronous context manager.
        """
        name = name or getattr(fn, "__name__", "")
        if not isinstance(name, str) or not name.isidentifier():
            raise PlanError(f"a resource's name must be an identifier, not {name!r}")
        if inspect.isasyncgenfunction(fn):
            opens: Callable[..., Any] = asynccontextmanager(fn)
        elif not callable(fn) or inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn):
            raise PlanError(
                f"resource {name!r} must be an asynchronous generator that yields once, or a "
                f"function that returns an asynchronous context manager, not {fn!r}"
            )
        else:
            opens = fn
        return cls(name, opens, WiredBinding.of(fn, name))

    def __call__(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[R]:
        """Return the context manager, outside any run."""
        return self.opens(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Resource {self.id!r}>"
