"""A drawing, and where each unit of it goes: columns by level, few crossings, short straight edges.

A small layered layout after Sugiyama, Tagawa and Toda (1981), in four steps that are each linear
in nodes and edges, or nearly so:

1. an edge that jumps over levels gets a *track* in each column between, so that it runs beside
   the boxes there and not through them; all such edges of one unit share one line of tracks;
2. connected parts are kept apart, in the order in which they were declared;
3. four barycentre sweeps put each column in order;
4. each item is pulled to the mean of its neighbours, as far as that order and the distances allow.

Nodes and tracks are both *items*: numbers below the node count are nodes, the rest are tracks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import add
from unicodedata import east_asian_width

__all__ = ["Drawing", "Layout", "cells", "lay_out", "shorten", "visible"]

SWEEPS = 4

# Leading every long edge around the boxes would be quadratic in a deep plan (a chain whose links
# all read the first unit). Past this many passages, counting each edge and each column that it
# passes, the longest edges are drawn as one curve.
PASSAGES_PER_NODE = 3
FREE_PASSAGES = 1000

# How hard an item holds on to the place it wants. Tracks are stiff, since a kink in a long line
# is what the eye catches; an item with no neighbour on the side looked at just makes room.
NODE_STIFFNESS = 1.0
TRACK_STIFFNESS = 4.0
NO_STIFFNESS = 0.01

NODE_GAP = 14
TRACK_GAP = 12
COLUMN_GAP = (44, 160)
STEEPNESS = 6


@dataclass(frozen=True, slots=True)
class Drawing:
    """Say what is to be drawn.

    Args:
        names: The units' names.
        dependencies: The indices of each unit's dependencies.
        levels: Unit indices by level, which is the longest distance from a root.
        critical: The units on the critical path; they and the edges along it are emphasised.
        notes: A second line for some of the units, such as ``"process, 3 retries"``.
        states: The ``UnitState`` value of each unit, where it is known.
        title: A heading.
    """

    names: Sequence[str]
    dependencies: Sequence[Sequence[int]]
    levels: Sequence[Sequence[int]]
    critical: frozenset[int] = frozenset()
    notes: Mapping[int, str] = field(default_factory=dict)
    states: Mapping[int, str] = field(default_factory=dict)
    title: str = ""

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yield (dependency, dependent), in the order of the dependents."""
        for node, sources in enumerate(self.dependencies):
            for source in sources:
                yield source, node

    def critical_edges(self) -> set[tuple[int, int]]:
        """Return the edges along the critical path, without its short cuts."""
        level = {node: at for at, nodes in enumerate(self.levels) for node in nodes}
        edges: set[tuple[int, int]] = set()
        for node in self.critical:
            sources = [source for source in self.dependencies[node] if source in self.critical]
            last = max((level[source] for source in sources), default=0)
            edges.update((source, node) for source in sources if level[source] == last)
        return edges


@dataclass(frozen=True, slots=True)
class Layout:
    """Say where the nodes and edges of a drawing are, in whole pixels from its top left corner.

    Args:
        columns: Node indices by level, each column from top to bottom.
        level: The column of each node.
        spans: Where each column begins and ends.
        y: The vertical centre of each node.
        lines: The heights of each edge (dependency, dependent): where it leaves, in each column
            that it passes, where it ends. An edge with no room of its own has the two ends only.
        width: Where the last column ends.
        height: Where the lowest box or line ends.
    """

    columns: Sequence[Sequence[int]]
    level: Sequence[int]
    spans: Sequence[tuple[int, int]]
    y: Sequence[int]
    lines: Mapping[tuple[int, int], Sequence[int]]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Items:
    columns: list[list[int]]
    level: list[int]
    before: list[list[int]]
    after: list[list[int]]
    parts: list[int]
    tracks: dict[tuple[int, int], list[int]]


