"""Every way Wan makes a clip, against diffusers' own pipeline on the same weights."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    WanVideoToVideoPipeline,
)

from serving.engine import Denoised, Engine, Event, Failed
from serving.models.family import NO_INPUTS, Inputs
from serving.plan.catalog import Model
from tests import wan
from tests.wan import small

TOLERANCE = 1e-4
FIRST, LAST = wan.picture(1), wan.picture(2)

MODES: dict[str, tuple[Callable[[], Any], Inputs]] = {
    "text": (wan.text, NO_INPUTS),
    "text, two transformers": (wan.text_of_two, NO_INPUTS),
    "text, TI2V": (wan.ti2v, NO_INPUTS),
    "first frame, TI2V": (wan.ti2v_from_picture, Inputs(first_frame=FIRST)),
    "first frame, image encoder": (wan.picture_seen, Inputs(first_frame=FIRST)),
    "first and last frame, image encoder": (
        wan.pictures_seen,
        Inputs(first_frame=FIRST, last_frame=LAST),
    ),
    "first frame, two transformers": (wan.picture_of_two, Inputs(first_frame=FIRST)),
    "first and last frame, two transformers": (
        wan.picture_of_two,
        Inputs(first_frame=FIRST, last_frame=LAST),
    ),
}


def arguments(inputs: Inputs) -> dict[str, Any]:
    """What diffusers calls them."""
    names = {"image": inputs.first_frame, "last_image": inputs.last_frame}
    return {name: picture for name, picture in names.items() if picture is not None}


@pytest.mark.parametrize("mode", MODES)
def test_latents_equal_the_pipelines(mode: str, demo_model: Model, tmp_path: Path) -> None:
    make, inputs = MODES[mode]
    pipeline = make()
    run = wan.finished(wan.loaded(pipeline, demo_model, tmp_path), small(), inputs)
    want = wan.expected(pipeline, small(), **arguments(inputs))
    assert (run.latents - want).abs().max() < TOLERANCE


def test_ti2v_takes_a_first_frame_whatever_pipeline_it_was_saved_as(
    demo_model: Model, tmp_path: Path
) -> None:
    inputs = Inputs(first_frame=FIRST)
    family = wan.loaded(wan.ti2v(), demo_model, tmp_path)
    run = wan.finished(family, small(), inputs)
    want = wan.expected(wan.ti2v_from_picture(), small(), **arguments(inputs))
    assert (run.latents - want).abs().max() < TOLERANCE


def test_pictures_change_the_clip(demo_model: Model, tmp_path: Path) -> None:
    family = wan.loaded(wan.pictures_seen(), demo_model, tmp_path)
    clips = [
        wan.finished(family, small(), Inputs(first_frame=first, last_frame=last)).latents
        for first, last in ((FIRST, LAST), (LAST, LAST), (FIRST, FIRST))
    ]
    assert (clips[0] - clips[1]).abs().max() > 100 * TOLERANCE
    assert (clips[0] - clips[2]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "solver", [None, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler]
)
def test_video_to_video_equals_the_pipelines(
    solver: Any, demo_model: Model, tmp_path: Path
) -> None:
    parts = wan.text().components
    parts.pop("transformer_2")
    if solver is not None:
        parts["scheduler"] = solver(shift=3.0)
    pipeline = WanVideoToVideoPipeline(**parts)
    inputs = {"inputs": {"video": "optional"}}
    family = wan.loaded(pipeline, demo_model, tmp_path, video=inputs)
    for strength in (0.3, 0.5, 1.0):
        given = Inputs(video=wan.video(), strength=strength)
        begun = family.begin(small(), given)
        left = (wan.STEPS - begun.step // begun.scheduler.order) / wan.STEPS
        assert left == max(0.25, strength // 0.25 * 0.25)
        run = wan.finished(family, small(), given)
        want = wan.expected(pipeline, small(), video=given.video, strength=strength)
        assert (run.latents - want).abs().max() < TOLERANCE


def test_a_video_is_cut_to_the_clip_and_its_surplus_repeats_the_last_frame() -> None:
    family = wan.family_of(wan.text())
    eight, nine, twelve = wan.video(8), wan.video(9), wan.video(12)
    nine[8] = nine[7]
    twelve[8] = twelve[7]
    latents = [family.begin(small(), Inputs(video=v)).latents for v in (eight, nine, twelve)]
    assert torch.equal(latents[0], latents[1])
    assert torch.equal(latents[0], latents[2])


def test_the_second_transformer_has_a_guidance_scale_of_its_own(
    demo_model: Model, tmp_path: Path
) -> None:
    pipeline = wan.text_of_two()
    family = wan.loaded(pipeline, demo_model, tmp_path, video={"guidance_scale_2": 2.0})
    run = wan.finished(family, small())
    assert 0 < (run.boundary_step or 0) < wan.STEPS
    want = wan.expected(pipeline, small(), guidance_scale_2=2.0)
    assert (run.latents - want).abs().max() < TOLERANCE


def test_runs_on_different_transformers_do_not_share_a_forward() -> None:
    pipeline = wan.text_of_two()
    family = wan.family_of(pipeline)
    early, late = family.begin(small(seed=1)), family.begin(small(seed=2))
    assert family.batch_key(early) == family.batch_key(late)
    while late.step < (late.boundary_step or 0):
        family.step([late])
    assert family.batch_key(early) != family.batch_key(late)
    used: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(pipeline, name).register_forward_hook(
            lambda module, inputs, output, name=name: used.append(name)
        )
    family.step([early])
    family.step([late])
    assert used == ["transformer", "transformer_2"]


@pytest.mark.parametrize("mode", MODES)
def test_a_rows_bits_do_not_depend_on_its_neighbours(mode: str) -> None:
    make, inputs = MODES[mode]
    others = Inputs(
        first_frame=None if inputs.first_frame is None else wan.picture(7),
        last_frame=None if inputs.last_frame is None else wan.picture(8),
    )
    family = wan.family_of(make())
    alone = wan.finished(family, small(seed=3), inputs)
    run = family.begin(small(seed=3), inputs)
    while not run.done:
        # Neighbours of every kind, on either side, and one that is no longer made of numbers.
        before = family.begin(small(seed=9, guidance_scale=1.0), others)
        after, broken = family.begin(small(seed=4), others), family.begin(small(seed=5), others)
        for neighbour in (before, after, broken):
            neighbour.step = run.step
            neighbour.scheduler.set_begin_index(run.step)
        broken.latents = torch.full_like(broken.latents, float("nan"))
        family.step([before, run, after, broken])
        assert torch.isfinite(after.latents).all()
        assert not torch.isfinite(broken.latents).all()
    assert torch.equal(run.latents, alone.latents)


def test_ti2v_mixes_text_and_first_frames_in_one_forward() -> None:
    family = wan.family_of(wan.ti2v())
    wanted = [(small(seed=1), NO_INPUTS), (small(seed=2), Inputs(first_frame=FIRST))]
    alone = [wan.finished(family, *each).latents for each in wanted]
    runs = [family.begin(*each) for each in wanted]
    assert len({family.batch_key(run) for run in runs}) == 1
    while not runs[0].done:
        family.step(runs)
    for run, latents in zip(runs, alone, strict=True):
        assert torch.equal(run.latents, latents)


def test_one_engine_holds_runs_on_different_transformers() -> None:
    """Six and four steps: they meet in some forwards of either transformer, and part in others."""
    pipeline = wan.text_of_two()
    wanted = {"six": small(seed=1, steps=6), "four": small(seed=2, steps=4)}
    alone = {name: wan.finished(wan.family_of(pipeline), each) for name, each in wanted.items()}
    forwards: list[str] = []
    for name in ("transformer", "transformer_2"):
        getattr(pipeline, name).register_forward_hook(
            lambda module, inputs, output, name=name: forwards.append(name)
        )
    said: queue.Queue[Event] = queue.Queue()
    engine = Engine(wan.family_of(pipeline), said.put)
    for name, each in wanted.items():
        engine.submit(name, each)
    engine.start()
    ends: dict[str, torch.Tensor] = {}
    while len(ends) < len(wanted):
        event = said.get(timeout=60)
        assert not isinstance(event, Failed), event
        if isinstance(event, Denoised):
            ends[event.run_id] = event.snapshot.tensors["latents"]
            engine.kept(event.run_id)
    assert engine.close(60)
    for name, run in alone.items():
        assert torch.equal(ends[name], run.latents)
    steps = sum(run.step for run in alone.values())
    first = [run.boundary_step or 0 for run in alone.values()]
    assert max(first) <= forwards.count("transformer") < sum(first)
    assert len(forwards) < steps
    assert forwards.count("transformer_2") >= max(
        run.step - (run.boundary_step or 0) for run in alone.values()
    )
