"""How long a run may go without progress, and a replica to leave, follows from what work costs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from deployments.run import LEASE_PER_STAGE, JobRun
from serving.jobs import Job, Lease, State
from serving.plan.catalog import CostTable, LoadOptions, Model
from serving.plan.costs import CostModel, output_pixels, rendered_pixels
from serving.plan.drain import DRAIN_S_MIN, LEARNED_S_MAX, drain_s, worst_case
from tests.jobs import spec

MPIXELS = 1e6


def costing(model: Model, **seconds: float) -> CostModel:
    """A catalog entry whose table says that each stage of the clip below takes so long."""
    took = {"encode": 0.1, "step": 0.1, "decode": 0.1, "deliver": 0.1, **seconds}
    table = CostTable(
        encode_s=took["encode"],
        step_s=took["step"],
        step_s_per_ktoken=0,
        decode_s_per_mpixel=took["decode"] * MPIXELS / rendered_pixels(model, spec()),
        deliver_s_per_mpixel=took["deliver"] * MPIXELS / output_pixels(spec()),
    )
    return CostModel(model.model_copy(update={"cost": table}))


def lease_s(costs: CostModel) -> float:
    nothing = cast(Any, None)
    job = Job("video_x", "ann", "demo-wan", "demo-wan", State.IN_PROGRESS, spec(), 1, 0, 0)
    return JobRun(
        Lease(job, waited_ms=0),
        costs=costs,
        fingerprint="",
        lease_s_min=lambda: 15,
        leases=nothing,
        store=nothing,
        held=nothing,
        engine=nothing,
        left_slot=nothing,
    ).lease_s


def test_short_stages_have_the_shortest_lease(demo_model: Model) -> None:
    assert lease_s(costing(demo_model)) == 15


@pytest.mark.parametrize("stage", ["encode", "step", "decode", "deliver"])
def test_a_long_stage_has_a_multiple_of_itself(demo_model: Model, stage: str) -> None:
    assert lease_s(costing(demo_model, **{stage: 9.0})) == pytest.approx(LEASE_PER_STAGE * 9)


def test_a_lease_follows_what_was_learned(demo_model: Model) -> None:
    costs = costing(demo_model)
    costs.observe_encode(9.0)
    costs.fold()
    assert lease_s(costs) == pytest.approx(LEASE_PER_STAGE * 9, rel=0.1)


def test_a_drain_lasts_as_long_as_what_cannot_be_broken_off(demo_model: Model) -> None:
    longest = worst_case(CostModel(demo_model))
    assert drain_s(demo_model) == pytest.approx(
        DRAIN_S_MIN + 3 * (max(longest.step_s, longest.encode_s) + longest.deliver_s)
    )
    load = LoadOptions(dtype="float32", vae_tiling=True)
    whole = drain_s(demo_model.model_copy(update={"load": load}))
    assert whole == pytest.approx(DRAIN_S_MIN + 3 * (longest.decode_s + longest.deliver_s))


def test_the_worst_case_has_the_longest_of_every_stage(demo_model: Model) -> None:
    longest = worst_case(CostModel(demo_model))
    # The largest output is not the largest rendering.
    assert longest.deliver_s == pytest.approx(0.1 * 1792 * 1024 * 12 * 30 / MPIXELS)
    assert longest.decode_s == pytest.approx(0.5 * 256 * 144 * 361 / MPIXELS)


def test_where_clips_are_upscaled_that_is_part_of_the_worst_case(demo_model: Model) -> None:
    assert demo_model.upscaler is not None
    at = demo_model.upscaler.model_copy(update={"url": "triton.internal:8001"})
    model = demo_model.model_copy(update={"upscaler": at})
    assert worst_case(CostModel(demo_model)).upscale_s == 0
    longest = worst_case(CostModel(model))
    assert longest.upscale_s == pytest.approx(at.s_per_mpixel * 4 * 256 * 144 * 360 / MPIXELS)
    # Only the frames of one request are waited for.
    request_s = longest.upscale_s * at.frames / 360
    unbroken_s = max(longest.step_s, longest.encode_s, request_s)
    assert drain_s(model) == pytest.approx(DRAIN_S_MIN + 3 * (unbroken_s + longest.deliver_s))


def test_what_was_learned_lengthens_a_drain_within_bounds(demo_model: Model) -> None:
    by_table = drain_s(demo_model)
    drains = {}
    for encode_s in (1e-5, 60.0, 1e6):
        costs = CostModel(demo_model)
        costs.observe_encode(encode_s)
        costs.fold()
        drains[encode_s] = drain_s(demo_model, [costs])
    assert drains[1e-5] == by_table, "never shorter"
    assert by_table + 100 < drains[60.0] < LEARNED_S_MAX
    assert drains[1e6] == LEARNED_S_MAX
