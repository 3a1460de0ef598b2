"""A run as one page: `result.save_html("run.html")`.

Two rules:

* The page is one file that asks for nothing: style and script are put into it, and its content
  security policy lets no request out.
* What comes from the run is data. It stands in the page as JSON that cannot end its element, and
  the page's script only ever sets it as text.
"""

import json
import os
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from reprlib import Repr
from typing import Any, Protocol

from quantum_async.core.errors import described, message_of
from quantum_async.core.layout import Drawing, cells, lay_out, shorten, visible
from quantum_async.core.plan import ExecutionPlan, note_of
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState
from quantum_async.engine.ledger import Ledger
from quantum_async.wording import counted, seconds

__all__ = ["page", "save_html"]

_SCRIPTS = ("model.js", "timeline.js", "graph.js", "table.js", "main.js")
_MOST_DRAWN = 20_000  # units; the layout of more takes longer than the rest of the page
_BOX_HEIGHT = 42  # pixels: a name and a note
_ROOM = 34  # cells for a name in the graph
_HOLDERS = ("map", "run", "race")  # they hold no slot themselves
_OUR_FOLDER = str(Path(__file__).parent) + os.sep

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 8


class Run(Protocol):
    """What a report looks at: a `RunResult`."""

    _ledger: Ledger

    @property
    def run_id(self) -> str: ...
    @property
    def plan(self) -> ExecutionPlan: ...
    @property
    def units(self) -> Mapping[str, UnitRecord]: ...
    @property
    def states(self) -> dict[str, UnitState]: ...
    @property
    def errors(self) -> dict[str, BaseException]: ...
    @property
    def roots(self) -> dict[str, str]: ...
    @property
    def ok(self) -> bool: ...
    @property
    def duration(self) -> float: ...
    @property
    def metrics(self) -> dict[str, Any]: ...
    @property
    def critical_path(self) -> list[str]: ...
    def spans(self, unit: str) -> list[tuple[float, float]]: ...
    def __contains__(self, key: object) -> bool: ...


def save_html(result: Run, path: str | os.PathLike[str]) -> None:
    """Write the report of a run; see `RunResult.save_html`."""
    text = page(result)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except FileNotFoundError as error:
        error.add_note(f"the folder {str(Path(path).parent)!r} does not exist: make it first")
        raise


