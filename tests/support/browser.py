"""A real browser without a window, where there is one."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or "CI" in os.environ, reason="needs Debian's chromium, and not in CI"
)


class Page(HTMLParser):
    """A page as the browser had it after its scripts ran.

    Attributes:
        elements: Each element's tag with its attributes, in order.
        texts: Each element's own text, in order, with the id or class that it stands in.
        console: What the page said on the console.
    """

    def __init__(self, dom: str, console: list[str]) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.console = console
        self._raw = ""
        self.feed(dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        """All that can be read."""
        return "\n".join(self.texts)

    @property
    def is_ready(self) -> bool:
        """Whether the page's script came to its end."""
        return self.elements[0][1].get("data-ready") == "yes"


def opened(file: Path, fragment: str = "", *, profile: Path) -> Page:
    """Open a file in the browser, and return what the page became."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--no-first-run", f"--user-data-dir={profile}", "--window-size=1360,820"]
    done = subprocess.run(
        [CHROMIUM, *options, "--enable-logging=stderr", "--dump-dom", f"{file.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return Page(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])
