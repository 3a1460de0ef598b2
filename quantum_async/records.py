"""A run as JSON, and back: what `RunResult.save` writes and `RunResult.load` reads.

docs/run-format.md describes the form. A loaded result is made of the same columns as any other, so
all that a result can tell, a loaded one can; only its plan cannot run, for want of functions.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from quantum_async.account import Recorded
from quantum_async.core import graph
from quantum_async.core.effects import Effect
from quantum_async.core.errors import QuantumError
from quantum_async.core.limits import Budget, Gauge, Limit
from quantum_async.core.options import UnitOptions
from quantum_async.core.phases import OUTSIDE, PHASES, UNFINISHED
from quantum_async.core.plan import ExecutionPlan, Unit, described_function
from quantum_async.core.record import Usage
from quantum_async.core.scheduler import Scheduler
from quantum_async.core.shapes import RACE, STREAM, Included, Mapped, Shape
from quantum_async.core.states import ExecutionMode
from quantum_async.core.triggers import Trigger, Triggers
from quantum_async.core.unit import QuantumUnit
from quantum_async.engine.ledger import NOTHING, Ledger
from quantum_async.engine.rows import Rows
from quantum_async.jsonable import packed, packed_error, unpacked, unpacked_error, write_json

FORMAT, VERSION = "quantum_async run", 1
R = TypeVar("R", bound=Recorded)
# Makes a result of a ledger, and of when attempts ended and began.
Make = Callable[[Ledger, Mapping[int, Sequence[float]]], R]


class RecordError(QuantumError, ValueError):
    """A file is no saved run, or one of a later version."""


# -- out ------------------------------------------------------------------------------------------


def save(result: Recorded, path: str | os.PathLike[str]) -> None:
    """Write a run as JSON; see `RunResult.save`."""
    write_json(path, as_record(result))


def as_record(result: Recorded) -> dict[str, Any]:
    """Return a run as data that JSON can hold."""
    ledger = result._ledger
    return {"format": FORMAT, "version": VERSION, **_run(result, ledger.began)}


def _run(result: Recorded, around: float) -> dict[str, Any]:
    ledger = result._ledger
    rows, scheduler = ledger.rows, ledger.scheduler
    units = [unit for unit in rows.in_order() if ledger.in_run(unit)]
    triggers = scheduler.triggers
    choices = () if triggers is None else triggers.choices
    return {
        "run_id": result.run_id,
        "started_at": ledger.wall,
        "began": ledger.began - around,
        "duration": result.duration,
        "ok": result.ok,
        "stop_cause": ledger.stop_cause,
        "environment": {key: packed(it) for key, it in ledger.environment.items()},
        "metrics": {str(key): packed(it) for key, it in ledger.metrics.items()},
        "effects": [effect._asdict() for effect in ledger.effects],
        "max_workers": None if scheduler.total is None else scheduler.total.capacity,
        "lanes": [
            {
                "place": place,
                "slots": min((it.capacity for it in scheduler.gauges[lane]), default=None),
                "uses": dict(scheduler.needs_at(lane)),
            }
            for lane, place in enumerate(ledger.where)
        ],
        "limits": {name: asdict(limit) for name, limit in scheduler.limits.items()},
        "plan": _plan(ledger.plan),
        "units": [_unit(result, unit, choices) for unit in units],
        "nested": {
            rows.names[unit]: [_run(run, ledger.began) for run in runs]
            for unit, runs in ledger.nested.items()
        },
    }


def _plan(plan: ExecutionPlan) -> dict[str, Any]:
    names = plan.names
    return {
        "fingerprint": plan.fingerprint,
        "levels": plan.levels,
        "measured": dict(plan.measured),
        "units": [
            {
                "name": name,
                "dependencies": [names[above] for above in plan.edges_up[number]],
                **_declaration(plan.handles[number]),
            }
            for number, name in enumerate(names)
        ],
        "streams": {names[it]: [names[to] for to in below] for it, below in plan.streams.items()},
    }


def _declaration(unit: Unit) -> dict[str, Any]:
    options, module_and_name = unit.options, described_function(unit.function)
    declared = {
        "function": module_and_name,
        "cost": options.cost,
        "priority": options.priority,
        "mode": None if options.mode is None else options.mode.value,
        "retries": options.retries,
        "timeout": options.timeout,
        "deadline": options.deadline,
        "trigger": Trigger(options.trigger).word if options.trigger else None,
        "when": None if options.when is None else described_function(options.when),
        "uses": dict(options.uses) if not callable(options.uses) else None,
        "computes_uses": described_function(options.uses) if callable(options.uses) else None,
        "shape": _shape(options.shape),
    }
    return {key: value for key, value in declared.items() if value}


def _shape(shape: Shape | None) -> dict[str, Any] | None:
    if isinstance(shape, Mapped):
        return {
            "kind": "map",
            "ordered": shape.ordered,
            "max_concurrency": shape.max_concurrency,
            "collect": shape.collect,
        }
    if isinstance(shape, Included):
        return {"kind": "run", "units": list(shape.flow.units)}
    return None if shape is None else {"kind": "race" if shape is RACE else "stream"}


def _unit(result: Recorded, unit: int, choices: Any) -> dict[str, Any]:
    ledger = result._ledger
    rows, scheduler, names = ledger.rows, ledger.scheduler, ledger.rows.names
    value, error = ledger.results[unit], ledger.errors.get(unit)
    is_child = unit >= rows.count
    told: dict[str, Any] = {
        "name": names[unit],
        "map": names[rows.parent(unit)] if is_child else None,
        "index": rows.index(unit) if is_child else None,
        "state": scheduler.state(unit).value,
        "phase": PHASES[scheduler.phase[unit]],
        "lane": scheduler.lanes[unit],
        "attempts": ledger.attempts[unit],
        "ended": ledger.moment(ledger.ends[unit]),
        "spans": result._spans(unit),
        "retries": [{"wait": wait, "why": why} for wait, why in ledger.retries.get(unit, ())],
        "ran_on": ledger.ran_on.get(unit),
        "held_by": ledger.held_by.get(unit),
        "fallback_used": unit in ledger.fallbacks,
        "choice": unit in choices,
        "forgiven": unit in ledger.forgiven,
        "cause": ledger.causes.get(unit),
        "root": names[ledger.roots[unit]] if unit in ledger.roots else None,
        "result": None if value is NOTHING else _result(value, ledger.nested.get(unit, ())),
        "error": None if error is None else packed_error(error),
        "usage": ledger.usage[unit]._asdict() if unit in ledger.usage else None,
    }
    always = ("name", "state", "phase", "lane", "attempts", "ended", "index")
    return {key: it for key, it in told.items() if it or (key in always and it is not None)}


def _result(value: Any, nested: Sequence[Any]) -> dict[str, Any]:
    for number, run in enumerate(nested):
        if run is value:
            return {"nested": number}
    return packed(value)


# -- in -------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], make: Make[R]) -> R:
    """Read a saved run; see `RunResult.load`."""
    text = Path(path).read_bytes()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{str(path)!r} is no saved run: it is not JSON ({error})") from None
    return from_record(data, make, repr(str(path)))


def from_record(data: Any, make: Make[R], source: str = "the record") -> R:
    """Return the result that `as_record` made data of.

    Args:
        data: The data.
        make: `RunResult`.
        source: What it is called in messages.

    Raises:
        RecordError: If it is anything else, or was written by a later version.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RecordError(f"{source} is no saved run: save one with result.save(path)")
    version = data.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise RecordError(
            f"{source} has version {version!r} of the form, and this quantum_async reads up to "
            f"{VERSION}: update it"
        )
    try:
        return _loaded(data, 0.0, make)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RecordError(f"{source} is a damaged record of a run ({what})") from error


