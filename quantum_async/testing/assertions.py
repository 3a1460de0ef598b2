"""Assertions about a run that read as sentences and, where they fail, show what was."""

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import inf
from typing import Any, NoReturn, Self

from quantum_async.core.binding import Handle
from quantum_async.core.errors import described, did_you_mean, message_of
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState, parse
from quantum_async.core.unit import QuantumUnit
from quantum_async.result import RunResult
from quantum_async.testing.timelines import timeline

Name = str | QuantumUnit[Any, Any]

_EPSILON = 1e-9  # seconds: less is what adding up leaves of equal moments
_ANYTHING = object()
_END, _INSTANT, _START = range(3)


def assert_run(result: RunResult) -> "RunAssertions":
    """Begin a chain of assertions about a run.

    Args:
        result: The run; one that raised has it as ``error.result`` or ``flow.last_result``.

    Example:
        >>> flow = QuantumPartitioner(failure_policy="collect")
        >>> @flow.unit
        ... async def a(): ...
        >>> @flow.unit
        ... async def b(a):
        ...     raise ValueError("no")
        >>> @flow.unit
        ... async def c(b): ...
        >>> chain = assert_run(asyncio.run(flow.run())).completed("a").failed("b", match="no")
        >>> _ = chain.skipped("c", because="b").started_after("b", "a").max_running(1)
    """
    if not isinstance(result, RunResult):
        raise TypeError(
            f"assert_run takes a RunResult, not {result!r}; of a run that raised, take "
            "error.result or flow.last_result"
        )
    return RunAssertions(result)


