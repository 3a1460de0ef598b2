"""The phases of a unit inside a run, and which may follow which."""

from typing import Final

from quantum_async.core.states import UnitState

(
    WAITING, READY, RUNNING, BACKOFF, COMPLETED, FAILED, TIMEOUT, SKIPPED, CANCELED, OUTSIDE,
    OPENING, OPEN,
) = range(12)  # fmt: skip

PHASES: Final = (
    "waiting", "ready", "running", "backing off", "completed",
    "failed", "timed out", "skipped", "canceled", "outside the run", "opening", "open",
)  # fmt: skip

# Phases that are reached from each; what is missing is an end. The state diagram in
# docs/design.md is drawn from this table, and a test holds every step against it.
#
# OPENING: the driver looks at it (its condition, what it uses, its resources) before it is ready.
# OPEN: it goes on without a slot: a map, a nested run, a unit that waits for a nested run.
TRANSITIONS: Final = {
    WAITING: {READY, OPENING, SKIPPED, CANCELED},
    OPENING: {READY, OPEN, FAILED, SKIPPED, CANCELED},
    READY: {RUNNING, FAILED, TIMEOUT, CANCELED},
    RUNNING: {COMPLETED, FAILED, TIMEOUT, CANCELED, BACKOFF, OPEN},
    OPEN: {RUNNING, COMPLETED, FAILED, TIMEOUT, SKIPPED, CANCELED, BACKOFF},
    BACKOFF: {READY, TIMEOUT, CANCELED},
}

STATE_OF: Final = (
    UnitState.PENDING, UnitState.PENDING, UnitState.RUNNING, UnitState.PENDING,
    UnitState.COMPLETED, UnitState.FAILED, UnitState.TIMEOUT, UnitState.SKIPPED,
    UnitState.CANCELED, UnitState.PENDING, UnitState.PENDING, UnitState.RUNNING,
)  # fmt: skip

UNFINISHED: Final = (WAITING, OPENING, READY, RUNNING, OPEN, BACKOFF)
# What a cancelled run ends by itself; what runs or is open is ended by whoever drives it.
QUEUED: Final = (OPENING, READY, BACKOFF)
