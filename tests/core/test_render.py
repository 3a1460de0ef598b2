from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html import unescape
from itertools import combinations, pairwise
from random import Random
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantum_async.core import layout as layout_module
from quantum_async.core.layout import cells, lay_out, shorten, visible
from quantum_async.core.render import Drawing, render, to_dot, to_mermaid, to_svg

STATES = ("completed", "failed", "timeout", "canceled", "skipped", "running", "pending")
FORMATS = ("dot", "mermaid", "svg")
SVG = "{http://www.w3.org/2000/svg}"

HOSTILE = [
    'say "hi"',
    "back\\slash\\",
    '\\"];x -> y;["',
    "two\nlines\r\nand\ttab",
    "<script>alert(1)</script>",
    "]]></style><!-- ",
    "&lt;b&gt; &amp; &#60;",
    "a[3]{b}(c)|d",
    '"] --> n9["',
    "%%{init: {'theme': 'dark'}}%%",
    "\x00\x1b[31m\x7f\x85\u2028",
    "\u202egnp.exe",
    "\ud800\udfff\ufffe",
    "日本語の名前",
    "\\N\\G\\l",
    "style a:b#c;",
    "%anonymous",
    "1. item",
    "__init__",
    "www.example.com",
    "node",
    "",
    "x" * 500,
]
names_ = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=()), max_size=40),
    st.text('"\\<>&;#%[](){}|`\n-/*:= ab', max_size=20),
)


def draw(
    dependencies: Sequence[Sequence[int]], names: Sequence[str] = (), **rest: object
) -> Drawing:
    """Build a drawing as a plan does: dependencies stand before their dependents."""
    level: list[int] = []
    for sources in dependencies:
        level.append(1 + max((level[source] for source in sources), default=-1))
    levels: list[list[int]] = [[] for _ in range(1 + max(level, default=-1))]
    for node, number in enumerate(level):
        levels[number].append(node)
    names = names or [f"u{node}" for node in range(len(dependencies))]
    return Drawing(names, dependencies, levels, **rest)  # type: ignore[arg-type]


def random_drawing(count: int, edges: int, *, seed: int = 1, reach: int | None = None) -> Drawing:
    random = Random(seed)
    dependencies: list[set[int]] = [set() for _ in range(count)]
    for _ in range(edges):
        node = random.randrange(1, count)
        dependencies[node].add(random.randrange(max(0, node - (reach or count)), node))
    return draw([sorted(sources) for sources in dependencies])


@st.composite
def drawings(draw_: st.DrawFn, names: st.SearchStrategy[str] = names_) -> Drawing:
    count = draw_(st.integers(0, 8))
    dependencies = [
        sorted(draw_(st.sets(st.integers(0, node - 1), max_size=3))) if node else []
        for node in range(count)
    ]
    nodes = st.integers(0, count - 1) if count else st.nothing()
    return draw(
        dependencies,
        draw_(st.lists(names, min_size=count, max_size=count, unique=True)),
        critical=draw_(st.frozensets(nodes)),
        notes=draw_(st.dictionaries(nodes, names_)),
        states=draw_(st.dictionaries(nodes, st.sampled_from(STATES) | names_)),
        title=draw_(names_),
    )


@pytest.fixture
def diamond() -> Drawing:
    return draw(
        [[], [0], [0], [1, 2]],
        ["load_data", "process_data", "validate_data", "store_results"],
        critical=frozenset({0, 1, 3}),
        notes={1: "process, 3 retries"},
        states={0: "completed", 1: "failed", 2: "running", 3: "skipped"},
        title="Nightly",
    )


# --- all formats ----------------------------------------------------------------------------------


def test_render_draws_dot_unless_told_otherwise(diamond: Drawing) -> None:
    assert render(diamond) == render(diamond, "dot") == to_dot(diamond)
    assert render(diamond, "mermaid") == to_mermaid(diamond)
    assert render(diamond, "svg") == to_svg(diamond)


@pytest.mark.parametrize("language", ["png", "", "SVG"])
def test_an_unknown_format_is_refused_and_the_three_are_named(
    diamond: Drawing, language: str
) -> None:
    with pytest.raises(ValueError, match=r"'dot', 'mermaid' or 'svg'"):
        render(diamond, language)


@pytest.mark.parametrize("language", FORMATS)
def test_a_plan_without_units_can_be_drawn(language: str) -> None:
    assert render(draw([]), language)