class RunAssertions:
    """Assertions about one run. Each returns this object, so that they can be chained.

    Units are given by name or handle; one that is not in the run is an `AssertionError` too, with
    the nearest name. Times are in seconds.

    Args:
        result: The run.
    """

    def __init__(self, result: RunResult) -> None:
        self.run = result

    # -- how units ended ----------------------------------------------------------------------

    def ok(self) -> Self:
        """Every unit has a result, fallbacks included."""
        __tracebackhide__ = True
        if not self.run.ok:
            self._fail("the run to be ok", "it is not")
        return self

    def not_ok(self) -> Self:
        """A unit failed, timed out, was skipped or cancelled."""
        __tracebackhide__ = True
        if self.run.ok:
            self._fail("the run not to be ok", "it is")
        return self

    def state(self, unit: Name, state: UnitState | str) -> Self:
        """A unit ended in that state."""
        __tracebackhide__ = True
        self._in_state(unit, parse(UnitState, state, "state"))
        return self

    def completed(self, *units: Name) -> Self:
        """These units have results; without arguments, all units of the run."""
        __tracebackhide__ = True
        return self._all_in(UnitState.COMPLETED, units or tuple(self.run.units))

    def failed(
        self,
        unit: Name,
        error: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
        match: str | None = None,
    ) -> Self:
        """A unit failed.

        Args:
            unit: The unit.
            error: Of what type its exception is.
            match: A regular expression that is found in the exception's message.
        """
        __tracebackhide__ = True
        record = self._in_state(unit, UnitState.FAILED)
        if not isinstance(record.error, error):
            kinds = error if isinstance(error, tuple) else (error,)
            wanted = " or ".join(kind.__name__ for kind in kinds)
            told = f"it raised {_told(record.error)}"
            self._fail(f"{record.name!r} to fail with {wanted}", told, unit)
        return self._matches(unit, "the error", message_of(record.error), match)

    def timed_out(self, unit: Name, *units: Name) -> Self:
        """These units were stopped by a time limit of their own."""
        __tracebackhide__ = True
        return self._all_in(UnitState.TIMEOUT, (unit, *units))

    def canceled(self, unit: Name, *units: Name, match: str | None = None) -> Self:
        """These units were cancelled; `match` is found in their records' cause."""
        __tracebackhide__ = True
        self._all_in(UnitState.CANCELED, (unit, *units))
        for one in (unit, *units):
            self._matches(one, "the cause", self._record(one).cause or "", match)
        return self

    def skipped(self, unit: Name, *units: Name, because: Name | None = None) -> Self:
        """These units were skipped.

        Args:
            unit: A unit.
            units: More of them.
            because: The unit whose failure is to blame: the root, not a neighbour that was
                skipped too.
        """
        __tracebackhide__ = True
        self._all_in(UnitState.SKIPPED, (unit, *units))
        blamed = None if because is None else self._record(because).name
        for name in map(_name, (unit, *units)):
            root = self.run.roots.get(name)
            if blamed is not None and root != blamed:
                wanted = f"{name!r} to be skipped because of {blamed!r}"
                self._fail(wanted, f"it was because of {root!r}", name, blamed)
        return self

    def only(self, state: UnitState | str, *units: Name) -> Self:
        """These units ended in that state, and no others."""
        __tracebackhide__ = True
        wanted = parse(UnitState, state, "state")
        names = {self._record(unit).name for unit in units}
        found = {name for name, its in self.run.states.items() if its is wanted}
        if found != names:
            told = [
                f"{', '.join(map(repr, sorted(some)))} {how}"
                for some, how in ((found - names, "too"), (names - found, "not"))
                if some
            ]
            listed = ", ".join(map(repr, sorted(names))) or "no unit"
            self._fail(f"only {listed} to be {wanted.value}", "; ".join(told), *(found ^ names))
        return self

    def none(self, state: UnitState | str, *states: UnitState | str) -> Self:
        """No unit ended in one of these states."""
        __tracebackhide__ = True
        unwanted = {parse(UnitState, one, "state") for one in (state, *states)}
        found = {name: its.value for name, its in self.run.states.items() if its in unwanted}
        if found:
            names = " or ".join(sorted(one.value for one in unwanted))
            told = ", ".join(f"{name!r} is {its}" for name, its in found.items())
            self._fail(f"no unit to be {names}", told, *found)
        return self

    def not_in_run(self, *units: str) -> Self:
        """The run was not about these units: it has no record of them."""
        __tracebackhide__ = True
        for unit in units:
            name = _name(unit)
            if name in self.run.units:
                self._fail(f"{name!r} not to be in the run", "it is", unit)
            if name not in self.run.plan.index:
                self._unknown(name)
        return self

    # -- what else a record says --------------------------------------------------------------

    def result(self, unit: Name, value: object) -> Self:
        """A unit's result equals `value`."""
        __tracebackhide__ = True
        name = self._record(unit).name
        if name not in self.run:
            self._fail(f"{name!r} to have the result {value!r}", "it has none", unit)
        if not _equal(found := self.run[name], value):
            self._fail(f"the result of {name!r} to be {value!r}", f"it is {found!r}", unit)
        return self

    def attempts(self, unit: Name, count: int) -> Self:
        """A unit was tried so many times."""
        __tracebackhide__ = True
        record = self._record(unit)
        return self._same(unit, "attempts", count, record.attempts)

    def started(self, *units: Name) -> Self:
        """These units were begun, however they ended."""
        __tracebackhide__ = True
        for unit in units:
            self._begun(unit)
        return self

    def not_started(self, *units: Name) -> Self:
        """These units were never begun: skipped, cancelled before, or given."""
        __tracebackhide__ = True
        for unit in units:
            record = self._record(unit)
            if record.attempts:
                self._fail(f"{record.name!r} never to start", "it did", unit)
        return self

    def ran_on(self, unit: Name, place: str) -> Self:
        """A unit ran there: "loop", "thread", "process" …, or its result was "given" or "cache"."""
        __tracebackhide__ = True
        return self._same(unit, "place", place, self._record(unit).ran_on)

    def fallback_used(self, unit: Name, value: object = _ANYTHING) -> Self:
        """A unit's result is its fallback (and equals `value`)."""
        __tracebackhide__ = True
        record = self._in_state(unit, UnitState.COMPLETED)
        if not record.fallback_used:
            self._fail(f"{record.name!r} to use its fallback", "it has a result of its own", unit)
        return self if value is _ANYTHING else self.result(unit, value)

    def no_fallback(self, *units: Name) -> Self:
        """None of these units used its fallback; without arguments, none of the run."""
        __tracebackhide__ = True
        for unit in units or tuple(self.run.units):
            record = self._record(unit)
            if record.fallback_used:
                told = f"it did, after {_told(record.error)}"
                self._fail(f"{record.name!r} not to use its fallback", told, unit)
        return self

    # -- when ---------------------------------------------------------------------------------

    def started_after(self, unit: Name, *others: Name) -> Self:
        """A unit started when the others had ended."""
        __tracebackhide__ = True
        begin = self._begun(unit)[0][0]
        for other in others:
            end = self._begun(other)[-1][1]
            if begin < end - _EPSILON:
                told = f"it started at {begin:.6g} s, and {_name(other)!r} ended at {end:.6g} s"
                self._fail(f"{_name(unit)!r} to start after {_name(other)!r}", told, unit, other)
        return self

    def started_in_order(self, *units: Name) -> Self:
        """Each of these units started no earlier than the one before it."""
        __tracebackhide__ = True
        begins = [self._begun(unit)[0][0] for unit in units]
        for place in range(1, len(units)):
            before, after = begins[place - 1 : place + 1]
            if after < before - _EPSILON:
                names = [_name(unit) for unit in units[place - 1 : place + 1]]
                told = f"they did at {before:.6g} s and {after:.6g} s"
                self._fail(f"{names[0]!r} to start before {names[1]!r}", told, *names)
        return self

    def overlapped(self, *units: Name) -> Self:
        """There was a moment at which all of these units ran; back-off is not running."""
        __tracebackhide__ = True
        if not _common(spans := [self._begun(unit) for unit in units]):
            self._fail(f"{_listed(units)} to run at the same time", _whens(units, spans), *units)
        return self

    def never_overlapped(self, *units: Name) -> Self:
        """No two of these units ran at the same time."""
        __tracebackhide__ = True
        for pair in combinations(units, 2):
            if _common(spans := [self._begun(unit) for unit in pair]):
                wanted = f"{_listed(pair)} not to run at the same time"
                self._fail(wanted, _whens(pair, spans), *pair)
        return self

    def max_running(self, count: int, *, on: str | None = None) -> Self:
        """At no moment more units ran than that.

        Args:
            count: How many.
            on: Only those on the "loop", in a "thread", a "process" … are counted.
        """
        __tracebackhide__ = True
        most, moment, names = self._busiest(on)
        if most > count:
            where = "" if on is None else f" (on: {on})"
            told = f"{most} did at {moment:.6g} s: {', '.join(map(repr, names[:10]))}"
            told += ", …" if len(names) > 10 else ""
            self._fail(f"at most {count} units to run at once{where}", told, *names[:10])
        return self

    def took(self, unit: Name, *, at_least: float = 0.0, at_most: float = inf) -> Self:
        """From a unit's first start to its end it took so many seconds, back-off included."""
        __tracebackhide__ = True
        spans = self._begun(unit)
        return self._within(unit, "take", spans[-1][1] - spans[0][0], at_least, at_most)

    def waited(self, unit: Name, *, at_least: float = 0.0, at_most: float = inf) -> Self:
        """A unit waited so many seconds for a slot."""
        __tracebackhide__ = True
        self._begun(unit)
        return self._within(unit, "wait", self._record(unit).waited or 0.0, at_least, at_most)

    def run_took(self, *, at_least: float = 0.0, at_most: float = inf) -> Self:
        """The run took so many seconds."""
        __tracebackhide__ = True
        return self._within(None, "take", self.run.duration, at_least, at_most)

    # -- the means ----------------------------------------------------------------------------

    def _record(self, unit: Name) -> UnitRecord:
        __tracebackhide__ = True
        name = _name(unit)
        plan = self.run.plan
        if name not in plan.index and name not in self.run.units:
            self._unknown(name)  # no child of a map or of a nested run either
        if isinstance(unit, Handle) and plan.units[name] is not unit:
            raise AssertionError(f"the handle {name!r} is of another partitioner than this run")
        if name not in self.run.units:
            self._fail(f"{name!r} to be in the run", "it is not: nothing asked for it")
        return self.run.units[name]

    def _unknown(self, name: str) -> NoReturn:
        __tracebackhide__ = True
        known = self.run.plan.names
        raise AssertionError(f"there is no unit {name!r} in this run{did_you_mean(name, known)}")

    def _in_state(self, unit: Name, state: UnitState) -> UnitRecord:
        __tracebackhide__ = True
        record = self._record(unit)
        if record.state is not state:
            why = f" ({record.cause})" if record.cause else ""
            if record.error is not None and not record.fallback_used:
                why += f": {_told(record.error)}"
            wanted = f"{record.name!r} to be {state.value}"
            self._fail(wanted, f"it is {record.state.value}{why}", unit)
        return record

    def _all_in(self, state: UnitState, units: Sequence[Name]) -> Self:
        __tracebackhide__ = True
        for unit in units:
            self._in_state(unit, state)
        return self

    def _begun(self, unit: Name) -> list[tuple[float, float]]:
        __tracebackhide__ = True
        record = self._record(unit)
        spans = self.run.spans(record.name)
        if not spans:
            why = f" ({record.cause})" if record.cause else ""
            told = f"it is {record.state.value}{why}"
            self._fail(f"{record.name!r} to have started", told, unit)
        return spans

    def _matches(self, unit: Name, what: str, text: str, match: str | None) -> Self:
        __tracebackhide__ = True
        if match is not None and not re.search(match, text):
            told = f"it is {text!r}"
            self._fail(f"{what} of {_name(unit)!r} to match {match!r}", told, unit)
        return self

    def _same(self, unit: Name, what: str, wanted: object, found: object) -> Self:
        __tracebackhide__ = True
        if wanted != found:
            self._fail(f"{what} of {_name(unit)!r} to be {wanted!r}", f"it is {found!r}", unit)
        return self

    def _within(
        self, unit: Name | None, verb: str, found: float, at_least: float, at_most: float
    ) -> Self:
        __tracebackhide__ = True
        if not at_least - _EPSILON <= found <= at_most + _EPSILON:
            who = "the run" if unit is None else repr(_name(unit))
            wanted = f"{who} to {verb} from {at_least:g} to {at_most:g} s"
            self._fail(wanted, f"it was {found:.6g} s", *(() if unit is None else (unit,)))
        return self

    def _busiest(self, on: str | None) -> tuple[int, float, list[str]]:
        """Return how many units ran at once at the most, when, and which."""
        turns = []
        for record in self.run.units.values():
            if on is None or record.ran_on == on:
                for start, end in self.run.spans(record.name):
                    # At one moment: who ends makes room; then what takes no time; then who starts.
                    kinds = ((_INSTANT, start),) if start >= end else ((_START, start), (_END, end))
                    turns += [(moment, kind, record.name) for kind, moment in kinds]
        turns.sort(key=lambda turn: turn[:2])
        running: dict[str, None] = {}
        most: tuple[int, float, list[str]] = (0, 0.0, [])
        for moment, kind, name in turns:
            if kind == _END:
                del running[name]
                continue
            running[name] = None
            if len(running) > most[0]:
                most = (len(running), moment, list(running))
            if kind == _INSTANT:
                del running[name]
        return most

    def _fail(self, wanted: str, found: str, *units: Name) -> NoReturn:
        __tracebackhide__ = True
        picture = timeline(self.run, show=[_name(unit) for unit in units])
        raise AssertionError(f"expected {wanted}; but {found}\n\n{picture}")


def _name(unit: Name) -> str:
    return unit.id if isinstance(unit, Handle) else unit


def _listed(units: Iterable[Name]) -> str:
    return ", ".join(repr(_name(unit)) for unit in units)


def _told(error: BaseException | None) -> str:
    return "nothing" if error is None else described(error)


def _whens(units: Sequence[Name], spans: Sequence[list[tuple[float, float]]]) -> str:
    return "; ".join(
        f"{_name(unit)!r} ran " + ", ".join(f"from {s:.6g} to {e:.6g} s" for s, e in its)
        for unit, its in zip(units, spans, strict=True)
    )


def _common(spans: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the times at which all ran. What ends when another starts does not run with it."""
    common = [(-inf, inf)]
    for its in spans:
        common = [
            (max(start, begin), min(end, finish))
            for start, end in common
            for begin, finish in its
            if start < finish and begin < end
        ]
    return common


def _equal(found: Any, value: Any) -> bool:
    same = found == value
    try:
        return bool(same)
    except ValueError:  # arrays are compared item by item
        return bool(same.all())
