"""Compiling a transformer's repeated blocks, so that a shape's bits do not depend on the past."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from serving.plan.catalog import Model


def shapes(model: Model) -> int:
    """How many shapes of latents and rows the model's forwards can have at most."""
    limits = model.video
    sizes = {limits.render_size(size) for size in limits.sizes}
    fps = range(limits.fps.min, limits.fps.max + 1)
    latent_frames = {
        -(-(seconds * rate - 1) // limits.frame_multiple)
        for seconds, rate in product(limits.seconds, fps)
    }
    rows = max([model.batch.rows, *model.batch.rows_from_tokens.values()])
    buckets = rows.bit_length()  # under strict as well: a device without memory halves them
    return len(sizes) * len(latent_frames) * buckets


def compile_blocks(transformer: Any, *, shapes: int) -> None:
    """Compile the blocks, one graph for all of them, anew at the first forward of each shape.

    A graph that fits every shape would be tuned to the shape it met first, and the compiler's own
    choice, static first and general later, would make a clip's bits depend on what ran before it
    on this replica. So every shape has its own, and the limit beyond which the compiler gives up
    is raised to ``shapes``. Compiling takes a minute or so on a GPU; its cache on disk makes the
    next start quick.
    """
    # Two transformers may need a graph each.
    transformer.register_forward_pre_hook(lambda module, inputs: _allow(2 * shapes))
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)


def _allow(graphs: int) -> None:
    """The compiler's settings belong to the thread that sets them, so each forward looks."""
    config = torch._dynamo.config
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        if getattr(config, limit) < graphs:
            setattr(config, limit, graphs)