def lay_out(drawing: Drawing, widths: Sequence[int], node_height: int) -> Layout:
    """Lay out a graph in columns.

    Args:
        drawing: The graph; a dependency is on an earlier level than its dependent.
        widths: The width of each node's box; a column is as wide as its widest.
        node_height: The height of every box, an even number.

    Returns:
        The layout; the same input gives the same one.

    Example:
        >>> diamond = Drawing(["a", "b", "c", "d"], [[], [0], [0], [1, 2]], [[0], [1, 2], [3]])
        >>> lay_out(diamond, widths=[60] * 4, node_height=30).y
        [37, 15, 59, 37]
    """
    count = len(drawing.dependencies)
    half = node_height // 2
    items = _with_tracks(drawing)
    _order(items)
    # A unit that has no edge pulls at nothing; it would only leave holes. It goes below its column.
    alone = {node for node in range(count) if not items.before[node] and not items.after[node]}
    connected = [[item for item in column if item not in alone] for column in items.columns]
    places = _place(items, connected, count, node_height)

    half_heights = [half] * count + [1] * (len(places) - count)
    linked = [item for column in connected for item in column]
    top = min((places[item] - half_heights[item] for item in linked), default=0.0)
    y = [round(place - top) for place in places]
    columns: list[list[int]] = []
    for column, above in zip(items.columns, connected, strict=True):
        below = max((y[item] + half_heights[item] + NODE_GAP for item in above), default=0)
        others = [item for item in column if item in alone]
        for row, node in enumerate(others):
            y[node] = below + half + row * (node_height + NODE_GAP)
        columns.append([item for item in above if item < count] + others)

    lines = {
        edge: [y[edge[0]], *[y[track] for track in items.tracks.get(edge, ())], y[edge[1]]]
        for edge in drawing.edges()
    }
    spans = _spans(columns, items.level, widths, lines)
    return Layout(
        columns=columns,
        level=items.level,
        spans=spans,
        y=y[:count],
        lines=lines,
        width=spans[-1][1] if spans else 0,
        height=max(map(add, y, half_heights), default=0),
    )


def _with_tracks(drawing: Drawing) -> _Items:
    """Join the nodes by links between neighbouring columns, over tracks where need be."""
    count = len(drawing.dependencies)
    level = [0] * count
    for number, nodes in enumerate(drawing.levels):
        for node in nodes:
            level[node] = number
    parts = _parts(drawing)
    columns = [sorted(nodes, key=parts.__getitem__) for nodes in drawing.levels]
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]

    reach = level.copy()
    passages = [0] * count
    for source, node in drawing.edges():
        reach[source] = max(reach[source], level[node])
        passages[source] += max(0, level[node] - level[source] - 1)
    lines: dict[int, list[int]] = {}
    left = FREE_PASSAGES + PASSAGES_PER_NODE * count
    for source in sorted(range(count), key=passages.__getitem__):
        left -= passages[source]
        if left < 0:
            break
        needed = reach[source] - level[source] - 1
        if needed < 1:
            continue
        line = lines[source] = list(range(len(before), len(before) + needed))
        for at, (previous, track) in enumerate(zip([source, *line], line, strict=False)):
            columns[level[source] + 1 + at].append(track)
            parts.append(parts[source])
            before.append([previous])
            after.append([])
            after[previous].append(track)

    tracks: dict[tuple[int, int], list[int]] = {}
    for source, node in drawing.edges():
        passed = lines.get(source, [])[: max(0, level[node] - level[source] - 1)]
        if passed:
            tracks[source, node] = passed
        last = passed[-1] if passed else source
        before[node].append(last)
        after[last].append(node)
    return _Items(columns, level, before, after, parts, tracks)


