"""Draw docs/architecture.svg, the plan of the house, from the imports that are really there. Run by `make docs`.

A room is a folder of the package (or a file that stands alone), a floor holds the rooms whose longest way down is equally long,
and an arrow is an import of one room's files from another's. An import that a longer way of arrows leads to as well is left out.
A test checks that the picture is what this file draws now.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "forwardinf"
PICTURE = Path(__file__).with_name("architecture.svg")
HOME = re.compile(r"(forwardinf(?:\.\w+)+):\w+")  # what a registry names is imported when it is first asked for
WIDE, HIGH, ACROSS, DOWN = 150, 46, 210, 84
MIDDLE, TOP = 430, 24


def room_of(path: Path) -> str:
    """Return the room that a file is in; ``python -m forwardinf`` is a door to the command line."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "view" if first == "__main__" else first


def imported(path: Path) -> set[str]:
    """Return the rooms from which a file imports, its own left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom):
            modules = [
                f"{node.module}.{alias.name}" if node.module == "forwardinf" else str(node.module)
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and (home := HOME.fullmatch(str(node.value))):
            modules = [home[1]]
        found |= {module.split(".")[1] for module in modules if module.startswith("forwardinf.") and "__" not in module}
    return found - {room_of(path)}


def house() -> tuple[dict[str, int], dict[str, set[str]]]:
    """Return (how many files each room has, from which rooms it imports)."""
    files: dict[str, int] = {}
    arrows: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            room = room_of(path)
            files[room] = files.get(room, 0) + (path.name != "__init__.py")
            arrows.setdefault(room, set()).update(imported(path))
    return files, arrows


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Return each room's floor: how many steps its longest way down has."""
    found: dict[str, int] = {}
    while len(found) < len(arrows):
        ready = [room for room in arrows if room not in found and arrows[room] <= set(found)]
        assert ready, "imports go round in a circle"
        found |= {room: 1 + max((found[below] for below in arrows[room]), default=-1) for room in ready}
    return found


def needed(arrows: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Return the arrows without which their end could not be reached."""

    def below(room: str) -> set[str]:
        return set().union(*({other} | below(other) for other in arrows[room]))

    return {(room, other) for room in arrows for other in arrows[room]
            if not any(other in below(way) for way in arrows[room] - {other})}  # fmt: skip


def picture() -> str:
    """Return the plan of the house as SVG."""
    files, arrows = house()
    level = floors(arrows)
    top = max(level.values())
    place: dict[str, tuple[int, int]] = {}
    for floor in range(top + 1):
        rooms = sorted(room for room in level if level[room] == floor)
        for number, room in enumerate(rooms):
            place[room] = MIDDLE + ACROSS * (2 * number - len(rooms) + 1) // 2, TOP + DOWN * (top - floor)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * MIDDLE} {2 * TOP + DOWN * top + HIGH}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">',
        "<title>The rooms of forwardinf by floor; an arrow is an import, and all lead down</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#333333"/></marker></defs>',
    ]
    parts += [_arrow(place[room], place[other], level[room] - level[other]) for room, other in sorted(needed(arrows))]
    for room in sorted(place):
        x, y = place[room]
        told = f"{files[room]} file{'s' if files[room] > 1 else ''}"
        parts.append(
            f'<rect x="{x - WIDE // 2}" y="{y}" width="{WIDE}" height="{HIGH}" rx="6" fill="#eef3f8" stroke="#333333"/>'
            f'<text x="{x}" y="{y + 20}" font-weight="bold">{room}</text>'
            f'<text x="{x}" y="{y + 37}" font-size="12" fill="#555555">{told}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _arrow(start: tuple[int, int], end: tuple[int, int], drop: int) -> str:
    """Draw an arrow: straight to the next floor, in a bow beside the floors that it passes."""
    (x, y), (to_x, to_y) = start, end
    way = f"M{x} {y + HIGH}L{to_x} {to_y}"
    if drop > 1:
        side = -1 if to_x < x else 1
        edge, to_edge = x + side * WIDE // 2, to_x + side * WIDE // 2
        far, to_far = edge + side * 40 * drop, to_edge + side * 20 * drop
        way = f"M{edge} {y + HIGH // 2}C{far} {y + DOWN} {to_far} {to_y - DOWN // 2} {to_edge} {to_y + HIGH // 2}"
    return f'<path d="{way}" fill="none" stroke="#333333" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
