"""What numbers may be; refusals name the unit and the option."""

import math
from sys import float_info
from typing import Any

from quantum_async.core.errors import PlanError


def check_number(unit: str, option: str, value: Any, *, least: float = 0.0) -> None:
    """Refuse what is not a number, NaN, and less than `least`.

    Raises:
        PlanError: Naming the unit (or, if `unit` is empty, the option alone).
    """
    if value is None:
        return
    whose = f"unit {unit!r}: " if unit else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{whose}{option} must be a number, not {value!r}")
    if isinstance(value, int) and abs(value) > float_info.max:
        raise PlanError(f"{whose}{option} is too large a number")
    if math.isnan(value) or value < least:
        raise PlanError(f"{whose}{option} must not be {'NaN' if value != value else 'negative'}")


def check_workers(count: Any) -> None:
    """Refuse what is no number of workers.

    Raises:
        PlanError: If it is neither None nor a whole number from 1 up.
    """
    check_count("max_workers", count)


def check_count(option: str, count: Any, unit: str = "") -> None:
    """Refuse what is neither None nor a whole number from 1 up.

    Raises:
        PlanError: Naming the option, and the unit if it is one's.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        whose = f"unit {unit!r}: " if unit else ""
        raise PlanError(f"{whose}{option} must be a whole number from 1 up, not {count!r}")