def _parts(drawing: Drawing) -> list[int]:
    """Number the connected parts of the graph: a union-find with path halving."""
    parent = list(range(len(drawing.names)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for source, node in drawing.edges():
        a, b = root(node), root(source)
        # The lowest index is the root, so that parts stay in the order of declaration.
        parent[max(a, b)] = min(a, b)
    return [root(node) for node in range(len(parent))]


def _order(items: _Items) -> None:
    """Sort each column by the mean position of its neighbours, to the right and back, twice."""
    # Positions are shares of a column, since an edge without tracks joins columns far apart.
    position = [0.0] * len(items.before)
    for column in items.columns:
        _number(column, position)
    for sweep in range(SWEEPS):
        forwards = sweep % 2 == 0
        links = items.before if forwards else items.after
        for column in items.columns if forwards else reversed(items.columns):
            for item in column:
                if near := links[item]:
                    position[item] = sum([position[other] for other in near]) / len(near)
            column.sort(key=lambda item: (items.parts[item], position[item]))
            _number(column, position)


def _number(column: Sequence[int], position: list[float]) -> None:
    for index, item in enumerate(column):
        position[item] = (index + 0.5) / len(column)


def _place(
    items: _Items, columns: Sequence[Sequence[int]], count: int, node_height: int
) -> list[float]:
    """Pull the items to their neighbours, from both sides in turn."""
    y = [0.0] * len(items.before)
    separations = []
    for column in columns:
        offsets = [0.0] * len(column)
        for index, (above, below) in enumerate(pairwise(column), 1):
            boxes = (above < count) + (below < count)
            gap = NODE_GAP if boxes == 2 else TRACK_GAP
            offsets[index] = offsets[index - 1] + boxes * node_height / 2 + gap
        for item, offset in zip(column, offsets, strict=True):
            y[item] = offset - offsets[-1] / 2
        separations.append(offsets)
    for sweep in range(SWEEPS):
        forwards = sweep % 2 == 0
        links = items.before if forwards else items.after
        for number in range(len(columns)) if forwards else reversed(range(len(columns))):
            wanted: list[tuple[float, float]] = []
            for item in columns[number]:
                if near := links[item]:
                    stiffness = NODE_STIFFNESS if item < count else TRACK_STIFFNESS
                    wanted.append((sum([y[other] for other in near]) / len(near), stiffness))
                else:
                    wanted.append((y[item], NO_STIFFNESS))
            placed = _settle(wanted, separations[number])
            for item, value in zip(columns[number], placed, strict=True):
                y[item] = value
    return y


def _settle(wanted: Sequence[tuple[float, float]], offsets: Sequence[float]) -> list[float]:
    """Move items as little as possible from where they want to be, in order and apart.

    With the least distances taken off, this is isotonic regression: pooling adjacent violators
    (Ayer and others, 1955) finds the weighted least-squares answer in one pass.

    Args:
        wanted: The place and the stiffness of each item, from top to bottom.
        offsets: How far below the first item each item must be at least.
    """
    blocks: list[tuple[float, float, int]] = []
    for (place, stiffness), offset in zip(wanted, offsets, strict=True):
        mean, weight, size = place - offset, stiffness, 1
        while blocks and blocks[-1][0] >= mean:
            above, heavier, more = blocks.pop()
            mean = (mean * weight + above * heavier) / (weight + heavier)
            weight += heavier
            size += more
        blocks.append((mean, weight, size))
    means = [mean for mean, _, size in blocks for _ in range(size)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _spans(
    columns: Sequence[Sequence[int]],
    level: Sequence[int],
    widths: Sequence[int],
    lines: Mapping[tuple[int, int], Sequence[int]],
) -> list[tuple[int, int]]:
    """Put the columns side by side, further apart where the edges between them are steep."""
    steepest = [0] * (len(columns) + 1)
    for (source, _), heights in lines.items():
        for at, (a, b) in enumerate(pairwise(heights), level[source] + 1):
            if abs(a - b) > steepest[at]:
                steepest[at] = abs(a - b)
    spans: list[tuple[int, int]] = []
    end = 0
    for at, nodes in enumerate(columns):
        least, most = COLUMN_GAP
        start = end + min(most, least + steepest[at] // STEEPNESS) if at else 0
        end = start + max((widths[node] for node in nodes), default=0)
        spans.append((start, end))
    return spans


# --- how much room a text takes -------------------------------------------------------------------

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def visible(text: str) -> str:
    r"""Replace what no format can carry, or what hides, by a character that can be seen.

    These are control characters, line ends, lone surrogates, and the characters that reverse the
    reading direction of what comes after them.

    Example:
        >>> visible("a\nb\0")
        'a⏎b␀'
    """
    return _UNPRINTABLE.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    character = match[0]
    if character in "\n\x85\u2028\u2029":
        return "⏎"
    if character < " ":
        return chr(0x2400 + ord(character))
    return "␡" if character == "\x7f" else "\N{REPLACEMENT CHARACTER}"


def cells(text: str) -> int:
    """Count the columns of a fixed-width font; a mark that takes no room counts as one too.

    Example:
        >>> cells("load"), cells("読込")
        (4, 4)
    """
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def shorten(text: str, room: int) -> str:
    """Cut out a text's middle if it is wider than `room` cells: names in a plan begin alike.

    Example:
        >>> shorten("pipeline.orders.clean", 13)
        'pipeli….clean'
    """
    if cells(text) <= room:
        return text
    tail = _head(text[: -room - 1 : -1], room // 2)[::-1]
    return f"{_head(text[:room], room - 1 - room // 2)}…{tail}"


def _head(text: str, room: int) -> str:
    for index, character in enumerate(text):
        room -= cells(character)
        if room < 0:
            return text[:index]
    return text
