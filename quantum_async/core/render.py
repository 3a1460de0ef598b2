"""Pictures of a plan as text: Graphviz DOT, Mermaid and SVG.

Three rules:

* A name is text, never markup. Each format has one quoting function, every name, note and title
  goes through it, and what no format can carry (control characters, lone surrogates, characters
  that reverse the reading direction) is made visible first.
* Same drawing, same output, to the byte.
* A state is never told by colour alone: each has a glyph of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil

from quantum_async.core.layout import Drawing, Layout, cells, lay_out, shorten, visible

__all__ = ["Drawing", "render", "to_dot", "to_mermaid", "to_svg"]


def render(drawing: Drawing, format: str = "dot") -> str:  # noqa: A002 - `visualize(format=)`
    """Draw a graph of units.

    Args:
        drawing: What is to be drawn.
        format: ``"dot"``, ``"mermaid"`` or ``"svg"``.

    Returns:
        The text of the picture.

    Raises:
        ValueError: The format is none of these three.

    Example:
        >>> print(render(Drawing(["load", "save"], [[], [0]], [[0], [1]]), "mermaid"))
        flowchart LR
            n0["load"]
            n1["save"]
            n0 --> n1
        <BLANKLINE>
    """
    formats = {"dot": to_dot, "mermaid": to_mermaid, "svg": to_svg}
    if format not in formats:
        raise ValueError(f"unknown format {format!r}: use 'dot', 'mermaid' or 'svg'")
    return formats[format](drawing)


# --- looks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """How a state looks; each pair is for a light and for a dark page."""

    glyph: str
    icon: str  # the glyph as a path around (0, 0), since not every font has every glyph
    line: tuple[str, str]
    fill: tuple[str, str]


# The hues of Okabe and Ito (2008), darkened until they can be read on their own tint.
_LOOKS = {
    "completed": _Look("✓", "M-3 .2-.9 2.4 3-2.2", ("#00805d", "#34c79a"), ("#e6f5ef", "#0d2b25")),
    "failed": _Look(
        "✗", "M-2.4-2.4 2.4 2.4M2.4-2.4-2.4 2.4", ("#c2410c", "#ff8a5c"), ("#fdeee6", "#3a1a10")
    ),
    "timeout": _Look("◔", "M0-3.6V0L2.6 1.5", ("#946200", "#f0b429"), ("#fcf3dc", "#33270b")),
    "canceled": _Look("■", "M-2-2H2V2H-2z", ("#a0447f", "#e08bc0"), ("#f8eaf3", "#331a2b")),
    "skipped": _Look(
        "»",
        "M-3-2.6-.4 0-3 2.6M.8-2.6 3.4 0 .8 2.6",
        ("#64748b", "#8b9ab0"),
        ("#f1f4f7", "#1a2230"),
    ),
    "running": _Look("►", "M-1.6-2.8 3 0-1.6 2.8z", ("#0369a1", "#56b4e9"), ("#e5f3fb", "#0c2738")),
    "pending": _Look(
        "○", "M-3 0h.01M0 0h.01M3 0h.01", ("#94a3b8", "#64748b"), ("#ffffff", "#161d29")
    ),
}
_UNKNOWN = _Look(
    "?",
    "M-2-1.4C-2-4 2-4 2-1.4 2 .2 0 0 0 1.4M0 3.6h.01",
    ("#94a3b8", "#64748b"),
    ("#ffffff", "#161d29"),
)
_CRITICAL = ("#1d4ed8", "#7aa7ff")


def _look(state: str) -> _Look:
    return _LOOKS.get(state, _UNKNOWN)


def _by_state(drawing: Drawing) -> dict[str, list[int]]:
    """Group the units by the states that we know, in the order of the table."""
    groups: dict[str, list[int]] = {state: [] for state in _LOOKS}
    for node, state in sorted(drawing.states.items()):
        groups.get(state, []).append(node)
    return {state: nodes for state, nodes in groups.items() if nodes}


def _caption(drawing: Drawing, node: int) -> list[str]:
    """Return the lines of a node, for the formats in which a glyph is a letter."""
    name = shorten(visible(drawing.names[node]), 60)
    state = drawing.states.get(node)
    lines = [name if state is None else f"{_look(state).glyph} {name}"]
    if note := drawing.notes.get(node):
        lines.append(shorten(visible(note), 60))
    return lines


# --- DOT ------------------------------------------------------------------------------------------


def to_dot(drawing: Drawing) -> str:
    r"""Draw a graph in the DOT language of Graphviz.

    A node's id is the unit's name. In it, ``\`` is written ``\\`` (DOT cannot do otherwise) and a
    control character as its picture.

    Args:
        drawing: What is to be drawn.

    Returns:
        The source of a ``digraph``.

    Example:
        >>> print(to_dot(Drawing(["load", "save"], [[], [0]], [[0], [1]])))
        digraph {
            rankdir=LR;
            node [shape=box, style="rounded,filled", fillcolor="#ffffff", color="#64748b"];
            edge [color="#64748b"];
            "load";
            "save";
            "load" -> "save";
        }
        <BLANKLINE>
    """
    lines = [
        "digraph {",
        "    rankdir=LR;",
        '    node [shape=box, style="rounded,filled", fillcolor="#ffffff", color="#64748b"];',
        '    edge [color="#64748b"];',
    ]
    if drawing.title:
        lines.insert(2, f"    label={_dot_label(visible(drawing.title))}; labelloc=t;")
    ids = [_dot(name) for name in _distinct(drawing.names)]
    for node, name in enumerate(ids):
        attributes = ", ".join(_dot_attributes(drawing, node, name))
        lines.append(f"    {name} [{attributes}];" if attributes else f"    {name};")
    critical = drawing.critical_edges()
    for source, node in drawing.edges():
        bold = f' [penwidth=2.5, color="{_CRITICAL[0]}"]' if (source, node) in critical else ""
        lines.append(f"    {ids[source]} -> {ids[node]}{bold};")
    return "\n".join([*lines, "}", ""])


def _dot(text: str) -> str:
    # A lone backslash would take the closing mark's meaning, or stand for something in a label.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dot_label(*lines: str) -> str:
    # Graphviz decodes HTML entities in labels, but not in ids.
    return '"' + "\\n".join(_dot(line.replace("&", "&amp;"))[1:-1] for line in lines) + '"'


def _dot_attributes(drawing: Drawing, node: int, name: str) -> Iterator[str]:
    label = _dot_label(*_caption(drawing, node))
    state = drawing.states.get(node)
    # Graphviz has names of its own that begin so, and shows a number for them.
    if label != name or name.startswith('"%'):
        yield f"label={label}"
        yield f"tooltip={_dot_label(visible(drawing.names[node]))}"
    if state is not None:
        look = _look(state)
        yield f'fillcolor="{look.fill[0]}"'
        yield f'color="{look.line[0]}"'
    elif node in drawing.critical:
        yield f'color="{_CRITICAL[0]}"'
    if node in drawing.critical:
        yield "penwidth=2.5"


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names as visible text, still all different: in DOT the name is the node."""
    taken = set(names)
    numbers: Counter[str] = Counter()
    result: list[str] = []
    for name in names:
        text = distinct = visible(name)
        while text != name and distinct in taken:
            numbers[text] += 1
            distinct = f"{text} ({numbers[text] + 1})"
        taken.add(distinct)
        result.append(distinct)
    return result


