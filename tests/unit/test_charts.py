"""Charts of unicode blocks show the values they were given, at their time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.text import Text

from deployments.cli.charts import Layer, columns, strip_chart, time_axis, top_of, write_svg


def lines(layers: list[Layer], top: float, height: int) -> list[str]:
    """What stands right of the axis, from the top."""
    text = strip_chart("x", layers, top=top, height=height).plain
    return [line.partition("│")[2] for line in text.split("\n")]


def area(*values: float | None) -> Layer:
    return Layer(values, "area", "green")


def test_a_column_has_the_largest_of_its_values_and_now_is_the_last() -> None:
    points = [(9.5, 1.0), (9.1, 3.0), (8.5, 2.0), (0.5, 7.0), (0.0, 5.0)]
    assert columns(points, window_s=10, width=5, carry_s=0) == [3.0, None, None, None, 7.0]


def test_a_value_holds_until_the_next_but_not_for_ever() -> None:
    # The last value of a column goes on, not its largest.
    points = [(9.5, 6.0), (9.1, 2.0)]
    assert columns(points, window_s=10, width=10, carry_s=3) == [6, 2, 2, 2, *[None] * 6]


def test_what_was_just_before_the_window_holds_on_in_it() -> None:
    seen = columns([(12.0, 4.0), (30.0, 1.0), (5.5, 2.0)], window_s=10, width=5, carry_s=4)
    assert seen == [4, 4, 2, 2, 2]
    assert columns([(30.0, 1.0)], window_s=10, width=2, carry_s=4) == [None, None]


def test_an_area_is_drawn_to_an_eighth_of_a_line() -> None:
    assert lines([area(0, 1, 4, 6, 8, None)], top=8, height=2) == ["   ▄█ ", " ▂███ "]


def test_only_the_scale_is_faint() -> None:
    chart = strip_chart("x", [area(1)], top=1, height=2)
    console = Console()
    assert chart.get_style_at_offset(console, 0).dim
    cell = chart.get_style_at_offset(console, chart.plain.index("█"))
    assert (cell.dim, cell.color and cell.color.name) == (None, "green")


def test_whatever_is_there_is_seen() -> None:
    assert lines([area(0.001, 0)], top=100, height=2) == ["  ", "▁ "]


def test_a_layer_hides_those_behind_it() -> None:
    layers = [
        area(1, 2, 2, 0),
        Layer((3, 2, 3, 0), "shade", "yellow"),
        Layer((4, 4, 3, 1), "mark", "red"),
    ]
    assert lines(layers, top=4, height=4) == ["··  ", "░ ░ ", "░██ ", "███·"]


@pytest.mark.parametrize(
    ("values", "top"),
    [
        ((), 1),
        ((0.2,), 1),
        ((3.2, None), 4),
        ((10,), 10),
        ((11,), 20),
        ((432,), 500),
        ((501,), 1e3),
    ],
)
def test_the_scale_ends_at_a_round_number(values: tuple[float | None, ...], top: float) -> None:
    assert top_of([area(*values)], 1) == top


def test_the_axis_is_as_long_as_the_chart() -> None:
    for width in (20, 30, 100):
        axis = time_axis("5 min ago", "now", width, "legend").plain
        chart = strip_chart("x", [area(*[1.0] * width)], top=1, height=2).plain
        assert len(axis) == len(chart.split("\n")[0])
        assert axis.endswith("now")
        assert "5 min ago" in axis


def test_a_picture_is_svg_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "picture.svg"
    write_svg(file, "a title", Text("some █ text"))
    root = ElementTree.parse(file).getroot()  # noqa: S314
    assert root.tag.endswith("svg")
    assert "some" in "".join(root.itertext())
    assert "url(http" not in file.read_text().replace('"', "")
