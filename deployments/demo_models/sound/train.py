"""``python -m deployments.demo_models.sound.train``: from nothing to a checkpoint, in one command.

It may be stopped at any time and goes on when it is called again.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from deployments.demo_models.sound.denoiser import new_pipeline
from deployments.demo_models.sound.text import new_tokenizer
from deployments.demo_models.sound.train_codec import train_codec
from deployments.demo_models.sound.train_denoiser import train_denoiser

STEPS = 9000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.demo_models.sound.train", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="for what is underway, and the checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of a CPU (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of the denoiser (default %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
    folder, device = arguments.folder, torch.device(arguments.device)
    codec = train_codec(folder, seed=arguments.seed, device=device)
    denoiser = train_denoiser(folder, steps=arguments.steps, seed=arguments.seed, device=device)
    pipeline = new_pipeline(denoiser, codec, new_tokenizer())
    for part in (pipeline.vae, denoiser):
        torch.nn.Module.half(part.cpu())  # the library's own ``to`` warns of float16 on a CPU
    pipeline.save_pretrained(folder / "checkpoint")
    print(folder / "checkpoint")


if __name__ == "__main__":
    main()
