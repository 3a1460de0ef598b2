"""Plans as text that can be kept beside a test, and looked at when it changes."""

import difflib
import os
import re
import textwrap
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from quantum_async.core.binding import ExactBinding, Handle, WiredBinding
from quantum_async.core.options import NO_FALLBACK
from quantum_async.core.plan import ExecutionPlan, Unit

UPDATE = "QUANTUM_UPDATE_SNAPSHOTS"  # the environment variable; "1" has files written

_LONGEST, _DEEPEST = 200, 6  # characters of a value, and containers in containers
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Planned(Protocol):
    """What has a plan: a partitioner."""

    def build_execution_plan(self) -> ExecutionPlan:
        """Return the plan."""
        ...


def plan_snapshot(flow: Planned | ExecutionPlan) -> str:
    """Return a plan as text: units in order of declaration, dependencies and options.

    The text is the same in every process. Functions are not in it, nor is what has its default
    value. The order is: where all else is equal, who was declared first starts first.

    Args:
        flow: A partitioner, or its plan.

    Raises:
        PlanError: If the partitioner has no plan because something is wrong.

    Example:
        >>> flow = QuantumPartitioner()
        >>> @flow.unit(timeout=5, retries=3)
        ... async def page(url): ...
        >>> @flow.unit(mode="process")
        ... def words(page): ...
        >>> print(plan_snapshot(flow))
        page
            timeout: 5
            retries: 3
            takes: url
        words <- page
            mode: process
    """
    plan = flow if isinstance(flow, ExecutionPlan) else flow.build_execution_plan()
    lines = []
    for name, unit, above in zip(plan.names, plan.handles, plan.edges_up, strict=True):
        after = ", ".join(_line(plan.names[number]) for number in above)
        lines.append(f"{_line(name)} <- {after}" if after else _line(name))
        lines += [f"    {option}: {told}" for option, told in _options(unit, plan)]
    return "\n".join(lines)


def assert_plan_matches(
    flow: Planned | ExecutionPlan,
    expected: str | PathLike[str],
    *,
    update: bool | None = None,
) -> None:
    """Compare a plan with what it was.

    Args:
        flow: A partitioner, or its plan.
        expected: The text that `plan_snapshot` gives (indentation of the whole does not matter),
            or a `pathlib.Path` of a file that has it.
        update: Whether the file is written instead; by default if the environment variable
            ``QUANTUM_UPDATE_SNAPSHOTS`` is ``1``. Nothing is ever written unasked.

    Raises:
        AssertionError: With a unified diff, or if there is no such file.
        ValueError: If a text is to be updated.
        PlanError: If the partitioner has no plan because something is wrong.
    """
    found = plan_snapshot(flow)
    if isinstance(expected, str):
        if update:
            raise ValueError("a text in the test cannot be updated: give a pathlib.Path of a file")
        _compare(textwrap.dedent(expected).strip("\n"), found, "the text", "")
        return
    path = Path(expected)
    if os.environ.get(UPDATE) == "1" if update is None else update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{found}\n", encoding="utf-8", newline="\n")
        return
    how = f"if the change is meant, run once with {UPDATE}=1 or update=True"
    if not path.exists():
        raise AssertionError(
            f"there is no snapshot {str(path)!r} yet: to write it, run once with {UPDATE}=1 or "
            f"update=True. It would be:\n\n{found}"
        )
    _compare(path.read_text(encoding="utf-8").strip("\n"), found, str(path), f"; {how}")


def _compare(expected: str, found: str, where: str, how: str) -> None:
    was, now = ([line.rstrip() for line in text.split("\n")] for text in (expected, found))
    if was == now:
        return
    diff = "\n".join(difflib.unified_diff(was, now, where, "the plan", lineterm=""))
    if not expected.count("\n") and expected.endswith((".txt", ".snap")):
        how = "; for a file, give a pathlib.Path"
    raise AssertionError(f"the plan is not what {where} says{how}:\n\n{diff}")


def _options(unit: Unit, plan: ExecutionPlan) -> list[tuple[str, str]]:
    """Return what was said of a unit, beside its function and dependencies."""
    options = unit.options
    said: list[tuple[str, str]] = []
    if options.mode is not None:
        said.append(("mode", options.mode.value))
    for name in ("timeout", "deadline", "retries"):
        if getattr(options, name):
            said.append((name, f"{getattr(options, name):g}"))
    if options.retry is not None and not options.retries:
        policy = options.retry
        said += [(f"retry.{it}", _shown(getattr(policy, it))) for it in ("stop", "wait", "retry")]
    if options.fallback is not NO_FALLBACK:
        said.append(("fallback", _shown(options.fallback)))
    for name in ("priority", "cost", "grace", "max_result_bytes"):
        if getattr(options, name):
            said.append((name, f"{getattr(options, name):.12g}"))
    if not options.batch:
        said.append(("batch", "False"))
    binding = options.binding
    if isinstance(binding, ExactBinding):
        said += [("args", _shown(binding.args))] if binding.args else []
        said += [("kwargs", _shown(binding.kwargs))] if binding.kwargs else []
    elif isinstance(binding, WiredBinding):
        keys = [name for name in binding.names if name not in plan.index]
        said += [("takes", ", ".join(keys))] if keys else []
    if unit.metadata:
        said.append(("metadata", _shown(unit.metadata)))
    return said


def _shown(value: Any) -> str:
    """Return a text of a value that is the same in every process."""
    text = _line(_stable(value, _DEEPEST))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _stable(value: Any, depth: int) -> str:
    if isinstance(value, Handle):
        return f"<{value.id}>"
    if not depth:
        return "…"
    if type(value) in (list, tuple):
        inside = ", ".join(_stable(item, depth - 1) for item in value)
        return f"[{inside}]" if type(value) is list else f"({inside})"
    if type(value) in (set, frozenset):
        # In an order that does not depend on hashes.
        return "{" + ", ".join(sorted(_stable(item, depth - 1) for item in value)) + "}"
    if type(value) is dict:
        pairs = (f"{_stable(key, depth)}: {_stable(value[key], depth - 1)}" for key in value)
        return f"{{{', '.join(pairs)}}}"
    named = getattr(value, "__qualname__", None)
    if isinstance(named, str):
        return named
    try:
        text = repr(value)
    except Exception:
        return type(value).__qualname__
    if not _ADDRESS.search(text):
        return text
    # Objects that show where they are say nothing else: tenacity's strategies, for example.
    inside = ", ".join(
        f"{name}={_stable(its, depth - 1)}" for name, its in sorted(_attributes(value).items())
    )
    return f"{type(value).__qualname__}({inside})"


def _attributes(value: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(value, "__dict__", {})
    return {
        name: its
        for name, its in found.items()
        if not name.startswith("_")
        and getattr(its, "__self__", None) is not value  # a method of its own
        and "<lambda>" not in getattr(its, "__qualname__", "")
    }


def _line(text: str) -> str:
    """Return a text that stays on its line."""
    return text if text.isprintable() else repr(text)[1:-1]
