"""The seed's metrics of a run's units: their times, and the trace of their starts and ends."""

from typing import Any

from quantum_async.core.errors import message_of
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState


def times_of(record: UnitRecord) -> dict[str, Any]:
    """Return when a unit began and ended, and its error."""
    times: dict[str, Any] = {
        "start": record.started_at,
        "end": record.ended_at,
        "duration": record.duration,
    }
    if record.error is not None:
        times["error"] = message_of(record.error)
    return times


def trace_of(records: list[UnitRecord]) -> list[dict[str, Any]]:
    """Return what happened to units, in order of time."""
    trace: list[dict[str, Any]] = []
    for record in records:
        if record.started_at is not None:
            trace.append({"event": "start", "unit": record.name, "time": record.started_at})
        if record.ended_at is None or record.state is UnitState.SKIPPED:
            continue
        entry = {"event": "complete", "unit": record.name, "time": record.ended_at}
        if record.state is not UnitState.COMPLETED:
            why = str(record.cause) if record.error is None else message_of(record.error)
            entry |= {"event": "error", "error": why}
        trace.append(entry)
    return sorted(trace, key=lambda entry: (entry["time"], entry["event"] == "start"))
