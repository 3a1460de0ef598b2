"""Which file a worker was at: a worker that is killed can tell nobody.

The next attempt reads it, and leaves out the files that were the last to be begun.
"""

import os
from types import TracebackType
from typing import Self


class Diary:
    """A file with the paths that are to blame, one a line, and the one that is being read.

    Args:
        path: The file; it is made, and removed when the work is done.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.blamed: list[str] = []

    def __enter__(self) -> Self:
        # Something in it was begun and never ended.
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                self.blamed = [line.rstrip("\n") for line in file if line != "\n"]
        return self

    def begin(self, path: str) -> None:
        """Note that a file is begun; the one before has ended well then."""
        with open(self._path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in [*self.blamed, path])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None and os.path.exists(self._path):
            os.unlink(self._path)
