"""The README and the pages in `docs/` tell the truth: their examples run, and print what they show.

Each section of a page (from one heading of the second level to the next) is a program of its own:
it has a namespace and an event loop of its own, so that it can be pasted alone. `await` works at
its top level, as in ``python -m asyncio``. What a block of Python prints must be shown right after
it, in a fenced block with ``<!-- prints -->`` before it; where times are measured, the mark says so
and numbers with decimals, and bars of text, are not compared.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import logging
import re
import runpy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

import quantum_async
from quantum_async import taskmap
from quantum_async.core.events import EVENT_TYPES
from quantum_async.core.scheduler import PHASES, TRANSITIONS

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]

MAX_README_LINES = 150
PRINTS, PRINTS_TIMES = "<!-- prints -->", "<!-- prints, times differ -->"
# Comments that may stand in a page. Figures go between the second pair and the third.
MARKS = [
    PRINTS,
    PRINTS_TIMES,
    "<!-- states:begin -->",
    "<!-- states:end -->",
    "<!-- bench:begin -->",
    "<!-- bench:end -->",
    "<!-- peers:begin -->",
    "<!-- peers:end -->",
]
FOR_RECIPES = ("celery", "taskiq", "temporalio")  # the group `recipes`, which `test` is without
TIMES, NOTHING = re.compile(r"\d+\.\d+|\d+%|[·▁-█]+"), re.compile(r"(?!)")


# -- the examples ----------------------------------------------------------------------------------


class Program:
    """The code blocks of one section, and what they print.

    Args:
        section: The section; it is parsed here.
        runner: Runs the blocks that await.
    """

    def __init__(self, section: Document, runner: asyncio.Runner) -> None:
        self._runner = runner
        # As in a script; cloudpickle sends what `__main__` defines by value.
        section.namespace["__name__"] = "__main__"
        self._printed = ""
        for parser in (CodeBlockParser("python", self.run), CodeBlockParser("text", self.compare)):
            for region in parser(section):
                section.add(region)

    def run(self, example: Example) -> None:
        """Run a block; line numbers in tracebacks are those of the page."""
        self.check_all_is_shown(example)
        source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, example.path, "exec", flags=flags, dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            # A block without `await` runs outside the loop: `execute` refuses to run inside.
            if code.co_flags & inspect.CO_COROUTINE:
                self._runner.run(eval(code, example.namespace))
            else:
                exec(code, example.namespace)
        self._printed = printed.getvalue()

    def compare(self, example: Example) -> str | None:
        """Compare a marked block with what was printed last."""
        before = example.document.text[: example.start].rstrip()
        if not before.endswith((PRINTS, PRINTS_TIMES)):
            return None
        shown, printed = str(example.parsed), self._printed
        self._printed = ""
        mask = TIMES if before.endswith(PRINTS_TIMES) else NOTHING
        same = mask.sub("#", shown) == mask.sub("#", printed)
        return None if same else f"the page shows:\n{shown}\nand it printed:\n{printed}"

    def check_all_is_shown(self, where: object) -> None:
        """Fail if the block before printed something that the page does not show."""
        assert not self._printed, f"before {where}, this was printed and not shown: {self._printed}"


def sections(page: Path) -> Iterator[Any]:
    """Yield the sections of a page that hold Python, each with its line numbers kept."""
    text = page.read_text(encoding="utf-8")
    starts = [0, *(found.start() for found in re.finditer(r"^## ", text, re.MULTILINE)), len(text)]
    for start, end in pairwise(starts):
        body = text[start:end]
        if "```python\n" in body:
            heading = body.partition("\n")[0].lstrip("# ").strip("`")
            padded = "\n" * text.count("\n", 0, start) + body
            yield pytest.param(page, padded, id=f"{page.name}: {heading}")


@pytest.fixture
def logging_untouched() -> Iterator[None]:
    """Undo what an example about logging configures."""
    logger = logging.getLogger("quantum_async")
    handlers, level, propagates = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagates
    logger.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), [one for page in PAGES for one in sections(page)])
@pytest.mark.usefixtures("logging_untouched")
def test_the_examples_of_a_section_run_and_print_what_it_shows(page: Path, text: str) -> None:
    for library in FOR_RECIPES:
        if f"from {library}" in text:
            pytest.importorskip(library)
    section = Document(text, str(page))
    with asyncio.Runner() as runner:
        program = Program(section, runner)
        for example in section.examples():
            example.evaluate()
        program.check_all_is_shown("the end of the section")


def test_the_first_example_is_the_file_that_the_readme_names() -> None:
    shown = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    file = (REPOSITORY / "examples/first_steps.py").read_text(encoding="utf-8")
    assert shown is not None
    assert shown[1] == file.partition('"""\n\n')[2]  # without its docstring


