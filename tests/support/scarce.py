"""What limits say of a run, checked from its events alone."""

from collections.abc import Iterable, Mapping

from quantum_async import Limit
from quantum_async.core import events

_TINY = 1e-6


def passed(
    log: Iterable[events.Event],
    limits: Mapping[str, Limit],
    uses: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Return where limits were passed: in use at once, in any window, and beyond the burst.

    Args:
        log: The events of one or more runs, in order.
        limits: The limits by name.
        uses: What each unit uses, by name; children of maps use what their map does.
    """
    problems = []
    in_use = dict.fromkeys(limits, 0.0)
    running: dict[tuple[str, str], Mapping[str, float]] = {}
    starts: dict[str, list[tuple[float, float]]] = {name: [] for name in limits}
    for event in log:
        if not hasattr(event, "unit"):
            continue
        who = event.run_id, event.unit
        if isinstance(event, events.UnitStarted):
            needs = uses.get(event.unit.partition("[")[0], {})
            if event.where in {"map", "run", "race"}:
                continue
            running[who] = needs
            for name, tokens in needs.items():
                in_use[name] += tokens
                starts[name].append((event.time, tokens))
                most = limits[name].concurrency
                if most is not None and in_use[name] > most + _TINY:
                    problems.append(f"{in_use[name]} of {name!r} were in use at {event.time}")
        elif not isinstance(event, events.UnitReady | events.UnitEmitted):
            for name, tokens in running.pop(who, {}).items():
                in_use[name] -= tokens
    for name, limit in limits.items():
        if limit.rate is not None:
            problems += _beyond_rate(name, limit, starts[name])
    return problems


def _beyond_rate(name: str, limit: Limit, starts: list[tuple[float, float]]) -> Iterable[str]:
    assert limit.rate is not None
    burst = limit.rate if limit.burst is None else limit.burst
    for at, (first, _) in enumerate(starts):
        taken = 0.0
        for moment, tokens in starts[at:]:
            taken += tokens
            if moment < first + limit.per - _TINY and taken > limit.rate + _TINY:
                yield f"{taken} of {name!r} from {first} to {moment}"
            if taken > burst + (moment - first + _TINY) * limit.rate / limit.per + _TINY:
                yield f"a burst of {taken} of {name!r} from {first} to {moment}"
