"""Training of the transformer, the projection and the text encoder on the codec's latents."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch

from deployments.demo_models.sound.denoiser import DROPPED_CAPTIONS, Denoiser, noised, sigmas
from deployments.demo_models.sound.latents import latents_of
from deployments.demo_models.sound.render import compose, perform
from deployments.demo_models.sound.text import new_tokenizer, tokenize, training_caption
from deployments.demo_models.sound.world import (
    DURATION_S_MAX,
    DURATION_S_MIN,
    Sound,
    training_sounds,
)
from deployments.demo_models.training import Training, optimizers

TEXT_STEPS, TEXT_CAPTIONS = 600, 64
BATCH = 16
CLIPS = 4096
"""How many different clips there are; each is shown again and again, in other words each time."""
WHERE_WEIGHT = 0.1


def train_denoiser(folder: Path, *, steps: int, seed: int, device: torch.device) -> Denoiser:
    """Train, or go on, and return the averaged denoiser. The first steps teach the text encoder
    alone what captions say."""
    torch.manual_seed(seed + 1)
    denoiser, tokenizer = Denoiser().to(device), new_tokenizer()

    def text_loss(step: int) -> tuple[torch.Tensor, str]:
        random = Random(f"text {seed} {step}")
        sounds = [random.choice(training_sounds()) for _ in range(TEXT_CAPTIONS)]
        texts = [training_caption(sound, random) for sound in sounds]
        ids, mask = (part.to(device) for part in tokenize(tokenizer, texts))
        return denoiser.what_loss(denoiser.text(ids, mask), mask, sounds), "of captions"

    def loss(step: int) -> tuple[torch.Tensor, str]:
        if step < TEXT_STEPS:
            return text_loss(step)
        random = Random(f"denoiser {seed} {step}")
        clips = [_clip(seed, random.randrange(CLIPS)) for _ in range(BATCH)]
        sounds = [sound for sound, _, _ in clips]
        texts = [training_caption(sound, random) for sound in sounds]
        ids, mask = (part.to(device) for part in tokenize(tokenizer, texts))
        seconds = torch.tensor([duration_s for _, duration_s, _ in clips], device=device)
        latents = torch.stack([latents for _, _, latents in clips])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(latents.shape, generator=generator)
        # Levels of noise in equal shares of the range: a steadier gradient than by chance.
        even = (torch.arange(BATCH) + torch.rand(1, generator=generator)) / BATCH
        sigma = sigmas(even)
        dropped = torch.rand(BATCH, generator=generator) < DROPPED_CAPTIONS
        seen, wanted = noised(latents, noise, sigma)
        with torch.no_grad():
            text = denoiser.text(ids, mask)
        predicted = denoiser(
            seen.to(device), sigma.to(device), text, mask, seconds, dropped.to(device)
        )
        error = torch.nn.functional.mse_loss(predicted, wanted.to(device))
        where = denoiser.where_loss()
        return error + WHERE_WEIGHT * where, f"v {error:.4f}, where {where:.3f}"

    training = Training(
        denoiser,
        optimizers(denoiser, muon=2e-3, adamw=1e-3),
        loss,
        state=folder / "denoiser.pt",
        steps=steps,
    )
    training.run()
    return training.averaged


@cache
def _clip(seed: int, number: int) -> tuple[Sound, float, torch.Tensor]:
    """A sound, its duration in seconds, and its latents [channels, frames]."""
    random = np.random.default_rng([seed, number])
    sounds = training_sounds()
    sound, duration_s = sounds[number % len(sounds)], random.uniform(DURATION_S_MIN, DURATION_S_MAX)
    chance = int(random.integers(2**31))
    score = compose(sound, duration_s, chance)
    return sound, duration_s, torch.from_numpy(latents_of(score, perform(score, chance)))
