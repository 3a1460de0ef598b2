"""A partitioner that remembers results across runs.

Keys are stable hashes of the values that a unit names, the same in every process and under every
hash seed. Equal keys in flight are computed once: who comes second waits for the first.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from quantum_async.core.context import Around, ExecutionContext
from quantum_async.core.plan import Unit
from quantum_async.core.unit import QuantumUnit, R, T
from quantum_async.partitioner import QuantumPartitioner

_CONTAINERS = (list, tuple, set, frozenset)


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
        key = f"{unit.id}:{stable_hash(_seen(ctx, unit.metadata.get('cache_keys')))}"
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
        return {name: ctx[name] for name in names if name in ctx}
    if isinstance(ctx.input, Mapping):
        return dict(ctx)
    return [dict(ctx.unit_results), ctx.input]


def stable_hash(value: Any) -> str:
    """Return a hash of plain data that is the same in every process.

    Dictionaries and sets are hashed without regard to their order. What is neither plain data
    nor a container is hashed by its pickle.

    Raises:
        TypeError: If something in `value` can be neither hashed nor pickled.
    """
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for piece in _pieces(value):
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if value is None or isinstance(value, bool | int | float | complex | str):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, Mapping):
        yield from sorted(stable_hash(item).encode() for item in value.items())
    elif kind in _CONTAINERS:
        inside = [stable_hash(item).encode() for item in value]
        yield from sorted(inside) if isinstance(value, set | frozenset) else inside
    else:
        try:
            import pickle

            yield pickle.dumps(value, protocol=5)
        except Exception as error:
            raise TypeError(
                f"a {kind.__qualname__} cannot be part of a cache key ({error}): name the values "
                "that matter in metadata['cache_keys']"
            ) from error
