"""``python -m deployments.demo_models.video.train``: from nothing to a checkpoint, in one command.

It may be stopped at any time and goes on when it is called again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from deployments.demo_models.video.denoiser import new_pipeline, new_tokenizer
from deployments.demo_models.video.train_codec import train_codec
from deployments.demo_models.video.train_denoiser import train_denoiser

STEPS = 3800


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.demo_models.video.train", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="for what is underway, and the checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of a CPU (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="of the denoiser (default %(default)s)"
    )
    parser.add_argument("--codec", type=Path, help="a checkpoint whose codec is kept")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder, device = arguments.folder, torch.device(arguments.device)
    if arguments.codec:
        codec = AutoencoderKLWan.from_pretrained(arguments.codec, subfolder="vae").to(device)
    else:
        codec = train_codec(folder, seed=arguments.seed, device=device)
    codec.eval().requires_grad_(False)
    tokenizer = new_tokenizer()
    denoiser = train_denoiser(
        codec, tokenizer, folder, steps=arguments.steps, seed=arguments.seed, device=device
    )
    pipeline = new_pipeline(denoiser, codec, tokenizer).to(dtype=torch.float16)
    pipeline.save_pretrained(folder / "checkpoint")
    print(folder / "checkpoint")


if __name__ == "__main__":
    main()
