"""The stages of training, each a row of steps that can be stopped between any two.

Everything random in a step comes from the seed, the stage and the number of the step, so a stage
needs no state but weights and optimisers to go on exactly as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deployments.demo_models.sound.codec import (
    LATENT_NOISE,
    crops,
    decoder_loss,
    encoder_loss,
)
from deployments.demo_models.sound.denoiser import (
    DROPPED_CAPTIONS,
    Denoiser,
    new_projection,
    new_transformer,
    sigmas,
)
from deployments.demo_models.sound.latents import LATENT_CHANNELS, latents_of
from deployments.demo_models.sound.render import FRAMES, compose, perform
from deployments.demo_models.sound.text import (
    AttributeHead,
    new_encoder,
    new_tokenizer,
    tokenize,
    training_caption,
)
from deployments.demo_models.sound.world import (
    DURATION_S_MAX,
    DURATION_S_MIN,
    Sound,
    training_sounds,
)


@dataclass(frozen=True)
class Plan:
    """How much is trained: by default, what a free core does in three quarters of an hour."""

    seed: int = 0
    decoder_steps: int = 800
    encoder_steps: int = 300
    codec_batch: int = 4
    text_steps: int = 500
    text_batch: int = 64
    clips: int = 3_000
    denoiser_steps: int = 12_000
    denoiser_batch: int = 16
    layers: int = 4
    heads: int = 3


class Stage(Protocol):
    """A part of the training. ``state`` and ``restore`` hold all that steps change."""

    name: str
    steps: int

    def step(self, number: int) -> float:
        """Do step ``number``, from 0, and return its loss."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Draw:
    """The random choices of one step."""

    def __init__(self, seed: int, stage: str, number: int, device: torch.device) -> None:
        words = np.random.SeedSequence([seed, *stage.encode(), number]).generate_state(3)
        self.numpy = np.random.default_rng(int(words[0]))
        self.python = Random(int(words[1]))
        self._torch = torch.Generator().manual_seed(int(words[2]))
        self._device = device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._torch).to(self._device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._torch).to(self._device)


def initialise(seed: int) -> None:
    """Before new weights are made, so that a seed always starts from the same ones."""
    torch.manual_seed(seed)


