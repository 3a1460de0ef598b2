"""Engines in processes of their own, as we see them: ask, and wait for the answer."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.environments import Unavailable

#: Seconds that a case may take, or the start.
LIMIT: Final = 90.0
_ROOT = Path(__file__).parents[2]


class Child:
    """An engine that waits for cases.

    Attributes:
        versions: Versions of its packages.
        gone: Whether it answers no more.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.versions: Mapping[str, str] = {}
        self.gone = False

    async def ask(self, **case: Any) -> dict[str, Any]:
        """Send a case, and return the answer, which may be an ``error``.

        Raises:
            Unavailable: The process ended, or took too long and was killed.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # that it ended is seen when it should answer
            self._process.stdin.write(json.dumps(case).encode() + b"\n")
            await self._process.stdin.drain()
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            Unavailable: The process ended, or took too long and was killed.
        """
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), LIMIT)
        except TimeoutError:
            self.gone = True
            self.kill()
            raise Unavailable(f"it took longer than {LIMIT:g} s") from None
        if not line:
            self.gone = True
            code = await self._process.wait()
            raise Unavailable(f"its process ended with code {code}{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """Kill it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    async def end(self) -> None:
        """Let it end by itself, or kill it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 20)
        self.kill()
        await self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


@contextlib.asynccontextmanager
async def started(python: Path, engine: str, packages: Sequence[str] = ()) -> AsyncIterator[Child]:
    """Start an engine in a process, which ends with the block.

    Args:
        python: What to run it with.
        engine: Module and class.
        packages: Whose versions to ask for.

    Raises:
        Unavailable: It did not start.
    """
    # What engines leave behind in there is gone afterwards.
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        with log.open("wb") as errors:  # noqa: ASYNC230 - nobody waits meanwhile
            process = await asyncio.create_subprocess_exec(
                *(str(python), "-m", "benchmarks.peers.child", engine, *packages),
                cwd=_ROOT,
                env=_environment(folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=sys.platform != "win32",
            )
        child = Child(process, log)
        try:
            first = await child.answer()
            if "error" in first:
                raise Unavailable(f"it does not start: {first['error']}")
            child.versions = first["versions"]
            yield child
        finally:
            await child.end()


def _environment(folder: str) -> dict[str, str]:
    # The processes that an engine starts find the functions of `work` as well.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return kept | {"PYTHONPATH": str(_ROOT), "TMPDIR": folder}
