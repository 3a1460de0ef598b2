"""The main job, part by part and then whole."""

import ast
import io
import os
import pickle
import sqlite3
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.search_index import __main__ as command
from examples.search_index import documents, passages, pipeline, report, store
from examples.search_index.documents import (
    BrokenFile,
    Docstring,
    Document,
    Listing,
    NoDocumentsError,
    ParsedBatch,
    SourceFile,
)
from examples.search_index.passages import Chapter, Passage, Weights
from examples.search_index.progress import Progress, one_line, status_line
from quantum_async import ExecutionError
from quantum_async.core import events
from quantum_async.core.record import UnitRecord
from quantum_async.core.states import UnitState

pytestmark = pytest.mark.usefixtures("unmeasured")

REPOSITORY = Path(__file__).parents[2]

GOOD = '''\
"""Counting sheep, slowly."""

class SheepCounter:
    """Counts sheep until it sleeps."""

    def next_sheep(self, fence):
        """Let one more sheep jump over the fence."""
        return fence.jump_height
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good files, one in a package."""
    root = tmp_path / "source"
    (root / "farm").mkdir(parents=True)
    (root / "sheep.py").write_text(GOOD)
    (root / "farm" / "__init__.py").write_text('"""A farm with a windmill."""\n')
    return root


# -- finding files ------------------------------------------------------------------------------


def test_files_are_listed_by_path_with_their_sizes(folder: Path) -> None:
    listing = documents.list_files(str(folder))
    assert listing.files == (
        SourceFile(os.path.join("farm", "__init__.py"), 30),
        SourceFile("sheep.py", len(GOOD)),
    )
    assert listing.broken == ()


def test_site_packages_caches_and_other_files_are_left_out(folder: Path) -> None:
    for name in ("site-packages", "__pycache__"):
        (folder / "farm" / name).mkdir()
        (folder / "farm" / name / "x.py").write_text("")
    (folder / "README.txt").write_text("")
    (folder / "module.pyc").write_text("")
    assert len(documents.list_files(str(folder)).files) == 2


def test_a_folder_below_site_packages_can_itself_be_indexed(tmp_path: Path) -> None:
    root = tmp_path / "site-packages" / "thing"
    root.mkdir(parents=True)
    (root / "x.py").write_text("")
    assert len(documents.list_files(str(root)).files) == 1


def test_a_link_to_nowhere_is_broken_and_a_link_in_a_circle_ends(folder: Path) -> None:
    (folder / "gone.py").symlink_to(folder / "never")
    (folder / "farm" / "again").symlink_to(folder)
    listing = documents.list_files(str(folder))
    assert listing.broken == (BrokenFile("gone.py", "No such file or directory"),)
    assert len(listing.files) == 2


def test_a_folder_that_cannot_be_listed_is_broken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("farm"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert documents.list_files(str(folder)).broken == (BrokenFile("farm", "Permission denied"),)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("missing", "There is no folder {}."),
        ("source/sheep.py", "{} is a file; give the folder that holds it."),
        ("empty", "There is no Python file in {}."),
    ],
)
def test_what_is_no_folder_of_python_files_is_refused(
    folder: Path, tmp_path: Path, path: str, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    root = str(tmp_path / path)
    with pytest.raises(NoDocumentsError) as caught:
        documents.check_folder(root)
    assert str(caught.value) == sentence.format(root)
    with pytest.raises(NoDocumentsError):
        documents.list_files(root)


# -- sharing them out ---------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 10_000), max_size=60)


@given(sizes, st.integers(1, 9))
def test_every_file_is_in_exactly_one_batch(sizes: list[int], batches: int) -> None:
    files = tuple(SourceFile(f"{n}.py", size) for n, size in enumerate(sizes))
    shares = [documents.share(files, batch, batches) for batch in range(batches)]
    assert Counter(file for share in shares for file in share) == Counter(files)


@given(sizes, st.integers(1, 9))
def test_no_two_batches_differ_by_more_than_the_largest_file(
    sizes: list[int], batches: int
) -> None:
    files = tuple(SourceFile(f"{n}.py", size) for n, size in enumerate(sizes))
    weights = [
        sum(file.size + 1 for file in documents.share(files, batch, batches))
        for batch in range(batches)
    ]
    assert max(weights) - min(weights) <= max(sizes, default=0) + 1


def test_empty_files_are_spread_too() -> None:
    files = tuple(SourceFile(f"{n}.py", 0) for n in range(8))
    assert [len(documents.share(files, batch, 4)) for batch in range(4)] == [2, 2, 2, 2]


# -- reading one --------------------------------------------------------------------------------


def parsed(folder: Path, source: str | bytes) -> Document | BrokenFile:
    data = source.encode() if isinstance(source, str) else source
    (folder / "x.py").write_bytes(data)
    return documents.parse_file(str(folder), "x.py")


def test_a_file_gives_its_docstrings_and_code_words(folder: Path) -> None:
    assert documents.parse_file(str(folder), "sheep.py") == Document(
        "sheep.py",
        (
            Docstring("", 1, "Counting sheep, slowly."),
            Docstring("SheepCounter", 3, "Counts sheep until it sleeps."),
            Docstring("SheepCounter.next_sheep", 6, "Let one more sheep jump over the fence."),
        ),
        Counter(
            {"sheep": 2, "fence": 2, "counter": 1, "next": 1, "self": 1, "jump": 1, "height": 1}
        ),
    )


def test_docstrings_are_found_in_every_kind_of_block() -> None:
    source = """
try:
    def a(): 'in try'
except E:
    def b(): 'in except'
else:
    def c(): 'in else'
finally:
    async def d():
        'in finally'
        def inner(): 'in a function'
match x:
    case 1:
        class F: 'in case'
f = lambda: 'a body that is no block'
"""
    found = documents.docstrings(ast.parse(source))
    assert {it.name: it.text for it in found} == {
        "a": "in try",
        "b": "in except",
        "c": "in else",
        "d": "in finally",
        "d.inner": "in a function",
        "F": "in case",
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("HTTPServer_max_age2", ("http", "server", "max", "age")),
        ("__init__", ("init",)),
        ("x", ()),
        ("größe_maß", ("größe", "maß")),
        ("SCREAMING_CASE", ("screaming", "case")),
    ],
)
def test_names_are_split_into_words(name: str, words: tuple[str, ...]) -> None:
    assert documents.split_name(name) == words


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:", "line 1: invalid syntax"),
        (b'x = "\xff"', "codec can't decode byte 0xff"),
        (b"# coding: klingon\nx = 1", "unknown encoding: klingon"),
        (b"x = 1\0", "null bytes"),
        ("-" * 200_000 + "1", "nested too deep"),
        ("a" + ".b" * 200_000, "nested too deep"),
        ("(" * 1_000, "too many nested parentheses"),
        ("9" * 5_000, "line 1: Exceeds the limit"),
    ],
    ids=["syntax", "bytes", "coding", "null", "memory", "recursion", "parentheses", "digits"],
)
def test_a_broken_file_is_told_with_its_reason(
    folder: Path, source: str | bytes, reason: str
) -> None:
    found = parsed(folder, source)
    assert isinstance(found, BrokenFile)
    assert found.path == "x.py"
    assert reason in found.reason
    assert "\n" not in found.reason


def test_nesting_that_the_parser_takes_is_no_trouble_for_us(folder: Path) -> None:
    found = parsed(folder, "deepest" + ".b" * 900)
    assert isinstance(found, Document)
    assert found.words["deepest"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hold_the_job_up(folder: Path) -> None:
    os.mkfifo(folder / "pipe.py")
    assert documents.parse_file(str(folder), "pipe.py") == BrokenFile(
        "pipe.py", "not a regular file"
    )


def test_a_file_that_vanished_since_it_was_listed_is_broken(folder: Path) -> None:
    assert documents.parse_file(str(folder), "gone.py") == BrokenFile(
        "gone.py", "No such file or directory"
    )


def test_a_file_too_large_to_parse_is_broken(folder: Path) -> None:
    with (folder / "huge.py").open("wb") as file:
        file.truncate(documents.LARGEST + 1)
    assert documents.parse_file(str(folder), "huge.py") == BrokenFile(
        "huge.py", "8 MiB is too large to parse"
    )


def test_warnings_of_the_parser_are_kept_quiet(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert isinstance(parsed(folder, 'x = "\\d"\nassert (1, 2)\nx is 1\n1or 2'), Document)
    assert caught == []


def test_what_no_database_takes_is_replaced(folder: Path) -> None:
    found = parsed(folder, r'"""A lone \ud800 and a \0 and a tab	."""')
    assert isinstance(found, Document)
    assert "A lone \ufffd and a \ufffd and a tab" in found.docstrings[0].text


@pytest.mark.skipif(sys.platform != "linux", reason="the file system wants UTF-8 names")
def test_a_file_with_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text('"""Bitter."""')
    listing = documents.list_files(str(tmp_path))
    batch = documents.parse_batch(listing, 0, 1, str(tmp_path.parent / "diary"))
    assert batch.broken == ()
    assert batch.documents[0].path == "caf\ufffd.py"


def test_one_broken_file_does_not_cost_the_others(folder: Path) -> None:
    (folder / "bad.py").write_text("def")
    listing = documents.list_files(str(folder))
    batch = documents.parse_batch(listing, 0, 1, str(folder.parent / "diary"))
    assert len(batch.documents) == 2
    assert [file.path for file in batch.broken] == ["bad.py"]


def test_broken_files_of_all_batches_come_sorted() -> None:
    a, b, c = (BrokenFile(name, "no") for name in "abc")
    batches = [ParsedBatch((), (c,)), ParsedBatch((), (a,))]
    assert documents.broken_files(Listing("/", (), (b,)), batches) == [a, b, c]


def test_everything_that_travels_can_be_pickled(folder: Path) -> None:
    listing = documents.list_files(str(folder))
    batch = documents.parse_batch(listing, 0, 1, str(folder.parent / "diary"))
    for thing in (listing, batch, passages.chunk_batch(batch)):
        assert pickle.loads(pickle.dumps(thing)) == thing


# -- passages and weights -----------------------------------------------------------------------


@given(st.text(st.sampled_from("ab  \n"), max_size=200), st.integers(3, 30))
def test_passages_keep_every_word_and_their_size(text: str, size: int) -> None:
    pieces = passages.split(text, size)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= size and piece == piece.strip() for piece in pieces)


def test_texts_are_cut_at_paragraphs_then_lines_then_blanks() -> None:
    assert passages.split("one\n\ntwo", 20) == ["one\n\ntwo"]
    assert passages.split("one two\n\nthree four", 12) == ["one two", "three four"]
    assert passages.split("one two\nthree four", 12) == ["one two", "three four"]
    assert passages.split("one two three", 8) == ["one two", "three"]
    assert passages.split("incomprehensible", 8) == ["incompre", "hensible"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a.py", "a"), ("a/b.py", "a.b"), ("a/__init__.py", "a"), ("a\\b.py", "a.b")],
)
def test_a_path_gives_the_name_to_import(path: str, name: str) -> None:
    assert passages.module_name(path) == name


def test_a_document_becomes_titled_passages_and_terms() -> None:
    docstrings = (Docstring("", 1, "About sheep."), Docstring("f", 4, "Shear a sheep."))
    chapter = passages.chunk(Document("farm/wool.py", docstrings, Counter({"shear": 2})))
    assert chapter.passages == (
        Passage("farm/wool.py", "farm.wool", 1, "About sheep."),
        Passage("farm/wool.py", "farm.wool.f", 4, "Shear a sheep."),
    )
    assert chapter.terms == {"about": 1, "sheep": 2, "shear": 3}


def test_a_document_without_docstrings_can_still_be_found() -> None:
    chapter = passages.chunk(Document("a.py", (), Counter({"windmill": 1})))
    assert chapter.passages == (Passage("a.py", "a", 1, ""),)


def chapter(name: str, text: str) -> Chapter:
    return Chapter(name, (Passage(name, name, 1, text),), Counter(text.split()))


def test_weights_count_documents_over_all_batches() -> None:
    weights = passages.weigh([chapter("a", "x x y")], [], [chapter("b", "x"), chapter("c", "z")])
    assert weights == Weights(3, {"x": 2, "y": 1, "z": 1})
    assert passages.weigh() == Weights(0, {})


def test_keywords_are_the_terms_that_tell_documents_apart() -> None:
    weights = Weights(100, {"self": 100, "socket": 5, "port": 5, "typo": 1})
    assert weights.weight("self") == 0
    terms = {"self": 40, "socket": 9, "port": 2, "typo": 50}
    assert weights.keywords(terms) == ["socket", "port", "self"]
    assert weights.keywords(terms, limit=1) == ["socket"]


# -- the index ----------------------------------------------------------------------------------

WINDMILL = [chapter("windmill", "the windmill grinds corn"), chapter("barn", "the barn is red")]


def write(database: Path, chapters: list[Chapter]) -> store.Written:
    return store.write_index(str(database), passages.weigh(chapters), [chapters])


def test_an_index_answers_with_the_best_passage_first(tmp_path: Path) -> None:
    database = tmp_path / "index.db"
    written = write(database, WINDMILL)
    assert (written.documents, written.passages) == (2, 2)
    assert written.size == database.stat().st_size
    hits = store.search(str(database), "the grinding of corn")
    assert [hit.path for hit in hits] == ["windmill", "barn"]
    assert hits[0].score > hits[1].score
    assert hits[0].text == "the windmill grinds corn"
    assert store.search(str(database), "the", limit=1) == store.search(str(database), "the")[:1]


@pytest.mark.parametrize("query", ["", "  ?!", '"', "NOT", "a OR", "NEAR(", "col:x *", "^(", "\0"])
def test_a_query_is_words_never_syntax(tmp_path: Path, query: str) -> None:
    database = tmp_path / "index.db"
    write(database, WINDMILL)
    assert store.search(str(database), query) == []


def test_broken_files_are_kept_in_the_index(tmp_path: Path) -> None:
    database = tmp_path / "index.db"
    store.write_index(str(database), Weights(0, {}), [], [BrokenFile("x.py", "null bytes")])
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("SELECT * FROM broken").fetchall() == [("x.py", "null bytes")]
    finally:
        connection.close()


def test_an_index_replaces_the_old_one_and_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    database, other = tmp_path / "index.db", tmp_path / "other"
    write(database, WINDMILL)
    write(database, WINDMILL[1:])
    other.touch()
    assert store.search(str(database), "windmill") == []
    assert sorted(os.listdir(tmp_path)) == ["index.db", "other"]
    assert database.stat().st_mode == other.stat().st_mode


def test_an_index_behind_a_link_is_written_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "far" / "index.db")
    write(tmp_path / "link.db", WINDMILL)
    assert (tmp_path / "link.db").is_symlink()
    assert (tmp_path / "far" / "index.db").is_file()


def test_a_failure_half_way_leaves_the_old_index_and_nothing_else(tmp_path: Path) -> None:
    def failing() -> Iterator[Chapter]:
        yield WINDMILL[1]
        raise KeyboardInterrupt

    database = tmp_path / "a b%20?#.db"  # a name that means something in an address
    write(database, WINDMILL)
    with pytest.raises(KeyboardInterrupt):
        store.write_index(str(database), Weights(0, {}), [failing()])
    assert os.listdir(tmp_path) == [database.name]
    assert len(store.search(str(database), "windmill")) == 1


def test_only_an_index_of_ours_may_be_replaced(tmp_path: Path) -> None:
    ours, empty, foreign, text = (tmp_path / name for name in ("a.db", "b.db", "c.db", "d.py"))
    write(ours, WINDMILL)
    empty.touch()
    text.write_text("x = 1\n" * 40)
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    for path in (ours, empty, tmp_path / "new.db"):
        store.check_replaceable(str(path))
    for path in (foreign, text, tmp_path):
        with pytest.raises(store.ForeignFileError, match="no search index"):
            store.check_replaceable(str(path))
    with pytest.raises(store.ForeignFileError, match="There is no folder"):
        store.check_replaceable(str(tmp_path / "none" / "x.db"))


# -- progress -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and can tell what is seen on it."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines = [""]
        for char in self.getvalue():
            if char == "\n":
                lines.append("")
                column = 0
            elif char == "\r":
                column = 0
            else:
                column = 0 if lines[-1] == "" else column
                lines[-1] = lines[-1][:column] + char + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_shows_one_line_that_changes() -> None:
    terminal, clock = Terminal(), Clock()
    progress = Progress(terminal, clock, columns=80)
    progress.run_started(2)
    progress.unit_started("list")
    progress.unit_started("a unit with a long name")
    clock.now += 1.25
    progress.unit_ended("a unit with a long name")
    assert terminal.screen() == ["[############            ] 1/2    1.2 s  list"]
    assert "\n" not in terminal.getvalue()
    progress.close()
    assert terminal.screen() == [""]


def test_trouble_stays_on_the_terminal() -> None:
    terminal = Terminal()
    progress = Progress(terminal, Clock(), columns=80)
    progress.run_started(2)
    progress.unit_started("parse")
    progress.unit_retrying("parse", "WorkerCrashedError: gone")
    progress.unit_started("parse")
    progress.unit_ended("parse", "ValueError:\nall over")
    progress.close()
    assert terminal.screen() == [
        "    0.0 s  0/2  parse: trying again after WorkerCrashedError: gone",
        "    0.0 s  1/2  parse: ValueError: all over",
        "",
    ]


def test_a_pipe_gets_plain_lines_and_not_too_many() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock)
    progress.run_started(12)
    for number in range(12):
        progress.unit_started(f"u{number}")
        clock.now += 0.2
        progress.unit_ended(f"u{number}")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "    0.2 s   1/12  u0 done",
        "    0.8 s   4/12  u3 done",
        "    1.4 s   7/12  u6 done",
        "    2.0 s  10/12  u9 done",
        "    2.4 s  12/12  u11 done",
    ]


@pytest.mark.parametrize("columns", [0, 1, 3, 10, 40, 79, 200])
def test_the_line_is_never_wider_than_the_terminal(columns: int) -> None:
    line = status_line(3, 7, [f"parse[{n}]" for n in range(20)], 3.0, columns)
    assert len(line) <= columns


def test_a_line_without_units_can_be_drawn() -> None:
    assert status_line(0, 0, [], 0.0, 80).startswith("[########")
    assert one_line("a\n  b") == "a b"
    assert len(one_line("x" * 500)) == 160


# -- the report ---------------------------------------------------------------------------------


def record(name: str, start: float, end: float, place: str, **more: Any) -> UnitRecord:
    return UnitRecord(
        name,
        UnitState.COMPLETED,
        started_at=start,
        ended_at=end,
        duration=end - start,
        ran_on=place,
        **more,
    )


RECORDS = [
    record("list", 0, 1, "thread"),
    record("parse[0]", 1, 5, "process", waited=0.25),
    record("parse[1]", 1, 3, "process", attempts=3, waited=9.0),
    record("answer", 5, 6, "loop"),
    UnitRecord("never", UnitState.SKIPPED),
]


def test_figures_say_how_a_run_went() -> None:
    run = report.figures(RECORDS, ["list", "parse[0]", "answer"], wall=6, summed=8, cpus=4)
    assert run.places == {"thread": 1, "process": 2, "loop": 1}
    assert (run.wall, run.summed, run.slots, run.retries) == (6.0, 8.0, 2, 2)
    assert run.efficiency == pytest.approx(8 / 12)
    assert run.path_waited == 0.25
    assert run.path == (("list", 1), ("parse[0]", 4), ("answer", 1))
    assert run.slowest[:2] == (("parse[0]", 4, "process"), ("parse[1]", 2, "process"))


def test_figures_are_laid_out_a_line_each() -> None:
    run = report.figures(RECORDS, ["list", "parse[0]"], wall=6, summed=8, cpus=4)
    assert (
        report.format_figures(run)
        == """\
units          4: 1 in threads, 2 in worker processes, 1 on the loop
wall time      6.00 s
unit time      8.00 s summed
efficiency     67% of 2 slots (unit time / (wall time x slots))
critical path  5.00 s, and 0.25 s waiting for slots: list 1.00 > parse[0] 4.00
slowest units  parse[0] 4.00 s (process), parse[1] 2.00 s (process), answer 1.00 s (loop),
               list 1.00 s (thread)
retries        2"""
    )


def test_slots_are_never_more_than_cpus() -> None:
    at_once = [record(name, 0, 1, "thread") for name in "abc"]
    assert report.figures(at_once, wall=1, summed=3, cpus=2).slots == 2


def test_a_run_of_nothing_has_figures_too() -> None:
    run = report.figures([], wall=0, summed=0, cpus=1)
    assert (run.efficiency, run.slots) == (0.0, 0)
    assert "retries        0" in report.format_figures(run)


def test_a_unit_that_starts_as_another_ends_takes_over_its_slot() -> None:
    one_after_the_other = [record("a", 0, 1, "loop"), record("b", 1, 2, "loop")]
    assert report.most_at_once(one_after_the_other) == 1


def test_contents_name_the_first_broken_files_and_hits() -> None:
    broken = [BrokenFile(f"{n}.py", "null bytes") for n in range(7)]
    hit = store.Hit("a.py", 3, "a.f", "Grinds\n\ncorn.", 1.234)
    assert (
        report.format_contents(
            "/src", store.Written("x.db", 1234, 5678, 3 << 20), broken, {"corn?": [hit], "sky": []}
        )
        == """\
1,234 documents of /src indexed: 5,678 passages, 3.0 MiB.
7 broken and left out:
  0.py: null bytes
  1.py: null bytes
  2.py: null bytes
  3.py: null bytes
  4.py: null bytes
  ... and 2 more

"corn?"
  1. a.f  (a.py:3, score 1.2)
     Grinds corn.

"sky"
  nothing found"""
    )


# -- the whole ----------------------------------------------------------------------------------


def test_events_become_progress() -> None:
    stream = io.StringIO()
    observe = pipeline.watch(Progress(stream, Clock()))

    def tell(kind: Any, **fields: Any) -> None:
        observe(kind(**{**dict.fromkeys(kind._fields), **fields}))

    tell(events.RunStarted, units=6)
    tell(events.UnitStarted, unit="a")
    tell(events.UnitRetrying, unit="a", error=OSError("no"))
    tell(events.UnitCompleted, unit="a")
    tell(events.UnitFailed, unit="b", error=OSError("gone"))
    tell(events.UnitTimedOut, unit="c", error=TimeoutError("late"))
    tell(events.UnitSkipped, unit="d", root="b")
    tell(events.UnitCanceled, unit="e")
    tell(events.UnitCompleted, unit="f")
    tell(events.RunFinished)
    assert [line.split("  ")[-1] for line in stream.getvalue().splitlines()] == [
        "a: trying again after OSError: no",
        "a done",
        "b: OSError: gone",
        "c: TimeoutError: late",
        "f done",
    ]


def test_only_attempts_count_as_busy_time() -> None:
    stopwatch = pipeline.Stopwatch()

    def tell(kind: Any, unit: str, time: float) -> None:
        stopwatch(kind(**{**dict.fromkeys(kind._fields), "unit": unit, "time": time}))

    tell(events.UnitReady, "a", 0.0)
    tell(events.UnitStarted, "a", 1.0)
    tell(events.UnitStarted, "b", 1.0)
    tell(events.UnitRetrying, "a", 2.0)
    tell(events.UnitStarted, "a", 12.0)
    tell(events.UnitCompleted, "a", 14.0)
    tell(events.UnitFailed, "b", 2.0)
    tell(events.UnitCompleted, "given", 20.0)  # an override completes without a start
    assert stopwatch.busy == 1 + 2 + 1


async def test_the_graph_indexes_a_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.py").write_text("def")
    database = str(tmp_path / "index.db")
    flow = pipeline.build(str(folder), database, batches=2, queries=("windmill", "jumping sheep"))
    result = await flow.run()
    assert result["answer"]["windmill"][0].title == "farm"
    assert result["answer"]["jumping sheep"][0].title == "sheep.SheepCounter.next_sheep"
    assert [file.path for file in result["broken"]] == ["bad.py"]
    places = {name: record.ran_on for name, record in result.units.items()}
    assert places["list"] == places["write"] == "thread"
    assert places["parse[0]"] == places["chunk[1]"] == "process"
    assert places["answer"] == "loop"
    assert store.search(database, "windmill")


async def test_a_failed_write_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    from examples.search_index import pipeline

    target = tmp_path / "target"
    target.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(ExecutionError) as caught:
        await pipeline.build(str(folder), str(target), batches=1).run()
    assert set(caught.value.errors) == {"write"}
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def job(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.search_index", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_the_command_reports_and_keeps_the_index(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.py").write_bytes(b'x = "\xff"')
    (folder / "odd.py").write_text('x = "\\d"\nx is 1\n')
    database = tmp_path / "index.db"
    out = tmp_path / "out"
    options = ["--db", str(database), "--out", str(out)]
    done = job(str(folder), *options, PYTHONWARNINGS="always", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    for expected in (
        "on the loop",
        "in worker processes",
        "wall time",
        "efficiency",
        "critical path  ",
        "slowest units",
        "retries        0",
        "3 documents of",
        "1 broken and left out:\n  bad.py: ",
        *(f'"{query}"' for query in pipeline.QUERIES),
        f"The report of the run is {out / 'report.html'}; its trace, for ui.perfetto.dev, ",
        f"The index is in {database}.",
    ):
        assert expected in done.stdout
    assert "<unknown>" not in done.stderr  # what the parser calls a file that it warns of
    assert store.search(str(database), "windmill")
    assert sorted(os.listdir(tmp_path)) == ["index.db", "out", "source"]
    assert sorted(os.listdir(out)) == ["report.html", "trace.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing"], "There is no folder "),
        (["source/sheep.py"], " is a file; give the folder that holds it."),
        (["empty"], "There is no Python file in "),
        (["source", "--db", "source/sheep.py"], " is no search index; it is left as it is."),
    ],
)
def test_the_command_refuses_in_one_sentence(
    folder: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    paths = [it if it.startswith("--") else str(tmp_path / it) for it in arguments]
    done = job(*paths)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert (folder / "sheep.py").read_text() == GOOD


def test_a_job_that_fails_says_so_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "check_replaceable", lambda database: None)
    database = folder.parent / "out"
    database.mkdir()
    assert command.main([str(folder), "--db", str(database)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("write failed: IsADirectoryError: ")
    assert sorted(os.listdir(folder.parent)) == ["out", "source"]


def test_an_interrupt_is_no_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(root: str, database: str, out: str | None) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "index", interrupted)
    assert command.main([str(folder)]) == 130
    assert capsys.readouterr() == ("", "Interrupted.\n")


@pytest.mark.slow
def test_files_that_make_their_parser_hang_and_crash_are_left_out_and_named() -> None:
    done = job("--hostile")
    assert done.returncode == 0, done.stderr
    assert "40 documents of" in done.stdout
    assert "2 broken and left out:" in done.stdout
    for name in ("crashes.py", "hangs.py"):
        assert f"{name}: its parser hangs or crashes" in done.stdout
    assert "retries        2" in done.stdout
