"""What a model's work costs in seconds of one class of device, learned while it runs.

A figure begins as the catalog's and becomes the device's own. It is what admission, ETA, fairness,
leases and drains reckon with, so it must survive what machines do: the first step of a shape
compiles and is left out; of the steps of a few seconds only the median counts, and of those
medians again the median, so a stall of several seconds is one figure out of nine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median_low
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt

from serving.plan.catalog import Model
from serving.plan.clip import ClipSpec
from serving.plan.curve import WINDOW, Cell, Curve, Features, Size
from serving.plan.estimate import Estimate

FORMAT = 1
"""Version of what :meth:`CostModel.to_json` writes."""
CELLS_MAX = 32
"""Sizes of one stage that are remembered one by one; the one seen longest ago makes room."""
FRESH_MAX = 255
"""Durations of one size that one median is taken of."""
COMPILE_S_MAX = 300.0
"""The compiler takes a minute or so for a shape on a GPU; a busy machine takes longer."""


class Stage(StrEnum):
    """What is measured, by what: ``encode`` by nothing, ``step`` by (tokens of a row, rows of the
    forward), ``decode`` by rendered pixels, ``upscale`` by the pixels that come of it, ``deliver``
    (encode and store) by output pixels."""

    ENCODE = "encode"
    STEP = "step"
    DECODE = "decode"
    UPSCALE = "upscale"
    DELIVER = "deliver"


@dataclass(frozen=True)
class Accuracy:
    """How good predictions were, each made before what it was held against.

    ``predictions`` counts all there ever were. Of the latest, ``error`` is the mean of
    |predicted - took| / took, and ``bias`` the mean of (predicted - took) / took.
    """

    predictions: int
    error: float
    bias: float


_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Window(BaseModel):
    at: NonNegativeInt
    s: Annotated[list[_Seconds], Field(min_length=1)]


class _Errors(BaseModel):
    n: NonNegativeInt
    recent: Annotated[list[tuple[int, FiniteFloat, FiniteFloat]], Field(min_length=1)]


class _Document(BaseModel):
    """What is kept of a cost model; ``learn.lua`` writes the same."""

    format: str
    folds: NonNegativeInt = 0
    cells: dict[Stage, dict[str, _Window]] = {}
    errors: dict[Stage, _Errors] = {}


Observed = Mapping[str, Any]
"""JSON of what :meth:`CostModel.fold` took in: ``cells`` has a median by stage and size, ``errors``
by stage the number of predictions, their mean absolute relative error and their bias."""


class CostModel:
    """Seconds of each stage of ``model`` on one class of device.

    Predictions change only by :meth:`fold` and :meth:`adopt`, so they are cheap, and what is
    observed meanwhile is always held against a prediction that did not know it.
    """

    def __init__(self, model: Model, device: str = "") -> None:
        self.model = model
        self.device = device
        cost = model.cost
        # The table's step is one with guidance, which is two rows.
        self._curves = {
            Stage.ENCODE: Curve([cost.encode_s], lambda size: (1.0,)),
            Stage.STEP: Curve([cost.step_s, 0.0, cost.step_s_per_ktoken / 2, 0.0], _step_features),
            Stage.DECODE: Curve([0.0, cost.decode_s_per_mpixel], _pixel_features),
            Stage.UPSCALE: Curve(
                [0.0, model.upscaler.s_per_mpixel if model.upscaler else 0.0], _pixel_features
            ),
            Stage.DELIVER: Curve([0.0, cost.deliver_s_per_mpixel], _pixel_features),
        }
        self._cells: dict[Stage, dict[Size, Cell]] = {stage: {} for stage in Stage}
        self._errors: dict[Stage, _Errors] = {}
        self._folds = 0
        self._fresh: dict[tuple[Stage, Size], deque[float]] = {}
        self._fresh_errors: dict[Stage, list[float]] = {}
        self._stepped: set[Size] = set()

    @property
    def format(self) -> str:
        """Figures under another format are not this model's: they were written by another version,
        or for another catalog entry."""
        entry = self.model
        parts = (entry.cost, entry.family, entry.weights, entry.load, entry.video.frame_multiple)
        seat = entry.upscaler
        upscaling = (seat.model, seat.s_per_mpixel) if seat else ()
        text = repr((FORMAT, parts, entry.video.size_multiple, *upscaling))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def learned(self) -> bool:
        """Whether anything is known beyond the catalog's table."""
        return any(self._cells.values())

    # What work costs.

    @property
    def encode_s(self) -> float:
        """Text encoding and set-up of one job."""
        return self._curves[Stage.ENCODE].seconds(())

    def step_s(self, tokens: int, rows: int) -> float:
        """One forward that carries ``rows`` rows of ``tokens`` each, which may be filled up with
        more: the catalog's ``batch`` says how far."""
        return self._curves[Stage.STEP].seconds(self._forward(tokens, rows))

    def decode_s(self, rendered_pixels: int) -> float:
        """VAE decode of a clip of so many pixels, over all of its frames."""
        return self._curves[Stage.DECODE].seconds((rendered_pixels,))

    def upscale_s(self, upscaled_pixels: int) -> float:
        """On the model server, its queue included, until there are so many pixels, over all
        frames."""
        return self._curves[Stage.UPSCALE].seconds((upscaled_pixels,))

    def deliver_s(self, output_pixels: int) -> float:
        """H.264, stills and store of a clip of so many pixels, over all of its frames."""
        return self._curves[Stage.DELIVER].seconds((output_pixels,))

    def estimate(self, spec: ClipSpec) -> Estimate:
        """What a job takes that is alone on an idle replica. It is charged this much whatever it
        shares its steps with, so that a charge does not depend on the neighbours."""
        return Estimate(
            encode_s=self.encode_s,
            step_s=self.step_s(spec.tokens(self.model), spec.rows),
            steps=spec.steps,
            decode_s=self.decode_s(rendered_pixels(self.model, spec)),
            deliver_s=self.deliver_s(output_pixels(spec)),
            upscale_s=self.upscale_s(upscaled_pixels(spec)) if spec.upscale > 1 else 0.0,
        )

    def marginal_step_ratio(self, tokens: int, rows: int, added_rows: int) -> float:
        """How much longer a step of all of ``rows`` gets when ``added_rows`` of the same shape
        join: 0 while they fill a place that was computed anyway, about 1 where they double it."""
        before = self._round_s(tokens, rows)
        return max(0.0, self._round_s(tokens, rows + added_rows) / before - 1)

    def compile_s(self, tokens: int) -> float:
        """How much longer than its estimate the next step of such a row may take: where blocks are
        compiled, until this process has stepped every forward that may carry it."""
        forwards = {
            self._forward(tokens, rows) for rows in range(1, self.model.batch.rows_max(tokens) + 1)
        }
        cold = self.model.load.compile and not forwards <= self._stepped
        return COMPILE_S_MAX if cold else 0.0

    def _round_s(self, tokens: int, rows: int) -> float:
        """A step of every row, in as many forwards as that takes."""
        room = self.model.batch.rows_max(tokens)
        full, rest = divmod(rows, room)
        whole_s = full * self.step_s(tokens, room)
        return whole_s + (self.step_s(tokens, rest) if rest else 0.0)

    def _forward(self, tokens: int, rows: int) -> Size:
        return (tokens, self.model.batch.bucket(tokens, rows))

    # What it took.

    def observe_encode(self, seconds: float) -> None:
        self._observe(Stage.ENCODE, (), seconds)

    def observe_step(self, tokens: int, rows: int, seconds: float) -> bool:
        """False if it is left out: the first step of a forward's shape in this process compiles,
        picks kernels and fills the allocator's cache."""
        size = self._forward(tokens, rows)
        counts = size in self._stepped
        if counts:
            self._observe(Stage.STEP, size, seconds)
        self._stepped.add(size)
        return counts

    def observe_decode(self, rendered_pixels: int, seconds: float) -> None:
        self._observe(Stage.DECODE, (rendered_pixels,), seconds)

    def observe_upscale(self, upscaled_pixels: int, seconds: float) -> None:
        self._observe(Stage.UPSCALE, (upscaled_pixels,), seconds)

    def observe_deliver(self, output_pixels: int, seconds: float) -> None:
        self._observe(Stage.DELIVER, (output_pixels,), seconds)

    def _observe(self, stage: Stage, size: Size, seconds: float) -> None:
        if not 0 < seconds < math.inf:  # shorter than the clock can tell
            return
        error = self._curves[stage].seconds(size) / seconds - 1
        sums = self._fresh_errors.setdefault(stage, [0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += abs(error)
        sums[2] += error
        self._fresh.setdefault((stage, size), deque(maxlen=FRESH_MAX)).append(seconds)

    def fold(self) -> Observed | None:
        """Let what was observed since the last time count, as one figure for each size.

        What others need to do the same; None if there was nothing. To be called every few
        seconds: how long a disturbance may last that is taken for one follows from it.
        """
        if not self._fresh:
            return None
        cells: dict[str, dict[str, float]] = {}
        for (stage, size), seconds in self._fresh.items():
            cells.setdefault(stage, {})[_text(size)] = _brief(median_low(seconds))
        errors = {
            str(stage): [int(n), _brief(absolute / n), _brief(signed / n)]
            for stage, (n, absolute, signed) in self._fresh_errors.items()
        }
        self._fresh.clear()
        self._fresh_errors.clear()
        observed = {"cells": cells, "errors": errors}
        self._take_in(observed)
        return observed

    def _take_in(self, observed: Observed) -> None:
        self._folds += 1
        for stage in map(Stage, observed["cells"]):
            cells = self._cells[stage]
            for size, seconds in observed["cells"][stage].items():
                cells.setdefault(_size(size), Cell()).add(seconds, self._folds)
            while len(cells) > CELLS_MAX:
                del cells[min(cells, key=lambda size: (cells[size].at, _text(size)))]
            self._curves[stage].fit(cells)
        for stage, figures in observed["errors"].items():
            known = self._errors.get(stage)
            recent = [*(known.recent if known else ()), tuple(figures)][-WINDOW:]
            before = known.n if known else 0
            self._errors[Stage(stage)] = _Errors(n=before + figures[0], recent=recent)

    # What is known.

    def accuracy(self) -> dict[Stage, Accuracy]:
        """Of every stage that was predicted at all."""
        return {stage: _accuracy(errors) for stage, errors in sorted(self._errors.items())}

    def learned_steps(self) -> dict[tuple[int, int], float]:
        """Seconds of a step by (tokens, rows of the forward), of the shapes seen lately."""
        curve = self._curves[Stage.STEP]
        sizes = sorted((size[0], size[1]) for size in self._cells[Stage.STEP])
        return {size: curve.seconds(size) for size in sizes}

    def to_json(self) -> str:
        cells = {
            stage: {_text(size): {"at": cell.at, "s": cell.seconds} for size, cell in known.items()}
            for stage, known in self._cells.items()
            if known
        }
        errors = {stage: known.model_dump() for stage, known in self._errors.items()}
        document = {"format": self.format, "folds": self._folds, "cells": cells, "errors": errors}
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, model: Model, device: str, text: str) -> CostModel:
        """ValueError if it is damaged, or was written for another entry or by another version."""
        costs = cls(model, device)
        costs.adopt(text)
        return costs

    def adopt(self, text: str) -> None:
        """Know what :meth:`to_json` wrote, of every replica perhaps, and nothing else. What is not
        folded yet stays. ValueError as :meth:`from_json`, and then nothing has changed."""
        found = _Document.model_validate_json(text)
        if found.format != self.format:
            raise ValueError(f"cost figures of format {found.format}, not {self.format}")
        cells = {
            stage: {_size(size): Cell(kept.s[-WINDOW:], kept.at) for size, kept in known.items()}
            for stage, known in found.cells.items()
        }
        for stage, lengths in _SIZE_LENGTHS.items():
            if any(len(size) != lengths for size in cells.get(stage, ())):
                raise ValueError(f"cost figures of {stage} that are not by {lengths} numbers")
        self._folds = found.folds
        self._errors = dict(found.errors)
        self._cells = {stage: cells.get(stage, {}) for stage in Stage}
        for stage, curve in self._curves.items():
            curve.fit(self._cells[stage])


@dataclass(frozen=True)
class PoolCosts:
    """What the cost models of one pool say together, by class of device.

    Where replicas run on several, the slowest counts: an ETA that is too long is forgiven, and a
    job is charged the same wherever it runs. Classes with a live replica count before those
    without, and the catalog's table only where nothing was learned.
    """

    prior: CostModel
    learned: Mapping[str, CostModel]
    live: frozenset[str]

    @property
    def chosen(self) -> Sequence[CostModel]:
        live = [costs for device, costs in self.learned.items() if device in self.live]
        return live or list(self.learned.values()) or [self.prior]

    def estimate(self, spec: ClipSpec) -> Estimate:
        return max((costs.estimate(spec) for costs in self.chosen), key=lambda cost: cost.total_s)


def rendered_pixels(model: Model, spec: ClipSpec) -> int:
    """Pixels the VAE decodes, over all frames."""
    frames = spec.render_frames(model.video.frame_multiple)
    return spec.render_width * spec.render_height * frames


def upscaled_pixels(spec: ClipSpec) -> int:
    """Pixels the upscaler makes, over all frames."""
    return spec.upscale**2 * spec.render_width * spec.render_height * spec.frames


def output_pixels(spec: ClipSpec) -> int:
    """Pixels the encoder gets, over all frames."""
    return spec.width * spec.height * spec.frames


def _step_features(size: Size) -> Features:
    """Launches and weights; each row's text; each row's tokens; its attention, which is quadratic
    and most of the work of a long clip."""
    tokens, rows = size
    ktokens = tokens / 1000
    return (1.0, rows, rows * ktokens, rows * ktokens**2)


def _pixel_features(size: Size) -> Features:
    return (1.0, size[0] / 1e6)


_SIZE_LENGTHS = dict.fromkeys(Stage, 1) | {Stage.ENCODE: 0, Stage.STEP: 2}


def _text(size: Size) -> str:
    return " ".join(map(str, size))


def _size(text: str) -> Size:
    size = tuple(int(part) for part in text.split())
    if any(part < 1 for part in size):
        raise ValueError(f"there is no work of size '{text}'")
    return size


def _brief(value: float) -> float:
    return float(f"{value:.6g}")


def _accuracy(errors: _Errors) -> Accuracy:
    total = sum(n for n, _, _ in errors.recent) or 1
    return Accuracy(
        predictions=errors.n,
        error=sum(n * error for n, error, _ in errors.recent) / total,
        bias=sum(n * bias for n, _, bias in errors.recent) / total,
    )
