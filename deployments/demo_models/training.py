"""A training that can be killed at any time: it goes on from where it was last saved.

What is drawn for a step is drawn by its number, so a training that was resumed sees what one that
was not would have seen, and ends with the same weights.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

SAVE_S = 60.0
TELL_S = 10.0


def optimizers(
    modules: nn.Module, *, muon: float, adamw: float, decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Muon (https://kellerjordan.github.io/posts/muon) for the matrices inside blocks, AdamW for
    everything else. ``muon`` and ``adamw`` are learning rates."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        inside = parameter.ndim == 2 and "block" in name
        (matrices if inside else others).append(parameter)
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(
            torch.optim.Muon(matrices, lr=muon, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    made.append(torch.optim.AdamW(others, lr=adamw, betas=(0.9, 0.99), weight_decay=decay))
    return made


Module = TypeVar("Module", bound=nn.Module)


class Training(Generic[Module]):
    """Steps of one module, with a moving average of its weights.

    ``loss`` computes a step's loss by the step's number. ``folder`` holds the state; a state that
    is there is gone on from. The learning rates rise for ``warmup`` steps and fall as a cosine to a
    hundredth.
    """

    def __init__(
        self,
        module: Module,
        optimizers: Iterable[torch.optim.Optimizer],
        loss: Callable[[int], tuple[torch.Tensor, str]],
        *,
        state: Path,
        steps: int,
        warmup: int = 100,
        average: float = 0.999,
    ) -> None:
        self.module = module
        self.averaged = copy.deepcopy(module).eval().requires_grad_(False)
        self._optimizers = list(optimizers)
        self._rates = [[group["lr"] for group in each.param_groups] for each in self._optimizers]
        self._loss = loss
        self._state = state
        self._steps = steps
        self._warmup = warmup
        self._average = average
        self.step = 0
        if state.is_file():
            self._restore()

    def run(self, until: int | None = None, say: Callable[[str], None] | None = None) -> None:
        """To the last step, or to ``until``. Ctrl-C saves first."""
        say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        last = self._steps if until is None else min(until, self._steps)
        began, first = time.monotonic(), self.step
        saved = told = began
        try:
            while self.step < last:
                loss, detail = self._take_step()
                now = time.monotonic()
                if now - told >= TELL_S or self.step == last:
                    each = (now - began) / (self.step - first)
                    left = (self._steps - self.step) * each / 60
                    say(
                        f"step {self.step} of {self._steps}, loss {loss:.4f}, {detail}, "
                        f"{1000 * each:.0f} ms a step, {left:.0f} min left"
                    )
                    told = now
                if now - saved >= SAVE_S:
                    self.save()
                    saved = now
        finally:
            self.save()

    def _take_step(self) -> tuple[float, str]:
        rate = self._rate()
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * rate
            optimizer.zero_grad(set_to_none=True)
        loss, detail = self._loss(self.step)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self.step += 1
        # An average over all of the past at first, and over some 1/(1 - average) steps later.
        keep = min(self._average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.module.parameters(), strict=True)
            for ours, theirs in pairs:
                ours.lerp_(theirs, 1 - keep)
        return loss.item(), detail

    def _rate(self) -> float:
        if self.step < self._warmup:
            return (self.step + 1) / self._warmup
        done = (self.step - self._warmup) / max(1, self._steps - self._warmup)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))

    def save(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        new = self._state.with_suffix(".new")
        torch.save(
            {
                "step": self.step,
                "module": self.module.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizers": [each.state_dict() for each in self._optimizers],
            },
            new,
        )
        os.replace(new, self._state)

    def _restore(self) -> None:
        state = torch.load(self._state, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, its in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        self.step = state["step"]
