"""From documents to passages and terms: cut docstrings to a size one can show, and weigh words."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from examples.search_index.documents import Document, ParsedBatch

PASSAGE = 600  # characters: about what a reader takes in at one look
KEYWORDS = 12  # terms that stand for a whole document

_PARAGRAPHS = re.compile(r"\n\s*\n")
_WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a docstring, or an empty one for a document that has none."""

    path: str
    title: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Chapter:
    """One document made ready for the index: its passages and how often it uses each term."""

    path: str
    passages: tuple[Passage, ...]
    terms: Counter[str]


@dataclass(frozen=True, slots=True)
class Weights:
    """In how many of all documents each term stands."""

    documents: int
    frequency: Mapping[str, int]

    def weight(self, term: str) -> float:
        """Give the inverse document frequency: 0 for a term that stands everywhere."""
        return math.log((1 + self.documents) / (1 + self.frequency.get(term, 0)))

    def keywords(self, terms: Mapping[str, int], limit: int = KEYWORDS) -> list[str]:
        """Choose the terms that tell this document from the others, by tf-idf, the heaviest first.

        Args:
            terms: How often the document uses each term.
            limit: At most so many.
        """

        def heaviest_first(term: str) -> tuple[float, str]:
            return (-(1 + math.log(terms[term])) * self.weight(term), term)

        # A term of one document alone is most often a typing slip or a made-up test name.
        shared = (term for term in terms if self.frequency.get(term, 0) > 1 or self.documents < 10)
        return sorted(shared, key=heaviest_first)[:limit]


def chunk_batch(batch: ParsedBatch) -> tuple[Chapter, ...]:
    """Make the documents of one batch ready for the index.

    Args:
        batch: What a worker parsed.
    """
    return tuple(chunk(document) for document in batch.documents)


def chunk(document: Document) -> Chapter:
    """Cut one document's docstrings into passages, and count its terms in text and code."""
    module = module_name(document.path)
    passages: list[Passage] = []
    terms = Counter(document.words)
    for docstring in document.docstrings:
        title = f"{module}.{docstring.name}" if docstring.name else module
        terms.update(_words(docstring.text))
        passages.extend(
            Passage(document.path, title, docstring.line, text) for text in split(docstring.text)
        )
    if not passages:  # so that its code words can still be found
        passages.append(Passage(document.path, module, 1, ""))
    return Chapter(document.path, tuple(passages), terms)


def weigh(*batches: Iterable[Chapter]) -> Weights:
    """Count, over all batches, in how many documents each term stands."""
    documents = 0
    frequency: Counter[str] = Counter()
    for batch in batches:
        for chapter in batch:
            documents += 1
            frequency.update(chapter.terms.keys())
    return Weights(documents, frequency)


def module_name(path: str) -> str:
    """Turn a path into the name it is imported by.

    Example:
        >>> module_name("asyncio/__init__.py"), module_name("os.py")
        ('asyncio', 'os')
    """
    name = path.removesuffix(".py").replace("\\", "/").replace("/", ".")
    return name.removesuffix(".__init__")


def split(text: str, size: int = PASSAGE) -> list[str]:
    """Cut a text into passages: at blank lines if that fits, else at line ends, else at blanks.

    Args:
        text: The text.
        size: At most so many characters a passage.
    """
    passages: list[str] = []
    for piece in _pieces(text, size):
        if passages and len(passages[-1]) + len(piece) + 2 <= size:
            passages[-1] += f"\n\n{piece}"
        else:
            passages.append(piece)
    return passages


def _pieces(text: str, size: int) -> Iterator[str]:
    for paragraph in _PARAGRAPHS.split(text):
        rest = paragraph.strip()
        while len(rest) > size:
            cut = max(rest.rfind("\n", 0, size), 0) or max(rest.rfind(" ", 0, size), 0) or size
            yield rest[:cut].rstrip()
            rest = rest[cut:].lstrip()
        if rest:
            yield rest


def _words(text: str) -> Iterator[str]:
    return (word.lower() for word in _WORD.findall(text))
