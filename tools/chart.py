"""Two panels of lines, over the skip share or another measure, as SVG text: the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 900, 380
TOP, BOTTOM, LEFT, GAP = 62, 268, 58, 66
PANEL = (WIDTH - LEFT - GAP - 24) // 2
COLOURS = ("#1f5fa8", "#c2571a", "#3b7d3b", "#7a4fa3")


@dataclass(frozen=True)
class Series:
    """points: (place, value), or (place, value, low, high) with an interval. dots: a mark at each."""

    name: str
    points: Sequence[tuple[float, ...]]
    line: bool = True
    dots: bool = True


@dataclass(frozen=True)
class Axis:
    """A horizontal axis. ticks: places and what stands under them. size: of that text, in pixels."""

    name: str
    ends: tuple[float, float]
    ticks: Sequence[tuple[float, str]]
    size: int = 13


SHARES = Axis("skip share", (0.0, 0.55), [(share, f"{share:g}") for share in (0.0, 0.1, 0.2, 0.3, 0.4)])


@dataclass(frozen=True)
class Panel:
    """values: the ends of the vertical axis. step: between its lines. form: of their values."""

    title: str
    values: tuple[float, float]
    series: Sequence[Series]
    axis: Axis = SHARES
    step: float | None = None
    form: str = ".2f"


def draw(title: str, *panels: Panel) -> str:
    """The picture, panels side by side."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts += _panel(panel, LEFT + i * (PANEL + GAP))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, left: int) -> list[str]:
    low, high = panel.values

    axis = panel.axis

    def x(place: float) -> float:
        return left + PANEL * (place - axis.ends[0]) / (axis.ends[1] - axis.ends[0])

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    parts = [_text(left, TOP - 26, panel.title, weight="bold", size=15)]
    step = panel.step or (0.25 if high - low > 0.5 else 0.1)
    for k in range(round((high - low) / step - 0.49) + 1):
        value = low + k * step
        parts.append(f'<path d="M{left} {y(value):.1f}h{PANEL}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y(value) + 4, format(value, panel.form), anchor="end"))
    for place, words in axis.ticks:
        parts.append(_text(x(place), BOTTOM + 18, words, anchor="middle", size=axis.size))
    parts.append(_text(left + PANEL, BOTTOM + 18, axis.name, anchor="end", colour="#555"))
    for i, series in enumerate(panel.series):
        parts += _series(series, COLOURS[i], 5 * i, x, y)
        parts.append(f'<circle cx="{left + 5}" cy="{BOTTOM + 38 + 19 * i}" r="4" fill="{COLOURS[i]}"/>')
        parts.append(_text(left + 16, BOTTOM + 42 + 19 * i, series.name))
    return parts


def _series(series: Series, colour: str, aside: int, x, y) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    if series.line:
        path = "L".join(f"{x(point[0]):.1f} {y(point[1]):.1f}" for point in series.points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for share, value, *ends in series.points if series.dots else ():
        place = x(share) + (aside if ends else 0)
        if ends:
            bar = f"M{place:.1f} {y(ends[0]):.1f}V{y(ends[1]):.1f}"
            parts.append(f'<path d="{bar}" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{place:.1f}" cy="{y(value):.1f}" r="4" fill="{colour}"/>')
    return parts


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", size: int = 13, colour: str = "#222"
) -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
