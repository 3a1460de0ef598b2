"""What we are compared with: one entry for each way of writing it.

How many units an engine is given is what it does in about half a second. `docs/benchmarks.md` says
why each is used as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.peers.work import MAKESPAN, OVERHEAD

Place = Literal["loop", "threads", "processes"]

#: Us, by where units run.
OURS: Final[dict[Place, str]] = {
    "loop": "ours:OnLoop",
    "threads": "ours:InThreads",
    "processes": "ours:InProcesses",
}
CASES: Final = (*OVERHEAD, *MAKESPAN)


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that runs graphs.

    Attributes:
        name: What it is called in ``--only``.
        title: What it is called in the tables.
        engine: Module and class, below `benchmarks/peers/engines/`.
        units: How many units overhead is measured with.
        requires: What pip has to install; without it the engine runs where we do.
        place: Where it runs units: we are measured with such units too.
        cases: What it can do.
        target: How many times less a unit has to cost with us.
        python: The oldest Python it works on.
    """

    name: str
    title: str
    engine: str
    units: int
    requires: Sequence[str] = ()
    place: Place = "loop"
    cases: Sequence[str] = CASES
    target: float | None = None
    python: tuple[int, int] = (3, 11)


PEERS: Final = (
    Peer("gather", "`asyncio.gather`, the floor", "by_hand:Gather", 20_000, cases=("wide",)),
    Peer("levels", "`gather`, level by level", "by_hand:Levels", 20_000),
    Peer("taskgroup", "`TaskGroup`, by hand", "by_hand:TaskGroup", 20_000),
    Peer(
        "eager",
        "`TaskGroup`, eager tasks, by hand",
        "by_hand:EagerTaskGroup",
        20_000,
        python=(3, 12),
    ),
    Peer("graphlib", "`graphlib` and tasks, by hand", "by_hand:Graphlib", 20_000),
    Peer("hamilton", "Hamilton", "hamilton:Driver", 500, ("apache-hamilton>=1.89,<2",), target=10),
    Peer("langgraph", "LangGraph", "langgraph:Compiled", 500, ("langgraph>=1,<2",), target=10),
    Peer(
        "langgraph-tasks",
        "LangGraph, functional API",
        "langgraph:Functional",
        500,
        ("langgraph>=1,<2",),
        target=10,
    ),
    Peer(
        "prefect",
        "Prefect",
        "prefect:Flow",
        50,
        ("prefect>=3.4,<4",),
        cases=(*OVERHEAD, "dax-montage_50"),  # half a minute for the lanes
        target=10,
    ),
    Peer("dask", "Dask, threads", "dask:Threads", 2_000, ("dask>=2025,<2027",), "threads"),
    Peer("pipefunc", "pipefunc", "pipefunc:Eager", 200, ("pipefunc>=0.90,<1",), "threads"),
    Peer("tawazi", "Tawazi", "tawazi:Threads", 500, ("tawazi>=0.5,<0.7",), "threads"),
    Peer(
        "distributed",
        "dask.distributed",
        "distributed:Processes",
        300,
        ("distributed>=2025,<2027",),
        "processes",
        target=10,
    ),
    Peer("ray", "Ray", "ray:Tasks", 500, ("ray>=2.50,<3",), "processes"),
)
