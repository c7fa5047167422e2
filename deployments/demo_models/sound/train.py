"""Train the sound model from nothing: ``python -m deployments.demo_models.sound.train``.

The folder gets a checkpoint for ``StableAudioPipeline.from_pretrained``; its subfolder
``training`` holds the state, saved every few seconds and replaced in one move, so that the
process may be killed at any time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableAudioPipeline

from deployments.demo_models.sound.codec import new_codec
from deployments.demo_models.sound.denoiser import Denoiser, new_scheduler
from deployments.demo_models.sound.stages import (
    Codec,
    Denoising,
    Latents,
    Plan,
    Stage,
    Text,
    initialise,
)
from deployments.demo_models.sound.text import new_tokenizer

SAVE_EVERY_S = 60.0
SHOW_EVERY_S = 15.0
STATE = "training"


class OutOfTime(Exception):
    """The minutes of this run are over; the state is saved."""


class Run:
    """One call of the command: where it writes, when it ends, what it shows."""

    def __init__(
        self,
        out: Path,
        plan: Plan,
        device: torch.device,
        seconds: float | None = None,
        show: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.state = out / STATE
        self.out, self.plan, self.device, self.show = out, plan, device, show
        self.ends = None if seconds is None else time.monotonic() + seconds

    def go_through(self, stage: Stage) -> None:
        """Do the steps of ``stage`` that are left. Raises :class:`OutOfTime`."""
        file = self.state / f"{stage.name}.pt"
        done, spent_s = 0, 0.0
        if file.exists():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            done, spent_s = saved["done"], saved["spent_s"]
            stage.restore(saved["state"])
        if done >= stage.steps:
            return
        began = saved_at = shown_at = time.monotonic()
        average = None
        for number in range(done, stage.steps):
            loss = stage.step(number)
            average = loss if average is None else average + 0.02 * (loss - average)
            now = time.monotonic()
            last = number + 1 == stage.steps
            late = self.ends is not None and now > self.ends
            if last or late or now - shown_at > SHOW_EVERY_S:
                shown_at = now
                minutes = (spent_s + now - began) / 60
                progress = f"{stage.name} {number + 1}/{stage.steps}"
                self.show(f"{progress}  loss {average:.4f}  {minutes:.1f} min")
            if last or late or now - saved_at > SAVE_EVERY_S:
                saved_at = now
                spent = {"done": number + 1, "spent_s": spent_s + now - began}
                _replace(file, {**spent, "state": stage.state()})
            if late and not last:
                raise OutOfTime

    def train(self) -> None:
        """Every stage, and the checkpoint. Raises :class:`OutOfTime`."""
        self.state.mkdir(parents=True, exist_ok=True)
        initialise(self.plan.seed)
        codec = new_codec().to(self.device)
        self.go_through(Codec(self.plan, self.device, codec, "decoder"))
        text = Text(self.plan, self.device)
        self.go_through(text)
        latents = Latents(self.plan)
        self.go_through(latents)
        denoising = Denoising(self.plan, self.device, text.encoder, latents.latents)
        self.go_through(denoising)
        # Last, for no clip needs it: it is there for those who start from audio of their own.
        self.go_through(Codec(self.plan, self.device, codec, "encoder"))
        save_checkpoint(self.out, codec, denoising.finished())
        self.show(f"the checkpoint is in {self.out}")


def save_checkpoint(out: Path, codec: Any, denoiser: Denoiser) -> None:
    """All parts in float16, by ``save_pretrained``, into ``out``."""
    pipeline = StableAudioPipeline(
        vae=codec,
        text_encoder=denoiser.text_encoder,
        projection_model=denoiser.projection_model,
        tokenizer=new_tokenizer(),
        transformer=denoiser.transformer,
        scheduler=new_scheduler(),
    )
    for part in (codec.eval(), denoiser):
        torch.nn.Module.half(part.cpu())  # the library's own ``to`` warns of float16 on a CPU
    pipeline.save_pretrained(out)


def _replace(file: Path, value: dict[str, Any]) -> None:
    scratch = file.with_suffix(".new")
    with scratch.open("wb") as stream:
        torch.save(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)


def _plan(arguments: argparse.Namespace, file: Path) -> Plan:
    """That of the earlier run, if it goes on. Raises SystemExit when the two cannot be one."""
    if not arguments.resume:
        if file.exists():
            raise SystemExit(f"{file.parent} has a training: go on with --resume, or --restart")
        return Plan(seed=arguments.seed or 0)
    if not file.exists():
        raise SystemExit(f"{file.parent} has no training to go on with")
    plan = Plan(**json.loads(file.read_text()))
    if arguments.seed not in (None, plan.seed):
        raise SystemExit(f"that training has seed {plan.seed}")
    return plan


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.demo_models.sound.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved state")
    parser.add_argument("--restart", action="store_true", help="throw an earlier state away")
    parser.add_argument("--minutes", type=float, help="stop after these; go on with --resume")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda")
    parser.add_argument("--threads", type=int, help="threads of the CPU (default: torch's)")
    parser.add_argument("--seed", type=int, help="default 0, or that of the training resumed")
    parser.add_argument("--denoiser-steps", type=int, help="the length of the last stage")
    arguments = parser.parse_args(words)
    warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    state = arguments.out / STATE
    if arguments.restart:
        shutil.rmtree(state, ignore_errors=True)
    plan = _plan(arguments, state / "plan.json")
    if arguments.denoiser_steps:
        plan = dataclasses.replace(plan, denoiser_steps=arguments.denoiser_steps)
    state.mkdir(parents=True, exist_ok=True)
    (state / "plan.json").write_text(json.dumps(dataclasses.asdict(plan), indent=1))
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    try:
        Run(arguments.out, plan, torch.device(device), seconds, _print).train()
    except OutOfTime:
        _print("out of time; go on with --resume")
    except KeyboardInterrupt:
        return 130
    return 0


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
