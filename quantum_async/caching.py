"""A partitioner that remembers results across runs.

Keys are stable hashes of the values that a unit names, the same in every process and under every
hash seed. Equal keys in flight are computed once: who comes second waits for the first.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from quantum_async.core.context import Around, ExecutionContext
from quantum_async.core.plan import Unit
from quantum_async.core.unit import QuantumUnit, R, T
from quantum_async.partitioner import QuantumPartitioner


class CachingQuantumPartitioner(QuantumPartitioner[T, R]):
    """A `QuantumPartitioner` that remembers the results of units that allow it.

    A unit with ``metadata={"cacheable": True}`` is looked up before each attempt, in every mode.
    Its key is made of its name and of what it sees: the keys named in
    ``metadata["cache_keys"]`` (of dependencies and of the input), or all of them.

    Args:
        args: As for `QuantumPartitioner`.
        kwargs: As for `QuantumPartitioner`.

    Attributes:
        cache: Results by key. A plain dictionary: clear it, bound it or save it as you like.
        cache_hits: How many attempts found their result, or waited for one that was under way.
        cache_misses: How many attempts had to compute it.

    Example:
        >>> flow = CachingQuantumPartitioner()
        >>> _ = flow.add_unit(
        ...     lambda ctx: ctx["x"] ** 2,
        ...     name="square",
        ...     metadata={"cacheable": True, "cache_keys": ["x"]},
        ... )
        >>> [flow.execute({"x": 3})["square"] for _ in range(2)], flow.cache_hits
        ([9, 9], 1)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache: dict[str, Any] = {}
        self.cache_hits = 0
        self.cache_misses = 0
        self._in_flight: dict[str, asyncio.Future[Any]] = {}

    def _around(self) -> Callable[[Unit], Around | None]:
        return self._caching

    def _caching(self, unit: QuantumUnit[Any, Any]) -> Around | None:
        return partial(self._cached, unit) if unit.metadata.get("cacheable") else None

    async def _cached(
        self,
        unit: QuantumUnit[Any, Any],
        ctx: ExecutionContext[Any],
        compute: Callable[[], Awaitable[Any]],
    ) -> Any:
        names = unit.metadata.get("cache_keys")
        key = f"{unit.id}:{stable_hash(_seen(ctx, names))}"
        loop = asyncio.get_running_loop()
        while True:
            if key in self.cache:
                self.cache_hits += 1
                return self.cache[key]
            leader = self._in_flight.get(key)
            if leader is None or leader.get_loop() is not loop:
                break
            # The leader's failure is not ours: then we try for ourselves.
            await asyncio.wait([leader])
        if ctx.dry_run:
            return await compute()  # what stands in for an effect is no result to remember
        self.cache_misses += 1
        future = self._in_flight[key] = loop.create_future()
        try:
            value = self.cache[key] = await compute()
        finally:
            if self._in_flight.get(key) is future:
                del self._in_flight[key]
            future.set_result(None)
        return value


def _seen(ctx: ExecutionContext[Any], names: Iterable[str] | None) -> Any:
    """Return what a unit's result depends on, as the unit says it or as far as it can see."""
    if names:
        named = [names] if isinstance(names, str) else list(names)
        seen = {name: ctx[name] for name in named if name in ctx}
        if not seen:
            # A misspelt name would give one input's result for every other.
            raise KeyError(
                f"metadata['cache_keys'] of unit {ctx.unit_id!r} names {named!r}, and the unit "
                "sees none of them: name dependencies or keys of the input"
            )
        return seen
    if isinstance(ctx.input, Mapping):
        return dict(ctx)
    return [dict(ctx.unit_results), ctx.input]


def stable_hash(value: Any) -> str:
    """Return a hash of a value that is the same in every process.

    Equal values that are built alike have equal hashes: dictionaries and sets whatever their
    order, objects by their type and what pickle would take of them.

    Raises:
        TypeError: If something in `value` cannot be pickled, or contains itself.
    """
    try:
        return _hash(value)
    except RecursionError:
        raise TypeError("a value that contains itself cannot be part of a cache key") from None


def _hash(value: Any) -> str:
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for piece in _pieces(value):
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if value is None or kind in (bool, int, float, complex, str):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif kind in (bytes, bytearray):
        yield bytes(value)
    elif kind in (list, tuple):
        yield from (_hash(item).encode() for item in value)
    elif kind in (set, frozenset):
        yield from sorted(_hash(item).encode() for item in value)
    elif isinstance(value, Mapping):
        yield from sorted(_hash(item).encode() for item in value.items())
    elif isinstance(value, type | FunctionType | BuiltinFunctionType):
        yield f"{value.__module__}.{value.__qualname__}".encode()
    else:
        yield from (_hash(part).encode() for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    """Return what pickle would take of an object."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:
        raise TypeError(
            f"a {type(value).__qualname__} cannot be part of a cache key ({error}): name the "
            "values that matter in metadata['cache_keys']"
        ) from error
    if isinstance(reduced, str):
        return [reduced]
    # Items of lists and dictionaries come as iterators, the last two of five.
    return [*reduced[:3], *(list(part or ()) for part in reduced[3:5])]
