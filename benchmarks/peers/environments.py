"""An environment for each package: made when it is first needed, and kept while nothing changes."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

#: Below the current folder; `make clean` removes it.
FOLDER: Final = Path(".venv-peers")
_STAMP = ".installed"
_LIMIT = 900.0  # seconds that an installation may take


class Unavailable(Exception):  # noqa: N818 - it is a reason
    """An engine cannot be measured here; the message says why."""


def python_for(requires: Sequence[str], folder: Path = FOLDER) -> Path:
    """Return the Python that has what is required.

    Args:
        requires: Requirements as pip takes them, the first of them naming the environment. Without
            any, it is the Python that runs this.
        folder: Where the environments are.

    Raises:
        Unavailable: It cannot be installed.
    """
    if not requires:
        return Path(sys.executable)
    environment = (folder / package(requires[0])).absolute()
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = environment / _STAMP
    wanted = "\n".join([sys.version, *requires])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return python
    shutil.rmtree(environment, ignore_errors=True)
    print(f"installing: {', '.join(requires)}", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", str(environment)])
    # Only wheels: where there is none, that is the reason, and not a compiler's last words.
    options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    _call([str(python), "-m", "pip", "install", *options, *requires])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def package(requirement: str) -> str:
    """Return the name of what a requirement asks for.

    >>> package("langgraph>=1,<2")
    'langgraph'
    """
    found = re.match(r"[\w.-]+", requirement)
    if found is None:
        raise ValueError(f"{requirement!r} begins with no package's name")
    return found[0]


def _call(command: Sequence[str]) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"its installation took longer than {_LIMIT:g} s") from None
    if ended.returncode:
        lines = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines
        why = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {ended.returncode}"
        raise Unavailable(f"it cannot be installed: {why}")
