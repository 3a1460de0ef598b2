"""How a run shows in a notebook: as a picture and a table, made without any other program."""

from collections.abc import Iterator
from html import escape

from quantum_async.core.errors import described
from quantum_async.core.layout import shorten, visible
from quantum_async.core.plan import MOST_SHOWN
from quantum_async.core.record import UnitRecord
from quantum_async.core.render import render
from quantum_async.report import Run, drawing_of
from quantum_async.wording import seconds

_MOST_ROWS = 20


def shown(result: Run) -> dict[str, str]:
    """Return what a notebook may show of a run, by MIME type."""
    parts = [f"<p><b>{_text(repr(result)[1:-1])}</b></p>"]
    if result.plan.unit_count <= MOST_SHOWN:
        parts.append(render(drawing_of(result.plan, result), "svg"))
    parts += _table([record for record in result.units.values() if record.error or record.cause])
    return {"text/plain": repr(result), "text/html": "\n".join(parts)}


def _table(records: list[UnitRecord]) -> Iterator[str]:
    """Yield a table of the units of which there is something to say."""
    if not records:
        return
    heads = "".join(f"<th>{head}</th>" for head in ("unit", "state", "attempts", "took", "why"))
    yield f"<table><thead><tr>{heads}</tr></thead><tbody>"
    for record in records[:_MOST_ROWS]:
        why = record.cause if record.error is None else described(record.error)
        cells = [
            record.name,
            record.state.value,
            str(record.attempts or ""),
            "" if record.duration is None else seconds(record.duration),
            why or "",
        ]
        yield f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"
    yield "</tbody></table>"
    if len(records) > _MOST_ROWS:
        yield f"<p>… and {len(records) - _MOST_ROWS} more</p>"


def _text(text: str) -> str:
    return escape(shorten(visible(text), 200))
