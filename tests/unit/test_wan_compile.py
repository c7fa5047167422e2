"""Compiled blocks: the numbers stay, and a shape's kernels are its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from serving.models.compiled import shapes
from serving.models.family import Inputs
from serving.plan.catalog import BatchPolicy, LoadOptions, Model
from tests import wan
from tests.wan import small

TOLERANCE = 1e-4


def test_compiled_blocks_give_the_same_numbers_and_one_graph_a_shape(
    demo_model: Model, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters
    counted.clear()
    usual = {"sizes": {f"{wan.SIDE}x{wan.SIDE}": None}, "seconds": [1]}
    pipeline, inputs = wan.picture_of_two(), Inputs(first_frame=wan.picture(1))
    eager = wan.loaded(pipeline, demo_model, tmp_path)
    compiled = wan.loaded(pipeline, demo_model, tmp_path, load={"compile": True}, video=usual)
    assert compiled.fingerprint != eager.fingerprint
    # Two blocks in each of two transformers share a graph, made before there is a job.
    assert counted["stats"]["unique_graphs"] == 1
    with ThreadPoolExecutor(1, initializer=allow_one_graph) as engine:
        for wanted, graphs in ((small(), 1), (small(render_width=64), 2), (small(), 2)):
            run = engine.submit(wan.finished, compiled, wanted, inputs).result()
            assert 0 < (run.boundary_step or 0) < wan.STEPS
            want = wan.finished(eager, wanted, inputs).latents
            assert (run.latents - want).abs().max() < TOLERANCE
            assert counted["stats"]["unique_graphs"] == graphs


def allow_one_graph() -> None:
    """The compiler's settings are a thread's own, and this is not the thread that loaded."""
    torch._dynamo.config.recompile_limit = 1


def test_the_compiler_is_allowed_every_shape_of_the_catalog(demo_model: Model) -> None:
    limits = demo_model.video
    one = {"sizes": {"96x96": None, "128x128": None}, "seconds": [1, 2], "fps": limits.fps}
    fps = limits.fps.model_copy(update={"min": 8, "default": 8, "max": 9})
    video = limits.model_copy(update={**one, "fps": fps})
    model = demo_model.model_copy(update={"video": video, "batch": BatchPolicy(rows=8)})
    # 8, 9, 16 and 18 frames: 3, 3, 5 and 6 latent ones; and 1, 2, 4 or 8 rows, under strict
    # because a device without memory halves them.
    assert shapes(model) == 2 * 3 * 4


@pytest.mark.parametrize("offload", ["sequential", "group"])
def test_weights_that_move_within_a_block_are_not_compiled(offload: str) -> None:
    with pytest.raises(ValidationError, match="compile needs offload none or model"):
        LoadOptions.model_validate({"compile": True, "offload": offload})
