"""Trainings that are stopped before they end."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from deployments.demo_models.training import Training


def interrupted_after(steps: int) -> Callable[[Training[nn.Module]], tuple[float, str]]:
    taken, left = Training._take_step, iter(range(steps))

    def take_step(training: Training[nn.Module]) -> tuple[float, str]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return taken(training)

    return take_step
