"""Samples as a flame graph: one SVG file that needs nothing, coloured by whose time it is. Hovering shows shares."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from supervisor.profile.samples import DATABASE, ENCODING, LOOP, OTHER, USER, Frame, Sample, group_of

WIDTH, ROW, CHAR = 1400.0, 17, 6.6
NARROWEST = 0.3  # pixels; what is narrower is not drawn
COLOURS = {USER: "#e8743b", LOOP: "#5b8dd9", ENCODING: "#8ac26a", DATABASE: "#b07cc6", OTHER: "#c4c4c4"}


class Node:
    """A frame in one place of the tree; children by frame."""

    def __init__(self) -> None:
        self.count = 0
        self.children: dict[Frame, Node] = {}


def svg(samples: Sequence[Sample], title: str) -> str:
    """The graph: outermost frames above, width by count. What all samples of a thread share above their first fork is left out."""
    root = Node()
    for thread in sorted({sample.thread for sample in samples}):
        mine = [sample for sample in samples if sample.thread == thread]
        shared = _shared([sample.stack for sample in mine])
        for sample in mine:
            _grow(root, (Frame(thread, "", 0), *sample.stack[max(0, shared - 1) :]), sample.times)
    boxes: list[str] = []
    depth = _draw(boxes, root, 0.0, 0, root.count or 1)
    height = (depth + 4) * ROW
    legend = "".join(
        f'<rect x="{10 + at * 150}" y="{ROW + 6}" width="11" height="11" fill="{COLOURS[group]}"/><text x="{26 + at * 150}" y="{ROW + 16}">{escape(group)}</text>'
        for at, group in enumerate(COLOURS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height}" width="100%" font-family="monospace" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="10" y="{ROW - 3}" font-size="13">{escape(title)}</text>{legend}\n' + "\n".join(boxes) + "\n</svg>\n"
    )


def _shared(stacks: Sequence[tuple[Frame, ...]]) -> int:
    """How many outermost frames all *stacks* have in common."""
    if not stacks:
        return 0
    first, last = min(stacks), max(stacks)
    return next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))


def _grow(root: Node, stack: Sequence[Frame], count: int) -> None:
    root.count += count
    for frame in stack:
        root = root.children.setdefault(frame, Node())
        root.count += count


def _draw(boxes: list[str], node: Node, x: float, depth: int, total: int) -> int:
    """Draw what is below *node*; returns the deepest row."""
    deepest = depth
    for frame, child in sorted(node.children.items()):
        width = child.count / total * WIDTH
        if width >= NARROWEST:
            boxes.append(_box(frame, child.count / total, x, (depth + 2.5) * ROW, width))
            deepest = max(deepest, _draw(boxes, child, x, depth + 1, total))
        x += width
    return deepest


def _box(frame: Frame, share: float, x: float, y: float, width: float) -> str:
    label = str(frame) if frame.file else frame.function
    room = int(width / CHAR)
    shown = f'<text x="{x + 2:.1f}" y="{y + 12:.1f}">{escape(label[:room])}</text>' if room >= 3 else ""
    where = f"\n{frame.file}:{frame.line}" if frame.file else ""
    return (
        f'<g><title>{escape(label)}\n{share:.1%}{escape(where)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 1}" '
        f'fill="{COLOURS[group_of(frame) or OTHER]}" stroke="#fff" stroke-width="0.5"/>{shown}</g>'
    )
