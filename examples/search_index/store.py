"""The index itself: one SQLite file with an FTS5 table, written whole or not at all."""

import contextlib
import os
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.search_index.documents import BrokenFile
from examples.search_index.passages import Chapter, Weights

APPLICATION_ID = 0x71617369  # "qasi": tells our files from those of other programs

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA journal_mode = OFF;  -- a file that nobody has seen yet needs no way back
PRAGMA synchronous = OFF;
CREATE VIRTUAL TABLE passage USING fts5(
    title, keywords, text, path UNINDEXED, line UNINDEXED, tokenize = 'porter unicode61'
);
CREATE TABLE broken (path TEXT NOT NULL, reason TEXT NOT NULL);
"""
# Found by trying: a word in the title says most, and the keywords, which all passages of a document
# share, should only tip the scales.
_SEARCH = """
SELECT path, line, title, text, -bm25(passage, 4.0, 1.0, 2.0) AS score
FROM passage WHERE passage MATCH ? ORDER BY score DESC, path, line LIMIT ?
"""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that answers a query; the higher the score, the better."""

    path: str
    line: int
    title: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Written:
    """What an index holds: its file, and how many documents, passages and bytes."""

    database: str
    documents: int
    passages: int
    size: int


class ForeignFileError(ValueError):
    """The file to write exists and is no index of ours, so it is left alone."""


def check_replaceable(database: str) -> None:
    """Make sure that writing the index to `database` destroys nothing.

    Args:
        database: The file that is going to be written.

    Raises:
        ForeignFileError: It is something other than an index, or its folder does not exist.
    """
    folder = os.path.dirname(os.path.abspath(database))
    if not os.path.isdir(folder):
        raise ForeignFileError(f"There is no folder {folder} to write the index to.")
    if os.path.exists(database) and not _is_ours(database):
        raise ForeignFileError(f"{database} exists and is no search index; it is left as it is.")


def _is_ours(database: str) -> bool:
    if not os.path.isfile(database):
        return False
    with open(database, "rb") as file:
        head = file.read(72)
    if not head:
        return True  # an empty file has nothing to lose
    # https://www.sqlite.org/fileformat2.html: the application id is the four bytes from 68.
    return head.startswith(b"SQLite format 3\0") and head[68:] == APPLICATION_ID.to_bytes(4, "big")


def write_index(
    database: str,
    weights: Weights,
    batches: Iterable[Iterable[Chapter]],
    broken: Iterable[BrokenFile] = (),
) -> Written:
    """Write a new index and put it in the place of the old one, if there is one.

    Readers see the old file until the new one is complete. When anything fails, the old one stays
    and nothing of the new one does.

    Args:
        database: The file to write.
        weights: Document frequencies, to choose the keywords of each document by.
        batches: The documents.
        broken: Files that gave no document; kept in the index, to tell why something is not found.
    """
    target = os.path.realpath(database)
    with _new_file_beside(target) as unfinished:
        with contextlib.closing(sqlite3.connect(unfinished)) as connection:
            connection.executescript(_SCHEMA)
            with connection:
                documents, passages = _insert(connection, weights, batches)
                connection.executemany(
                    "INSERT INTO broken VALUES (?, ?)",
                    ((file.path, file.reason) for file in broken),
                )
        size = os.path.getsize(unfinished)
        os.replace(unfinished, target)
    return Written(str(database), documents, passages, size)


@contextlib.contextmanager
def _new_file_beside(target: str) -> Iterator[str]:
    # In the same folder: a rename is only atomic within one file system. And not `mkstemp`, whose
    # files only their owner may read.
    folder, name = os.path.split(target)
    path = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield path
    finally:
        Path(path).unlink(
            missing_ok=True
        )  # missing when all went well: it has its real name by then


def _insert(
    connection: sqlite3.Connection, weights: Weights, batches: Iterable[Iterable[Chapter]]
) -> tuple[int, int]:
    documents = passages = 0
    for batch in batches:
        for chapter in batch:
            keywords = " ".join(weights.keywords(chapter.terms))
            connection.executemany(
                "INSERT INTO passage VALUES (?, ?, ?, ?, ?)",
                ((it.title, keywords, it.text, it.path, it.line) for it in chapter.passages),
            )
            documents += 1
            passages += len(chapter.passages)
    return documents, passages


def search(database: str, query: str, limit: int = 3) -> list[Hit]:
    """Find the passages that answer a query best, by bm25.

    Args:
        database: An index.
        query: Words in any order, never FTS5 syntax; passages with more and rarer ones come first.
        limit: At most so many.
    """
    words = _WORD.findall(query)
    if not words:
        return []
    # Quoted, so that NOT or NEAR in a question is a word like any other.
    match = " OR ".join(f'"{word}"' for word in words)
    location = f"{Path(database).absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(location, uri=True)) as connection:
        return [Hit(*row) for row in connection.execute(_SEARCH, (match, limit))]
