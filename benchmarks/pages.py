"""Tables in a page of the documentation, between two comments."""

import re
from pathlib import Path


def put(page: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- MARK:begin -->`` and ``<!-- MARK:end -->``.

    Headings are put one level deeper, below that of the section they stand in.

    Args:
        page: The page, in Markdown.
        mark: Which place of it.
        text: The tables.

    Raises:
        ValueError: The page has no such place.
    """
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no {begin} … {end}")
    deeper = re.sub(r"^#", "##", text.strip(), flags=re.MULTILINE)
    page.write_text(f"{before}{begin}\n{deeper}\n{end}{after}", encoding="utf-8")
