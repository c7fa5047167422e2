"""Training of the codec's halves, the decoder first. Neither needs the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderOobleck

from deployments.demo_models.sound.codec import (
    LATENT_NOISE,
    crops,
    decoder_loss,
    encoder_loss,
    new_codec,
)
from deployments.demo_models.training import Training

DECODER_STEPS, ENCODER_STEPS = 800, 300
CROPS = 4
RATE = 1e-3


def train_codec(folder: Path, *, seed: int, device: torch.device) -> AutoencoderOobleck:
    """Train, or go on, and return the codec with its averaged weights."""
    torch.manual_seed(seed)
    with torch.no_grad():  # weight normalisation computes weights, which are copied below
        codec = new_codec().to(device)
    for half, steps in (("decoder", DECODER_STEPS), ("encoder", ENCODER_STEPS)):
        _train_half(codec, half, folder, steps, seed)
    return codec


def _train_half(codec: AutoencoderOobleck, half: str, folder: Path, steps: int, seed: int) -> None:
    module = getattr(codec, half)

    def loss(step: int) -> tuple[torch.Tensor, str]:
        random = np.random.default_rng([seed, *half.encode(), step])
        found = crops(CROPS, random)
        latents, audio, noisy = (part.to(codec.device) for part in found)
        if half == "encoder":
            return encoder_loss(codec, latents, audio), half
        noise = torch.from_numpy(random.standard_normal(latents.shape, np.float32))
        latents = latents + LATENT_NOISE * noise.to(codec.device)
        return decoder_loss(codec, latents, audio, noisy), half

    training = Training(
        module,
        [torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)],
        loss,
        state=folder / f"{half}.pt",
        steps=steps,
        warmup=30,
        average=0.99,
    )
    training.run()
    setattr(codec, half, training.averaged)
