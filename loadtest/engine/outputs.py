"""Whether what the engine makes on a device is what the library makes, and its own again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loadtest.engine.device_figures import spec_of
from loadtest.engine.driver import Driver
from loadtest.engine.figures import TOLERANCE
from loadtest.engine.flops import Shape
from loadtest.engine.kernels import relative_difference
from loadtest.engine.work import Bench, clip, mixed_clips
from serving.engine import unpack
from serving.models.load import load_family
from serving.models.tiny import CPU
from serving.plan.catalog import BatchPolicy, Model

NEIGHBOURS = 4
ROUNDING_MAX = 2.0
"""How many times as far from float32 as the library the engine may be. Other kernels round other
bits of bfloat16; a wrong row, time or scale is far beyond."""
PIXEL_DIFFERENCE_MAX = 1.0
"""Mean over a clip, of 255: what float32 on two devices may come to after a few steps and the VAE,
whose convolutions a GPU computes with shorter factors."""
FLOAT32_CLIPS = 6
FLOAT32_TOKENS = (32, 108)


def in_float32(bench: Bench, batch: BatchPolicy) -> dict[str, Any]:
    """Mixed clips of a tiny model through the engine and the library on the device."""
    differences: dict[int, float] = {}
    with _whole_float32(), Driver.of(bench.family(batch)) as driver:
        for tokens in FLOAT32_TOKENS:
            clips = mixed_clips(tokens, FLOAT32_CLIPS)
            ours, theirs = driver.denoise(clips, len(clips)), bench.by_library(clips)
            apart = [(a.cpu() - b.cpu()).abs().max() for a, b in zip(ours, theirs, strict=True)]
            differences[tokens] = float(torch.stack(apart).max())  # NaN stays NaN
    return {
        "max_abs_difference": differences,
        "tolerance": TOLERANCE,
        "agrees": all(each < TOLERANCE for each in differences.values()),
    }


def in_half_precision(bench: Bench, reference: Bench, shape: Shape, steps: int) -> dict[str, Any]:
    """The engine's latents and the library's in bfloat16, each against the library's in float32
    with the same weights. How far another prompt and another seed are from it says what a mistake
    would come to."""
    spec, other = spec_of(shape, steps), spec_of(shape, steps, number=1)
    with _whole_float32():
        wanted, prompt, seed = reference.by_library(
            [spec, spec.model_copy(update={"prompt": other.prompt}), other]
        )
    (library,) = bench.by_library([spec])
    with Driver.of(bench.family()) as driver:
        (engine,) = driver.denoise([spec], 1)
    of_library, of_engine = (relative_difference(each, wanted) for each in (library, engine))
    return {
        "relative_difference": {
            "engine": of_engine,
            "library": of_library,
            "engine from library": relative_difference(engine, library),
            "another prompt": relative_difference(prompt, wanted),
            "another seed": relative_difference(seed, wanted),
        },
        "standard_deviation": float(wanted.std()),
        "agrees": math.isfinite(of_library) and of_engine <= ROUNDING_MAX * of_library,
    }


def same_bits(bench: Bench, shape: Shape, steps: int) -> dict[str, Any]:
    """In the bucket of a few jobs: a clip again, the same beside others, and the same from the
    checkpoint of one that left on its way. A wrong seed must show."""
    spec = spec_of(shape, steps)
    others = [spec_of(shape, steps + number % 2, number) for number in range(1, NEIGHBOURS)]
    policy = BatchPolicy(rows=2 * NEIGHBOURS)
    with Driver.of(bench.family(policy)) as driver:
        (alone,) = driver.denoise([spec], 1)
        (again,) = driver.denoise([spec], 1)
        beside = driver.denoise([*others[:1], spec, *others[1:]], NEIGHBOURS)
        packed = driver.yielded(spec, max(1, steps // 2))
        resumed = driver.run(spec, unpack(packed, spec, driver.family.fingerprint)).latents
    found = {
        "again": torch.equal(alone, again),
        "beside others": torch.equal(alone, beside[1]),
        "yielded and resumed": torch.equal(alone, resumed),
        "finite": bool(alone.isfinite().all()),
        "another seed differs": not torch.equal(alone, beside[0]),
    }
    return {**found, "agrees": all(found.values())}


def as_on_the_cpu(model: Model, weights: Path, device: torch.device, steps: int) -> dict[str, Any]:
    """The shipped demo model's pictures of one request, from its files by its catalog entry."""
    spec = clip(108, steps=steps, guidance_scale=3.0)

    def frames(where: torch.device) -> Any:
        load = model.load.model_copy(update={"device": str(where)})
        family = load_family(model.model_copy(update={"load": load}), weights)
        with Driver.of(family) as driver:
            return driver.frames(spec).astype(np.int16)

    ours, wanted = frames(device), frames(CPU)
    apart = np.abs(ours - wanted)
    mean = float(apart.mean())
    return {
        "mean_abs_difference": mean,
        "max_abs_difference": int(apart.max()),
        "tolerance": PIXEL_DIFFERENCE_MAX,
        "standard_deviation": float(wanted.std()),
        "agrees": mean <= PIXEL_DIFFERENCE_MAX,
    }


@contextmanager
def _whole_float32() -> Iterator[None]:
    """A GPU's convolutions shorten float32's fractions unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
