"""How much arithmetic a denoising step of a Wan transformer is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PACKED_FRAMES = 4
TOKEN_PX = 16
"""Of released VAEs, 8, times the transformers' patches, 2."""
WAN_1_3B: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
"""Wan-AI/Wan2.1-T2V-1.3B-Diffusers, ``transformer/config.json``."""


@dataclass(frozen=True)
class Shape:
    """Pixels and frames that a model renders."""

    width: int
    height: int
    frames: int

    @classmethod
    def of(cls, text: str) -> Shape:
        """``"832x480x81"``; ValueError for what no checkpoint of the family can render."""
        try:
            shape = cls(*(int(part) for part in text.split("x")))
        except (TypeError, ValueError):
            raise ValueError(f"'{text}' is not WIDTHxHEIGHTxFRAMES, such as 832x480x81") from None
        if min(shape.width, shape.height, shape.frames) < 1:
            raise ValueError(f"{text}: sides and frames are at least 1")
        if shape.width % TOKEN_PX or shape.height % TOKEN_PX:
            raise ValueError(f"{text}: sides are multiples of {TOKEN_PX} pixels")
        if shape.frames % PACKED_FRAMES != 1:
            raise ValueError(f"{text}: frames are one more than a multiple of {PACKED_FRAMES}")
        return shape

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    @property
    def tokens(self) -> int:
        """Latent tokens of one row of the transformer."""
        latent_frames = (self.frames - 1) // PACKED_FRAMES + 1
        return latent_frames * (self.width // TOKEN_PX) * (self.height // TOKEN_PX)


def forward_flop(transformer: Mapping[str, Any], tokens: int, text_tokens: int) -> float:
    """Floating-point operations of one row of a forward: two for a multiplication and its addition.

    What grows with the latent tokens: linear layers (queries, keys, values and output of
    self-attention, queries and output of cross-attention, the two of the feed-forward network),
    attention among the tokens, and theirs to the text's. Keys and values of the text are computed
    once a prompt or once a step, as one likes, and count as no work.
    """
    heads: int = transformer["num_attention_heads"]
    width = heads * int(transformer["attention_head_dim"])
    linear = 2 * (6 * width**2 + 2 * width * int(transformer["ffn_dim"])) * tokens
    attention = 4 * tokens**2 * width
    cross = 4 * tokens * text_tokens * width
    return float((linear + attention + cross) * int(transformer["num_layers"]))


def attention_flop(tokens: int, heads: int, channels: int, rows: int) -> float:
    """Of one call of attention among so many tokens."""
    return 4.0 * rows * tokens**2 * heads * channels


def utilisation(flop: float, seconds: float, peak_tflops: float) -> float:
    """Model FLOP utilisation: the share of the device's peak that was useful arithmetic."""
    return flop / seconds / (peak_tflops * 1e12)