@given(drawings())
def test_output_is_the_same_whatever_the_order_of_sets_and_mappings(drawing: Drawing) -> None:
    other = Drawing(
        tuple(drawing.names),
        [tuple(sources) for sources in drawing.dependencies],
        drawing.levels,
        frozenset(sorted(drawing.critical, reverse=True)),
        dict(reversed(drawing.notes.items())),
        dict(reversed(drawing.states.items())),
        drawing.title,
    )
    for language in FORMATS:
        assert render(drawing, language) == render(other, language)


@given(drawings())
def test_output_can_be_written_as_utf8_and_has_no_control_characters(drawing: Drawing) -> None:
    for language in FORMATS:
        text = render(drawing, language)
        assert text.encode("utf-8").decode("utf-8") == text
        assert visible(text.replace("\n", "")) == text.replace("\n", "")


def test_only_edges_between_consecutive_critical_units_are_critical() -> None:
    shortcut = draw([[], [0], [0, 1], [2]], critical=frozenset({0, 1, 2}))
    assert shortcut.critical_edges() == {(0, 1), (1, 2)}


# --- DOT ------------------------------------------------------------------------------------------

STRING = r'"(?:[^"\\]|\\.)*"'
ATTRIBUTES = rf"(?: \[[a-z]+=(?:{STRING}|[\w.]+)(?:, [a-z]+=(?:{STRING}|[\w.]+))*\])?"
DOT_LINE = re.compile(rf"    (?:({STRING})|({STRING}) -> ({STRING})){ATTRIBUTES};")


def dot_statements(text: str) -> Iterator[tuple[str | None, str | None, str | None]]:
    """Read back what `to_dot` wrote, in a grammar that leaves no room for anything else."""
    lines = text.splitlines()
    assert lines[0] == "digraph {"
    assert lines[-1] == "}"
    for line in lines[1:-1]:
        if line.startswith('    "'):
            match = DOT_LINE.fullmatch(line)
            assert match, line
            yield match[1], match[2], match[3]
        else:
            assert re.fullmatch(
                rf"    (rankdir=LR|label={STRING}; labelloc=t|(node|edge){ATTRIBUTES});", line
            ), line


def test_dot_shows_the_names_and_the_edges_of_a_plain_plan() -> None:
    text = to_dot(draw([[], [0], [0]], ["load_data", "process_data", "flow/x[1]"]))
    assert text.splitlines()[4:] == [
        '    "load_data";',
        '    "process_data";',
        '    "flow/x[1]";',
        '    "load_data" -> "process_data";',
        '    "load_data" -> "flow/x[1]";',
        "}",
    ]


def test_dot_shows_states_notes_title_and_critical_path(diamond: Drawing) -> None:
    text = to_dot(diamond)
    assert '    label="Nightly"; labelloc=t;' in text
    assert r'label="✗ process_data\nprocess, 3 retries"' in text
    assert text.count("penwidth=2.5") == 3 + 2
    assert '"load_data" -> "process_data" [penwidth=2.5' in text
    assert '"load_data" -> "validate_data";' in text


@given(drawings())
def test_dot_is_made_of_its_nodes_and_edges_and_nothing_else(drawing: Drawing) -> None:
    statements = list(dot_statements(to_dot(drawing)))
    ids = [node for node, _, _ in statements if node is not None]
    assert len(set(ids)) == len(ids) == len(drawing.names)
    edges = [(ids.index(a), ids.index(b)) for _, a, b in statements if a and b]
    assert edges == list(drawing.edges())


def test_dot_keeps_names_apart_that_look_alike_once_made_visible() -> None:
    names = ["a\x80", "a\x81", "a\ufffd", "a\ufffd (2)", "a\x82"]
    ids = [node for node, _, _ in dot_statements(to_dot(draw([[]] * 5, names)))]
    assert len(set(ids)) == 5
    assert ids[2:4] == ['"a\ufffd"', '"a\ufffd (2)"']


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz is not installed")
@settings(max_examples=15, deadline=None)
@given(st.lists(names_, min_size=1, max_size=40, unique=True))
def test_graphviz_reads_the_nodes_edges_and_labels_that_were_meant(names: list[str]) -> None:
    names += [name for name in HOSTILE if name not in names]
    drawing = draw([[], *([node] for node in range(len(names) - 1))], names, title=names[-1])
    done = subprocess.run(
        ["dot", "-Tjson"], input=to_dot(drawing).encode(), capture_output=True, check=True
    )
    assert done.stderr == b""
    graph = json.loads(done.stdout)
    assert len(graph["objects"]) == len(names)
    assert len(graph["edges"]) == len(names) - 1
    for node, name in zip(graph["objects"], names, strict=True):
        drawn = [step["text"] for step in node.get("_ldraw_", []) if step["op"] == "T"]
        # Graphviz draws no text at all for an empty label.
        assert "".join(drawn) == shorten(visible(name), 60)


