"""Whether a unit reads a dependency as a stream: whether its code says ``ctx.stream(…)``.

Such a unit has to start with its dependency and not after it, so this must be known before the run.
It is read from the byte code of the unit's own function; a unit that passes its context to a helper
which calls `stream` says so with ``streams=[…]``.
"""

import dis
import types
from collections.abc import Callable, Iterator
from typing import Any

from quantum_async.core.binding import ContextBinding, WiredBinding
from quantum_async.core.unit import QuantumUnit

Unit = QuantumUnit[Any, Any]


def reads_as_stream(unit: Unit, source: Unit) -> bool:
    """Return whether a unit's function calls `stream` on its context, for this dependency."""
    code = getattr(unit.function, "__code__", None)
    binding = unit.options.binding
    if code is None or "stream" not in code.co_names:
        return False
    if isinstance(binding, ContextBinding):
        context = code.co_varnames[0] if code.co_argcount else None
    elif isinstance(binding, WiredBinding) and source.id not in binding.names:
        context = binding.context
    else:
        context = None
    if context is None:
        return False
    named = list(_arguments(code, context))
    handles = [_value(unit.function, name) for name in named if name is not None]
    return None in named or source.id in named or any(it is source for it in handles)


def _arguments(code: types.CodeType, context: str) -> Iterator[str | None]:
    """Yield what ``context.stream`` is called with: a text or a variable's name, else None."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in _NOISE]
    for before, step, after in zip(steps, steps[1:], steps[2:], strict=False):
        loaded = before.argval
        if isinstance(loaded, tuple):  # two loads in one instruction
            loaded = loaded[-1]
        if step.argval == "stream" and loaded == context:
            known = isinstance(after.argval, str) and after.opname.startswith("LOAD_")
            yield after.argval if known else None


_NOISE = {"PRECALL", "PUSH_NULL", "CACHE", "RESUME", "NOP"}


def _value(function: Callable[..., Any], name: str) -> object:
    """Return what a variable of a function's surroundings holds, None if it has no value yet."""
    code = function.__code__
    if name in code.co_freevars:
        cell = (function.__closure__ or ())[code.co_freevars.index(name)]
        try:
            return cell.cell_contents
        except ValueError:
            return None
    return function.__globals__.get(name)
