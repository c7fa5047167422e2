"""UniPC (arXiv:2302.04867) for several clips at once, each at a step of its own.

The library's scheduler launches some hundred operations on scalars and tensors for every clip and
step, which for small clips takes as long as their share of the transformer. A step is linear in the
sample, the prediction and the solver's history, so here the factors are plain numbers and the whole
batch takes a dozen operations. They are elementwise: a clip's bits are its own. Schedules and state
stay in the library's scheduler objects, as its own step would leave them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler


def fits(scheduler: Any) -> bool:
    """Whether this is UniPC as Wan's checkpoints configure it; others take the library's step."""
    if type(scheduler) is not UniPCMultistepScheduler:
        return False
    config = scheduler.config
    return bool(
        config.prediction_type == "flow_prediction"
        and config.use_flow_sigmas
        and config.predict_x0
        and config.solver_type == "bh2"
        and config.solver_order <= 2
        and config.solver_p is None
        and config.lower_order_final
        and not config.thresholding
    )


def step(
    schedulers: Sequence[Any], predictions: Sequence[torch.Tensor], samples: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What ``scheduler.step`` gives for each clip, whose tensors are [1, ...] and alike.

    Equal to the library's but for rounding: its factors are float32, these are float64.
    """
    factors = [_factors(scheduler) for scheduler in schedulers]
    sample = torch.cat(list(samples))
    table = torch.tensor([each.numbers for each in factors], dtype=sample.dtype).to(sample.device)
    columns = table.view(*table.shape, *[1] * (sample.dim() - 1)).unbind(1)
    sigma, keep, from_last, from_clean, from_before, from_earlier = columns[:6]
    to_corrected, to_clean, to_before = columns[6:]

    last = _stack([scheduler.last_sample for scheduler in schedulers], samples)
    before = _stack([scheduler.model_outputs[-1] for scheduler in schedulers], samples)
    earlier = _stack([scheduler.model_outputs[0] for scheduler in schedulers], samples)
    clean = sample - sigma * torch.cat(list(predictions)).to(sample.dtype)
    corrected = keep * sample + from_last * last + from_clean * clean
    corrected += from_before * before + from_earlier * earlier
    following = to_corrected * corrected + to_clean * clean + to_before * before
    for row, (scheduler, each) in enumerate(zip(schedulers, factors, strict=True)):
        _record(scheduler, each.order, clean[row : row + 1], corrected[row : row + 1])
    return [following[row : row + 1] for row in range(len(factors))]


def _stack(history: Sequence[torch.Tensor | None], samples: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of clips that have one; the others' factors are 0."""
    return torch.cat(
        [
            torch.zeros_like(sample) if each is None else each
            for each, sample in zip(history, samples, strict=True)
        ]
    )


@dataclass
class _Factors:
    """Of one step: ``clean`` is the predicted end of the clip now, ``before`` and ``earlier`` those
    of the last two steps, ``last`` the corrected sample of the last step."""

    order: int
    sigma: float
    keep: float = 1.0
    from_last: float = 0.0
    from_clean: float = 0.0
    from_before: float = 0.0
    from_earlier: float = 0.0
    to_corrected: float = 0.0
    to_clean: float = 0.0
    to_before: float = 0.0

    @property
    def numbers(self) -> list[float]:
        return [
            *(self.sigma, self.keep, self.from_last, self.from_clean, self.from_before),
            *(self.from_earlier, self.to_corrected, self.to_clean, self.to_before),
        ]


def _factors(scheduler: Any) -> _Factors:
    index, config = _index(scheduler), scheduler.config
    sigmas = scheduler.sigmas[max(0, index - 2) : index + 2].tolist()
    order = config.solver_order
    if config.lower_order_final:
        order = min(order, len(scheduler.timesteps) - index)
    order = min(order, scheduler.lower_order_nums + 1)
    found = _Factors(order, sigmas[-2])
    _predict(found, sigmas)
    corrects = index > 0 and index - 1 not in scheduler.disable_corrector
    if corrects and scheduler.last_sample is not None:
        _correct(found, sigmas[:-1], scheduler.this_order)
    return found


def _index(scheduler: Any) -> int:
    """The step it is at; before its first, where it was told to begin."""
    index = scheduler.begin_index if scheduler.step_index is None else scheduler.step_index
    return index or 0


def _predict(found: _Factors, sigmas: Sequence[float]) -> None:
    """UniP from the second last of ``sigmas`` to the last."""
    now, then = sigmas[-2:]
    h = _half_log_snr(then) - _half_log_snr(now)
    b_h = math.expm1(-h)
    found.to_corrected = then / now
    found.to_clean = -(1 - then) * b_h
    if found.order == 2:
        ratio = (_half_log_snr(sigmas[-3]) - _half_log_snr(now)) / h
        found.to_before = -(1 - then) * b_h * 0.5 / ratio
        found.to_clean -= found.to_before


def _correct(found: _Factors, sigmas: Sequence[float], order: int) -> None:
    """UniC of the sample at the last of ``sigmas``, with the prediction made there."""
    last, now = sigmas[-2:]
    h = _half_log_snr(now) - _half_log_snr(last)
    b_h = math.expm1(-h)
    scale = -(1 - now) * b_h
    found.keep = 0.0
    found.from_last = now / last
    found.from_before = scale
    weight = 0.5
    if order == 2:
        ratio = (_half_log_snr(sigmas[-3]) - _half_log_snr(last)) / h
        first = (b_h / -h - 1) / b_h
        second = ((b_h / -h - 1) / -h - 0.5) * 2 / b_h
        of_history = (second - first) / (ratio - 1)
        weight = first - of_history
        found.from_earlier = scale * of_history / ratio
        found.from_before -= found.from_earlier
    found.from_clean = scale * weight
    found.from_before -= found.from_clean


def _half_log_snr(sigma: float) -> float:
    """log(alpha / sigma) of a flow, where alpha is 1 - sigma."""
    if sigma <= 0:
        return math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf


def _record(scheduler: Any, order: int, clean: torch.Tensor, corrected: torch.Tensor) -> None:
    """Leave the scheduler as its own step would."""
    index = _index(scheduler)
    scheduler.model_outputs = [*scheduler.model_outputs[1:], clean]
    scheduler.timestep_list = [*scheduler.timestep_list[1:], scheduler.timesteps[index]]
    scheduler.this_order = order
    scheduler.last_sample = corrected
    scheduler.lower_order_nums = min(scheduler.lower_order_nums + 1, scheduler.config.solver_order)
    scheduler._step_index = index + 1
