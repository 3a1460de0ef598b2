"""From a folder to documents: find the Python files, and read what each one says.

Two rules. A file that cannot be read or parsed is a `BrokenFile`, never an exception: one bad file
must not cost the other thousand. And nothing here recurses: source nested ten thousand deep meets
the parser's limit, not ours.
"""

import ast
import heapq
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from examples.search_index.diary import Diary

LEFT_OUT = frozenset({"site-packages", "__pycache__"})
LARGEST = (
    8 * 1024 * 1024
)  # bytes; a tree takes some 50 times its source, and nobody writes such a file by hand

_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_UNSTORABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read: its path below the root, as the system spells it, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A file that gave no document, and why not, in one line."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one folder, sorted by path, and what could not even be listed."""

    root: str
    files: tuple[SourceFile, ...]
    broken: tuple[BrokenFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring: the definition it belongs to (empty for the module), its line and its text."""

    name: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """What one file says: its docstrings, and how often its code uses each word."""

    path: str
    docstrings: tuple[Docstring, ...]
    words: Counter[str]


@dataclass(frozen=True, slots=True)
class ParsedBatch:
    """What one worker made of its share of the files."""

    documents: tuple[Document, ...]
    broken: tuple[BrokenFile, ...] = ()


class NoDocumentsError(ValueError):
    """The folder cannot be indexed: it is missing, no folder, or has no Python file."""


def check_folder(root: str) -> None:
    """Make sure that there is something to index, without listing all of it.

    Args:
        root: The folder.

    Raises:
        NoDocumentsError: `root` is not a folder, or holds no Python file that can be listed.
    """
    if not os.path.exists(root):
        raise NoDocumentsError(f"There is no folder {printable(root)}.")
    if not os.path.isdir(root):
        raise NoDocumentsError(f"{printable(root)} is a file; give the folder that holds it.")
    broken: list[BrokenFile] = []
    if next(_python_paths(root, broken), None) is None:
        why = f" ({broken[0].path}: {broken[0].reason})" if broken else ""
        raise NoDocumentsError(f"There is no Python file in {printable(root)}{why}.")


def list_files(root: str) -> Listing:
    """List every Python file below `root`, without following links to folders.

    Args:
        root: The folder. `site-packages` and `__pycache__` below it are left out.

    Raises:
        NoDocumentsError: `root` is not a folder, or holds no Python file that can be listed.
    """
    check_folder(root)
    files: list[SourceFile] = []
    broken: list[BrokenFile] = []
    for path in _python_paths(root, broken):
        try:
            files.append(SourceFile(path, os.stat(os.path.join(root, path)).st_size))
        except OSError as error:
            broken.append(BrokenFile(printable(path), _reason(error)))
    return Listing(root, tuple(sorted(files, key=lambda file: file.path)), tuple(broken))


def _python_paths(root: str, broken: list[BrokenFile]) -> Iterator[str]:
    def unlistable(error: OSError) -> None:
        folder = os.path.relpath(error.filename, root) if error.filename else root
        broken.append(BrokenFile(printable(folder), _reason(error)))

    for folder, folders, names in os.walk(root, onerror=unlistable):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in names:
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(folder, name), root)


def share(files: tuple[SourceFile, ...], batch: int, batches: int) -> list[SourceFile]:
    """Pick the files of one batch, so that all batches have about the same number of bytes.

    The largest file goes to the batch that is lightest so far (Graham's LPT rule), so every worker
    can work out its own share from the whole list and no two will disagree.

    Args:
        files: All files.
        batch: Which batch, from 0.
        batches: How many batches there are.
    """
    lightest = [(0, number) for number in range(batches)]
    mine: list[SourceFile] = []
    for file in sorted(files, key=lambda file: (-file.size, file.path)):
        weight, number = lightest[0]
        # An empty file costs a little, too; without the one, all of them would land in one batch.
        heapq.heapreplace(lightest, (weight + file.size + 1, number))
        if number == batch:
            mine.append(file)
    return mine


Parser = Callable[[bytes], ast.Module]


def parse_batch(
    listing: Listing, batch: int, batches: int, diary: str, parser: Parser = ast.parse
) -> ParsedBatch:
    """Parse one batch of the files; what is broken is listed beside what is not.

    So is, in a later attempt, the file at which the worker of an earlier one was when it died.

    Args:
        listing: All files.
        batch: Which batch, from 0.
        batches: How many batches there are.
        diary: Where it is noted which file is being parsed.
        parser: Parses the content of a file.
    """
    documents: list[Document] = []
    broken: list[BrokenFile] = []
    with Diary(diary) as noted:
        for file in share(listing.files, batch, batches):
            if file.path in noted.blamed:
                broken.append(BrokenFile(printable(file.path), "its parser hangs or crashes"))
                continue
            noted.begin(file.path)
            found = parse_file(listing.root, file.path, parser)
            if isinstance(found, Document):
                documents.append(found)
            else:
                broken.append(found)
    return ParsedBatch(tuple(documents), tuple(broken))


def broken_files(listing: Listing, batches: Iterable[ParsedBatch]) -> list[BrokenFile]:
    """Gather what is broken, sorted by path."""
    broken = [*listing.broken, *(file for batch in batches for file in batch.broken)]
    return sorted(broken, key=lambda file: file.path)


def parse_file(root: str, path: str, parser: Parser = ast.parse) -> Document | BrokenFile:
    """Read and parse one file.

    Args:
        root: The folder.
        path: The file's path below it.
        parser: Parses its content.
    """
    try:
        tree = _parse(_read(os.path.join(root, path)), parser)
    # MemoryError and RecursionError are how the parser says "nested too deep"; ValueError, on
    # 3.11, "a null byte".
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return BrokenFile(printable(path), _reason(error))
    return Document(printable(path), docstrings(tree), code_words(tree))


def _read(path: str) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > LARGEST:
            raise OSError(f"{status.st_size / 2**20:.0f} MiB is too large to parse")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    # A plain open of a named pipe called `x.py` would wait for its writer for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _parse(source: bytes, parser: Parser) -> ast.Module:
    with warnings.catch_warnings():
        # `"\d"` in somebody's file is no news for the user of the index.
        warnings.simplefilter("ignore")
        return parser(source)


def docstrings(tree: ast.Module) -> tuple[Docstring, ...]:
    """Collect the docstrings of a module and of all it defines, in the order of their lines."""
    found: list[Docstring] = []
    to_see: list[tuple[ast.AST, str]] = [(tree, "")]
    while to_see:
        node, name = to_see.pop()
        if isinstance(node, (ast.Module, *_DEFINITIONS)) and (text := ast.get_docstring(node)):
            found.append(Docstring(name, getattr(node, "lineno", 1), printable(text)))
        for child in _statements(node):
            inner = name
            if isinstance(child, _DEFINITIONS):
                inner = f"{name}.{child.name}" if name else child.name
            to_see.append((child, inner))
    return tuple(sorted(found, key=lambda docstring: (docstring.line, docstring.name)))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        inside = getattr(node, block, None)
        if isinstance(inside, list):  # the body of a lambda is an expression
            yield from inside


def code_words(tree: ast.AST) -> Counter[str]:
    """Count the words in the names that code uses and defines.

    `HTTPServer.max_age` has four: http, server, max and age.
    """
    names: list[str] = []
    to_see: list[ast.AST] = [tree]
    while to_see:
        node = to_see.pop()
        # Most nodes are one of these three; their contexts are not worth a step each.
        if isinstance(node, ast.Name):
            names.append(node.id)
        elif isinstance(node, ast.Attribute):
            names.append(node.attr)
            to_see.append(node.value)
        elif not isinstance(node, ast.Constant):
            if isinstance(node, _DEFINITIONS):
                names.append(node.name)
            elif isinstance(node, ast.arg):
                names.append(node.arg)
            _push_children(node, to_see)
    words: Counter[str] = Counter()
    for name, times in Counter(names).items():
        for word in split_name(name):
            words[word] += times
    return words


def _push_children(node: ast.AST, to_see: list[ast.AST]) -> None:
    for value in vars(node).values():
        if isinstance(value, list):
            to_see += [item for item in value if isinstance(item, ast.AST)]
        elif isinstance(value, ast.AST):
            to_see.append(value)


def split_name(name: str) -> tuple[str, ...]:
    """Split an identifier into its words, lower-case, leaving out those of one or two letters.

    Example:
        >>> split_name("HTTPServer_max_age2")
        ('http', 'server', 'max', 'age')
    """
    # The pattern knows the capitals of ASCII only; other names are split at their underscores.
    words = _CAMEL.findall(name) if name.isascii() else name.split("_")
    return tuple(word.lower() for word in words if len(word) > 2)


def printable(text: str) -> str:
    """Replace what no database or terminal takes: lone surrogates and control characters."""
    return _UNSTORABLE.sub("\ufffd", text)


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError | MemoryError):
        return "nested too deep, or too large, for the parser"
    if isinstance(error, SyntaxError):
        text = f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    else:
        text = getattr(error, "strerror", None) or str(error)
    return printable(" ".join(text.split()))[:120]
