"""Training of the transformer and the text encoder, by flow matching (arXiv:2210.02747) on the
codec's latents."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from transformers import PreTrainedTokenizerFast

from deployments.demo_models.training import Training, optimizers
from deployments.demo_models.video.codec import SPATIAL, TEMPORAL, encode
from deployments.demo_models.video.denoiser import FLOW_SHIFT, Denoiser
from deployments.demo_models.video.world import Clip, caption, drawn_clip, render

TOKENS_A_STEP = 5184
WITHOUT_CAPTION = 0.1
"""Share of captions that are dropped, for classifier-free guidance."""
FIRST_FRAME_GIVEN = 0.25
TEXT_STEPS, TEXT_CAPTIONS = 200, 128
WHERE_WEIGHT, WHAT_WEIGHT = 0.5, 0.1
REUSE = 6
"""How often a clip is shown, in other words each time, before there is another: drawing and
encoding one takes as long as a step's share of it."""


@dataclass(frozen=True)
class Bucket:
    """Clips of one length and size, which make a batch together. ``early`` and ``late`` are its
    share of the steps in the beginning and in the end: short clips teach the same for less."""

    frames: int
    height: int
    width: int
    early: float
    late: float

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return (self.frames - 1) // TEMPORAL + 1, self.height // SPATIAL, self.width // SPATIAL

    @property
    def batch(self) -> int:
        frames, rows, columns = self.grid
        return TOKENS_A_STEP // (frames * rows * columns)


BUCKETS = (
    Bucket(9, 96, 96, early=0.7, late=0.1),
    Bucket(17, 96, 96, early=0.2, late=0.15),
    Bucket(33, 96, 96, early=0.1, late=0.45),
    Bucket(17, 80, 144, early=0.0, late=0.1),
    Bucket(17, 144, 80, early=0.0, late=0.1),
    Bucket(17, 128, 128, early=0.0, late=0.05),
    Bucket(65, 96, 96, early=0.0, late=0.05),
)


class Latents:
    """Clips of a bucket as latents, made when they are first asked for."""

    def __init__(self, codec: AutoencoderKLWan, bucket: Bucket, seed: int) -> None:
        self._codec = codec
        self._bucket = bucket
        self._seed = seed
        self._known: list[tuple[Clip, torch.Tensor]] = []
        config = codec.config
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).view(shape)
        self._std = torch.tensor(config.latents_std).view(shape)

    def __getitem__(self, number: int) -> tuple[Clip, torch.Tensor]:
        """The clip of this number, and its normalised latents [channels, frames, h, w]."""
        while number >= len(self._known):
            self._make(16)
        return self._known[number]

    @torch.no_grad()
    def _make(self, count: int) -> None:
        bucket = self._bucket
        chance = random.Random(f"{self._seed} {bucket} {len(self._known)}")
        clips = [drawn_clip(chance) for _ in range(count)]
        pixels = render(clips, bucket.frames, bucket.height, bucket.width)
        device = self._codec.device
        with torch.autocast(device.type, torch.bfloat16):
            latents = encode(self._codec, pixels.to(device)).float().cpu()
        latents = (latents - self._mean) / self._std
        self._known += zip(clips, latents.bfloat16(), strict=True)


def train_denoiser(
    codec: AutoencoderKLWan,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    until: int | None = None,
) -> Denoiser:
    """Train, or go on, and return the averaged denoiser."""
    torch.manual_seed(seed)
    denoiser = Denoiser(len(tokenizer)).to(device)
    latents = {bucket: Latents(codec, bucket, seed) for bucket in BUCKETS}
    shown = _Shown(seed, steps)

    def loss(step: int) -> tuple[torch.Tensor, str]:
        if step < TEXT_STEPS:
            return _text_loss(denoiser, tokenizer, seed, step, device)
        bucket, seen = shown.at(step)
        chance = random.Random(f"denoiser {seed} {step}")
        numbers = [chance.randrange(16 + seen // REUSE) for _ in range(bucket.batch)]
        clips, clean = zip(*(latents[bucket][number] for number in numbers), strict=True)
        scenes = [clip.scene for clip in clips]
        captions = [
            "" if chance.random() < WITHOUT_CAPTION else caption(scene, chance) for scene in scenes
        ]
        x = torch.stack(clean).float()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(x.shape, generator=generator)
        even = (torch.arange(len(x)) + torch.rand(1, generator=generator)) / len(x)
        sigma = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
        frames, rows, columns = bucket.grid
        given = torch.tensor([chance.random() < FIRST_FRAME_GIVEN for _ in scenes])
        by_frame = sigma[:, None].repeat(1, frames)
        by_frame[given, 0] = 0
        level = by_frame[:, None, :, None, None]
        noised = (x * (1 - level) + noise * level).to(device)
        times = (1000 * by_frame).repeat_interleave(rows * columns, dim=1).to(device)
        ids, mask = _tokens(tokenizer, captions, device)
        with torch.autocast(device.type, torch.bfloat16):
            text = denoiser.text(ids, mask)
            velocity = denoiser(noised, times, text)
        counts = (level > 0).expand_as(x).to(device)
        error = ((velocity.float() - (noise - x).to(device)) ** 2)[counts].mean()
        where = denoiser.where_loss(bucket.grid)
        said = [index for index, text in enumerate(captions) if text]
        what = denoiser.what_loss(text[said], mask[said], [scenes[index] for index in said])
        total = error + WHERE_WEIGHT * where + WHAT_WEIGHT * what
        return total, f"velocity {error:.4f}, where {where:.3f}, what {what:.3f}"

    training = Training(
        denoiser,
        optimizers(denoiser, muon=2.5e-3, adamw=1e-3),
        loss,
        state=folder / "denoiser.pt",
        steps=steps,
        warmup=50,
    )
    training.run(until)
    return training.averaged


class _Shown:
    """Which bucket a step takes, and how many of its clips were shown before."""

    def __init__(self, seed: int, steps: int) -> None:
        chance = random.Random(f"buckets {seed}")
        counts = dict.fromkeys(BUCKETS, 0)
        self._by_step = []
        for step in range(steps):
            late = min(1.0, 1.5 * step / steps)
            weights = [each.early * (1 - late) + each.late * late for each in BUCKETS]
            (bucket,) = chance.choices(BUCKETS, weights)
            self._by_step.append((bucket, counts[bucket]))
            counts[bucket] += bucket.batch

    def at(self, step: int) -> tuple[Bucket, int]:
        return self._by_step[step]


def _text_loss(
    denoiser: Denoiser,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    step: int,
    device: torch.device,
) -> tuple[torch.Tensor, str]:
    """The first steps teach the text encoder alone what captions say."""
    chance = random.Random(f"text {seed} {step}")
    scenes = [drawn_clip(chance).scene for _ in range(TEXT_CAPTIONS)]
    ids, mask = _tokens(tokenizer, [caption(scene, chance) for scene in scenes], device)
    loss = denoiser.what_loss(denoiser.text(ids, mask), mask, scenes)
    return loss, "of captions"


def _tokens(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    read = tokenizer(captions, padding=True, return_tensors="pt")
    return read.input_ids.to(device), read.attention_mask.to(device)
