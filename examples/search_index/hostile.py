"""A folder in which one file makes its parser hang and one makes it crash, and that parser.

CPython's own parser is too robust to show this with; other people's are not.
"""

import ast
import ctypes
import os

HANGS, CRASHES = b"# makes its parser hang\n", b"# makes its parser crash\n"


def parse(source: bytes) -> ast.Module:
    """Parse Python, and hang or crash where the source says so."""
    while source.startswith(HANGS):
        pass
    if source.startswith(CRASHES):
        ctypes.string_at(0)  # a segmentation fault, as from a faulty extension module
    return ast.parse(source)


def write_folder(folder: str, files: int = 40) -> None:
    """Write Python files, two of them hostile.

    Args:
        folder: Where; it exists.
        files: How many others.
    """
    sources = {
        f"module_{number}.py": f'"""Reads row {number} of a csv file."""\n'.encode()
        for number in range(files)
    }
    sources |= {"hangs.py": HANGS, "crashes.py": CRASHES}
    for name, source in sources.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(source)
