"""A run that moves goes on where it was, whatever it began with and whatever its solver draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LTXEulerAncestralRFScheduler,
)

from serving.engine.checkpoint import capture, pack, restore, unpack
from serving.models.family import NO_INPUTS, Denoising, Inputs
from serving.models.wan import WanFamily
from tests import wan
from tests.wan import small

PRINT = "0123456789abcdef"
FIRST, LAST = wan.picture(1), wan.picture(2)

MODES: dict[str, tuple[Callable[[], Any], Inputs]] = {
    "text, two transformers": (wan.text_of_two, NO_INPUTS),
    "first frame, TI2V": (wan.ti2v, Inputs(first_frame=FIRST)),
    "first frame, image encoder": (wan.picture_seen, Inputs(first_frame=FIRST)),
    "first and last frame, image encoder": (
        wan.pictures_seen,
        Inputs(first_frame=FIRST, last_frame=LAST),
    ),
    "first and last frame, two transformers": (
        wan.picture_of_two,
        Inputs(first_frame=FIRST, last_frame=LAST),
    ),
    "video": (wan.text, Inputs(video=wan.video(), strength=0.75)),
    "video, two transformers": (wan.text_of_two, Inputs(video=wan.video(), strength=0.75)),
}

STOCHASTIC = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
    "ancestral": LTXEulerAncestralRFScheduler,
    "lcm": lambda: FlowMatchLCMScheduler(shift=3.0),
    "sde-dpm++": lambda: DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
    ),
}


def moved(family: WanFamily, run: Denoising, inputs: Inputs = NO_INPUTS) -> Denoising:
    """The same run somewhere else: its checkpoint's bytes, and its request."""
    data = pack(capture(run, PRINT))
    resumed = family.begin(run.spec, inputs)
    restore(unpack(data, run.spec, PRINT), resumed)
    return resumed


@pytest.mark.parametrize("mode", MODES)
def test_a_run_moved_at_every_step_gives_the_same_bits(mode: str) -> None:
    make, inputs = MODES[mode]
    here, there = wan.family_of(make()), wan.family_of(make())
    expected = wan.finished(here, small(), inputs).latents
    run = here.begin(small(), inputs)
    while not run.done:
        step = run.step
        run = moved(there, run, inputs)
        assert run.step == step
        here, there = there, here
        here.step([run])
    assert torch.equal(moved(there, run, inputs).latents, expected)


def family_with(solver: str) -> WanFamily:
    pipeline = wan.text()
    pipeline.register_modules(scheduler=STOCHASTIC[solver]())
    return wan.family_of(pipeline)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_stochastic_solver_draws_from_the_runs_own_seed(solver: str) -> None:
    family = family_with(solver)
    alone = wan.finished(family, small(seed=3)).latents
    global_state = torch.get_rng_state()
    run, first = family.begin(small(seed=3)), family.begin(small(seed=4, guidance_scale=1.0))
    undrawn = run.scheduler.noise_generator.get_state()
    family.step([first])  # is ahead of the run, and drew before it
    last = family.begin(small(seed=5))
    while not run.done:
        together = [each for each in (first, run, last) if not each.done]
        family.step(together)
    assert torch.equal(run.latents, alone)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not torch.equal(run.scheduler.noise_generator.get_state(), undrawn)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_stochastic_run_moved_at_every_step_gives_the_same_bits(solver: str) -> None:
    family = family_with(solver)
    expected = wan.finished(family, small()).latents
    run = family.begin(small())
    assert not torch.equal(drawn(moved(family, run)), drawn(family.begin(small(seed=2))))
    while not run.done:
        run = moved(family, run)
        family.step([run])
    assert torch.equal(run.latents, expected)


def drawn(run: Denoising) -> torch.Tensor:
    """What the run's solver will draw next."""
    return torch.rand(4, generator=run.scheduler.noise_generator)


def test_a_restarted_run_draws_other_noise_than_a_moved_one() -> None:
    """The noise is the generator's: without its state the bits would differ."""
    family = family_with("euler")
    run = family.begin(small())
    family.step([run])
    forgetful, faithful = moved(family, run), moved(family, run)
    forgetful.scheduler.noise_generator.manual_seed(run.spec.seed)
    for each in (forgetful, faithful, run):
        family.step([each])
    assert torch.equal(faithful.latents, run.latents)
    assert not torch.equal(forgetful.latents, run.latents)