def page(result: Run) -> str:
    """Return the report of a run as the text of one HTML page.

    Args:
        result: The run; it may be unfinished.
    """
    folder = files("quantum_async") / "page"
    script = "\n".join(_read(folder, name) for name in _SCRIPTS)
    # ASCII only, and no mark that could end the element or begin a comment in it.
    data = json.dumps(page_data(result), separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    # Each once, so that nothing that stands in one is taken for the place of another.
    before, rest = _read(folder, "page.html").split("@@style@@")
    between, rest = rest.split("@@data@@")
    then, after = rest.split("@@script@@")
    style = _read(folder, "page.css")
    return "".join([before, style, between, data, then, f'"use strict";\n{script}', after])


def _read(folder: Any, name: str) -> str:
    return str((folder / name).read_text(encoding="utf-8"))


def page_data(result: Run) -> dict[str, Any]:
    """Return what the page shows, as JSON has it: the run, its units, the graph's layout."""
    units = list(_units(result))
    numbers = {unit["name"]: number for number, unit in enumerate(units)}
    for unit in units:
        unit["above"] = [numbers[name] for name in unit["above"] if name in numbers]
        parent = unit.pop("parent", None)
        if parent in numbers:
            unit["parent"] = numbers[parent]
        # Only now: two names may look alike.
        unit["name"] = visible(unit["name"])
        for key in [key for key, value in unit.items() if value is None or value == []]:
            del unit[key]
    return {
        "run": _run(result, units, numbers),
        "units": units,
        "graph": _graph(result, numbers) if result.plan.unit_count <= _MOST_DRAWN else None,
    }


# -- units -----------------------------------------------------------------------------------------


def _units(result: Run) -> Iterator[dict[str, Any]]:
    """Yield every unit of the run, and then those of the runs inside it."""
    inside: list[tuple[str, str, Run]] = [("", "", result)]
    for within, prefix, run in inside:  # it grows
        offset = run._ledger.began - result._ledger.began
        critical = set(run.critical_path)
        for name, record in run.units.items():
            unit = _unit(run, name, record, offset)
            unit["name"] = prefix + name
            unit["above"] = [prefix + above for above in unit["above"]]
            unit["critical"] = 1 if name in critical and not prefix else None
            parent = _parent(run, name)
            if parent or prefix:
                unit["parent"] = prefix + parent if parent else within
            yield unit
        inside += [(prefix + name, prefix + start, it) for name, start, it in _nested(run)]


def _nested(run: Run) -> Iterator[tuple[str, str, Run]]:
    """Yield the runs inside a run: whose they are, what their units' names begin with, the run."""
    names = run._ledger.rows.names
    for unit, runs in run._ledger.nested.items():
        for count, nested in enumerate(runs, 1):
            again = "" if count == 1 else f"{count}/"
            yield names[unit], f"{names[unit]}/{again}", nested


def _unit(run: Run, name: str, record: UnitRecord, offset: float) -> dict[str, Any]:
    plan, usage = run.plan, record.usage
    number = plan.index.get(name)
    above = () if number is None else plan.edges_up[number]
    spans = [(_rounded(start + offset), _rounded(end + offset)) for start, end in run.spans(name)]
    has_value = record.state is UnitState.COMPLETED and name in run
    return {
        "state": record.state.value,
        "ran_on": record.ran_on,
        "attempts": record.attempts,
        "waited": None if record.waited is None else _rounded(record.waited),
        "held_by": None if record.held_by is None else visible(record.held_by),
        "spans": [(start, max(start, end)) for start, end in spans],
        "above": [plan.names[unit] for unit in above],
        "cause": None if record.cause is None else visible(record.cause),
        "error": None if record.error is None else _error(record.error),
        "value": visible(short_repr(record.result)) if has_value else None,
        "fallback": 1 if record.fallback_used else None,
        "note": None if number is None else visible(note_of(plan.handles[number])) or None,
        "pid": None if usage is None else usage.pid,
        "cpu": None if usage is None else _rounded(usage.cpu_time),
        "memory": None if usage is None else usage.peak_memory,
    }


def _parent(run: Run, name: str) -> str | None:
    """Return the map whose child a unit is."""
    if name in run.plan.index or not name.endswith("]"):
        return None
    return name[: name.rindex("[")]


def _rounded(moment: float) -> float:
    return round(moment, 7)


def short_repr(value: object) -> str:
    """Return the beginning of a value's repr, whatever its ``__repr__`` may do."""
    try:
        return shorten(_SHORT.repr(value), 240)
    except Exception:
        return f"<{type(value).__name__}: its __repr__ raised>"


def _error(error: BaseException) -> dict[str, str | None]:
    return {
        "type": visible(type(error).__name__),
        "message": _lines_visible(message_of(error)),
        "traceback": _lines_visible(_traceback(error)) or None,
    }


def _traceback(error: BaseException) -> str:
    """Return where it was raised: from the first frame that is not the engine's own."""
    told = getattr(error, "traceback", None)  # one that comes from a worker, or out of a file
    if isinstance(told, str) and told:
        return told.rstrip() if "\n" in told else ""  # without frames it says nothing new
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
        frames = frames.tb_next
    if frames is None and error.__cause__ is None and not hasattr(error, "__notes__"):
        return ""
    try:
        return "".join(traceback.format_exception(type(error), error, frames)).rstrip()
    except Exception:  # of a `__str__`, or of notes that are none
        return "(its traceback cannot be shown)"


def _lines_visible(text: str) -> str:
    return "\n".join(visible(line.expandtabs(4)) for line in text.split("\n"))


# -- the run ---------------------------------------------------------------------------------------


def _run(result: Run, units: Sequence[dict[str, Any]], numbers: dict[str, int]) -> dict[str, Any]:
    duration = max(0.0, result.duration)
    own = [unit for unit in units if unit.get("ran_on") not in _HOLDERS]
    spans = [span for unit in own for span in unit.get("spans", ())]
    busy = sum(end - start for start, end in spans)
    tiles = [
        (seconds(duration), "from start to end"),
        (f"{len(units):,}", "unit" if len(units) == 1 else "units"),
        (str(_peak(spans)), "at once at most"),
    ]
    if duration > 0:
        tiles.append((f"{busy / duration:.1f}", "at once on average"))
    return {
        "id": visible(result.run_id),
        "title": visible(result.run_id),
        "state": run_state(result).value,
        "began": result.metrics["start_time"],
        "duration": duration,
        "tiles": tiles,
        "sentences": list(_sentences(result, units, numbers)),
    }


def run_state(result: Run) -> UnitState:
    """Return in one word how a run went: the worst that its units tell, unless it is ok."""
    if result.ok:
        return UnitState.COMPLETED
    found = set(result.states.values())
    worst = (UnitState.RUNNING, UnitState.FAILED, UnitState.TIMEOUT, UnitState.CANCELED)
    return next((state for state in worst if state in found), UnitState.PENDING)


def _sentences(
    result: Run, units: Sequence[dict[str, Any]], numbers: dict[str, int]
) -> Iterator[tuple[str] | tuple[str, int]]:
    """Yield what is worth knowing first, each with the unit that it is about, if any."""
    failed = sorted(result.errors, key=lambda name: result.units[name].ended_at or 0.0)
    if failed:
        first, error = failed[0], result.errors[failed[0]]
        lost = Counter(result.roots.values())[first]
        told = f"; {counted(lost, 'unit')} skipped because of it" if lost else ""
        more = f"; {len(failed) - 1} more failed" if len(failed) > 1 else ""
        said = shorten(visible(f"{first} failed first: {described(error)}"), 220)
        yield said + told + more, numbers[first]
    path = [result.units[name].duration or 0.0 for name in result.critical_path]
    if path and result.duration > 0:
        share = min(1.0, sum(path) / result.duration)
        yield (
            f"{share:.0%} of the time went by on {counted(len(path), 'unit')} of the critical path",
        )
    lost_time = sum(unit["spans"][-1][0] - unit["spans"][0][0] for unit in units if "spans" in unit)
    if lost_time > 0:
        extra = sum(unit["attempts"] - 1 for unit in units if unit["attempts"] > 1)
        again = "further attempt" if extra == 1 else "further attempts"
        yield (f"{seconds(lost_time)} went by before {extra} {again}",)


def _peak(spans: Sequence[tuple[float, float]]) -> int:
    """Return how many spans there were at once, at most."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


# -- the graph -------------------------------------------------------------------------------------


def _graph(result: Run, numbers: dict[str, int]) -> dict[str, Any]:
    """Return where each unit of the plan is drawn, and each line."""
    plan = result.plan
    drawing = drawing_of(plan, result)
    names = [shorten(visible(name), _ROOM) for name in plan.names]
    widths = [max(110, round(cells(name) * 7.3) + 44) for name in names]
    layout = lay_out(drawing, widths, _BOX_HEIGHT)
    critical = drawing.critical_edges()
    return {
        "names": names,
        "units": [numbers.get(name) for name in plan.names],
        "spans": layout.spans,
        "level": layout.level,
        "y": layout.y,
        "lines": [
            (source, node, heights, 1) if (source, node) in critical else (source, node, heights)
            for (source, node), heights in layout.lines.items()
        ],
        "width": layout.width,
        "bottom": layout.height,
        "height": _BOX_HEIGHT,
    }


def drawing_of(plan: ExecutionPlan, result: Run) -> Drawing:
    """Return a plan as a drawing, with the states and the times of a run."""
    states = {plan.index[name]: s.value for name, s in result.states.items() if name in plan.index}
    took = {n: result.units[plan.names[n]].duration for n in states}
    return Drawing(
        names=plan.names,
        dependencies=plan.edges_up,
        levels=plan.rows,
        critical=frozenset(plan.index[name] for name in result.critical_path),
        notes={n: seconds(value) for n, value in took.items() if value is not None},
        states=states,
    )
