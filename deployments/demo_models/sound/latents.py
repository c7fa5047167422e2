"""What the codec's latents mean: the score, a little compressed, and how the noise falls.

Left alone, an autoencoder of this size spends its first thousand steps on silence, because a
tone at a wrong pitch is worse than none. Here the decoder is told what to play and the encoder
what to hear. A latent is the root of a voice's level, so that small errors in many voices stay
inaudible; the last channel is how much louder than its level the noise of a frame happens to be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.demo_models.sound.render import (
    CYCLES,
    FRAME,
    FRAMES,
    NOISE_RMS,
    VOICES,
    Score,
)

LATENT_CHANNELS = VOICES + 1
SILENCE = 0.5
"""What a silent voice's latent lies below 0, and so about the middle of the latents."""
SCALE = 0.15
FLUCTUATION = 0.05

Latents = NDArray[np.float32]


def latents_of(score: Score, audio: Any) -> Latents:
    """[LATENT_CHANNELS, FRAMES] of ``score``, whose performance is ``audio`` [samples]."""
    noise = NOISE_RMS * score[len(CYCLES) :].sum(axis=0)
    chance = np.zeros(FRAMES)
    if noise.any():
        heard = np.sqrt((np.asarray(audio, np.float64) ** 2).reshape(FRAMES, FRAME).mean(axis=1))
        chance = np.where(noise > 0, (heard - noise) / (noise + 0.01), 0.0) / FLUCTUATION
    voices = np.sqrt(score) / SCALE - SILENCE
    return np.concatenate([voices, np.clip(chance, -3, 3)[None]]).astype(np.float32)
