"""Measure a sound model: ``python -m deployments.demo_models.sound.measure FOLDER``.

Samples a clip for each of many captions that training never said, and lets the checker, which
does not know the caption, say what it hears. A clip is right if its kind and every attribute are.
``captions`` are of sounds that training heard, in other words; ``combinations`` of sounds whose
attributes it never heard together.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import StableAudioPipeline

from deployments.demo_models.sound.captions import complete, held_out
from deployments.demo_models.sound.checker import hear, verdict
from deployments.demo_models.sound.world import (
    HELD_OUT,
    SAMPLING_RATE_HZ,
    Sound,
    held_out_sounds,
    training_sounds,
)

STEPS = 24
GUIDANCE_SCALE = 3.0
DURATIONS_S = (2.0, 3.0)
"""Clips last one of these, in turn."""


@dataclass(frozen=True)
class Question:
    """What is asked of the model, and the noise that it starts from."""

    sound: Sound
    caption: str
    duration_s: float
    seed: int


def questions(sounds: Sequence[Sound], captions: int, seeds: Sequence[int]) -> tuple[Question, ...]:
    """``captions`` different complete captions of every sound, each under every seed, none of which
    training said. Raises ValueError where there are not so many."""
    asked = []
    for index, sound in enumerate(sounds):
        random = Random(f"measure {sound}")
        drawn = dict.fromkeys(complete(sound, random) for _ in range(1_000))
        texts = [text for text in drawn if sound in HELD_OUT or held_out(text)][:captions]
        if len(texts) < captions:
            raise ValueError(f"only {len(texts)} captions of {sound} are held out")
        for number, text in enumerate(texts):
            duration_s = DURATIONS_S[(index + number) % len(DURATIONS_S)]
            asked += [Question(sound, text, duration_s, seed) for seed in seeds]
    return tuple(asked)


def load(folder: Path, device: str = "cpu") -> Any:
    """The pipeline in ``folder``, in float32 and without a progress bar."""
    warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
    pipeline = StableAudioPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def sample(
    pipeline: Any, asked: Sequence[Question], steps: int = STEPS, guidance: float = GUIDANCE_SCALE
) -> Iterator[tuple[Question, Any]]:
    """Every question with its clip, [samples]. Equal durations share a batch of up to 16."""
    for duration_s in sorted({question.duration_s for question in asked}):
        alike = [question for question in asked if question.duration_s == duration_s]
        for start in range(0, len(alike), 16):
            batch = alike[start : start + 16]
            audios = pipeline(
                [question.caption for question in batch],
                audio_end_in_s=duration_s,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(each.seed) for each in batch],
            ).audios
            yield from zip(batch, audios[:, 0].float().cpu().numpy(), strict=True)


def measure(
    pipeline: Any,
    asked: Sequence[Question],
    steps: int = STEPS,
    guidance: float = GUIDANCE_SCALE,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Shares of clips that are right: in all, by kind, and by attribute."""
    began = time.monotonic()
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    wrong = []
    for question, audio in sample(pipeline, asked, steps, guidance):
        found = verdict(question.sound, audio)
        names = {"": all(found.values()), f"kind {question.sound.kind}": all(found.values())}
        names |= {f"attribute {axis}": ok for axis, ok in found.items()}
        for name, ok in names.items():
            count[name] += 1
            right[name] += ok
        if not names[""]:
            wrong.append(
                {
                    "caption": question.caption,
                    "seed": question.seed,
                    "asked": str(question.sound),
                    "heard": str(hear(audio) or "nothing known"),
                }
            )
        if count[""] % 16 == 0:
            show(f"{count['']}/{len(asked)} clips, {right['']} right")
    shares = {name: right[name] / count[name] for name in sorted(count)}
    return {
        "right": shares[""],
        "clips": len(asked),
        "captions": len({question.caption for question in asked}),
        "seeds": len({question.seed for question in asked}),
        "steps": steps,
        "guidance_scale": guidance,
        "sampling_rate_hz": SAMPLING_RATE_HZ,
        "seconds": time.monotonic() - began,
        **{
            group: {
                name.removeprefix(f"{group} "): share
                for name, share in shares.items()
                if name.startswith(f"{group} ")
            }
            for group in ("kind", "attribute")
        },
        "wrong": wrong,
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.demo_models.sound.measure", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="a checkpoint that train wrote")
    parser.add_argument("--captions", type=int, default=4, help="of each sound (4)")
    parser.add_argument("--seeds", type=int, default=2, help="clips of each caption (2)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of sampling ({STEPS})")
    parser.add_argument(
        "--guidance", type=float, default=GUIDANCE_SCALE, help=f"scale ({GUIDANCE_SCALE})"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: torch's)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args(words)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pipeline = load(arguments.folder, arguments.device)
    found = {}
    for name, sounds in (("captions", training_sounds()), ("combinations", held_out_sounds())):
        asked = questions(sounds, arguments.captions, range(arguments.seeds))
        found[name] = measure(
            pipeline,
            asked,
            arguments.steps,
            arguments.guidance,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(f"{name}\n{_table(figures)}" for name, figures in found.items()))
    return 0


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['right']:6.1%} right: {found['captions']} captions, "
        f"{found['seeds']} seeds, {found['steps']} steps, scale {found['guidance_scale']}"
    ]
    for group in ("kind", "attribute"):
        lines += [f"{share:6.1%}   {group} {name}" for name, share in found[group].items()]
    lines += [
        f"  wrong: {each['caption']!r} sounds like {each['heard']}" for each in found["wrong"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
