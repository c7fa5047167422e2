"""How long a run may go without progress follows from the model's own estimates."""

from __future__ import annotations

from typing import Any, cast

import pytest

from deployments.run import LEASE_PER_STAGE, JobRun
from serving.jobs import Job, State
from serving.plan.catalog import Model
from serving.plan.estimate import DRAIN_S_MIN, Estimate, drain_s, worst_case
from tests.jobs import spec


def lease_s(**seconds: float) -> float:
    stages = {"encode_s": 0.1, "step_s": 0.1, "decode_s": 0.1, "deliver_s": 0.1, **seconds}
    nothing = cast(Any, None)
    job = Job("video_x", "ann", "demo-wan", "demo-wan", State.IN_PROGRESS, spec(), 1, 0, 0)
    return JobRun(
        job,
        estimate=Estimate(steps=4, **stages),
        fingerprint="",
        lease_s_min=15,
        leases=nothing,
        store=nothing,
        engine=nothing,
        left_engine=nothing,
    ).lease_s


def test_short_stages_have_the_shortest_lease() -> None:
    assert lease_s() == 15


@pytest.mark.parametrize("stage", ["encode_s", "step_s", "decode_s", "deliver_s"])
def test_a_long_stage_has_a_multiple_of_itself(stage: str) -> None:
    assert lease_s(**{stage: 9.0}) == LEASE_PER_STAGE * 9.0


def test_a_drain_lasts_as_long_as_what_cannot_be_broken_off(demo_model: Model) -> None:
    longest = worst_case(demo_model)
    assert drain_s(demo_model) == pytest.approx(
        DRAIN_S_MIN + 3 * (max(longest.step_s, longest.encode_s) + longest.deliver_s)
    )
    load = demo_model.load.model_copy(update={"vae_tiling": True})
    whole = drain_s(demo_model.model_copy(update={"load": load}))
    assert whole == pytest.approx(DRAIN_S_MIN + 3 * (longest.decode_s + longest.deliver_s))
