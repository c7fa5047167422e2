"""Strip charts of unicode blocks: time goes to the right, and the last column is now."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"
SHADE, MARK = "░", "·"
AXIS_COLUMNS = 14
"""What stands left of a chart: its name and the figures of its scale."""
SVG_COLUMNS = 100
FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
"""Addresses of fonts that whoever looks at a picture would ask for: any fixed font will do."""

Columns = Sequence[float | None]
Kind = Literal["area", "shade", "mark"]


@dataclass(frozen=True)
class Layer:
    """One value per column; None is not drawn. An area is filled up to the value, a shade too but
    faintly, and of a mark only the value itself is seen. Earlier layers hide later ones."""

    columns: Columns
    kind: Kind
    style: str


def columns(
    points: Iterable[tuple[float, float]], *, window_s: float, width: int, carry_s: float
) -> list[float | None]:
    """Values over time as ``width`` columns of the last ``window_s``.

    ``points`` are (seconds ago, value). A column has the largest of its values; one without has
    what was last before it, unless that is more than ``carry_s`` older: then None, as unknown.
    """
    step_s = window_s / width
    peaks: list[float | None] = [None] * width
    latest: dict[int, tuple[float, float]] = {}
    before: tuple[float, float] | None = None  # the last point that is too old to be seen
    for age_s, value in points:
        index = width - 1 - math.floor(age_s / step_s)
        if index >= width:  # a moment after the picture was begun
            index = width - 1
        if index < 0:
            before = min(before or (age_s, value), (age_s, value))
            continue
        peak = peaks[index]
        peaks[index] = value if peak is None else max(peak, value)
        latest[index] = min(latest.get(index, (age_s, value)), (age_s, value))
    last = before
    for index in range(width):
        begins_s = (width - index) * step_s
        if index in latest:
            last = latest[index]
        elif last is not None and last[0] - begins_s <= carry_s:
            peaks[index] = last[1]
    return peaks


def top_of(layers: Iterable[Layer], at_least: float) -> float:
    """A round number (1, 2 or 5 and zeros; any whole one up to 10) that no value exceeds."""
    values = [value for layer in layers for value in layer.columns if value is not None]
    highest = max([at_least, *values])
    if highest <= 10:
        return math.ceil(highest)
    power = 10.0 ** math.floor(math.log10(highest))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= highest)


def strip_chart(name: str, layers: Sequence[Layer], *, top: float, height: int) -> Text:
    """``height`` lines of text, with a scale from 0 to ``top`` at their left."""
    rows = []
    for row in range(height - 1, -1, -1):
        figure = f"{top:g}" if row == height - 1 else "0" if row == 0 else ""
        label = name if row == height - 1 else ""
        line = Text()
        line.append(f"{label:<{AXIS_COLUMNS - len(figure) - 1}}{figure} │", style="dim")
        for index in range(len(layers[0].columns)):
            line.append(*_cell(layers, index, height / top, row))
        rows.append(line)
    chart = Text("\n").join(rows)
    chart.no_wrap = True
    return chart


def time_axis(begins: str, ends: str, width: int, legend: str = "") -> Text:
    """What stands below a chart of ``width`` columns, the legend in the middle where it fits."""
    between = max(1, width - len(begins) - len(ends))
    middle = f"{legend if len(legend) + 2 <= between else '':^{between}}"
    return Text(f"{'':<{AXIS_COLUMNS}} {begins}{middle}{ends}", style="dim", no_wrap=True)


def write_svg(file: Path, title: str, picture: RenderableType) -> None:
    """The picture as it looks in a terminal. It asks nobody for fonts."""
    console = Console(record=True, width=SVG_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(picture)
    file.write_text(console.export_svg(title=title, code_format=FONTS.sub("", CONSOLE_SVG_FORMAT)))


def _cell(layers: Sequence[Layer], index: int, rows_per_unit: float, row: int) -> tuple[str, str]:
    """What is seen of a column in a row, counted from the bottom, and in what style."""
    for layer in layers:
        value = layer.columns[index]
        if value is None or value <= 0:
            continue
        filled = value * rows_per_unit - row
        if layer.kind == "area" and filled > 0:
            # Whatever is there at all is seen.
            return BLOCKS[min(8, max(1, round(8 * filled)))], layer.style
        if layer.kind == "shade" and filled >= 0.5:
            return SHADE, layer.style
        if layer.kind == "mark" and 0 < filled <= 1:
            return MARK, layer.style
    return " ", ""
