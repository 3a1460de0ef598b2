"""The plan: units compiled into a frozen graph over whole numbers.

`compile_plan` finds every problem of a set of units at once. What a plan computes from its
graph (levels, rankings, the fingerprint) is made when first asked for, and kept.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from quantum_async.core import graph
from quantum_async.core.columns import Columns, Unit
from quantum_async.core.differences import PlanDiff, difference
from quantum_async.core.limits import Needs
from quantum_async.core.options import NO_FALLBACK
from quantum_async.core.shapes import RACE, STREAM, Included, Mapped, Shape
from quantum_async.core.simulate import Simulation, simulate
from quantum_async.core.states import Strategy, parse
from quantum_async.core.triggers import Trigger

__all__ = ["MOST_SHOWN", "ExecutionPlan", "Unit", "described_function", "note_of"]

MOST_SHOWN = 500  # units that a notebook draws by itself


@dataclass(frozen=True, eq=False, repr=False)
class ExecutionPlan(Columns):
    """A frozen picture of units and dependencies, ready to run any number of times.

    Units are numbered in order of declaration.

    Attributes:
        units: The units by name, in order of declaration.
        edges_up: Numbers of each unit's dependencies.
        edges_down: Numbers of each unit's dependents: the same edges from the other side.
        order: The plan order: the numbers so that each comes after its dependencies.
        measured: Seconds that units without a declared cost are expected to take, by name.
        resources: The resources by name.
        uses_resources: Names of the resources that units take, of those that take any.
        streams: For each unit that gives items while it runs, the dependents that start with it.
        limits: The partitioner's limits by name.
    """

    # -- in names, for people ---------------------------------------------------------------

    @property
    def unit_count(self) -> int:
        """How many units there are."""
        return len(self.names)

    @property
    def levels(self) -> list[list[str]]:
        """Names by longest distance from a root. A picture: nothing waits for a level."""
        return [[self.names[n] for n in row] for row in self.rows]

    @property
    def execution_order(self) -> list[list[str]]:
        """The same as `levels`."""
        return self.levels

    @property
    def max_level(self) -> int:
        """How many levels there are."""
        return len(self.rows)

    @property
    def max_parallel_units(self) -> int:
        """How many units the widest level has; 0 for an empty plan."""
        return max(map(len, self.rows), default=0)

    @cached_property
    def dependencies(self) -> Mapping[str, frozenset[str]]:
        """Names of each unit's dependencies."""
        return self._named(self.edges_up)

    @cached_property
    def dependents(self) -> Mapping[str, frozenset[str]]:
        """Names of the units that depend on each."""
        return self._named(self.edges_down)

    def _named(self, edges: graph.Edges) -> Mapping[str, frozenset[str]]:
        names = self.names
        return MappingProxyType(
            {
                name: frozenset(names[n] for n in ends)
                for name, ends in zip(names, edges, strict=True)
            }
        )

    @property
    def critical_path(self) -> list[str]:
        """Names along the path with the largest sum of costs (each 1 where none is declared)."""
        path = graph.critical_path(self.edges_down, self.order, self.costs)
        return [self.names[n] for n in path]

    def visualize(self, format: str = "dot") -> str:  # noqa: A002 - the seed's name
        """Return the graph as text.

        Args:
            format: ``"dot"`` (Graphviz), ``"mermaid"`` or ``"svg"``.

        Raises:
            ValueError: If there is no such format.
        """
        # Drawing is for people, who wait longer for other things: it is loaded when asked for.
        from quantum_async.core.render import Drawing, render

        path = graph.critical_path(self.edges_down, self.order, self.costs)
        notes = {n: note for n, unit in enumerate(self.handles) if (note := note_of(unit))}
        drawing = Drawing(
            names=self.names,
            dependencies=self.edges_up,
            levels=self.rows,
            critical=frozenset(path),
            notes=notes,
        )
        return render(drawing, format)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Show the plan in a notebook: as SVG, and large plans in words alone."""
        shown = {"text/plain": repr(self)}
        if self.unit_count <= MOST_SHOWN:
            shown["image/svg+xml"] = self.visualize("svg")
        return shown

    # -- what else can be known before a run --------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of names, edges, functions' names and options.

        The same in every process and under every hash seed. Code inside functions is not looked
        at; of policies, fallbacks and arguments only whether there are any.
        """
        import hashlib

        digest = hashlib.sha256()
        for name, unit, ends in zip(self.names, self.handles, self.edges_up, strict=True):
            after = sorted(self.names[n] for n in ends)
            digest.update(repr((name, after, _identity(unit))).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def simulate(
        self,
        durations: Mapping[str, float] | Callable[[str], float] | None = None,
        max_workers: int | None = None,
        strategy: Strategy | str = Strategy.CRITICAL_PATH,
        *,
        items: Mapping[str, int] | None = None,
    ) -> Simulation:
        """Run the scheduler with modelled time and no loop, under the partitioner's limits.

        Limits hold as they do in runs; what units compute with ``uses=`` at run time is left out.

        Args:
            durations: Seconds by unit name, or a function of the name; units that it does not
                give take their declared `cost`, else 1. A map's is that of each child.
            max_workers: How many units run at once; None for no limit.
            strategy: How the ready queue is ordered.
            items: How many items each map has, by its name. By default as many as were declared
                with it, and one for items that only the run knows.

        Returns:
            Makespan, starts and ends by unit name.

        Raises:
            PlanError: For unknown names, negative or NaN durations, fewer than one worker.
        """
        return simulate(self, durations, max_workers, parse(Strategy, strategy, "strategy"), items)

    def diff(self, other: "ExecutionPlan") -> PlanDiff:
        """Return what another plan has added, removed and changed, as seen from this one.

        Args:
            other: The later plan.
        """
        mine, its = ([dict(_facts(unit)) for unit in it.handles] for it in (self, other))
        return difference(self, other, mine, its)

    def __repr__(self) -> str:
        return (
            f"<ExecutionPlan {self.unit_count} units, {sum(map(len, self.edges_up))} dependencies, "
            f"{self.max_level} levels>"
        )


def note_of(unit: Unit) -> str:
    """Return in a few words how a unit differs from a plain one."""
    options = unit.options
    said = [
        *_shape_note(options.shape),
        f"if {_named(options.when)}" if options.when is not None else "",
        Trigger(options.trigger).word if options.trigger and options.shape is not RACE else "",
        f"uses {_uses_note(options.uses)}" if options.uses else "",
        options.mode.value if options.mode else "",
        f"{options.retries} retries" if options.retries else "",
        f"timeout {options.timeout:g} s" if options.timeout is not None else "",
    ]
    return ", ".join(filter(None, said))


def _shape_note(shape: Shape | None) -> Iterator[str]:
    if isinstance(shape, Mapped):
        most = shape.max_concurrency
        yield "map" if most is None else f"map, {most} at once"
    elif isinstance(shape, Included):
        inner: Mapping[str, Unit] = shape.flow.units
        yield f"run of {len(inner)} unit{'s' * (len(inner) != 1)}"
    elif shape is RACE:
        yield "race"
    elif shape is STREAM:
        yield "stream"


def _uses_note(uses: Needs | Callable[[Any], Any]) -> str:
    if callable(uses):
        return _named(uses)
    return ", ".join(name if tokens == 1 else f"{tokens:g} {name}" for name, tokens in uses)


def _named(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "condition" if name == "<lambda>" else str(name)


def _shape_identity(shape: Shape | None) -> tuple[Any, ...]:
    if isinstance(shape, Mapped):
        return "map", shape.ordered, shape.max_concurrency, shape.collect
    if isinstance(shape, Included):
        # Not by its plan: a partitioner that runs itself would never come to an end.
        return "run", tuple(shape.flow.units)
    return () if shape is None else (type(shape).__name__,)


def described_function(function: Callable[..., Any]) -> str:
    """Return a function's ``module:qualified.name``, or that of a callable object's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or ''}:{named.__qualname__}"


def _facts(unit: Unit) -> Iterator[tuple[str, Any]]:
    """Yield what was declared of a unit, in words, as far as two plans may differ in it."""
    options = unit.options
    yield "function", described_function(unit.function).lstrip(":")
    yield "shape", ", ".join(_shape_note(options.shape)) or None
    for option in ("timeout", "deadline", "cost"):
        yield option, getattr(options, option)
    yield "retries", options.retries
    yield "priority", options.priority
    yield "mode", options.mode and options.mode.value
    yield "trigger", Trigger(options.trigger).word
    yield "when", None if options.when is None else _named(options.when)
    yield "uses", _uses_note(options.uses) if options.uses else None


def _identity(unit: Unit) -> tuple[Any, ...]:
    function = unit.function
    named = function if hasattr(function, "__qualname__") else type(function)
    options = unit.options
    return (
        getattr(named, "__module__", ""),
        named.__qualname__,
        *(None if it is None else float(it) for it in (options.timeout, options.deadline)),
        options.retries,
        options.retry is not None,
        options.fallback is not NO_FALLBACK,
        float(options.priority),
        options.mode.value if options.mode else None,
        options.cost and float(options.cost),
        type(options.binding).__name__,
        *_shape_identity(options.shape),
        *((Trigger(options.trigger).word,) if options.trigger else ()),
        *(("when", _named(options.when)) if options.when is not None else ()),
        *(("uses", _uses_note(options.uses)) if options.uses else ()),
    )
