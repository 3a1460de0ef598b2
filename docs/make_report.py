"""Make the pictures of `report.md` from a real run: needs Debian's chromium.

Run ``python docs/make_report.py``; it writes `report-timeline.png` and `report-graph.png`.
"""

import asyncio
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from quantum_async import QuantumPartitioner

DOCS = Path(__file__).parent
DOCUMENTS = 12
PICTURES = {
    "report-timeline.png": ("#tab=timeline", "1"),
    "report-graph.png": ("#tab=graph&unit=fetch 7", "0"),
}


def index() -> QuantumPartitioner[Any, Any]:
    """Return an index over documents: one is reset twice, one is broken, one takes too long."""
    flow: QuantumPartitioner[Any, Any] = QuantumPartitioner(max_workers=6, failure_policy="collect")
    chance = random.Random(3)

    @flow.unit
    async def settings() -> dict[str, str]:
        await asyncio.sleep(0.05)
        return {"language": "en"}

    @flow.unit
    async def sources() -> list[int]:
        await asyncio.sleep(0.02)
        return list(range(DOCUMENTS))

    for number in range(DOCUMENTS):
        _add_document(flow, number, chance)

    async def store(ctx: Any) -> int:
        await asyncio.sleep(0.08)
        return len(ctx.unit_results)

    whole = [f"embed {number}" for number in range(DOCUMENTS) if number != 7]
    flow.add_unit(store, whole, name="index")
    flow.add_unit(lambda ctx: "all of them", ["index", "embed 7"], name="report")
    return flow


def _add_document(flow: QuantumPartitioner[Any, Any], number: int, chance: random.Random) -> None:
    takes = chance.uniform(0.02, 0.09)

    async def fetch(ctx: Any) -> str:
        await asyncio.sleep(takes)
        if number == 4 and ctx.attempt < 3:
            raise ConnectionError("reset by peer")
        if number == 7:
            raise ValueError("not a document: <html> without a body")
        return f"text {number}"

    def clean(ctx: Any) -> int:
        time.sleep(0.01 + number * 0.003)
        return len(ctx[f"fetch {number}"])

    async def embed(ctx: Any) -> list[float]:
        await asyncio.sleep(0.5 if number == 9 else 0.03)
        return [0.1] * 300

    flow.add_unit(fetch, ["sources"], name=f"fetch {number}", retries=2 if number == 4 else 0)
    flow.add_unit(clean, [f"fetch {number}"], name=f"clean {number}")
    slow: dict[str, Any] = {"timeout": 0.3, "fallback": []} if number == 9 else {}
    flow.add_unit(embed, [f"clean {number}", "settings"], name=f"embed {number}", **slow)


def main() -> None:
    """Run, and take the pictures."""
    result = asyncio.run(index().run(run_id="index of 12 documents"))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "run.html"
        result.save_html(page)
        # Tracebacks have the paths of this machine.
        text = page.read_text(encoding="utf-8").replace(f"{DOCS.parent}/", "")
        page.write_text(text, encoding="utf-8")
        for name, (fragment, light) in PICTURES.items():
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            options += ["--window-size=1240,700", f"--user-data-dir={folder}/profile"]
            options += [f"--blink-settings=preferredColorScheme={light}"]
            address = page.as_uri() + fragment.replace(" ", "%20")
            command = ["chromium", *options, f"--screenshot={DOCS / name}", address]
            subprocess.run(command, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    main()
