"""A run as a picture in plain text: a row a unit, time from left to right.

For assertion errors and test reports, so it needs no more than a fixed-width font: ``=`` runs,
``.`` waits for a slot, ``~`` backs off, ``x`` is where an attempt ended without a result, ``|``
took no time that could be drawn.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from quantum_async.core.binding import Handle
from quantum_async.core.errors import described
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState
from quantum_async.result import RunResult

RUNS, WAITS, BACKS_OFF, LOST, INSTANT = "=.~x|"

_LEAST_WIDTH, _LEAST_BAR, _LEAST_NAME = 40, 10, 6
_WORST_FIRST = (
    UnitState.FAILED,
    UnitState.TIMEOUT,
    UnitState.CANCELED,
    UnitState.RUNNING,
    UnitState.SKIPPED,
)
_NO_RESULT = (UnitState.FAILED, UnitState.TIMEOUT, UnitState.CANCELED)


def timeline(
    result: RunResult,
    width: int = 80,
    *,
    rows: int = 40,
    show: Iterable[str | Handle] = (),
) -> str:
    """Draw a run as text.

    Units are in plan order. Of a run with more than `rows` of them, those that did not go well are
    drawn first, and the rest is counted. The same result gives the same text.

    Args:
        result: The run.
        width: Characters a line has at most, from 40 up.
        rows: Units that are drawn.
        show: Units that are drawn in any case.

    Raises:
        ValueError: If it is to be narrower than 40 characters, or to have no rows.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit
        ... async def a(): ...
        >>> result = asyncio.run(flow.run())
        >>> print(timeline(result, 50))  # doctest: +SKIP
        1 unit in 0.1 ms: 1 completed
            0 ms                         0.1 ms
        a   ================================ completed
    """
    if width < _LEAST_WIDTH or rows < 1:
        raise ValueError(f"a timeline has at least {_LEAST_WIDTH} columns and 1 row")
    records = list(result.units.values())
    shown = _chosen(records, rows, {it.id if isinstance(it, Handle) else it for it in show})
    lines = [_headline(records, result.duration)]
    if shown:
        lines += _picture(result, shown, width)
    if len(shown) < len(records):
        names = {record.name for record in shown}
        left = [record for record in records if record.name not in names]
        lines.append(f"… and {_counted(left)}")
    return "\n".join(_cut(line, width) for line in lines)


def _chosen(records: Sequence[UnitRecord], rows: int, show: set[str]) -> list[UnitRecord]:
    if len(records) <= rows:
        return list(records)
    worst = {state: place for place, state in enumerate(_WORST_FIRST)}

    def urgency(place: int) -> tuple[bool, int, int]:
        record = records[place]
        return record.name not in show, worst.get(record.state, len(worst)), place

    first = sorted(range(len(records)), key=urgency)
    wanted = max(rows, sum(record.name in show for record in records))
    return [records[place] for place in sorted(first[:wanted])]


def _headline(records: Sequence[UnitRecord], duration: float) -> str:
    units = "1 unit" if len(records) == 1 else f"{len(records)} units"
    counted = _counted(records, noun=False) or "nothing to do"
    return f"{units} in {_seconds(duration, duration)}: {counted}"


def _counted(records: Sequence[UnitRecord], *, noun: bool = True) -> str:
    counts = Counter(record.state for record in records)
    told = ", ".join(f"{counts[state]} {state.value}" for state in UnitState if counts[state])
    return f"{len(records)} more: {told}" if noun else told


def _picture(result: RunResult, shown: Sequence[UnitRecord], width: int) -> list[str]:
    ends = [_end(record) for record in shown]
    names = [_printable(record.name) for record in shown]
    longest = max(map(len, names))
    right = max(len(end) if it.attempts else 0 for it, end in zip(shown, ends, strict=True))
    # The bars get what is left; if that is too little, names are cut.
    least = min(longest, max(_LEAST_NAME, width // 4))
    left = max(least, min(longest, width - right - 40))
    bar = max(_LEAST_BAR, width - left - right - 4)
    scale = _Scale(result.duration, bar)
    lines = [f"{'':{left}}  {scale.axis()}"]
    for record, name, end in zip(shown, names, ends, strict=True):
        head = f"{_cut(name, left):{left}}  "
        if record.attempts:
            waited = record.waited or 0.0
            drawn = scale.bar(result.spans(record.name), waited, record.state in _NO_RESULT)
            lines.append(f"{head}{drawn:{bar}}  {end}".rstrip())
            lines += [f"{'':{left}}  {why}" for why in _why(record)]
        else:
            lines.append(head + "; ".join([end, *_why(record)]))
    return lines


class _Scale:
    """Turns seconds since the run's start into columns.

    Args:
        duration: Seconds that the whole width stands for.
        width: Columns.
    """

    def __init__(self, duration: float, width: int) -> None:
        self._duration = duration
        self._width = width

    def column(self, moment: float) -> int:
        if self._duration <= 0:
            return 0
        return max(0, min(self._width, int(moment / self._duration * self._width + 1e-9)))

    def axis(self) -> str:
        first, last = _seconds(0.0, self._duration), _seconds(self._duration, self._duration)
        return first + last.rjust(self._width - len(first))

    def bar(self, spans: Sequence[tuple[float, float]], waited: float, lost: bool) -> str:
        """Draw the attempts of one unit.

        Args:
            spans: From when to when each one ran.
            waited: Seconds before the first.
            lost: Whether the last one ended without a result.
        """
        cells = [" "] * self._width
        self._fill(cells, spans[0][0] - waited, spans[0][0], WAITS)
        for (_, end), (start, _) in pairwise(spans):
            self._fill(cells, end, start, BACKS_OFF)
        for number, (start, end) in enumerate(spans, 1):
            first = min(self.column(start), self._width - 1)
            after = max(self.column(end), first + 1)
            instant = self.column(start) == self.column(end)
            cells[first:after] = (INSTANT if instant else RUNS) * (after - first)
            if lost or number < len(spans):
                cells[after - 1] = LOST
        return "".join(cells).rstrip()

    def _fill(self, cells: list[str], start: float, end: float, mark: str) -> None:
        first, after = self.column(start), self.column(end)
        cells[first:after] = mark * (after - first)


def _end(record: UnitRecord) -> str:
    told = [record.state.value]
    if record.fallback_used:
        told.append("fallback")
    if record.ran_on in ("given", "cache"):
        told.append(record.ran_on)
    if record.attempts > 1:
        told.append(f"{record.attempts} attempts")
    return ", ".join(told)


def _why(record: UnitRecord) -> list[str]:
    """Return why a unit ended as it did, where its state does not say it."""
    told = []
    if record.error is not None and record.state is not UnitState.SKIPPED:
        told.append(_printable(described(record.error)))
    if record.cause is not None:
        told.append(_printable(record.cause))
    return told


def _seconds(value: float, whole: float) -> str:
    """Return a time in the unit that suits the whole run."""
    if whole >= 1 or not whole:
        return f"{value:.4g} s"
    return f"{value * 1e3:.4g} ms" if whole >= 1e-3 else f"{value * 1e6:.4g} µs"


def _printable(text: str) -> str:
    """Return a text that stays on its line."""
    return text if text.isprintable() else repr(text)[1:-1]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