# --- Mermaid --------------------------------------------------------------------------------------

# Mermaid takes a label for a string, for directives, for Markdown and for HTML, in an order that
# differs between its versions. Safe in all of them are letters, digits and what is not ASCII (but
# for the two marks by which Mermaid puts entities aside), and some marks inside of a word. After
# "www" a point would begin a link.
_PLAIN = r"[^\x00-/:-@\[-`{-\x7f\s°¶]"
_MARKUP = re.compile(rf"(?!{_PLAIN}|(?<={_PLAIN})(?<!www)[ _./-](?={_PLAIN})).", re.I | re.S)


def to_mermaid(drawing: Drawing) -> str:
    """Draw a graph in the language of Mermaid, which GitHub shows in Markdown.

    A page refuses more than 500 edges or 50,000 characters unless it configures Mermaid
    otherwise; draw larger plans as SVG.

    Args:
        drawing: What is to be drawn.

    Returns:
        The source of a ``flowchart``.

    Example:
        >>> print(to_mermaid(Drawing(["a <b>"], [[]], [[0]])))
        flowchart LR
            n0["a#32;#60;b#62;"]
        <BLANKLINE>
    """
    lines = ["flowchart LR"]
    if drawing.title:
        # A title is YAML, and is not decoded as labels are.
        lines[:0] = ["---", f"title: {_dot(visible(drawing.title))}", "---"]
    for node in range(len(drawing.names)):
        label = "<br/>".join(_mermaid(line) for line in _caption(drawing, node))
        lines.append(f'    n{node}["{label}"]')
    edges = list(drawing.edges())
    lines += [f"    n{source} --> n{node}" for source, node in edges]
    for state, nodes in _by_state(drawing).items():
        look = _LOOKS[state]
        style = f"fill:{look.fill[0]},stroke:{look.line[0]},color:#0f172a"
        lines += _mermaid_class(state, nodes, style)
    if drawing.critical:
        lines += _mermaid_class("critical", sorted(drawing.critical), "stroke-width:3px")
        critical = drawing.critical_edges()
        bold = [str(number) for number, edge in enumerate(edges) if edge in critical]
        if bold:
            lines.append(f"    linkStyle {','.join(bold)} stroke:{_CRITICAL[0]},stroke-width:3px")
    return "\n".join([*lines, ""])


