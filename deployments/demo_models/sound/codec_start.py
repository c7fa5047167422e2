"""The weights that the codec starts its training from.

The decoder starts as an additive synthesiser written into Oobleck's convolutions: a part of its
channels plays the voices' sines, to be refined by training; the rest, initialised at random, sees
the noises' latents only and learns to hiss and to rumble. From random weights alone, a decoder
of this size takes hours to find fifteen sines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deployments.demo_models.sound.latents import LATENT_CHANNELS, SCALE, SILENCE
from deployments.demo_models.sound.render import CYCLES, FRAME

VOICES = len(CYCLES)
BENT = 0.5
"""Frequency of the snake that squares a latent: small enough to be a parabola."""
STRAIGHT = 0.05
"""Frequency of a snake that lets its input through."""


@torch.no_grad()
def start_alive(codec: Any) -> None:
    """Weights under which a signal keeps its size from layer to layer.

    By default each convolution shrinks it, a transposed one most. Residual units begin as next to
    nothing, so that the network is shallow at first.
    """
    for name, module in codec.named_modules():
        normalised: Any = module  # with parameters that the types of torch do not know
        if isinstance(module, nn.ConvTranspose1d):
            grows = module.stride[0] * module.out_channels / module.in_channels
            normalised.weight_g.mul_((3 * grows) ** 0.5)
        elif isinstance(module, nn.Conv1d):
            residual = "res_unit" in name and name.endswith("conv2")
            normalised.weight_g.mul_(3**0.5 * (0.02 if residual else 1.0))
            if residual:
                normalised.bias.zero_()
    codec.encoder.conv1.weight_g.mul_(4.0)  # audio has a deviation of a quarter or less


@torch.no_grad()
def begin_as_synthesiser(decoder: Any) -> None:
    """Write the sines into ``decoder``, an ``OobleckDecoder`` that upsamples by 6, 8 and 8.

    First each voice's latent is squared to a level, as the even part of two snakes; then the
    three transposed convolutions turn a pair of cosine and sine by the angle of each step, of
    64, 8 and 1 samples. Raises ValueError for a decoder too narrow for that.
    """
    first, second, third = decoder.block
    inner, middle, outer = (block.conv_t1.in_channels for block in decoder.block)
    if inner <= 2 * VOICES or middle <= 2 * VOICES or outer <= 8:
        raise ValueError("the decoder has too few channels for its voices")
    _square(decoder.conv1, first.snake1)
    weight = _separated(first.conv_t1, 2 * VOICES, 2 * VOICES)
    for voice, cycles in enumerate(CYCLES):
        angles = 2 * np.pi * cycles * np.arange(6) / 6
        for half in (voice, VOICES + voice):
            weight[half, voice, 3:9] = torch.from_numpy(np.cos(angles)).float()
            weight[half, VOICES + voice, 3:9] = torch.from_numpy(np.sin(angles)).float()
    _set(first.conv_t1, weight, 2 * VOICES)
    weight = _separated(second.conv_t1, 2 * VOICES, 8)
    for voice, cycles in enumerate(CYCLES):
        angles = 2 * np.pi * cycles * np.arange(64).reshape(8, 8).T / FRAME
        weight[voice, :8, 4:12] = torch.from_numpy(np.sin(angles)).float()
        weight[VOICES + voice, :8, 4:12] = torch.from_numpy(np.cos(angles)).float()
    _set(second.conv_t1, weight, 8)
    weight = _separated(third.conv_t1, 8, 1)
    for sample in range(8):
        weight[sample, 0, 4 + sample] = 1.0
    _set(third.conv_t1, weight, 1)
    last = decoder.conv2.weight_v.clone()
    last *= 0.1
    last[0, 0] = 0.0
    last[0, 0, 3] = 1.0
    _set(decoder.conv2, last)
    for snake, straight in ((second.snake1, 2 * VOICES), (third.snake1, 8), (decoder.snake1, 1)):
        snake.alpha[:, :straight] = float(np.log(STRAIGHT))


def _square(convolution: Any, snake: Any) -> None:
    """Two channels for each voice whose snakes add up to the voice's level.

    A snake is x + sin(ax)^2 / b; those of w and -w add up to 2 sin(aw)^2 / b, about 2 a^2 w^2 / b.
    The remaining channels see the noises' latents.
    """
    weight = convolution.weight_v.clone()
    weight[: 2 * VOICES] = 0.0
    weight[2 * VOICES :, :VOICES] = 0.0
    weight[2 * VOICES :] *= (LATENT_CHANNELS / (LATENT_CHANNELS - VOICES)) ** 0.5
    for voice in range(VOICES):
        for channel, sign in ((voice, SCALE), (VOICES + voice, -SCALE)):
            weight[channel, voice, 3] = sign
            convolution.bias[channel] = sign * SILENCE
    _set(convolution, weight)
    snake.alpha[:, : 2 * VOICES] = float(np.log(BENT))
    snake.beta[:, : 2 * VOICES] = float(np.log(2 * BENT**2))


def _separated(convolution: Any, inputs: int, outputs: int) -> Tensor:
    """Weights [in, out, kernel] without a path between the first channels and the others."""
    norm = convolution.weight_g / convolution.weight_v.norm(dim=(1, 2), keepdim=True)
    weight: Tensor = (convolution.weight_v * norm).clone()
    weight[:inputs] = 0.0
    weight[inputs:, :outputs] = 0.0
    return weight


def _set(convolution: Any, weight: Tensor, silent: int = 0) -> None:
    """Give ``convolution`` this weight; its first ``silent`` outputs have no bias."""
    convolution.weight_v.copy_(weight)
    convolution.weight_g.copy_(weight.norm(dim=(1, 2), keepdim=True))
    if silent:
        convolution.bias[:silent] = 0.0