# -- what the pages say ----------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = without_code(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    prose = without_code(page.read_text(encoding="utf-8"))
    for name in re.findall(r"`([\w./]+(?:\.py|/))`", prose):
        places = (REPOSITORY / name, REPOSITORY / "quantum_async" / name)
        assert any(place.exists() for place in places), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"\b(?:TODO|TBD|FIXME|XXX|[Ll]orem ipsum)\b", text)
    assert [mark for mark in re.findall(r"<!--.*?-->", text) if mark not in MARKS] == []


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    names = {page.name for page in PAGES if page.parent == DOCS} - {"index.md"}
    assert {name for name in names if f"({name})" not in index} == set()


def test_every_error_that_users_meet_has_an_entry() -> None:
    public = {
        name
        for module, names in ((quantum_async, quantum_async.__all__), (taskmap, ["TaskError"]))
        for name in names
        if inspect.isclass(kind := getattr(module, name)) and issubclass(kind, BaseException)
    }
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `(\w+)`$", page, re.MULTILINE)) == public


def test_every_event_and_field_is_in_the_tables() -> None:
    page = (DOCS / "events.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*?\|(?: (.*) \|)?$", page, re.MULTILINE)
    told = {name: tuple(re.findall(r"`(\w+)`", fields)) for name, fields in rows if fields}
    explained = {name for name, fields in rows if not fields}
    assert told == {kind.__name__: kind._fields[4:] for kind in EVENT_TYPES}
    assert explained == {name for kind in EVENT_TYPES for name in kind._fields}
    for name in ("run_id", "seq", "time", "wall"):
        assert all(name in kind._fields[:4] for kind in EVENT_TYPES)


def test_every_option_of_a_run_is_explained() -> None:
    options = inspect.signature(quantum_async.QuantumPartitioner.run).parameters.keys()
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    options -= {"self", "context"}
    missing = {name for name in options if not re.search(rf"`{name}\b|\b{name}=", pages)}
    assert missing == set()


def without_code(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return what headings of a page can be linked to, as GitHub makes it of them."""
    prose = without_code(page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- what is generated -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    """The names in `docs/make_pictures.py`."""
    return runpy.run_path(str(DOCS / "make_pictures.py"))


def test_the_state_diagram_is_the_schedulers_table(pictures: dict[str, Any]) -> None:
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    diagram = text.partition(pictures["BEGIN"])[2].partition(pictures["END"])[0]
    assert diagram == pictures["states"](), "run python docs/make_pictures.py"
    # Read back without the help of what wrote it.
    drawn = {tuple(re.findall(r"\w+", line)) for line in diagram.splitlines() if "-->" in line}
    names = [phase.replace(" ", "_") for phase in PHASES]
    table = {(names[one], names[other]) for one in TRANSITIONS for other in TRANSITIONS[one]}
    assert {edge for edge in drawn if len(edge) == 2} == table


def test_the_timeline_is_what_the_simulation_gives(pictures: dict[str, Any]) -> None:
    drawn = (DOCS / "timeline.svg").read_text(encoding="utf-8")
    assert drawn == pictures["timeline"](), "run python docs/make_pictures.py"