def _mermaid(text: str) -> str:
    # An empty label is a syntax error.
    return _MARKUP.sub(lambda mark: f"#{ord(mark[0])};", text or "\N{NO-BREAK SPACE}")


def _mermaid_class(name: str, nodes: Sequence[int], style: str) -> list[str]:
    members = ",".join(f"n{node}" for node in nodes)
    return [f"    classDef {name} {style}", f"    class {members} {name}"]


# --- SVG ------------------------------------------------------------------------------------------

_MARGIN = 20
_ROOM = 30  # cells for a name, and for a note
_NAME_CELL, _NOTE_CELL, _LEGEND_CELL = 7.3, 6.1, 7  # pixels, in the widest of the fonts
_FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


def to_svg(drawing: Drawing) -> str:
    """Draw a graph as one element that needs nothing else: no script, font or Graphviz.

    It follows the reader's dark or light theme, has no ids that could clash with another picture
    of the page, and gives the full name of a unit as its tooltip.

    Args:
        drawing: What is to be drawn.

    Returns:
        An ``<svg>`` element.
    """
    widths = [_width(drawing, node) for node in range(len(drawing.names))]
    height = 46 if any(drawing.notes.values()) else 32
    layout = lay_out(drawing, widths, height)
    legend, legend_width = _svg_legend(drawing)
    heading = 26 if drawing.title else 0
    foot = heading + layout.height + (38 if legend else 0)
    end = max(layout.width, legend_width, 200)
    across, down = end + 2 * _MARGIN, foot + 2 * _MARGIN
    label = escape(f"{visible(drawing.title) or 'Execution plan'}: {_summary(drawing)}")
    size = f'width="{across}" height="{down}"'
    root = f'class="quantum-plan" role="img" {size} viewBox="0 0 {across} {down}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {root} aria-label="{label}">',
        f"<style>{_style(drawing)}</style>",
        f'<rect class="page" {size} rx="8"/>',
        f'<g transform="translate({_MARGIN} {_MARGIN})">',
    ]
    if drawing.title:
        title = escape(shorten(visible(drawing.title), end // 10))
        parts.append(f'<text class="title" y="12">{title}</text>')
    parts.append(f'<g transform="translate(0 {heading})">')
    parts += _svg_edges(drawing, layout)
    for nodes, span in zip(layout.columns, layout.spans, strict=True):
        parts += [_svg_node(drawing, node, span, layout.y[node], height) for node in nodes]
    parts += ["</g>", f'<g transform="translate(0 {foot - 7})">{legend}</g>']
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _summary(drawing: Drawing) -> str:
    counts = {
        "units": len(drawing.names),
        "dependencies": sum(map(len, drawing.dependencies)),
        "levels": len(drawing.levels),
    }
    counts |= {state: len(nodes) for state, nodes in _by_state(drawing).items()}
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _width(drawing: Drawing, node: int) -> int:
    name = cells(shorten(visible(drawing.names[node]), _ROOM)) * _NAME_CELL
    note = cells(shorten(visible(drawing.notes.get(node, "")), _ROOM)) * _NOTE_CELL
    return max(40, ceil(max(name, note)) + _indent(drawing, node) + 12)


def _indent(drawing: Drawing, node: int) -> int:
    return 30 if node in drawing.states else 12


def _svg_edges(drawing: Drawing, layout: Layout) -> Iterator[str]:
    critical = drawing.critical_edges()
    # What is emphasised is drawn last, on top.
    for edge in sorted(layout.lines, key=critical.__contains__):
        first, last = layout.level[edge[0]], layout.level[edge[1]]
        y, *heights = layout.lines[edge]
        x = layout.spans[first][1]
        path = [f"M{x} {y}"]
        # The line ends inside the arrow head, whose tip it would blunt.
        passed = [*layout.spans[first + 1 : first + len(heights)], (layout.spans[last][0] - 5, 0)]
        for height, (start, end) in zip(heights, passed, strict=True):
            if height == y:
                path.append(f"H{start}")
            else:
                middle = (x + start) // 2
                path.append(f"C{middle} {y} {middle} {height} {start} {height}")
            if end:
                path.append(f"H{end}")
            x, y = end, height
        name = "edge critical" if edge in critical else "edge"
        yield f'<path class="{name}" d="{"".join(path)}"/>'


def _svg_node(drawing: Drawing, node: int, span: tuple[int, int], y: int, height: int) -> str:
    """Draw a box from the middle of its left side, which is where its edges end."""
    name, note = visible(drawing.names[node]), visible(drawing.notes.get(node, ""))
    state = drawing.states.get(node)
    classes, tooltip = ["node"], [name]
    if note:
        tooltip.append(note)
    if state is not None:
        classes.append(state if state in _LOOKS else "unknown")
        tooltip.append(visible(state))
    if node in drawing.critical:
        classes.append("critical")
        tooltip.append("on the critical path")
    box = f'y="{-height // 2}" width="{span[1] - span[0]}" height="{height}" rx="7"'
    parts = [
        f'<g class="{" ".join(classes)}" transform="translate({span[0]} {y})">',
        f"<title>{escape(chr(10).join(tooltip))}</title>",
        f'<rect class="box" {box}/>',
    ]
    if drawing.dependencies[node]:
        parts.append('<path class="head" d="M-8-4 0 0-8 4z"/>')
    if state is not None:
        parts.append(f'<g transform="translate(16 0)">{_badge(state)}</g>')
    x = _indent(drawing, node)
    parts.append(f'<text x="{x}" y="{-3 if note else 4}">{escape(shorten(name, _ROOM))}</text>')
    if note:
        parts.append(f'<text class="note" x="{x}" y="13">{escape(shorten(note, _ROOM))}</text>')
    return "".join([*parts, "</g>"])


def _badge(state: str) -> str:
    return f'<circle class="badge" r="7"/><path class="icon" d="{_look(state).icon}"/>'


def _svg_legend(drawing: Drawing) -> tuple[str, int]:
    """Return a line that explains the glyphs, and its width."""
    entries = [
        (f"{len(nodes)} {state}", f'<g class="{state}">{_badge(state)}</g>')
        for state, nodes in _by_state(drawing).items()
    ]
    if drawing.critical:
        entries.append(("critical path", '<path class="edge critical" d="M-7 0H7"/>'))
    parts: list[str] = []
    x = 7
    for text, mark in entries:
        place = f'<g transform="translate({x} 0)">'
        parts.append(f'{place}{mark}<text class="legend" x="13" y="4">{text}</text></g>')
        x += 36 + len(text) * _LEGEND_CELL
    return "".join(parts), x - 16


def _style(drawing: Drawing) -> str:
    shapes = {
        "text": f"font:12px {_FONTS}",
        ".title": "font:600 15px system-ui,sans-serif",
        ".note": "font-size:10px",
        ".legend": "font:12px system-ui,sans-serif",
        ".edge": "fill:none;stroke-width:1.3",
        ".edge.critical": "stroke-width:2.6",
        ".box": "stroke-width:1.2",
        ".critical .box": "stroke-width:2.6",
        ".skipped .box": "stroke-dasharray:5 3",
        ".icon": "fill:none;stroke-width:1.8;stroke-linecap:round;stroke-linejoin:round",
    }
    light, dark = (_rules(_theme(drawing, theme)) for theme in (0, 1))
    return f"{_rules(shapes)}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _theme(drawing: Drawing, theme: int) -> dict[str, str]:
    page, box, line, ink, quiet = (
        ("#ffffff", "#f8fafc", "#94a3b8", "#0f172a", "#57657a"),
        ("#0b1018", "#161d29", "#5b6b82", "#e6ecf4", "#9aa8bc"),
    )[theme]
    rules = {
        ".page": f"fill:{page}",
        ".icon": f"stroke:{page}",
        "text": f"fill:{ink}",
        ".note": f"fill:{quiet}",
        ".legend": f"fill:{quiet}",
        ".edge": f"stroke:{line}",
        ".head": f"fill:{line}",
        ".box": f"fill:{box};stroke:{line}",
    }
    for state in [*_by_state(drawing), *(["unknown"] if drawing.states else [])]:
        look = _look(state)
        rules[f".{state} .box"] = f"fill:{look.fill[theme]};stroke:{look.line[theme]}"
        rules[f".{state} .badge"] = f"fill:{look.line[theme]}"
    rules[".edge.critical"] = rules[".critical .box"] = f"stroke:{_CRITICAL[theme]}"
    rules[".critical .head"] = f"fill:{_CRITICAL[theme]}"
    return rules


def _rules(rules: Mapping[str, str]) -> str:
    # Styles of an element within a page are the whole page's: keep to our own.
    return "".join(f".quantum-plan {selector}{{{body}}}" for selector, body in rules.items())
