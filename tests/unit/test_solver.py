"""UniPC for a whole batch, against the library's step for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from serving.models import solver


def unipc(steps: int, **changes: Any) -> Any:
    scheduler = UniPCMultistepScheduler(
        **{
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 3.0,
            **changes,
        }
    )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    return scheduler


def prediction(sample: torch.Tensor) -> torch.Tensor:
    """Any smooth function of the sample will do."""
    return torch.sin(3 * sample) + 0.1


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 16, 2, 5, 3, generator=torch.Generator().manual_seed(seed))


def state(scheduler: Any) -> list[Any]:
    return [
        *(scheduler.step_index, scheduler.this_order, scheduler.lower_order_nums),
        [None if each is None else float(each) for each in scheduler.timestep_list],
    ]


@pytest.mark.parametrize("steps", [1, 2, 3, 12, 50])
@pytest.mark.parametrize(
    "changes", [{}, {"solver_order": 1}, {"flow_shift": 8.0}, {"disable_corrector": [0, 2]}]
)
def test_numbers_and_state_are_the_librarys(steps: int, changes: dict[str, Any]) -> None:
    theirs, ours = unipc(steps, **changes), unipc(steps, **changes)
    assert solver.fits(ours)
    expected = got = noise(1)
    for timestep in theirs.timesteps:
        expected = theirs.step(prediction(expected), timestep, expected, return_dict=False)[0]
        [got] = solver.step([ours], [prediction(got)], [got])
        assert (got - expected).abs().max() < 1e-4
        assert state(ours) == state(theirs)
        for mine, library in zip(
            [*ours.model_outputs, ours.last_sample],
            [*theirs.model_outputs, theirs.last_sample],
            strict=True,
        ):
            assert (mine is None) == (library is None)
            assert mine is None or (mine - library).abs().max() < 1e-4


def test_a_clip_may_begin_after_the_first_step() -> None:
    theirs, ours = unipc(6), unipc(6)
    for scheduler in (theirs, ours):
        scheduler.set_begin_index(2)
    expected = got = noise(1)
    for timestep in theirs.timesteps[2:]:
        expected = theirs.step(prediction(expected), timestep, expected, return_dict=False)[0]
        [got] = solver.step([ours], [prediction(got)], [got])
    assert (got - expected).abs().max() < 1e-4
    assert state(ours) == state(theirs)


def test_a_clips_bits_depend_on_neither_neighbours_nor_their_steps() -> None:
    steps = {3: 5, 4: 9, 5: 2, 6: 9}
    alone = {}
    for seed, count in steps.items():
        scheduler, sample = unipc(count), noise(seed)
        for _ in range(count):
            [sample] = solver.step([scheduler], [prediction(sample)], [sample])
        alone[seed] = sample
    # Given clips that join one after another
    running: dict[int, tuple[Any, torch.Tensor]] = {}
    waiting = list(steps)
    while waiting or running:
        if waiting:
            seed = waiting.pop()
            running[seed] = unipc(steps[seed]), noise(seed)
        samples = [sample for _, sample in running.values()]
        after = solver.step(
            [scheduler for scheduler, _ in running.values()],
            [prediction(sample) for sample in samples],
            samples,
        )
        for (seed, (scheduler, _)), sample in zip(list(running.items()), after, strict=True):
            running[seed] = scheduler, sample
            if scheduler.step_index == steps[seed]:
                # Then each has the bits it has alone
                assert torch.equal(running.pop(seed)[1], alone[seed])


def test_a_neighbour_without_numbers_harms_nobody() -> None:
    schedulers = [unipc(3), unipc(3)]
    samples = [noise(1), noise(2) * float("nan")]
    for _ in range(3):
        samples = solver.step(schedulers, [prediction(each) for each in samples], samples)
    assert torch.isfinite(samples[0]).all()


def test_the_library_may_go_on_where_the_batch_stopped() -> None:
    theirs, ours = unipc(6), unipc(6)
    expected = got = noise(1)
    for index, timestep in enumerate(theirs.timesteps):
        expected = theirs.step(prediction(expected), timestep, expected, return_dict=False)[0]
        if index < 3:
            [got] = solver.step([ours], [prediction(got)], [got])
        else:
            got = ours.step(prediction(got), timestep, got, return_dict=False)[0]
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "other",
    [
        FlowMatchEulerDiscreteScheduler(),
        UniPCMultistepScheduler(),
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_type="bh1"
        ),
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=3
        ),
    ],
)
def test_other_solvers_are_left_to_the_library(other: Any) -> None:
    assert not solver.fits(other)
