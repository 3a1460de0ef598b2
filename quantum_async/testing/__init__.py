"""A test kit for code that is built on quantum_async."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantum_async.testing.assertions import RunAssertions, assert_run
    from quantum_async.testing.clock import (
        DeadlockError,
        Jump,
        VirtualClock,
        VirtualTimeLoop,
        virtual_time,
    )
    from quantum_async.testing.doubles import run_unit, value
    from quantum_async.testing.explorer import Exploration, ExplorationError, explore
    from quantum_async.testing.faults import Faults, Fired, InjectedError
    from quantum_async.testing.laws import broken_laws
    from quantum_async.testing.leaks import Resources
    from quantum_async.testing.recorder import RunRecorder
    from quantum_async.testing.snapshots import assert_plan_matches, plan_snapshot
    from quantum_async.testing.timelines import timeline

__all__ = [
    "DeadlockError",
    "Exploration",
    "ExplorationError",
    "Faults",
    "Fired",
    "InjectedError",
    "Jump",
    "Resources",
    "RunAssertions",
    "RunRecorder",
    "VirtualClock",
    "VirtualTimeLoop",
    "assert_plan_matches",
    "assert_run",
    "broken_laws",
    "explore",
    "plan_snapshot",
    "run_unit",
    "timeline",
    "value",
    "virtual_time",
]

# As in the package itself: the plugin is loaded by every test run, and is not to cost anything.
_HOMES = {
    "assertions": ("RunAssertions", "assert_run"),
    "clock": ("DeadlockError", "Jump", "VirtualClock", "VirtualTimeLoop", "virtual_time"),
    "doubles": ("run_unit", "value"),
    "explorer": ("Exploration", "ExplorationError", "explore"),
    "faults": ("Faults", "Fired", "InjectedError"),
    "laws": ("broken_laws",),
    "leaks": ("Resources",),
    "recorder": ("RunRecorder",),
    "snapshots": ("assert_plan_matches", "plan_snapshot"),
    "timelines": ("timeline",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