def _loaded(data: Mapping[str, Any], around: float, make: Make[R]) -> R:
    plan, lanes = _loaded_plan(data), data["lanes"]
    index, began = plan.index, around + data["began"]
    most, own = data["max_workers"], {told["name"]: told for told in data["units"]}
    total = None if most is None else Gauge(most)
    scheduler = Scheduler(
        plan,
        None,
        lanes=[own.get(name, {}).get("lane", 0) for name in plan.names],
        slots=[None] * len(lanes),
        gauges=[() if it["slots"] is None else (Gauge(it["slots"]),) for it in lanes],
        needs=[tuple(sorted(it["uses"].items())) for it in lanes],
        budget=Budget(plan.limits, float) if plan.limits else None,
        outside=[number for name, number in index.items() if name not in own],
    )
    scheduler.total = total
    if any(told.get("choice") for told in own.values()) or plan.trigger_codes:
        scheduler.triggers = Triggers(plan.trigger_codes or bytes(plan.unit_count))
    places = [it["place"] for it in lanes]
    ledger = Ledger(plan, scheduler, data["run_id"], data["started_at"], began, places, Rows(plan))
    ledger.ended = began + data["duration"]
    ledger.stop_cause = data["stop_cause"]
    ledger.environment = {key: unpacked(it) for key, it in data["environment"].items()}
    ledger.metrics.update({key: unpacked(it) for key, it in data["metrics"].items()})
    for effect in data["effects"]:
        ledger.effects.add(Effect(**effect))
    pauses: dict[int, list[float]] = {}
    for told in data["units"]:
        _load_unit(ledger, pauses, told)
    for told in data["units"]:
        if "root" in told:
            unit, root = (ledger.rows.number(it) for it in (told["name"], told["root"]))
            assert unit is not None  # it has just been loaded
            ledger.roots[unit] = unit if root is None else root
    for name, runs in data["nested"].items():
        at = ledger.rows.number(name)
        if at is not None:
            ledger.nested[at] = found = [_loaded(run, began, make) for run in runs]
            if "nested" in own[name].get("result", ()):
                ledger.results[at] = found[own[name]["result"]["nested"]]
    return make(ledger, pauses)


