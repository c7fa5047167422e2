"""Training of the codec, on crops of clips around the shapes' edges."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch.nn.functional import l1_loss, mse_loss

from deployments.demo_models.training import Training, optimizers
from deployments.demo_models.video.codec import decode, encode, new_codec
from deployments.demo_models.video.world import (
    BACKGROUNDS,
    COLOURS,
    cover,
    drawn_clip,
    path,
    render,
)

MEASURED = 256
"""Clips by which the latents' mean and deviation are known."""
NOISE = 0.05
"""What a denoiser leaves of its noise, which the decoder must bear; latents have a deviation of
about one."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of clips, as large as these and as many to a step; ``bank`` of them are drawn."""

    frames: int
    height: int
    width: int
    batch: int
    bank: int


@dataclass(frozen=True)
class Stage:
    """A part of the training, with a learning rate that rises and falls."""

    name: str
    pieces: tuple[Pieces, ...]
    steps: int


EDGES = Pieces(9, 48, 48, batch=16, bank=6000)
STAGES = (
    # Most is learned where there is most to see.
    Stage("edges", (EDGES,), steps=3000),
    # A codec that never saw a long clip goes astray after some 12 frames.
    Stage(
        "clips",
        (
            EDGES,
            Pieces(33, 48, 48, batch=4, bank=1500),
            Pieces(33, 96, 96, batch=1, bank=500),
            Pieces(17, 80, 144, batch=2, bank=300),
            Pieces(17, 144, 80, batch=2, bank=300),
        ),
        steps=2500,
    ),
)


def train_codec(folder: Path, *, seed: int, device: torch.device) -> AutoencoderKLWan:
    """Train, or go on, and return the averaged codec with its latents' mean and deviation."""
    torch.manual_seed(seed)
    codec = new_codec().to(device)
    for stage in STAGES:
        codec = _train(codec, stage, folder, seed, device)
    _measure_latents(codec, seed, device)
    return codec


def _train(
    codec: AutoencoderKLWan, stage: Stage, folder: Path, seed: int, device: torch.device
) -> AutoencoderKLWan:
    banks: list[Bank] = []
    codec.train().requires_grad_(True)

    def loss(step: int) -> tuple[torch.Tensor, str]:
        if not banks:  # only where there is something left to do
            banks.extend(Bank(pieces, seed) for pieces in stage.pieces)
        pixels = banks[step % len(banks)].batch(step).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents = encode(codec, pixels)
            generator = torch.Generator().manual_seed(step)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            again = decode(codec, latents + NOISE * noise)
        again = again.float()
        error = mse_loss(again, pixels)
        # Not much wider than a normal distribution, as nothing else holds the latents together.
        wide = (latents.float() ** 2 - 1).clamp(min=0).mean()
        psnr = 10 * torch.log10(4 / error.detach())
        return l1_loss(again, pixels) + 2 * error + 1e-3 * wide, f"{psnr:.1f} dB"

    training = Training(
        codec,
        optimizers(codec, muon=0.0, adamw=2e-3),
        loss,
        state=folder / f"codec-{stage.name}.pt",
        steps=stage.steps,
    )
    training.run()
    return training.averaged


class Bank:
    """Pieces of clips, in colours that are drawn anew each time."""

    def __init__(self, pieces: Pieces, seed: int) -> None:
        chance = random.Random(f"{pieces} {seed}")
        self._seed = seed
        self._batch = pieces.batch
        self._covers = torch.stack([_piece(pieces, chance) for _ in range(pieces.bank)])

    def batch(self, step: int) -> torch.Tensor:
        """[pieces, 3, frames, height, width] from -1 to 1."""
        chance = random.Random(f"codec {self._seed} {step}")
        count = self._batch
        covers = self._covers[[chance.randrange(len(self._covers)) for _ in range(count)]]
        colours = [
            [chance.choice(list(palette.values())) for _ in range(count)]
            for palette in (BACKGROUNDS, COLOURS)
        ]
        ground, shape = (
            torch.tensor(colour).view(count, 3, 1, 1, 1) / 127.5 - 1 for colour in colours
        )
        return torch.lerp(ground, shape, covers[:, None] / 255)


SIZES = ((96, 96), (96, 96), (80, 144), (144, 80), (128, 128))
LENGTHS = (9, 17, 33, 33)
NEAR = 30
"""How many pixels the middle of a piece may be from the middle of the shape."""


def _piece(pieces: Pieces, chance: random.Random) -> torch.Tensor:
    """How much of each pixel is the shape's: uint8 [frames, height, width]."""
    clip = drawn_clip(chance)
    sizes = [
        (height, width)
        for height, width in SIZES
        if height >= pieces.height and width >= pieces.width
    ]
    height, width = chance.choice(sizes)
    frames = chance.choice([length for length in LENGTHS if length >= pieces.frames])
    first = chance.randrange(frames - pieces.frames + 1)
    x, y, radius = (
        each[first : first + pieces.frames] for each in path(clip, frames, height, width)
    )
    short, middle = min(height, width), pieces.frames // 2

    def corner(centre: torch.Tensor, part: int, side: int) -> int:
        near = float(centre[middle]) * short + chance.uniform(-NEAR, NEAR) - part / 2
        return round(min(max(near, 0), side - part))

    top, left = corner(y, pieces.height, height), corner(x, pieces.width, width)
    window = (top, left, pieces.height, pieces.width)
    return (cover(clip.scene.shape, (x, y, radius), window, short) * 255).round().to(torch.uint8)


@torch.no_grad()
def _measure_latents(codec: AutoencoderKLWan, seed: int, device: torch.device) -> None:
    """Write the latents' mean and deviation by channel to the codec's configuration."""
    chance = random.Random(f"latents {seed}")
    latents = torch.cat(
        [
            encode(codec, render([drawn_clip(chance) for _ in range(8)], 33, 96, 96).to(device))
            for _ in range(MEASURED // 8)
        ]
    )
    codec.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(),
        latents_std=latents.std(dim=(0, 2, 3, 4)).tolist(),
    )
