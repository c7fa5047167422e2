"""The shipped sound model: small, safe, loaded by diffusers, and right about what it is asked."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments.demo_models.sound.checker import verdict
from deployments.demo_models.sound.measure import load, measure, questions, sample
from deployments.demo_models.sound.world import held_out_sounds

WEIGHTS = Path(str(files("deployments") / "demo_models/weights/demo-sound"))
BYTES_MAX = 4_000_000
CLASSES = {
    "vae": "AutoencoderOobleck",
    "text_encoder": "T5EncoderModel",
    "projection_model": "StableAudioProjectionModel",
    "transformer": "StableAudioDiTModel",
    "scheduler": "EDMDPMSolverMultistepScheduler",
}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    torch.set_num_threads(1)
    return load(WEIGHTS)


def test_the_checkpoint_is_small_and_holds_no_pickles() -> None:
    found = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in found) <= BYTES_MAX
    assert {file.suffix for file in found} == {".safetensors", ".json", ".md"}


def test_the_card_says_licence_and_origin() -> None:
    card = (WEIGHTS / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "python -m deployments.demo_models.sound.train" in card


def test_every_part_is_of_the_stable_audio_architecture(pipeline: Any) -> None:
    assert type(pipeline).__name__ == "StableAudioPipeline"
    assert {name: type(getattr(pipeline, name)).__name__ for name in CLASSES} == CLASSES
    assert all(
        torch.isfinite(parameter).all()
        for name in ("vae", "text_encoder", "projection_model", "transformer")
        for parameter in getattr(pipeline, name).parameters()
    )


def test_held_out_captions_are_mostly_right(pipeline: Any) -> None:
    asked = questions(held_out_sounds(), captions=2, seeds=[100])
    found = measure(pipeline, asked, steps=12)
    assert found["clips"] == 22
    assert found["right"] >= 0.7, found["wrong"]


def test_a_clip_is_as_long_as_it_is_asked_to_be_and_follows_its_seed(pipeline: Any) -> None:
    asked = questions(held_out_sounds()[:1], captions=2, seeds=[3])
    once, again = (list(sample(pipeline, asked, steps=4)) for _ in range(2))
    assert sorted(len(audio) for _, audio in once) == [16_000, 24_000]
    for (_, first), (_, second) in zip(once, again, strict=True):
        assert np.array_equal(first, second)


def test_another_caption_gives_another_clip(pipeline: Any) -> None:
    asked = questions(held_out_sounds(), captions=1, seeds=[4])
    clips = list(sample(pipeline, asked, steps=12))
    for question, audio in clips:
        for other, _ in clips:
            if other.sound.kind != question.sound.kind:
                assert not any(verdict(other.sound, audio).values()) or not all(
                    verdict(question.sound, audio).values()
                )