def _load_unit(ledger: Ledger, pauses: dict[int, list[float]], told: Mapping[str, Any]) -> None:
    scheduler, rows = ledger.scheduler, ledger.rows
    if "map" in told:
        parent = ledger.plan.index[told["map"]]
        unit = scheduler.add(parent, told["lane"])
        rows.add(unit, parent, told["index"], None, ledger.plan.handles[parent])
        ledger.grow(unit)
    else:
        unit = ledger.plan.index[told["name"]]
    phase = PHASES.index(told["phase"])
    scheduler.phase[unit] = phase
    scheduler.unfinished -= phase not in (*UNFINISHED, OUTSIDE)
    ledger.attempts[unit] = told["attempts"]
    moments = [ledger.began + moment for span in told.get("spans", ()) for moment in span]
    if moments:
        ledger.starts[unit] = moments[0]
        pauses[unit] = moments[1:]
    if told.get("ended") is not None:
        ledger.ends[unit] = ledger.began + told["ended"]
        if moments and moments[-1] == ledger.ends[unit]:
            pauses[unit].pop()
    if "result" in told and "nested" not in told["result"]:
        ledger.results[unit] = unpacked(told["result"])
    if "error" in told:
        ledger.errors[unit] = unpacked_error(told["error"])
    if "usage" in told:
        ledger.usage[unit] = Usage(**told["usage"])
    if "retries" in told:
        ledger.retries[unit] = [(it["wait"], it["why"]) for it in told["retries"]]
    for column, key in (
        (ledger.ran_on, "ran_on"), (ledger.held_by, "held_by"), (ledger.causes, "cause"),
    ):  # fmt: skip
        if key in told:
            column[unit] = told[key]
    if told.get("fallback_used"):
        ledger.fallbacks.add(unit)
    if told.get("forgiven"):
        ledger.forgiven.add(unit)
    if told.get("choice") and scheduler.triggers is not None:
        scheduler.triggers.choices.add(unit)


def _loaded_plan(data: Mapping[str, Any]) -> ExecutionPlan:
    told = data["plan"]
    index = {unit["name"]: number for number, unit in enumerate(told["units"])}
    edges_up = [tuple(index[name] for name in unit["dependencies"]) for unit in told["units"]]
    edges_down = graph.inverted(edges_up)
    limits = {name: Limit(**limit) for name, limit in data["limits"].items()}
    plan = ExecutionPlan(
        {unit["name"]: _loaded_unit(unit) for unit in told["units"]},
        edges_up,
        edges_down,
        graph.topological_order(edges_up, edges_down),
        told["measured"],
        streams={
            index[name]: tuple(index[to] for to in below) for name, below in told["streams"].items()
        },
        limits=limits,
    )
    if len(plan.order) < plan.unit_count:
        raise ValueError("its units wait for each other in a circle")
    vars(plan)["fingerprint"] = told["fingerprint"]  # of the functions that ran
    return plan


def _loaded_unit(told: Mapping[str, Any]) -> Unit:
    mode, trigger = told.get("mode"), told.get("trigger")
    options = UnitOptions(
        timeout=told.get("timeout"),
        deadline=told.get("deadline"),
        retries=told.get("retries", 0),
        priority=told.get("priority", 0),
        mode=None if mode is None else ExecutionMode(mode),
        cost=told.get("cost"),
        trigger=Trigger.ALL_SUCCESS if trigger is None else Trigger[trigger.upper()],
        when=_absent(told["when"]) if "when" in told else None,
        uses=(
            _absent(told["computes_uses"])
            if "computes_uses" in told
            else tuple(sorted(told.get("uses", {}).items()))
        ),
        shape=_loaded_shape(told.get("shape")),
    )
    function = _absent(told.get("function", ""))
    return QuantumUnit(told["name"], function, told["dependencies"], options=options)


def _loaded_shape(told: Mapping[str, Any] | None) -> Shape | None:
    if told is None:
        return None
    kind = told["kind"]
    if kind == "map":
        return Mapped("", told["ordered"], told["max_concurrency"], told["collect"])
    if kind == "run":
        return Included(SimpleNamespace(units=dict.fromkeys(told["units"])))
    return RACE if kind == "race" else STREAM


def _absent(name: str) -> Callable[..., Any]:
    """Return a function that stands for one that is not here."""
    module, _, qualified = name.rpartition(":")

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise RecordError(
            f"{name or 'the function'} was not saved with its run: a loaded plan cannot run"
        )

    absent.__module__, absent.__qualname__ = module, qualified
    absent.__name__ = qualified.rpartition(".")[2]
    return absent
