"""Checkpoints: what goes in comes out, to the bit, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.checkpoint import VERSION, Snapshot, capture, pack, restore, unpack
from serving.models.family import Denoising
from serving.models.fingerprint import fingerprint
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import LoadOptions, Model
from serving.plan.errors import CheckpointCorrupt, CheckpointForeign
from tests.jobs import spec

PRINT = "0123456789abcdef"
STEPS = 6
SOLVERS = {
    "unipc": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dpm++": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
}


def family_with(solver: str) -> WanFamily:
    pipeline = tiny_pipeline()
    pipeline.register_modules(scheduler=SOLVERS[solver]())
    return WanFamily(pipeline, device=torch.device("cpu"), prompt_tokens=16, fingerprint=PRINT)


def advanced(family: WanFamily, steps: int | None = None) -> Denoising:
    run = family.begin(spec(steps=STEPS))
    while not run.done and (steps is None or run.step < steps):
        family.step([run])
    return run


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_run_resumed_at_any_step_gives_the_same_bits(solver: str) -> None:
    family = family_with(solver)
    expected = advanced(family).latents
    for step in range(len(advanced(family, 0).timesteps) + 1):
        data = pack(capture(advanced(family, step), PRINT))
        resumed = family.begin(spec(steps=STEPS))
        restore(unpack(data, spec(steps=STEPS), PRINT), resumed)
        assert resumed.step == step
        while not resumed.done:
            family.step([resumed])
        assert torch.equal(resumed.latents, expected), f"resumed at step {step}"


def test_a_solver_step_that_failed_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    family = family_with("dpm++")
    expected = advanced(family).latents
    run = advanced(family, 3)
    with monkeypatch.context() as broken:
        # The library shifts the history before this.
        broken.setattr(
            type(run.scheduler), "multistep_dpm_solver_second_order_update", lambda *_, **__: 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            family.step([run])
    assert run.step == 3
    while not run.done:
        family.step([run])
    assert torch.equal(run.latents, expected)


def test_a_snapshot_is_a_copy() -> None:
    family = family_with("unipc")
    run = advanced(family, 2)
    before = pack(snapshot := capture(run, PRINT))
    family.step([run])
    run.latents.zero_()
    assert pack(snapshot) == before


def test_it_holds_what_differs_and_not_the_schedule() -> None:
    run = advanced(family_with("unipc"), 3)
    solver = capture(run, PRINT).solver
    assert "model_outputs" in solver
    assert not {"sigmas", "timesteps", "betas", "_internal_dict"} & set(solver)


def a_checkpoint() -> bytes:
    tensors = {"latents": torch.arange(24.0).reshape(1, 2, 3, 2, 2)}
    return pack(Snapshot(spec(), 1, PRINT, tensors, {"lower_order_nums": 1}))


@given(st.integers(0, len(a_checkpoint()) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    data = bytearray(a_checkpoint())
    data[position] ^= change
    with pytest.raises((CheckpointCorrupt, CheckpointForeign)):
        unpack(bytes(data), spec(), PRINT)


@given(st.integers(0, len(a_checkpoint()) - 1))
def test_any_missing_tail_is_noticed(length: int) -> None:
    with pytest.raises(CheckpointCorrupt):
        unpack(a_checkpoint()[:length], spec(), PRINT)


def test_what_belongs_elsewhere_is_foreign() -> None:
    data = a_checkpoint()
    assert unpack(data, spec(), PRINT).step == 1
    with pytest.raises(CheckpointForeign, match="fingerprint"):
        unpack(data, spec(), "another model's")
    with pytest.raises(CheckpointForeign, match="another request"):
        unpack(data, spec(seed=2), PRINT)
    later = bytearray(data)
    later[6] = VERSION + 1
    with pytest.raises(CheckpointForeign, match=f"version {VERSION + 1}"):
        unpack(bytes(later), spec(), PRINT)


def test_every_kind_of_value_a_solver_keeps() -> None:
    family = family_with("euler")
    run = family.begin(spec())
    scheduler: Any = run.scheduler
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    scheduler.kept = [None, (1, 2.5), "x", True, torch.ones(2), generator]
    scheduler.array = torch.arange(3).numpy()
    data = pack(capture(run, PRINT))
    other = family.begin(spec())
    restore(unpack(data, spec(), PRINT), other)
    kept = other.scheduler.kept
    assert kept[:4] == [None, (1, 2.5), "x", True]
    assert torch.equal(kept[4], torch.ones(2))
    assert torch.equal(torch.rand(3, generator=kept[5]), torch.rand(3, generator=generator))
    assert other.scheduler.array.tolist() == [0, 1, 2]


def test_a_solver_that_keeps_something_else_says_so() -> None:
    run = family_with("euler").begin(spec())
    scheduler: Any = run.scheduler
    scheduler.noise_sampler = lambda: 0
    with pytest.raises(TypeError, match="noise_sampler"):
        capture(run, PRINT)


def test_fingerprints_tell_models_apart(demo_model: Model) -> None:
    model = demo_model
    other_load = model.model_copy(update={"load": LoadOptions(dtype="float32", prompt_tokens=7)})
    pipeline, cpu = tiny_pipeline(), torch.device("cpu")
    first = fingerprint(model, pipeline, cpu)
    assert fingerprint(model, tiny_pipeline(), cpu) == first
    assert fingerprint(other_load, pipeline, cpu) != first
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            parameter.mul_(1.01)
    assert fingerprint(model, pipeline, cpu) != first
    assert len(first) == 16
