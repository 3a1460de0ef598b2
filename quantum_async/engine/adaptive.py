"""The adaptive strategy: as many slots as the machine and the event loop can bear.

Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain 1989): every tick the
limit grows by a step while all is well and every slot is used, and shrinks by a quarter when the
loop lags, the CPUs are overloaded or memory runs out.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from quantum_async.core.scheduler import Scheduler
from quantum_async.engine.setup import Resizable

_TICK = 0.1  # seconds
_MOST = 1024  # slots, where the user gave no limit
_LAG, _LOAD, _MEMORY = 0.05, 1.5, 0.92  # seconds late, runnable tasks a CPU, share in use


@dataclass(frozen=True, slots=True)
class Load:
    """How the machine is.

    Attributes:
        lag: Seconds that the loop was late for its tick.
        cpu: Runnable tasks a usable CPU, on average over the last minute.
        memory: Share of the memory in use, 0 to 1.
    """

    lag: float
    cpu: float
    memory: float

    @property
    def heavy(self) -> bool:
        """Whether to take on less."""
        return self.lag > _LAG or self.cpu > _LOAD or self.memory > _MEMORY


def next_limit(limit: int, most: int, load: Load, *, all_used: bool) -> int:
    """Return how many slots there are to be from now on, from 1 to `most`."""
    if load.heavy:
        return max(1, limit * 3 // 4)
    if all_used:
        return min(most, limit + max(1, limit // 4))
    return limit


class Governor:
    """Watches the load while a run goes on, and changes its number of slots.

    Args:
        scheduler: Whose slots they are.
        cpus: How many CPUs may be used.
        most: The user's limit, or None.
        load: Gives runnable tasks a usable CPU, and the share of the memory in use.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        cpus: int,
        most: int | None,
        load: Callable[[], tuple[float, float]],
    ) -> None:
        self._scheduler = scheduler
        self._cpus = cpus
        self._most = most or _MOST
        self._load = load
        self._run: Resizable | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, run: Resizable) -> None:
        """Start with a few slots a CPU."""
        self._run = run
        self._scheduler.resize(min(self._most, self._cpus + 4))
        self._watch()

    async def end(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_TICK, self._tick, loop.time() + _TICK)

    def _tick(self, due: float) -> None:
        lag = asyncio.get_running_loop().time() - due
        cpu, memory = self._load()
        load = Load(lag=lag, cpu=cpu, memory=memory)
        limit, used = self._scheduler.max_running, self._scheduler.used
        changed = next_limit(limit, self._most, load, all_used=used >= limit)
        if changed != limit and self._run is not None:
            self._run.resize(changed)
        self._watch()
