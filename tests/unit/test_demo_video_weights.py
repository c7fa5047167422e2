"""The checkpoint that Reelserve ships: what it shows, through the production engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from deployments.demo_models import install
from deployments.demo_models.install import WEIGHTS
from deployments.demo_models.video.checker import see
from deployments.demo_models.video.measure import KEEPS_FRAME, first_frames, remixes
from deployments.demo_models.video.studio import Studio
from deployments.demo_models.video.world import Scene, caption, scenes
from serving.plan.catalog import CheckpointPolicy, Model
from serving.plan.errors import ConfigError

SHIPPED_BYTES_MAX = 15_000_000
"""Of all checkpoints together: they are in the repository."""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def studio(demo_model: Model, models_dir: Path) -> Iterator[Studio]:
    threads = torch.get_num_threads()
    # Two processes of tests with a thread for each core wait for each other more than they compute.
    torch.set_num_threads(1)
    with Studio(demo_model, models_dir) as made:
        yield made
    torch.set_num_threads(threads)


def held_out(count: int) -> list[Scene]:
    return random.Random(count).sample(scenes(held_out=True), count)


def test_they_are_small() -> None:
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= SHIPPED_BYTES_MAX
    # Nothing that can run code when it is loaded.
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md", ".txt", ".model"}
    assert (WEIGHTS / "demo-wan" / "README.md").is_file()


def test_what_was_never_seen_together_is_shown_when_asked_for(studio: Studio) -> None:
    wanted = held_out(12)
    rights = [
        see(studio.make(studio.spec(caption(scene), seed=n))).right(scene)
        for n, scene in enumerate(wanted)
    ]
    right = {name: sum(each[name] for each in rights) for name in rights[0]}
    # Far below what is measured on all of them, far above chance: 1 in 1,120 for all four.
    assert right["colour"] >= 11, right
    assert right["background"] >= 11, right
    assert right["motion"] >= 9, right
    assert right["shape"] >= 7, right
    assert right["all"] >= 6, right


def test_a_first_frame_is_kept_and_moves_as_asked(studio: Studio) -> None:
    found = first_frames(studio, held_out(6), seed=1)
    assert found["kept"] == 1, f"further than {KEEPS_FRAME} from the frame that was given: {found}"
    assert found["motion"] >= 0.5


def test_a_remix_changes_the_colour_and_keeps_the_motion(studio: Studio) -> None:
    found = remixes(studio, held_out(4), seed=1, strengths=(0.7,))["0.7"]
    assert found["colour"] >= 0.5
    assert found["motion"] >= 0.5


def test_a_clip_that_is_saved_on_its_way_is_made_all_the_same(
    demo_model: Model, models_dir: Path
) -> None:
    # One that takes long is; on a slow machine all are.
    every_step = demo_model.model_copy(update={"checkpoint": CheckpointPolicy(every_steps=1)})
    with Studio(every_step, models_dir) as studio:
        made = studio.make(studio.spec("a red ball", seed=1))
    assert made.shape == (32, 96, 96, 3)


def test_the_library_alone_can_use_it(studio: Studio) -> None:
    # Where a timestep is given for each token, its pipeline takes all transformers for such with
    # patches of 2x2. From text alone one timestep is enough.
    pipeline = WanPipeline.from_pretrained(
        WEIGHTS / "demo-wan", dtype=torch.float32, expand_timesteps=False
    )
    pipeline.set_progress_bar_config(disable=True)
    scene = Scene("red", "ball", "right", "white")
    arguments = {"height": 96, "width": 96, "num_frames": 33, "num_inference_steps": 20}
    made = pipeline(
        caption(scene),
        max_sequence_length=64,
        guidance_scale=studio.model.video.guidance_scale.default,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **arguments,
    ).frames[0]
    assert see((np.asarray(made) * 255).round().astype(np.uint8)).right(scene)["all"]


def test_installing_replaces_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    folder = install("demo-wan", tmp_path / "models" / "demo-wan")
    (folder / "of-an-older-one").touch()
    install("demo-wan", folder)
    assert not (folder / "of-an-older-one").exists()
    assert (folder / "model_index.json").is_file()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(ConfigError, match="not a checkpoint"):
        install("demo-wan", tmp_path / "thesis")
    assert [file.name for file in folder.parent.iterdir()] == ["demo-wan"]