# --- Mermaid --------------------------------------------------------------------------------------

LABEL = r"(?:[^\x00-/:-@\[-`{-\x7f°¶]|(?<=[^\s])[ _./-](?=[^\s])|#\d+;|<br/>)+"
MERMAID_LINE = re.compile(
    rf'    (?:n(\d+)\["({LABEL})"\]|n(\d+) --> n(\d+)|classDef [a-z]+ [\w:,#-]+'
    r"|class n\d+(?:,n\d+)* [a-z]+|linkStyle \d+(?:,\d+)* [\w:,#-]+)"
)


def mermaid_matches(text: str) -> Iterator[re.Match[str]]:
    *head, text = re.split(r"^flowchart LR\n", text, maxsplit=1, flags=re.M)
    assert head == [""] or re.fullmatch(rf"---\ntitle: {STRING}\n---\n", head[0])
    for line in text.splitlines():
        match = MERMAID_LINE.fullmatch(line)
        assert match, line
        yield match


def decoded(label: str) -> str:
    return unescape(re.sub(r"#(\d+);", r"&#\1;", label.replace("<br/>", "\n")))


def test_mermaid_shows_states_notes_title_and_critical_path(diamond: Drawing) -> None:
    text = to_mermaid(diamond)
    assert text.startswith('---\ntitle: "Nightly"\n---\nflowchart LR\n')
    assert '    n1["✗ process_data<br/>process#44;#32;3 retries"]\n' in text
    assert "    class n1 failed\n" in text
    assert "    class n0,n1,n3 critical\n" in text
    assert re.search(r"^    linkStyle 0,2 stroke:", text, re.M)


@given(drawings())
def test_mermaid_is_made_of_its_nodes_and_edges_and_nothing_else(drawing: Drawing) -> None:
    matches = list(mermaid_matches(to_mermaid(drawing)))
    labels = [decoded(match[2]) for match in matches if match[1]]
    assert [int(match[1]) for match in matches if match[1]] == list(range(len(drawing.names)))
    for node, (name, label) in enumerate(zip(drawing.names, labels, strict=True)):
        line = label.splitlines()[0]
        glyph = "" if node not in drawing.states else line[:2]
        assert line.removeprefix(glyph) == (shorten(visible(name), 60) or ("" if glyph else "\xa0"))
    edges = [(int(match[3]), int(match[4])) for match in matches if match[3]]
    assert edges == list(drawing.edges())


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("load_data", "load_data"),
        ("model.orders/v1.2", "model.orders/v1.2"),
        ("1. item", "1#46;#32;item"),
        ("__init__", "#95;#95;init#95;#95;"),
        ("WWW.a.b", "WWW#46;a.b"),
        ("ﬂ°°60¶ß", "ﬂ#176;#176;60#182;ß"),
        ("#quot;", "#35;quot#59;"),
    ],
)
def test_mermaid_escapes_what_one_of_its_parsers_would_read(name: str, label: str) -> None:
    assert f'    n0["{label}"]\n' in to_mermaid(draw([[]], [name]))


# --- SVG ------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]


def parse(drawing: Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(drawing))


def numbers(text: str | None) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", text or "")]


