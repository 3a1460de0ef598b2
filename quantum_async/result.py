"""What a run gives back: results, records, metrics, and an account of where the time went."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from quantum_async.core.binding import Handle
from quantum_async.core.effects import Effect
from quantum_async.core.errors import did_you_mean
from quantum_async.core.limits import Limit
from quantum_async.core.plan import ExecutionPlan
from quantum_async.core.record import Elsewhere, UnitRecord
from quantum_async.core.scheduler import COMPLETED
from quantum_async.core.simulate import Simulation
from quantum_async.core.states import Strategy, UnitState
from quantum_async.core.unit import QuantumUnit
from quantum_async.engine.ledger import NOTHING, Ledger
from quantum_async.metrics import times_of, trace_of

if TYPE_CHECKING:
    from quantum_async.comparison import Comparison

R = TypeVar("R")
S = TypeVar("S")

__all__ = ["RunResult", "UnitRecord"]


class RunResult(Mapping[str, Any]):
    """What a run gave: a mapping from unit name (or handle) to result, in plan order.

    Units without a result (failed, skipped, cancelled, or dropped by ``keep=``) are not keys;
    `units` has a record of every unit of the run. ``result["map[3]"]`` is the result of one child
    of a map, ``result["name/child"]`` that of a unit of a nested run. Records are made when they
    are asked for.

    Args:
        ledger: What happened.
        pauses: For each unit that was tried again when an attempt ended, when the next began, and
            so on.
    """

    def __init__(
        self, ledger: Ledger, pauses: Mapping[int, Sequence[float]] = MappingProxyType({})
    ) -> None:
        self._ledger = ledger
        self._pauses = pauses

    # -- results ----------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: QuantumUnit[Any, R]) -> R: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: str | QuantumUnit[Any, Any]) -> Any:
        value = self._stored(key)
        return value.here() if isinstance(value, Elsewhere) else value

    def _stored(self, key: str | QuantumUnit[Any, Any]) -> Any:
        """Return a result, or what stands for it while it is on a cluster."""
        name = key.id if isinstance(key, Handle) else key
        unit = self._ledger.rows.number(name)
        if unit is not None and isinstance(key, Handle) and self.plan.handles[unit] is not key:
            raise KeyError(f"the handle {name!r} is of another partitioner than this result")
        if unit is not None and (value := self._ledger.results[unit]) is not NOTHING:
            return value
        inner, rest = self._ledger.inside(name)
        if inner is not None:
            return inner._stored(rest)
        raise KeyError(self._why_not(name))

    @overload
    def get(self, key: QuantumUnit[Any, R], default: R | None = ...) -> R | None: ...
    @overload
    def get(self, key: str, default: Any = ...) -> Any: ...
    def get(self, key: str | QuantumUnit[Any, Any], default: Any = None) -> Any:
        """Return a unit's result, or `default` if it has none."""
        try:
            return self[key]
        except KeyError:
            return default

    async def fetch(self, *units: "str | QuantumUnit[Any, Any]") -> Any:
        """Return the result of a unit, also if it stayed on a cluster; of several, a list.

        Raises:
            KeyError: If one has no result.
            ClusterError: If the cluster does not give it.
            RemoteError: If it cannot be unpickled here.
        """
        from quantum_async.distant import fetch

        return await fetch([self._stored(unit) for unit in units])

    def release(self) -> None:
        """Let clusters forget all results that are still there."""
        from quantum_async.distant import release

        release(self._ledger)

    def _why_not(self, name: object) -> str:
        record = self.units.get(name)  # type: ignore[call-overload]
        if record is None:
            return f"no unit {name!r} in this run{did_you_mean(name, self.plan.names)}"
        if record.state is UnitState.COMPLETED:
            return f"the result of {name!r} was not kept: add it to keep="
        why = f" ({record.cause})" if record.cause else ""
        return f"unit {name!r} has no result: it is {record.state.value}{why}"

    def __iter__(self) -> Iterator[str]:
        names, results = self._ledger.rows.names, self._ledger.results
        return (names[unit] for unit in self.plan.order if results[unit] is not NOTHING)

    def __len__(self) -> int:
        # Without the children of maps, whose results stand in those of the maps.
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        name = key.id if isinstance(key, Handle) else key
        unit = self._ledger.rows.number(name)
        if unit is not None:
            return self._ledger.results[unit] is not NOTHING
        inner, rest = self._ledger.inside(name)
        return inner is not None and rest in inner

    # -- what happened ----------------------------------------------------------------------

    @property
    def plan(self) -> ExecutionPlan:
        """The plan that ran."""
        return self._ledger.plan

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self._ledger.run_id

    @property
    def units(self) -> Mapping[str, UnitRecord]:
        """A record of every unit of the run, in plan order."""
        return _Records(self._ledger)

    @property
    def states(self) -> dict[str, UnitState]:
        """State of every unit of the run, in plan order."""
        ledger, names = self._ledger, self._ledger.rows.names
        in_order = ledger.rows.in_order()
        return {names[u]: ledger.scheduler.state(u) for u in in_order if ledger.in_run(u)}

    @property
    def errors(self) -> dict[str, BaseException]:
        """Exception of every unit that failed or timed out, in plan order."""
        ledger, names = self._ledger, self._ledger.rows.names
        return {names[unit]: ledger.errors[unit] for unit in ledger.failed}

    @property
    def roots(self) -> dict[str, str]:
        """The unit that is to blame, for every skipped unit, in plan order.

        That is one that failed, or one whose condition was false; its own, perhaps.
        """
        roots, names = self._ledger.roots, self.plan.names
        return {names[unit]: names[roots[unit]] for unit in self.plan.order if unit in roots}

    def spans(self, unit: str | Handle) -> list[tuple[float, float]]:
        """Return from when to when each attempt of a unit ran, in seconds since the run began.

        Raises:
            KeyError: If there is no such unit in the run.
        """
        inner, number, offset = self._located(unit.id if isinstance(unit, Handle) else unit)
        return [(start + offset, end + offset) for start, end in inner._spans(number)]

    def nested(self, unit: str | Handle) -> "list[RunResult]":
        """Return the results of the runs inside a unit, first to last; none, for most units.

        Raises:
            KeyError: If there is no such unit in the run.
        """
        inner, number, _ = self._located(unit.id if isinstance(unit, Handle) else unit)
        return list(inner._ledger.nested.get(number, ()))

    def _located(self, name: str) -> "tuple[RunResult, int, float]":
        """Return the run that a unit is of, its number there, and how much later that run began."""
        ledger = self._ledger
        number = ledger.rows.number(name)
        if number is not None and ledger.in_run(number):
            return self, number, 0.0
        inner, rest = ledger.inside(name)
        if inner is None:
            raise KeyError(f"no unit {name!r} in this run{did_you_mean(name, self.plan.names)}")
        found, number, offset = inner._located(rest)
        return found, number, offset + inner._ledger.began - ledger.began

    def _spans(self, number: int) -> list[tuple[float, float]]:
        ledger = self._ledger
        if not ledger.attempts[number]:
            return []
        moments = [ledger.starts[number], *self._pauses.get(number, ())]
        if len(moments) % 2:
            # Not if it ended while it waited for another attempt.
            over = ledger.scheduler.state(number) is not UnitState.RUNNING
            moments.append(ledger.ends[number] if over else ledger.until)
        moments = [moment - ledger.began for moment in moments]
        return list(zip(moments[::2], moments[1::2], strict=True))

    @property
    def ok(self) -> bool:
        """Whether every unit of the run has a result, fallbacks included."""
        return self._ledger.complete

    @property
    def duration(self) -> float:
        """Seconds from the run's start to its end, or to what happened last if it goes on."""
        return self._ledger.until - self._ledger.began

    def view(self, schema: type[S]) -> S:
        """Build an object of a type from the results: a perspective on them.

        Each field is the result of the unit that it is named after; a dataclass may say another
        with ``field(metadata={"unit": "map[3]"})``, a pydantic model with an alias. A field with a
        default may lack its result. Pydantic checks its models; of the others the type of each
        value is looked at, but not that of its items.

        Args:
            schema: A dataclass, a TypedDict or a pydantic model.

        Raises:
            ViewError: With every result that is missing or of another type, by unit.
            TypeError: If `schema` is none of these.
        """
        from quantum_async.views import view

        return view(schema, self, self._why_not)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """The side effects that units performed with ``ctx.perform``, in the order they began.

        Those of runs inside the run are among them, as of ``unit/child``. What a worker process
        performed before it was killed is not known.
        """
        return tuple(self._ledger.effects)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What units recorded, and the run's own: times in seconds since the epoch.

        The run's own keys are start_time, end_time, total_duration, total_units,
        completed_units, failed_units, unit_times and execution_trace.
        """
        ledger = self._ledger
        records = list(self.units.values())
        ended = ledger.wall + self.duration
        return {
            **ledger.metrics,
            "start_time": ledger.wall,
            "end_time": ended,
            "total_duration": self.duration,
            "total_units": len(records),
            "completed_units": ledger.scheduler.phase.count(COMPLETED),
            "failed_units": len(ledger.failed),
            "unit_times": {r.name: times_of(r) for r in records if r.started_at is not None},
            "execution_trace": trace_of(records),
        }

    @property
    def critical_path(self) -> list[str]:
        """Names along the chain that decided when the run ended, as measured.

        Walked back from the unit that ended last, each time to the dependency that ended last.
        """
        return list(self._critical_path)

    @cached_property
    def _critical_path(self) -> list[str]:
        ledger, edges_up = self._ledger, self.plan.edges_up
        ran = [unit for unit in self.plan.order if ledger.attempts[unit]]
        if not ran:
            return []
        path = [max(ran, key=ledger.ends.__getitem__)]
        while above := [unit for unit in edges_up[path[-1]] if ledger.attempts[unit]]:
            path.append(max(above, key=ledger.ends.__getitem__))
        return [self.plan.names[unit] for unit in reversed(path)]

    def explain(self, unit: str | Handle | None = None) -> str:
        """Say in words what happened, to the run or to one unit, and where the time went.

        Raises:
            KeyError: If there is no such unit in the run.
        """
        from quantum_async.explain import explain_run, explain_unit

        if unit is None:
            return explain_run(self)
        name = unit.id if isinstance(unit, Handle) else unit
        return explain_unit(self, self.units[name])

    def what_if(
        self,
        durations: Mapping[str, float] | None = None,
        max_workers: int | None = None,
        limits: Mapping[str, Limit | float | None] | None = None,
        *,
        slots: Mapping[str, int] | None = None,
        strategy: Strategy | str | None = None,
    ) -> Simulation:
        """Run this run again on modelled time, with something changed.

        Each unit takes as long as it was measured to take, back-off included, and each map has as
        many items as it had. What did not run takes no time; a nested run is one unit that takes
        as long as it took. Without arguments it tells how well the model fits the run.

        Args:
            durations: Seconds that units would take, by name: of a map's name for each child, of
                a child's name for that one. The others take as long as they did.
            max_workers: How many units would run at once. None for as many as did.
            limits: Limits that would be others, by name; None for one that would not be there.
            slots: How many units would run at once in a place (``"thread"``, ``"process"``, …).
            strategy: How the ready queue would be ordered.

        Raises:
            PlanError: For unknown names and for numbers that cannot be meant.
        """
        from quantum_async.whatif import Model

        return Model(self).what_if(durations, max_workers, limits, slots=slots, strategy=strategy)

    def diff(self, later: "RunResult") -> "Comparison":
        """Say which units and which waits made a later run slower or faster than this one.

        Args:
            later: The other run; its plan may be another.
        """
        from quantum_async.comparison import compare

        return compare(self, later)

    # -- to keep ----------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write the run as JSON: plan, records, errors as text, results, metrics, nested runs.

        docs/run-format.md describes the form. Results that JSON cannot hold are written as their
        type and a short repr. What was in the file before is replaced, or stays whole.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        from quantum_async.records import save

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RunResult":
        """Read a run that was saved; it answers all that this one answers.

        Values that JSON could not hold are `SavedValue`s with type and short repr; exceptions are
        `RecordedError`s with the name, message and traceback text of the ones that were raised.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be read.
            RecordError: If it is no saved run.
        """
        from quantum_async.records import load

        return load(path, cls)

    def save_trace(self, path: str | PathLike[str]) -> None:
        """Write the run in Chrome's trace event format, for ui.perfetto.dev or chrome://tracing.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        from quantum_async.trace import save_trace

        save_trace(self, path)

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write a report of the run: one page that opens from disk and needs no network.

        It has the graph with its states, a timeline, a table to filter, and for each unit its
        attempts, error and traceback.

        Args:
            path: The file to write; its folder must exist.

        Raises:
            OSError: If it cannot be written.
        """
        from quantum_async.report import save_html

        save_html(self, path)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Show the run in a notebook: its graph, and a table of what went wrong."""
        from quantum_async.notebook import shown

        return shown(self)

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for state in self.states.values():
            counts[state.value] = counts.get(state.value, 0) + 1
        told = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no units"
        return f"<RunResult {self.run_id}: {told}; {self.duration:.3f} s>"


class _Records(Mapping[str, UnitRecord]):
    """Records by unit name, made when asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getitem__(self, key: str | Handle) -> UnitRecord:
        name = key.id if isinstance(key, Handle) else key
        ledger = self._ledger
        unit = ledger.rows.number(name)
        if unit is not None and ledger.in_run(unit):
            return ledger.record(unit)
        inner, rest = ledger.inside(name)
        # Asked once at each depth: a look before it would double the work each time.
        record: UnitRecord | None = None if inner is None else inner.units.get(rest)
        if record is not None:
            return replace(record, name=name)
        raise KeyError(f"no unit {name!r} in this run{did_you_mean(name, ledger.plan.names)}")

    def __iter__(self) -> Iterator[str]:
        ledger = self._ledger
        return (ledger.rows.names[u] for u in ledger.rows.in_order() if ledger.in_run(u))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} unit records>"