class Codec:
    """Trains one half of the autoencoder; the other is not touched."""

    def __init__(self, plan: Plan, device: torch.device, codec: Any, half: str) -> None:
        self.plan, self.device, self.codec, self.name = plan, device, codec, half
        self.half = getattr(codec, half)
        self.steps = {"decoder": plan.decoder_steps, "encoder": plan.encoder_steps}[half]
        self.optimizer = torch.optim.AdamW(
            self.half.parameters(), betas=(0.9, 0.99), weight_decay=0.0
        )

    def step(self, number: int) -> float:
        draw = Draw(self.plan.seed, self.name, number, self.device)
        found = crops(training_sounds(), self.plan.codec_batch, draw.numpy)
        latents, audio, noisy = (part.to(self.device) for part in found)
        if self.name == "decoder":
            latents = latents + LATENT_NOISE * draw.normal(*latents.shape)
            loss = decoder_loss(self.codec, latents, audio, noisy)
        else:
            loss = encoder_loss(self.codec, latents, audio)
        _set_rate(self.optimizer, 1e-3 * _trapezoid(number, self.steps, warm=30))
        return _descend(loss, self.half.parameters(), [self.optimizer])

    def state(self) -> dict[str, Any]:
        return {"half": self.half.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.half.load_state_dict(state["half"])
        self.optimizer.load_state_dict(state["optimizer"])


class Text:
    """Teaches the text encoder what captions say."""

    name = "text"

    def __init__(self, plan: Plan, device: torch.device) -> None:
        initialise(plan.seed + 1)
        self.plan, self.device, self.steps = plan, device, plan.text_steps
        self.tokenizer = new_tokenizer()
        self.encoder = new_encoder().to(device)
        self.head = AttributeHead().to(device)
        self.parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.01)

    def step(self, number: int) -> float:
        draw = Draw(self.plan.seed, self.name, number, self.device)
        sounds = [draw.python.choice(training_sounds()) for _ in range(self.plan.text_batch)]
        texts = [training_caption(sound, draw.python) for sound in sounds]
        ids, mask = (part.to(self.device) for part in tokenize(self.tokenizer, texts))
        states = self.encoder(ids, attention_mask=mask)[0]
        _set_rate(self.optimizer, 2e-3 * _cosine(number, self.steps, warm=20))
        return _descend(self.head(states, mask, sounds), self.parameters, [self.optimizer])

    def state(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.encoder.load_state_dict(state["encoder"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


class Latents:
    """Composes the clips that the denoiser learns from; a step is one clip."""

    name = "latents"

    def __init__(self, plan: Plan) -> None:
        self.plan, self.steps = plan, plan.clips
        self.latents = torch.zeros(plan.clips, LATENT_CHANNELS, FRAMES)

    def step(self, number: int) -> float:
        sound, duration_s, seed = clip(self.plan.seed, number)
        score = compose(sound, duration_s, seed)
        self.latents[number] = torch.from_numpy(latents_of(score, perform(score, seed)))
        return 0.0

    def state(self) -> dict[str, Any]:
        return {"latents": self.latents}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.latents.copy_(state["latents"])


def clip(seed: int, number: int) -> tuple[Sound, float, int]:
    """Sound, duration in seconds and the renderer's seed of one training clip."""
    random = np.random.default_rng([seed, 3, number])
    sounds = training_sounds()
    sound = sounds[number % len(sounds)]
    return sound, random.uniform(DURATION_S_MIN, DURATION_S_MAX), int(random.integers(2**31))


class Denoising:
    """Trains transformer, projection and text encoder; keeps a running average of them."""

    name = "denoiser"

    def __init__(self, plan: Plan, device: torch.device, encoder: Any, latents: Tensor) -> None:
        initialise(plan.seed + 2)
        self.plan, self.device, self.steps, self.latents = (
            plan,
            device,
            plan.denoiser_steps,
            latents,
        )
        self.tokenizer = new_tokenizer()
        self.model = Denoiser(
            encoder, new_projection(), new_transformer(plan.layers, plan.heads)
        ).to(device)
        self.average = {
            name: parameter.detach().clone() for name, parameter in self.model.named_parameters()
        }
        matrices = [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.ndim == 2 and "transformer_blocks" in name
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [
            parameter
            for parameter in self.model.parameters()
            if parameter.requires_grad and id(parameter) not in chosen
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def step(self, number: int) -> float:
        draw = Draw(self.plan.seed, self.name, number, self.device)
        batch = self.plan.denoiser_batch
        numbers = draw.numpy.integers(len(self.latents), size=batch).tolist()
        clips = [clip(self.plan.seed, index) for index in numbers]
        texts = [training_caption(sound, draw.python) for sound, _, _ in clips]
        ids, mask = (part.to(self.device) for part in tokenize(self.tokenizer, texts))
        # Levels of noise in equal shares of the range: a steadier gradient than by chance.
        spread = (draw.uniform(1) + torch.arange(batch, device=self.device) / batch) % 1.0
        loss = self.model(
            self.latents[numbers].to(self.device),
            draw.normal(batch, LATENT_CHANNELS, FRAMES),
            sigmas(spread),
            ids,
            mask,
            torch.tensor([duration_s for _, duration_s, _ in clips], device=self.device),
            draw.uniform(batch) < DROPPED_CAPTIONS,
        )
        share = _trapezoid(number, self.steps, warm=100)
        _set_rate(self.optimizers[0], 2e-3 * share)
        _set_rate(self.optimizers[1], 1e-3 * share)
        found = _descend(loss, self.model.parameters(), self.optimizers)
        self._follow(number)
        return found

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        kept = min(0.998, (1 + number) / (10 + number))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, 1 - kept)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def finished(self) -> Denoiser:
        """The model with its averaged weights."""
        self.model.load_state_dict(self.average, strict=False)
        return self.model.eval()


def _descend(
    loss: Tensor, parameters: Iterable[nn.Parameter], optimizers: list[torch.optim.Optimizer]
) -> float:
    for optimizer in optimizers:
        optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine(number: int, steps: int, warm: int) -> float:
    return min(1.0, (number + 1) / warm) * (0.51 + 0.49 * math.cos(math.pi * number / steps))


def _trapezoid(number: int, steps: int, warm: int) -> float:
    """Up, level for two thirds, and down to nothing."""
    return min(1.0, (number + 1) / warm, 3 * (steps - number) / steps)