def node_groups(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [g for g in root.iter(f"{SVG}g") if "node" in g.get("class", "").split()]


def boxes(root: ElementTree.Element) -> dict[str, Box]:
    """Return left, top, right and bottom of each node by its name."""
    result = {}
    for group in node_groups(root):
        x, y = numbers(group.get("transform"))
        rect = group.find(f"{SVG}rect")
        title = group.find(f"{SVG}title")
        assert rect is not None
        assert title is not None
        top = y + float(rect.get("y", 0))
        right, bottom = x + float(rect.get("width", 0)), top + float(rect.get("height", 0))
        result[(title.text or "").split("\n")[0]] = (x, top, right, bottom)
    return result


def edge_paths(root: ElementTree.Element) -> list[tuple[str, str]]:
    paths = [path for path in root.iter(f"{SVG}path") if "edge" in path.get("class", "").split()]
    found = [(path.get("class", ""), path.get("d", "")) for path in paths]
    return [(name, d) for name, d in found if d != "M-7 0H7"]  # but for the legend's


def apart(a: Box, b: Box) -> bool:
    return a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_svg_is_an_accessible_image_that_needs_nothing_else(diamond: Drawing) -> None:
    text = to_svg(diamond)
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label", "").startswith("Nightly: 4 units, 4 dependencies, 3 levels")
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"url\(|@import|href|<script|<image|\sid=|\son\w+=", text)
    assert text.count("http") == 1  # the name space


def test_svg_styles_apply_to_the_picture_only(diamond: Drawing) -> None:
    style = parse(diamond).find(f"{SVG}style")
    assert style is not None
    rules = re.sub(r"@media[^{]*\{|\}\}", "", style.text or "")
    assert all(
        selector.startswith(".quantum-plan ") and "," not in selector
        for selector in re.findall(r"([^{}]+)\{", rules)
    )


