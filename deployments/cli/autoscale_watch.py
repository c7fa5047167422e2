"""What `reelserve autoscale watch` sees and draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from deployments.cli.autoscale_words import age, is_old, retry
from deployments.cli.charts import Kind, Layer, columns, strip_chart, time_axis, top_of
from deployments.cli.client import Client, patiently
from deployments.cli.output import plain

WINDOW_S = 300.0
CARRY_S = 15.0
"""A number is drawn on for so long while nothing is decided; then the chart has a gap."""
HISTORY_MAX = 900
NEWEST = 60
"""Lines asked for at each look: more than are written between two."""
REPLICA_ROWS, BACKLOG_ROWS = 6, 4
LEGEND = "█ ready  ░ asked for  · wanted"

Pool = Mapping[str, Any]
Line = Mapping[str, Any]


class Watch:
    """Each pool's last decision, and the history as far as it was seen. ``pool`` is one to look at
    alone, by id or alias. ``notice`` is told of trouble with the connection, which is borne for a
    minute."""

    def __init__(self, api: Client, pool: str | None, notice: Callable[[str], None]) -> None:
        self._api = api
        self._pool = pool
        self._notice = notice
        self._lines: dict[int, Line] = {}
        self._said: dict[str, tuple[object, ...]] = {}
        self._now_ms = 0.0
        self.pools: Sequence[Pool] = ()

    def look(self) -> None:
        """Ask again."""
        self.pools = self._get(model=self._pool)["pools"]
        known = max(self._lines, default=None)
        lines = self._history(HISTORY_MAX if known is None else NEWEST)
        if known is not None and lines and lines[-1]["at_ms"] > known:  # it was away for long
            lines = self._history(HISTORY_MAX)
        if lines:  # by Redis's clock, as the lines are
            self._now_ms = lines[0]["at_ms"] + 1000 * lines[0]["age_s"]
        self._lines.update({line["at_ms"]: line for line in lines})
        for at_ms in sorted(self._lines)[:-HISTORY_MAX]:
            del self._lines[at_ms]

    def scaled(self) -> list[Pool]:
        """Those whose number of replicas is the autoscaler's."""
        return [pool for pool in self.pools if pool["scaling"] is not None]

    def history(self) -> list[Line]:
        """The newest first, as old as they are now."""
        return [
            {**line, "age_s": self._age_s(line)}
            for line in sorted(self._lines.values(), key=lambda line: -line["at_ms"])
        ]

    def changes(self) -> Iterator[str]:
        """A line for each pool whose numbers or bound are not those of the time before."""
        for pool in self.scaled():
            decision = pool["decision"]
            said = _figures(decision) if decision else ()
            if self._said.get(pool["model"]) == said:
                continue
            self._said[pool["model"]] = said
            at = datetime.now().astimezone()
            if decision:
                at = datetime.fromtimestamp(decision["at_ms"] / 1000).astimezone()
            yield f"{at:%H:%M:%S} {plain(_summary(pool))}"

    def picture(self, width: int) -> RenderableType:
        """All pools, over the last WINDOW_S, ``width`` columns to a chart."""
        parts: list[RenderableType] = []
        for pool in self.scaled():
            lines = (line for line in self._lines.values() if pool["model"] in line["pools"])
            points = [(self._age_s(line), line["pools"][pool["model"]]) for line in lines]
            axis = (f"{WINDOW_S / 60:g} min ago", "now")
            charts = pool_charts(points, WINDOW_S, width, axis) if points else []
            parts += [Text(_summary(pool), style="bold"), *charts, ""]
        return Group(*parts[:-1])

    def _age_s(self, line: Line) -> float:
        return max(0.0, self._now_ms - float(line["at_ms"])) / 1000

    def _history(self, limit: int) -> list[Line]:
        lines: list[Line] = self._get("history", limit=limit)["data"]
        return lines

    def _get(self, *path: str, **params: Any) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            return self._api.get("v1", "admin", "autoscale", *path, params=params).body

        return patiently(ask, self._notice)


def pool_charts(
    points: Sequence[tuple[float, Line]],
    window_s: float,
    width: int,
    axis: tuple[str, str],
) -> list[RenderableType]:
    """Replicas and backlog of a pool, and what ``axis`` says of the beginning and the end.

    ``points`` are (seconds ago, what a line of the history says of the pool). The backlog is in
    jobs where nobody knows their work; what else is not said is not drawn.
    """

    def layer(name: str, kind: Kind, style: str) -> Layer:
        said = [(age_s, line[name]) for age_s, line in points if line.get(name) is not None]
        seen = columns(said, window_s=window_s, width=width, carry_s=CARRY_S)
        return Layer(seen, kind, style)

    replicas = [
        layer("ready", "area", "green"),
        layer("target", "shade", "yellow"),
        layer("wanted", "mark", "red"),
    ]
    knows_work = any(line.get("work_s") is not None for _, line in points)
    backlog = [layer("work_s" if knows_work else "jobs", "area", "cyan")]
    most, top = top_of(replicas, 1), top_of(backlog, 1)
    rows = int(most) if most <= REPLICA_ROWS else REPLICA_ROWS
    return [
        strip_chart("replicas", replicas, top=most, height=max(2, rows)),
        strip_chart("GPU-s" if knows_work else "jobs", backlog, top=top, height=BACKLOG_ROWS),
        time_axis(*axis, width, LEGEND),
    ]


def _figures(decision: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(decision[name] for name in ("target", "ready", "wanted", "bound"))


def _summary(pool: Pool) -> str:
    decision = pool["decision"]
    if decision is None:
        return f"{pool['model']}: no decision yet"
    target, ready, wanted, bound = _figures(decision)
    text = (
        f"{pool['model']}: {ready} ready, {target} asked for, {wanted} wanted; "
        f"{bound}: {decision['why']}"
    )
    if again := retry(decision):
        text = f"{text}; {again}"
    if is_old(pool):
        return f"{text}; decided {age(decision['age_s'])} ago, and nobody decides any more"
    return text
