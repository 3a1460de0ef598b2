"""Results of a run that are still on a cluster: how they are fetched, and how they are let go."""

from collections.abc import Sequence
from typing import Any

from quantum_async.core.record import Elsewhere
from quantum_async.engine.executors.cluster import Failed
from quantum_async.engine.executors.references import RemoteValue, fetched
from quantum_async.engine.ledger import Ledger


async def fetch(values: Sequence[Any]) -> Any:
    """Return what a `RemoteValue` stands for, and all else as it is; of several, a list."""
    missing: dict[Any, list[RemoteValue]] = {}
    for value in values:
        if isinstance(value, RemoteValue) and not value.is_here:
            missing.setdefault(value.executor, []).append(value)
    for executor, wanted in missing.items():
        wanted = list(dict.fromkeys(wanted))
        for value, outcome in zip(wanted, await fetched(executor, wanted), strict=True):
            if isinstance(outcome, Failed):
                raise outcome.error
            value.arrived(outcome)
    here = [value.here() if isinstance(value, Elsewhere) else value for value in values]
    return here[0] if len(here) == 1 else here


def release(ledger: Ledger) -> None:
    """Let clusters forget all results that are still there, those of nested runs too."""
    for value in ledger.results:
        if isinstance(value, RemoteValue):
            value.release()
    for runs in ledger.nested.values():
        for run in runs:
            run.release()
