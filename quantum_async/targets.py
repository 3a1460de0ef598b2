"""From words of the command line to the things they name: ``module:flow``, an input, a duration."""

import importlib
import json
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from quantum_async.core.errors import QuantumError, described, did_you_mean
from quantum_async.partitioner import QuantumPartitioner

__all__ = ["TargetError", "find_flow", "numbers", "pairs", "read_input"]

Flow = QuantumPartitioner[Any, Any]


class TargetError(QuantumError):
    """What a command line names is not there, or is something else."""


def find_flow(target: str) -> Flow:
    """Return the partitioner that a target names.

    Args:
        target: ``module:flow`` or ``folder/file.py:flow``. The attribute may have dots, and may be
            a function without parameters that returns a partitioner; without one, the module's
            only partitioner is meant. Modules of the current folder are found.

    Raises:
        TargetError: If there is no such module or attribute (the message has the nearest name),
            if the module cannot be imported (`__cause__` says why), or if it is no partitioner.

    Example:
        >>> find_flow("quantum_async.targets:nothing")
        Traceback (most recent call last):
        ...
        quantum_async.targets.TargetError: module 'quantum_async.targets' has no 'nothing'
    """
    place, _, attribute = target.partition(":")
    if not place:
        raise TargetError(f"{target!r} names no module: write module:flow, or folder/file.py:flow")
    module = _from_file(place) if place.endswith(".py") else _module(place)
    if not attribute:
        return _only_flow(module)
    found: Any = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            what = f"module {found.__name__!r}" if found is module else repr(attribute)
            flows = [key for key, value in vars(module).items() if _is_flow(value)]
            near = did_you_mean(name, [*flows, *dir(found)])
            raise TargetError(f"{what} has no {name!r}{near}")
        found = getattr(found, name)
    return _as_flow(found, target)


def _is_flow(value: object) -> bool:
    return isinstance(value, QuantumPartitioner)


def _as_flow(found: Any, target: str) -> Flow:
    if callable(found) and not _is_flow(found):
        try:
            found = found()
        except Exception as error:
            raise TargetError(f"calling {target!r} failed: {described(error)}") from error
    if not _is_flow(found):
        raise TargetError(
            f"{target!r} is a {type(found).__name__}, and not a QuantumPartitioner or a function "
            "that returns one"
        )
    flow: Flow = found
    return flow


def _only_flow(module: ModuleType) -> Flow:
    flows = {name: value for name, value in vars(module).items() if _is_flow(value)}
    if len({id(flow) for flow in flows.values()}) == 1:
        return next(iter(flows.values()))
    if flows:
        raise TargetError(
            f"module {module.__name__!r} has {len(flows)} partitioners, so say which: "
            + ", ".join(f"{module.__name__}:{name}" for name in flows)
        )
    raise TargetError(f"module {module.__name__!r} has no QuantumPartitioner: write module:flow")


def _from_file(place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        files = (it.name for it in path.parent.glob("*.py")) if path.parent.is_dir() else ()
        raise TargetError(f"there is no file {place!r}{did_you_mean(path.name, files)}")
    # By its name, so that worker processes find its functions by that.
    _look_in(path.parent)
    module = _module(path.stem)
    if module.__file__ is None or Path(module.__file__).resolve() != path:
        raise TargetError(
            f"{place!r} has the name of another module, which is at {module.__file__}: rename it"
        )
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def _module(name: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            near = did_you_mean(missing.rpartition(".")[2], _siblings(missing))
            raise TargetError(f"there is no module {missing!r}{near}") from None
        raise TargetError(f"importing {name!r} failed: {described(error)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"importing {name!r} failed: {described(error)}") from error


def _siblings(missing: str) -> Iterable[str]:
    """Return the names of the modules beside one that is missing."""
    parent = missing.rpartition(".")[0]
    where = getattr(sys.modules.get(parent), "__path__", ()) if parent else [str(Path.cwd())]
    return [module.name for module in pkgutil.iter_modules(where)]


# -- inputs ----------------------------------------------------------------------------------------


def read_input(source: str | None, changes: Iterable[str] = ()) -> Any:
    """Return a run's input.

    Args:
        source: A JSON file, ``"-"`` for the standard input, or None for no input.
        changes: Keys to set, as ``key=value``; a value that is no JSON is text.

    Raises:
        TargetError: If it cannot be read, or is no JSON.
    """
    found = None if source is None else _read_json(source)
    changed = {key: _value(text) for key, text in pairs(changes, "--set").items()}
    if not changed:
        return found
    if found is not None and not isinstance(found, dict):
        raise TargetError(
            f"--set needs an input with keys, and {source!r} holds a {type(found).__name__}"
        )
    return {**(found or {}), **changed}


def _read_json(source: str) -> Any:
    where = "the standard input" if source == "-" else repr(source)
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise TargetError(f"the input {where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TargetError(f"the input {where} is no JSON: {error}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def pairs(words: Iterable[str], option: str) -> Mapping[str, str]:
    """Return words like ``name=value`` as a mapping.

    Raises:
        TargetError: If there is no ``=`` in one.
    """
    found = {}
    for word in words:
        # An input's value may have `=` in it, a unit's name too: but a duration never has.
        parts = word.partition("=") if option == "--set" else word.rpartition("=")
        if not parts[0] or not parts[1]:
            raise TargetError(f"{option} {word!r}: write it as name=value")
        found[parts[0]] = parts[2]
    return found


def numbers(words: Iterable[str], option: str) -> dict[str, float]:
    """Return words like ``unit=0.5`` as numbers by name.

    Raises:
        TargetError: If one is no number.
    """
    found = {}
    for name, text in pairs(words, option).items():
        try:
            found[name] = float(text)
        except ValueError:
            raise TargetError(f"{option} {name}={text}: {text!r} is no number") from None
    return found
