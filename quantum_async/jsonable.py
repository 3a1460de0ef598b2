"""Values, errors and files as JSON: without pickle, without loss that is not told."""

import json
import math
import os
import reprlib
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantum_async.core.errors import QuantumError, message_of
from quantum_async.core.record import SavedValue

_DEEPEST = 100  # levels of lists and dictionaries
_MOST_DIGITS = 4000  # of a whole number: Python refuses to read longer ones
_MOST_TRACEBACK = 20_000  # characters

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 200
_short.maxlist = _short.maxtuple = _short.maxset = _short.maxdict = 10


class RecordedError(QuantumError):
    """Stands in a loaded result for an exception of the run; its type has the same name.

    Attributes:
        traceback: The traceback as text.
    """

    traceback: str = ""


def packed(value: Any) -> dict[str, Any]:
    """Return a value as ``{"value": …}``, or, if JSON cannot hold it, as its type and short repr.

    Tuples are held as lists. Keys must be strings, and numbers finite.
    """
    if isinstance(value, SavedValue):
        return {"type": value.type, "repr": value.text}
    if _is_json(value, _DEEPEST):
        return {"value": value}
    return {"type": _name(type(value)), "repr": _short_repr(value)}


def unpacked(told: dict[str, Any]) -> Any:
    """Return what `packed` was given, or a `SavedValue` that stands for it."""
    return told["value"] if "value" in told else SavedValue(told["type"], told["repr"])


def _is_json(value: Any, deeper: int) -> bool:
    # Subclasses are others: an IntEnum would come back as a number.
    kind = type(value)
    if value is None or kind in (bool, str):
        return True
    if kind is int:
        return bool(value.bit_length() < _MOST_DIGITS * 3)
    if kind is float:
        return math.isfinite(value)
    if not deeper:  # a circle, perhaps
        return False
    if kind in (list, tuple):
        return all(_is_json(item, deeper - 1) for item in value)
    if kind is dict:
        return all(type(k) is str and _is_json(it, deeper - 1) for k, it in value.items())
    return False


def _short_repr(value: Any) -> str:
    try:
        text = _short.repr(value)
    except Exception as error:
        text = f"<its repr raised {type(error).__name__}>"
    return text if len(text) <= 1000 else text[:1000] + "…"


def _name(kind: type) -> str:
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def packed_error(error: BaseException) -> dict[str, Any]:
    """Return an exception as type, message, notes and traceback text."""
    told = {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "message": message_of(error),
        "notes": _notes(error),
        "traceback": _traceback(error),
    }
    return {key: value for key, value in told.items() if value}


def _notes(error: BaseException) -> list[str]:
    try:
        return [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    except Exception:  # a property of the user's raised, or gave what cannot be iterated over
        return []


def _traceback(error: BaseException) -> str:
    if isinstance(error, RecordedError):
        return error.traceback
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # methods of the user's raised
        return ""
    if len(text) <= _MOST_TRACEBACK:
        return text
    half = _MOST_TRACEBACK // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def unpacked_error(told: dict[str, Any]) -> BaseException:
    """Return an exception that has the type name, message and notes of the one that was packed."""
    made = {"__module__": told.get("module", ""), "__doc__": "An exception of a saved run."}
    error: RecordedError = type(told["type"], (RecordedError,), made)(told.get("message", ""))
    error.traceback = told.get("traceback", "")
    for note in told.get("notes", ()):
        error.add_note(note)
    return error


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write a JSON file in one piece: what was there before is replaced, or stays whole.

    Raises:
        OSError: If it cannot be written; the message names the path.
    """
    target = Path(path)
    # Plain ASCII: whatever characters names have, lone surrogates too.
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    if target.exists() and not target.is_file():  # a pipe or a device; of a folder, open complains
        target.write_text(text, encoding="ascii")
        return
    part = target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="ascii")
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        why = error.strerror or type(error).__name__
        raise type(error)(error.errno, f"cannot write the file: {why}", str(target)) from None
