"""In words: what happened in a run, where its time went, and what would help."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from quantum_async.account import (
    BACK_OFF,
    DEPENDENCIES,
    LIMIT,
    OPENED,
    RUNNING,
    SLOT,
    Recorded,
    averages,
    busy_at,
    every_unit,
    printable,
    slices_of,
    spent,
)
from quantum_async.core.errors import described
from quantum_async.core.limits import Limit
from quantum_async.core.record import UnitRecord
from quantum_async.core.simulate import Simulation
from quantum_async.core.states import UnitState
from quantum_async.whatif import Model, place_slots
from quantum_async.wording import counted, seconds

_MOST = 5  # units that are named one by one
_A_WAIT = 0.02  # seconds; less is the loop's own business
_A_SHARE = 0.05  # of the time of all units; less is not told
_MOST_MODELLED = 5_000  # units of a run that is simulated to find out what would help
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 40
_IN_WORDS = {
    RUNNING: "running",
    SLOT: "waiting for a slot",
    LIMIT: "waiting for a limit",
    BACK_OFF: "backing off",
    DEPENDENCIES: "waiting for dependencies",
}


class Explainable(Recorded, Protocol):
    """What an explanation looks at: a `RunResult`."""


def explain_run(result: Explainable) -> str:
    """Say how a run went: counts, failures and what they cost, where the time went, what helps."""
    records = list(result.units.values())
    counts = Counter(record.state.value for record in records)
    lines = [
        f"run {result.run_id}: {counted(len(records), 'unit')} in "
        f"{seconds(result.duration)} – "
        + (", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing to do")
    ]
    lines += _failures(records)
    if result.critical_path and result.duration > 0:
        path = [result.units[name] for name in result.critical_path]
        busy = sum(record.duration or 0.0 for record in path)
        lines.append(
            f"critical path, {busy / result.duration:.0%} of the time: "
            + _chain([f"{r.name} ({seconds(r.duration or 0.0)})" for r in path])
        )
    if result.duration > 0:
        lines += _time(result)
        lines += _waits(result, records)
        lines += _advice(result)
    return "\n".join(map(printable, lines))


def _failures(records: list[UnitRecord]) -> list[str]:
    failed = [r for r in records if r.state in (UnitState.FAILED, UnitState.TIMEOUT)]
    lines = [f"{r.name} {_how(r)}" for r in failed[:_MOST]]
    if len(failed) > _MOST:
        lines.append(f"… and {len(failed) - _MOST} more failures")
    causes = Counter(r.cause for r in records if r.state is UnitState.SKIPPED)
    lines += [f"{count} skipped because {cause}" for cause, count in causes.most_common(_MOST)]
    causes = Counter(r.cause for r in records if r.state is UnitState.CANCELED)
    lines += [f"{count} canceled: {cause}" for cause, count in causes.most_common(_MOST)]
    fallbacks = [r.name for r in records if r.fallback_used]
    if fallbacks:
        lines.append(f"fallbacks stand in for: {', '.join(fallbacks[:_MOST])}")
    retried = [r for r in records if r.attempts > 1]
    if retried:
        extra = sum(r.attempts - 1 for r in retried)
        lines.append(f"{extra} further attempts in {len(retried)} units")
    return lines


# -- where the time went --------------------------------------------------------------------------


def _time(result: Recorded) -> Iterator[str]:
    """Say what all units together did with their time, and how many ran at once."""
    times: Counter[str] = Counter()
    spans = []
    for name in every_unit(result):
        if result.units[name].ran_on in OPENED:
            continue  # its time is that of others
        parts = slices_of(result, name)
        times.update(spent(parts))
        spans += [(part.start, part.end) for part in parts if part.kind == RUNNING]
    whole = sum(times.values())
    told = [
        f"{seconds(times[kind])} {words}"
        for kind, words in _IN_WORDS.items()
        if times[kind] > _A_SHARE * whole
    ]
    if told:
        yield f"time of all units: {', '.join(told)}"
    steps = busy_at(spans)
    most = max((level for _, level in steps), default=0)
    if most:
        average = sum(end - start for start, end in spans) / result.duration
        drawn = sparkline(averages(steps, result.duration, _COLUMNS), most)
        yield f"units at once: {drawn} {average:.1f} on average, {most} at most"


def sparkline(levels: list[float], most: float) -> str:
    """Draw numbers as bars of text, the tallest for `most`, and a dot for nothing."""
    tallest = len(_BARS)
    # A hair less than the level: sums of times are not exact.
    heights = [math.ceil(level / most * tallest - 1e-6) for level in levels]
    return "".join(_BARS[min(it, tallest) - 1] if it > 0 else "·" for it in heights)


def _waits(result: Recorded, records: list[UnitRecord]) -> Iterator[str]:
    least = max(_A_WAIT, 0.05 * result.duration)
    waited = [r for r in records if (r.waited or 0.0) > least]
    waited.sort(key=lambda record: record.waited or 0.0, reverse=True)
    for_slots = [r for r in waited if r.held_by is None][:_MOST]
    for_limits = [r for r in waited if r.held_by is not None][:_MOST]
    if for_slots:
        told = ", ".join(f"{r.name} ({seconds(r.waited or 0.0)})" for r in for_slots)
        yield f"waited longest for a slot: {told}"
    if for_limits:
        told = ", ".join(f"{r.name} ({r.held_by!r}, {seconds(r.waited or 0)})" for r in for_limits)
        yield f"waited longest for a limit: {told}"


# -- what would help ------------------------------------------------------------------------------


def _advice(result: Recorded) -> list[str]:
    """Try what would make the run shorter in the simulator, and tell the best two."""
    if len(result._ledger.rows.names) > _MOST_MODELLED:
        return []
    model = Model(result)
    before = model.what_if().makespan
    found = []
    for words, modelled in _changes(result, model):
        saved = before - modelled.makespan
        if saved > max(0.02 * before, 0.001):
            found.append((saved, f"{words} ({seconds(modelled.makespan)})"))
    found.sort(key=lambda one: one[0], reverse=True)
    if not found:
        return []
    told = "; or ".join(words for _, words in found[:2])
    return [f"what would help most, where the model gives {seconds(before)}: {told}"]


def _changes(result: Recorded, model: Model) -> Iterator[tuple[str, Simulation]]:
    ledger = result._ledger
    waited: Counter[str] = Counter()
    for record in result.units.values():
        if record.waited and record.waited > 0.001:
            waited[record.held_by or ""] += 1
    total, places = ledger.scheduler.total, place_slots(result)
    if waited[""] and total is not None:
        most = 2 * total.capacity
        doubled = {place: 2 * it for place, it in places.items() if place != "process"}
        yield f"max_workers={most}", model.what_if(None, most, slots=doubled)
    elif waited[""]:
        for place, most in places.items():
            yield f"{2 * most} slots for {place}", model.what_if(slots={place: 2 * most})
    for name, _ in waited.most_common(3):
        if name:
            yield (
                f"twice the limit {name!r}",
                model.what_if(limits={name: _doubled(result, name)}),
            )
    busy = {name: spent(slices_of(result, name))[RUNNING] for name in result.critical_path}
    for name in sorted(busy, key=busy.__getitem__, reverse=True)[:3]:
        took = _own_seconds(result, name)
        if took:
            yield f"{name!r} twice as fast", model.what_if({name: took / 2})


def _doubled(result: Recorded, name: str) -> Limit:
    limit = result._ledger.scheduler.limits[name]
    return Limit(
        concurrency=None if limit.concurrency is None else 2 * limit.concurrency,
        rate=None if limit.rate is None else 2 * limit.rate,
        per=limit.per,
        burst=None if limit.burst is None else 2 * limit.burst,
    )


def _own_seconds(result: Recorded, name: str) -> float:
    """Return how long a unit took; of a map, how long its children took on average."""
    if result.units[name].ran_on != "map":
        return result.units[name].duration or 0.0
    own = [r.duration or 0.0 for it, r in result.units.items() if it.rpartition("[")[0] == name]
    return sum(own) / len(own) if own else 0.0


# -- one unit -------------------------------------------------------------------------------------


def explain_unit(result: Explainable, record: UnitRecord) -> str:
    """Say what became of one unit: what it waited for, where it ran, how it ended."""
    plan, above = result.plan, []
    if record.name in plan.index:  # a child of a map, or of a nested run, depends on no other unit
        numbers = plan.edges_up[plan.index[record.name]]
        names = [plan.names[unit] for unit in numbers]
        above = [result.units[name] for name in names if name in result.units]
    lines = [f"{record.name} {_how(record)}"]
    if above:
        last = max(above, key=lambda r: r.ended_at or 0.0)
        lines.append(
            f"depends on {_chain([r.name for r in above], ', ')}; {last.name} was the last to end"
        )
    times = spent(slices_of(result, record.name))
    if above and times[DEPENDENCIES] > 0:
        lines.append(f"waited {seconds(times[DEPENDENCIES])} for what it depends on")
    if record.waited is not None:
        held_by = "a slot" if record.held_by is None else f"the limit {record.held_by!r}"
        lines.append(f"waited {seconds(record.waited)} for {held_by}")
    if record.duration is not None:
        tries = f" in {record.attempts} attempts" if record.attempts > 1 else ""
        lines.append(f"took {seconds(record.duration)}{tries}, {record.ran_on}")
    lines += _attempts(result, record)
    if record.name in result.critical_path and len(result.units) > 1:
        lines.append("it is on the critical path")
    return "\n".join(map(printable, lines))


def _attempts(result: Recorded, record: UnitRecord) -> Iterator[str]:
    """Say how each attempt went, if there was more than one."""
    parts = slices_of(result, record.name)
    attempt = 0
    for part, then in zip(parts, [*parts[1:], None], strict=True):
        if part.kind != RUNNING or record.attempts < 2:
            continue
        attempt += 1
        told = f"attempt {attempt} ran {seconds(part.duration)}"
        if then is not None and then.kind == BACK_OFF:
            told += f": {then.note or 'no result'}; backed off {seconds(then.duration)}"
        yield told


def _how(record: UnitRecord) -> str:
    said = {
        UnitState.COMPLETED: "completed",
        UnitState.FAILED: "failed",
        UnitState.TIMEOUT: "timed out",
        UnitState.SKIPPED: "was skipped",
        UnitState.CANCELED: "was canceled",
        UnitState.PENDING: "did not start",
        UnitState.RUNNING: "is running",
    }[record.state]
    if record.fallback_used:
        said += " with its fallback"
    if record.error is not None:
        said += f": {described(record.error)}"
    return said + (f" ({record.cause})" if record.cause else "")


def _chain(names: list[str], joint: str = " → ") -> str:
    if len(names) > 2 * _MOST:
        names = [*names[:_MOST], f"… {len(names) - 2 * _MOST} more …", *names[-_MOST:]]
    return joint.join(names)