@given(drawings())
def test_svg_holds_names_as_text_and_nothing_else(drawing: Drawing) -> None:
    root = parse(drawing)
    allowed = {"svg", "style", "rect", "g", "title", "path", "circle", "text"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= allowed
    titles = [(g.findtext(f"{SVG}title") or "").split("\n")[0] for g in node_groups(root)]
    assert sorted(titles) == sorted(visible(name) for name in drawing.names)
    edges = set(drawing.edges())
    critical = drawing.critical_edges()
    classes = [name for name, _ in edge_paths(root)]
    assert classes == ["edge"] * len(edges - critical) + ["edge critical"] * len(critical)


@given(drawings())
def test_svg_texts_are_inside_of_their_boxes(drawing: Drawing) -> None:
    root = parse(drawing)
    for group in node_groups(root):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        for text in group.findall(f"{SVG}text"):
            cell = 6.02 if text.get("class") == "note" else 7.23
            end = float(text.get("x", 0)) + cell * cells(text.text or "")
            assert end < float(rect.get("width", 0))


@given(drawings(st.text("ab", max_size=12)))
def test_svg_boxes_are_apart_inside_of_the_picture_and_ordered_by_level(drawing: Drawing) -> None:
    root = parse(drawing)
    found = boxes(root)
    _, _, width, height = numbers(root.get("viewBox"))
    assert all(apart(a, b) for a, b in combinations(found.values(), 2))
    assert all(x >= 0 and y >= 0 and r <= width and b <= height for x, y, r, b in found.values())
    for source, node in drawing.edges():
        assert found[drawing.names[source]][2] < found[drawing.names[node]][0]
    for left, right in pairwise(drawing.levels):
        starts = {found[drawing.names[node]][0] for node in left}
        assert len(starts) == 1
        assert starts < {*starts, found[drawing.names[right[0]]][0]}


def test_svg_edges_run_from_box_to_box(diamond: Drawing) -> None:
    root = parse(diamond)
    found = boxes(root)
    wanted = set()
    for source, node in diamond.edges():
        a, b = found[diamond.names[source]], found[diamond.names[node]]
        wanted.add((a[2], (a[1] + a[3]) / 2, b[0] - 5, (b[1] + b[3]) / 2))
    drawn = set()
    for _, path in edge_paths(root):
        values = numbers(path)
        end = values[-2:] if "C" in path else [values[-1], values[1]]
        drawn.add((*values[:2], *end))
    assert drawn == wanted


def test_svg_tells_each_state_by_a_colour_and_a_glyph_of_its_own() -> None:
    drawing = draw([[]] * 7, STATES, states=dict(enumerate(STATES)))
    root = parse(drawing)
    icons = {}
    for group in node_groups(root):
        icon = group.find(f".//{SVG}path[@class='icon']")
        assert icon is not None
        icons[group.get("class", "").removeprefix("node ")] = icon.get("d")
    assert set(icons) == set(STATES)
    assert len(set(icons.values())) == 7
    style = root.findtext(f"{SVG}style") or ""
    colours = [re.findall(rf"\.{state} \.badge{{fill:(#\w+)}}", style) for state in STATES]
    assert all(len(pair) == 2 for pair in colours)
    assert len({light for light, _ in colours}) == len({dark for _, dark in colours}) == 7
    glyphs = {line.split('"')[3][0] for line in to_dot(drawing).splitlines() if "tooltip" in line}
    assert len(glyphs) == 7


def test_a_state_of_a_later_version_is_drawn_with_a_question_mark() -> None:
    drawing = draw([[]], states={0: '"><script>'})
    assert 'class="node unknown"' in to_svg(drawing)
    assert 'label="? u0"' in to_dot(drawing)
    assert 'n0["#63;#32;u0"]' in to_mermaid(drawing)


def test_svg_shortens_a_long_name_and_tells_it_in_full_in_a_tooltip() -> None:
    name = "a" * 250 + "z" * 250
    (group,) = node_groups(parse(draw([[]], [name])))
    assert group.findtext(f"{SVG}text") == "a" * 14 + "…" + "z" * 15
    assert group.findtext(f"{SVG}title") == name


# --- layout ---------------------------------------------------------------------------------------


def test_a_chain_is_a_straight_line() -> None:
    chain = draw([[], *([node] for node in range(9))])
    assert len(set(lay_out(chain, [50] * 10, 30).y)) == 1


def test_a_diamond_is_symmetric() -> None:
    top, left, right, bottom = lay_out(draw([[], [0], [0], [1, 2]]), [50] * 4, 30).y
    assert top == bottom == (left + right) / 2


def test_edges_that_need_not_cross_do_not() -> None:
    crossed = draw([[], [], [1], [0], [2], [3]])
    columns = lay_out(crossed, [50] * 6, 30).columns
    assert [[node % 2 for node in column] for column in columns] in (
        [[0, 1], [1, 0], [1, 0]],
        [[1, 0], [0, 1], [0, 1]],
    )


def test_connected_parts_are_not_mixed_and_units_without_edges_come_last() -> None:
    drawing = draw([[], [], [], [0], [2], [0], [2]])
    layout = lay_out(drawing, [50] * 7, 30)
    assert layout.columns == [[0, 2, 1], [3, 5, 4, 6]]
    assert layout.y[1] > max(layout.y[0], layout.y[2])


@given(st.integers(0, 1000))
def test_long_edges_pass_beside_the_boxes(seed: int) -> None:
    drawing = random_drawing(25, 40, seed=seed)
    layout = lay_out(drawing, [50] * 25, 30)
    for (source, node), heights in layout.lines.items():
        assert len(heights) == layout.level[node] - layout.level[source] + 1
        for column, height in enumerate(heights[1:-1], layout.level[source] + 1):
            assert all(abs(height - layout.y[other]) > 15 for other in layout.columns[column])
    assert all(0 < height < layout.height for line in layout.lines.values() for height in line)


def test_a_deep_plan_has_no_more_passages_than_it_can_afford() -> None:
    count = 3000
    comb = draw([[], *([0, node] if node else [0] for node in range(count - 1))])
    layout = lay_out(comb, [50] * count, 30)
    crossed = sum(len(line) - 2 for line in layout.lines.values())
    assert crossed <= layout_module.PASSAGES_PER_NODE * count + layout_module.FREE_PASSAGES
    for language in FORMATS:
        assert len(render(comb, language)) < 500 * count


@pytest.mark.parametrize(
    ("text", "short"),
    [("short", "short"), ("abcdefghijk", "abcd…ghijk"), ("日本語日本語", "日本…本語"), ("", "")],
)
def test_shorten_keeps_both_ends(text: str, short: str) -> None:
    assert shorten(text, 10) == short


@given(st.text(), st.integers(3, 80))
def test_shortened_text_fits(text: str, room: int) -> None:
    assert cells(shorten(text, room)) <= room


# --- speed ----------------------------------------------------------------------------------------


def steps(drawing: Drawing, language: str) -> int:
    """Count the calls that drawing takes: what a clock would tell on an idle machine."""
    count = 0

    def step(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(step)
    try:
        render(drawing, language)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("language", FORMATS)
@pytest.mark.parametrize("reach", [None, 300, 2], ids=["bushy", "wide", "deep"])
def test_the_work_grows_with_the_graph_and_not_with_its_square(
    language: str, reach: int | None
) -> None:
    small = steps(random_drawing(1_500, 3_000, reach=reach), language)
    large = steps(random_drawing(6_000, 12_000, reach=reach), language)
    assert large < 6 * small
