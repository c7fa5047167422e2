"""Catalog entries of neural voices, whose weights are tiny and random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.models.tiny_voices import tiny_bark, tiny_vits
from serving.plan.speech_model import SpeechModel


def vits(folder: Path, *, id: str = "tiny-vits", **checkpoint: Any) -> dict[str, Any]:
    """The entry of a VITS checkpoint in ``folder``, with ``checkpoint`` for what differs in it."""
    return {
        "id": id,
        "family": "vits",
        "description": "Random weights.",
        "speech": {"voice": next(iter(checkpoint.get("voices", ["eng"])))},
        "checkpoint": {
            "weights": {"path": str(folder)},
            "device": "cpu",
            "sample_rate_hz": 16_000,
            "voices": {"eng": {"name": "English", "language": "en"}},
            **checkpoint,
        },
        "cost": {"s_per_kchar": 1.0},
    }


def bark(folder: Path, **checkpoint: Any) -> dict[str, Any]:
    """As :func:`vits`, of a Bark checkpoint."""
    entry = vits(
        folder,
        id="tiny-bark",
        **{
            "sample_rate_hz": 24_000,
            "voices": {"v2/en_speaker_6": {"language": "en"}},
            **checkpoint,
        },
    )
    return {**entry, "family": "bark"}


def tiny_models(folder: Path) -> dict[str, SpeechModel]:
    """A model of each kind, by id, with checkpoints below ``folder``: one VITS voice, three, and
    two of Bark."""
    entries = [
        vits(tiny_vits(folder / "vits")),
        vits(
            tiny_vits(folder / "speakers", speakers=3),
            id="tiny-speakers",
            voices={n: {"language": "en"} for n in "012"},
        ),
        bark(
            tiny_bark(folder / "bark", ["v2/en_speaker_6", "v2/de_speaker_0"]),
            voices={
                "v2/en_speaker_6": {"language": "en"},
                "v2/de_speaker_0": {"language": "de", "gender": "female"},
            },
        ),
    ]
    return {entry["id"]: SpeechModel.model_validate(entry) for entry in entries}
