"""A graph of Dask's in numbers, for the scheduler; and Dask's callbacks, told of its tasks.

Dask keeps its notion of a task in ``dask._task_spec``. The module's name is private, its contents
are what every scheduler for Dask's collections is given, Dask's own included.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from dask._task_spec import DataNode, convert_legacy_graph
from dask.callbacks import unpack_callbacks
from dask.order import order

from quantum_async.core import graph
from quantum_async.core.errors import (
    CircularDependencyError,
    PlanError,
    UnknownDependencyError,
    did_you_mean,
)

Key = Hashable
Task = Callable[[Mapping[Key, Any]], Any]


class UnknownKeyError(PlanError, KeyError):
    """A result was asked for that the graph does not have."""

    # KeyError shows the repr of its argument, which would escape our quotes.
    __str__ = Exception.__str__


class Graph(NamedTuple):
    """What is needed for some keys of a Dask graph: its tasks by number, and its data.

    Attributes:
        keys: The key of each task.
        tasks: What each does: it is called with the results that it needs, by key. `dependencies`
            says which.
        edges_up: Numbers of the tasks that each one needs.
        edges_down: Numbers of the tasks that need each.
        in_degrees: How many tasks each one needs.
        order: All tasks, those first that Dask would run first: `dask.order` keeps few results in
            memory at a time.
        data: Results that are known from the start, by key.
        wanted: The keys that were asked for.
    """

    keys: list[Key]
    tasks: list[Any]
    edges_up: graph.Edges
    edges_down: graph.Edges
    in_degrees: list[int]
    order: list[int]
    data: dict[Key, Any]
    wanted: frozenset[Key]

    @property
    def names(self) -> list[str]:
        """A name for each task: its key, as text. What differs has different names."""
        found: dict[str, None] = {}
        for key in self.keys:
            name = str(key) or repr(key)
            while name in found:
                name += "'"  # the number 1 and the text "1" are two keys
            found[name] = None
        return list(found)


def tasks_of(dsk: Any, known: Iterable[Key] = ()) -> dict[Key, Any]:
    """Return a graph as a dictionary of tasks, whatever form it has.

    Args:
        dsk: A dictionary in the old form (tuples) or the new one, a `HighLevelGraph`, or what has
            a ``__dask_graph__``.
        known: Keys that it may refer to beside its own.

    Raises:
        PlanError: If it is none of these.
    """
    if not isinstance(dsk, Mapping):
        make = getattr(dsk, "__dask_graph__", None)
        if make is None:
            raise PlanError(f"a Dask graph is a mapping of keys to tasks, not {dsk!r}")
        dsk = make()
    tasks: dict[Key, Any] = convert_legacy_graph(dsk, all_keys={*dsk, *known})
    return tasks


def keys_in(keys: Any) -> Iterator[Key]:
    """Yield the keys in a key, or in a list of keys and lists.

    Raises:
        PlanError: If anything in there cannot be a key.
    """
    if isinstance(keys, list):
        for each in keys:
            yield from keys_in(each)
        return
    try:
        hash(keys)
    except TypeError:
        raise PlanError(
            f"keys of a Dask graph are strings, numbers and tuples, not {keys!r}, which cannot be "
            "hashed; several keys are asked for with a list"
        ) from None
    yield keys


def values_of(keys: Any, values: Mapping[Key, Any]) -> Any:
    """Return values in the form of `keys`, lists as tuples."""
    if isinstance(keys, list):
        return tuple(values_of(each, values) for each in keys)
    return values[keys]


def compile_graph(tasks: Mapping[Key, Any], keys: Any, known: Mapping[Key, Any]) -> Graph:
    """Return what is needed for `keys`.

    Args:
        tasks: The graph, as `tasks_of` gives it.
        keys: A key, or a list of keys and lists.
        known: Results by key, which are not computed.

    Raises:
        UnknownKeyError: If a key was asked for that there is not.
        PlanError: If tasks wait for each other in a circle, or for what there is not.
    """
    wanted = dict.fromkeys(keys_in(keys))
    needed, data = _needed(tasks, wanted, known)
    ranks = _ranks({**needed, **{key: DataNode(key, None) for key in data}})
    numbers = {key: number for number, key in enumerate(needed)}
    edges_up = [
        tuple(numbers[above] for above in task.dependencies if above in numbers)
        for task in needed.values()
    ]
    found = list(needed)
    return Graph(
        keys=found,
        tasks=list(needed.values()),
        edges_up=edges_up,
        edges_down=graph.inverted(edges_up),
        in_degrees=[len(ends) for ends in edges_up],
        order=sorted(range(len(found)), key=lambda unit: ranks[found[unit]]),
        data=data,
        wanted=frozenset(wanted),
    )


def _needed(
    tasks: Mapping[Key, Any], wanted: Iterable[Key], known: Mapping[Key, Any]
) -> tuple[dict[Key, Any], dict[Key, Any]]:
    """Return the tasks that are to run for `wanted`, and the results that there are already."""
    needed: dict[Key, Any] = {}
    data: dict[Key, Any] = {}
    problems: list[PlanError] = []
    missing = [key for key in wanted if key not in tasks and key not in known]
    if missing:
        raise UnknownKeyError(
            f"there is no key {' and no key '.join(map(repr, missing[:10]))} in the Dask graph"
            f"{did_you_mean(missing[0], tasks)}"
        )
    stack = list(wanted)
    while stack:
        key = stack.pop()
        if key in needed or key in data:
            continue
        if key in known:
            data[key] = known[key]
            continue
        task = tasks[key]
        if isinstance(task, DataNode):
            data[key] = task.value
            continue
        needed[key] = task
        for above in task.dependencies:
            if above in tasks or above in known:
                stack.append(above)
            else:
                problems.append(
                    UnknownDependencyError(
                        f"task {key!r} of the Dask graph needs {above!r}, and there is no such key"
                        f"{did_you_mean(above, tasks)}"
                    )
                )
    if problems:
        raise PlanError.of(problems)
    return needed, data


def _ranks(tasks: Mapping[Key, Any]) -> Mapping[Key, int]:
    try:
        return order(tasks)  # type: ignore[no-any-return]
    except RuntimeError as error:
        for cycle in _cycles(tasks):
            raise CircularDependencyError(cycle) from error
        raise


def _cycles(tasks: Mapping[Key, Any]) -> Iterator[list[str]]:
    keys = list(tasks)
    numbers = {key: number for number, key in enumerate(keys)}
    edges_up = [tuple(map(numbers.__getitem__, task.dependencies)) for task in tasks.values()]
    ordered = graph.topological_order(edges_up, graph.inverted(edges_up))
    for cycle in graph.find_cycles(edges_up, ordered):
        yield [str(keys[number]) for number in cycle]


class Told:
    """Dask's callbacks, told of the tasks of a graph as Dask's own schedulers tell it.

    Args:
        callbacks: Tuples of five functions (or None): start, start state, before and after each
            task, finish.

    Attributes:
        state: What Dask's schedulers keep, in their words, for callbacks that look into it.
    """

    def __init__(self, callbacks: Iterable[Any]) -> None:
        self._callbacks = list(callbacks)
        self._before: Iterable[Callable[..., object]]
        self._after: Iterable[Callable[..., object]]
        _, _, self._before, self._after, _ = unpack_callbacks(self._callbacks)
        self._tasks: dict[Key, Any] = {}
        self._began: list[Any] = []
        self.state: dict[str, Any] = {}

    @property
    def listens(self) -> bool:
        """Whether there are any."""
        return bool(self._callbacks)

    def start(self, tasks: dict[Key, Any]) -> None:
        """Tell that it begins; they may change the graph."""
        self._tasks = tasks
        for callback in self._callbacks:
            self._began.append(callback)
            if callback[0]:
                callback[0](tasks)

    def compiled(self, found: Graph, values: MutableMapping[Key, Any]) -> None:
        """Tell what will run.

        Args:
            found: The graph.
            values: Results by key; whoever runs it keeps them here.
        """
        if not self._callbacks:
            return
        keys = found.keys
        above = {
            key: {keys[unit] for unit in ends}
            for key, ends in zip(keys, found.edges_up, strict=True)
        }
        below = {
            key: {keys[unit] for unit in ends}
            for key, ends in zip(keys, found.edges_down, strict=True)
        }
        self.state = {
            "cache": values,
            "dependencies": {
                **{key: set() for key in found.data},
                **{key: set(found.tasks[unit].dependencies) for unit, key in enumerate(keys)},
            },
            "dependents": {**{key: set() for key in found.data}, **below},
            "waiting": {key: set(ends) for key, ends in above.items() if ends},
            "waiting_data": {key: set(ends) for key, ends in below.items()},
            "ready": {key for key in keys if not above[key]},
            "running": set(),
            "finished": set(),
            "released": set(),
        }
        for callback in self._callbacks:
            if callback[1]:
                callback[1](self._tasks, self.state)

    def begins(self, key: Key) -> None:
        """Tell that a task begins."""
        if not self._callbacks:
            return
        self.state["ready"].discard(key)
        self.state["running"].add(key)
        for tell in self._before:
            tell(key, self._tasks, self.state)

    def ended(self, key: Key, value: Any, worker: object) -> None:
        """Tell that a task has a result, and which worker made it."""
        if not self._callbacks:
            return
        state = self.state
        for below in state["dependents"][key]:
            state["waiting"][below].discard(key)
            if not state["waiting"][below]:
                del state["waiting"][below]
                state["ready"].add(below)
        for above in state["dependencies"][key]:
            consumers = state["waiting_data"].get(above)
            if consumers is not None:
                consumers.discard(key)
        state["running"].discard(key)
        state["finished"].add(key)
        for tell in self._after:
            tell(key, value, self._tasks, state, worker)

    def released(self, key: Key) -> None:
        """Take note that a result is not needed any more."""
        if self._callbacks:
            self.state["released"].add(key)
            self.state["waiting_data"].pop(key, None)

    def finish(self, *, failed: bool) -> None:
        """Tell that it is over, to those that know that it began."""
        for callback in self._began:
            if callback[4]:
                callback[4](self._tasks, self.state, failed)
