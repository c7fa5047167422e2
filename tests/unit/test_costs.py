"""The cost model learns a machine's figures, whatever the catalog said and the machine does."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.settings import StackSettings
from serving.plan.catalog import BatchPolicy, CostTable
from serving.plan.clip import ClipSpec
from serving.plan.costs import CELLS_MAX, CostModel, PoolCosts, Stage, upscaled_pixels
from serving.plan.curve import WINDOW
from tests.jobs import spec

MODEL = StackSettings().catalog().resolve("demo-wan")
FAST = MODEL.model_copy(update={"batch": BatchPolicy(rows=16, reproducible="fast")})
SHAPES = [(1280, 2), (1280, 8), (4600, 2), (14_000, 2)]


@dataclass
class Machine:
    """A device whose steps take what its figures say, give or take ``noise``; one step in
    ``1 / outliers`` takes thirty times as long."""

    fixed_s: float = 0.02
    row_s: float = 0.001
    ktoken_s: float = 0.0028
    ktoken2_s: float = 0.00025
    noise: float = 0.0
    outliers: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(4))  # noqa: S311

    def true_s(self, tokens: int, rows: int) -> float:
        kt = tokens / 1000
        return self.fixed_s + rows * (self.row_s + self.ktoken_s * kt + self.ktoken2_s * kt**2)

    def run(self, costs: CostModel, tokens: int, rows: int, steps: int = 5) -> None:
        for _ in range(steps):
            seconds = self.true_s(tokens, rows) * math.exp(self.random.gauss(0, self.noise))
            if self.random.random() < self.outliers:
                seconds *= 30
            costs.observe_step(tokens, rows, seconds)

    def teach(self, costs: CostModel, shapes: Iterable[tuple[int, int]], times: int = 5) -> None:
        shapes = list(shapes)
        for _ in range(times):
            for shape in shapes:
                self.run(costs, *shape)
            costs.fold()


def off(costs: CostModel, machine: Machine, shape: tuple[int, int]) -> float:
    """By what factor a prediction is off, in either direction: 1 is exact."""
    return math.exp(abs(math.log(costs.step_s(*shape) / machine.true_s(*shape))))


# What the catalog's table says.


def test_before_anything_was_measured_the_catalogs_table_counts() -> None:
    costs = CostModel(MODEL)
    tokens = spec().tokens(MODEL)
    found = costs.estimate(spec(steps=7))
    assert not costs.learned
    assert found.steps == 7
    assert found.encode_s == pytest.approx(0.03)
    # The table's step is of two rows; this forward has more.
    rows = MODEL.batch.bucket(tokens, 2)
    assert found.step_s == pytest.approx(0.02 + 0.05 * tokens / 1000 * rows / 2)
    assert found.decode_s == pytest.approx(0.5 * 96 * 96 * 9 / 1e6)
    assert found.deliver_s == pytest.approx(0.1 * 96 * 96 * 8 / 1e6)


def test_work_grows_with_steps_and_size() -> None:
    costs = CostModel(MODEL)
    base = costs.estimate(spec())
    assert costs.estimate(spec(steps=40)).device_s > base.device_s
    larger = costs.estimate(spec(width=128, render_width=128))
    assert larger.step_s > base.step_s
    assert larger.deliver_s > base.deliver_s


def test_a_job_alone_is_charged_the_rows_that_its_forward_has() -> None:
    def step_s(guidance_scale: float, **policy: Any) -> float:
        model = MODEL.model_copy(update={"batch": BatchPolicy(**policy)})
        return CostModel(model).estimate(spec(guidance_scale=guidance_scale)).step_s

    assert step_s(1.0, rows=8) == step_s(5.0, rows=8), "the bucket is filled up"
    assert step_s(5.0, rows=8) > step_s(5.0, rows=2)
    assert step_s(5.0, rows=8, reproducible="fast") == step_s(5.0, rows=2)
    assert step_s(1.0, rows=8, reproducible="fast") < step_s(5.0, rows=8, reproducible="fast")


def test_joining_costs_nothing_while_the_bucket_has_room() -> None:
    strict = CostModel(MODEL.model_copy(update={"batch": BatchPolicy(rows=8)}))
    assert strict.marginal_step_ratio(1000, 2, 2) == 0
    assert strict.marginal_step_ratio(1000, 6, 2) == 0
    assert strict.marginal_step_ratio(1000, 8, 2) == pytest.approx(1), "another forward"
    fast = CostModel(FAST)
    assert 0 < fast.marginal_step_ratio(1000, 2, 2) < 1
    assert fast.marginal_step_ratio(100_000, 2, 2) == pytest.approx(1, abs=0.01)
    assert fast.marginal_step_ratio(1000, 3, 1) == 0, "four rows were computed for three"


# Learning.


def test_one_figure_corrects_a_table_that_is_far_off() -> None:
    machine = Machine(fixed_s=2, row_s=0.1, ktoken_s=0.3, ktoken2_s=0)
    costs = CostModel(FAST)
    before = off(costs, machine, (1280, 2))
    machine.run(costs, 1280, 2)
    assert off(costs, machine, (1280, 2)) == before, "until the next fold"
    costs.fold()
    assert before > 20
    assert off(costs, machine, (1280, 2)) < 1.01
    assert off(costs, machine, (4600, 2)) < 2, "others follow"


@pytest.mark.parametrize("seed", range(5))
def test_learning_converges_through_noise_and_outliers(seed: int) -> None:
    machine = Machine(noise=0.05, outliers=0.1, random=random.Random(seed))  # noqa: S311
    costs = CostModel(FAST)
    machine.teach(costs, SHAPES)
    for shape in SHAPES:
        assert off(costs, machine, shape) < 1.06, shape


@pytest.mark.parametrize("seed", range(5))
def test_shapes_never_seen_follow_from_those_that_were(seed: int) -> None:
    machine = Machine(noise=0.05, outliers=0.1, random=random.Random(seed))  # noqa: S311
    costs = CostModel(FAST)
    machine.teach(costs, SHAPES)
    for inside in [(1280, 4), (4600, 8), (14_000, 8), (8000, 2), (1280, 1)]:
        assert off(costs, machine, inside) < 1.2, inside
    # Attention makes it three times what the tokens alone say.
    assert machine.true_s(32_760, 2) > 3 * 2.34 * machine.true_s(4600, 2)
    assert off(costs, machine, (32_760, 2)) < 1.3


def test_noise_alone_makes_no_square() -> None:
    machine = Machine(ktoken2_s=0, noise=0.05)
    costs = CostModel(FAST)
    machine.teach(costs, [(36, 2), (64, 2), (144, 2)])
    assert off(costs, machine, (1280, 2)) < 2.5


def test_the_first_step_of_a_shape_compiles_and_does_not_count() -> None:
    costs = CostModel(FAST)
    costs.observe_step(1280, 2, 90.0)
    assert costs.fold() is None
    costs.observe_step(1280, 2, 0.5)
    costs.observe_step(1280, 8, 90.0)
    costs.fold()
    assert costs.learned_steps() == {(1280, 2): pytest.approx(0.5)}


def test_a_forward_may_compile_until_this_process_has_stepped_it() -> None:
    def compiling(costs: CostModel) -> list[bool]:
        return [costs.compile_s(tokens) > 0 for tokens in (1280, 4600)]

    load = MODEL.load.model_copy(update={"compile": True})
    strict = CostModel(MODEL.model_copy(update={"load": load}))
    assert compiling(strict) == [True, True]
    strict.observe_step(1280, 1, 60.0)
    assert compiling(strict) == [False, True]
    again = CostModel.from_json(strict.model, "", strict.to_json())
    assert compiling(again) == [True, True], "another process"
    fast = CostModel(FAST.model_copy(update={"load": load}))
    for rows in (1, 2, 3, 8):
        fast.observe_step(1280, rows, 60.0)
    assert compiling(fast) == [True, True], "a neighbour may join"
    fast.observe_step(1280, 16, 60.0)
    assert compiling(fast) == [False, True]
    assert compiling(CostModel(MODEL)) == [False, False]


def test_a_machine_that_stalls_for_a_while_is_not_slow() -> None:
    machine = Machine()
    costs = CostModel(FAST)
    machine.teach(costs, [(1280, 2)], times=WINDOW)
    for _ in range(WINDOW // 2):
        costs.observe_step(1280, 2, 60.0)
        costs.fold()
    assert off(costs, machine, (1280, 2)) < 1.01


def test_a_machine_that_becomes_slower_is_believed_after_a_while() -> None:
    fast, slow = Machine(), Machine(fixed_s=0.2, row_s=0.01)
    costs = CostModel(FAST)
    fast.teach(costs, [(1280, 2)], times=3 * WINDOW)
    slow.teach(costs, [(1280, 2)], times=WINDOW // 2 + 1)
    assert off(costs, slow, (1280, 2)) < 1.1


def test_the_rows_that_a_forward_was_filled_up_with_are_what_is_learned() -> None:
    costs = CostModel(MODEL.model_copy(update={"batch": BatchPolicy(rows=8)}))
    for rows in (1, 2, 4, 8):
        costs.observe_step(1000, rows, 0.7)
    costs.fold()
    assert set(costs.learned_steps()) == {(1000, 8)}
    assert costs.step_s(1000, 1) == costs.step_s(1000, 8) == pytest.approx(0.7)


def test_every_stage_is_learned() -> None:
    costs = CostModel(MODEL)
    for megapixels in (1, 4):
        costs.observe_encode(0.9)
        costs.observe_decode(megapixels * 10**6, 0.5 + 2 * megapixels)
        costs.observe_deliver(megapixels * 10**6, 0.7 * megapixels)
        costs.fold()
    assert costs.encode_s == pytest.approx(0.9, rel=0.05)
    assert costs.decode_s(2 * 10**6) == pytest.approx(4.5, rel=0.1)
    assert costs.deliver_s(10**7) == pytest.approx(7.0, rel=0.1)


def test_upscaling_is_learned_and_no_time_of_the_device() -> None:
    costs = CostModel(MODEL)
    plain, twice = spec(), spec(upscale=2)
    made = upscaled_pixels(twice)
    assert made == 4 * 96 * 96 * 8
    assert MODEL.upscaler is not None
    assert costs.estimate(plain).upscale_s == 0
    assert costs.estimate(twice).upscale_s == pytest.approx(
        MODEL.upscaler.s_per_mpixel * made / 1e6
    )
    costs.observe_upscale(made, 5.0)
    costs.fold()
    found = CostModel.from_json(MODEL, costs.device, costs.to_json()).estimate(twice)
    assert found.upscale_s == pytest.approx(5.0)
    assert found.device_s == costs.estimate(plain).device_s
    assert found.total_s == pytest.approx(costs.estimate(plain).total_s + 5.0)


def test_a_stage_that_the_table_says_is_free_can_be_learned() -> None:
    table = CostTable(
        encode_s=1,
        step_s=1,
        step_s_per_ktoken=0,
        decode_s_per_mpixel=0,
        deliver_s_per_mpixel=0,
    )
    costs = CostModel(MODEL.model_copy(update={"cost": table}))
    for pixels in (10**6, 2 * 10**6, 3 * 10**6):
        costs.observe_decode(pixels, pixels / 1e6)
    costs.fold()
    assert costs.decode_s(2 * 10**6) == pytest.approx(2, rel=0.2)


# How good it is.


def test_errors_are_of_predictions_made_before() -> None:
    costs = CostModel(MODEL)
    for _ in range(4):
        costs.observe_encode(0.06)
    costs.fold()
    first = costs.accuracy()[Stage.ENCODE]
    assert first.predictions == 4
    assert (first.error, first.bias) == pytest.approx((0.5, -0.5))
    for _ in range(WINDOW):
        costs.observe_encode(0.06)
        costs.fold()
    after = costs.accuracy()[Stage.ENCODE]
    assert after.predictions == 4 + WINDOW
    assert after.error < 0.15
    assert set(costs.accuracy()) == {Stage.ENCODE}


def test_what_a_clock_cannot_have_measured_is_ignored() -> None:
    costs = CostModel(MODEL)
    for nonsense in (0.0, -1.0, math.inf, math.nan):
        costs.observe_encode(nonsense)
    assert costs.fold() is None


# What is remembered.


def test_memory_is_bounded_and_keeps_what_was_seen_latest() -> None:
    costs = CostModel(MODEL)
    for number in range(1, 500):
        costs.observe_decode(number * 1000, 0.001 * number)
        costs.observe_decode(7, 0.5)
        costs.fold()
    kept = json.loads(costs.to_json())["cells"]["decode"]
    assert len(kept) == CELLS_MAX
    assert {"7", "499000"} <= set(kept)
    assert all(len(cell["s"]) <= WINDOW for cell in kept.values())


def taught() -> CostModel:
    costs = CostModel(FAST, "NVIDIA H200")
    Machine(noise=0.1).teach(costs, SHAPES, times=12)
    costs.observe_encode(0.5)
    costs.observe_decode(10**6, 0.5)
    costs.fold()
    return costs


def test_what_was_learned_survives_json() -> None:
    costs = taught()
    again = CostModel.from_json(FAST, costs.device, costs.to_json())
    assert again.to_json() == costs.to_json()
    assert again.accuracy() == costs.accuracy()
    for shape in [*SHAPES, (32_760, 2), (64, 1)]:
        assert again.step_s(*shape) == costs.step_s(*shape)


@pytest.mark.parametrize(
    "change",
    [
        {"cost": MODEL.cost.model_copy(update={"encode_s": 7})},
        {"load": MODEL.load.model_copy(update={"dtype": "float16"})},
    ],
)
def test_another_catalog_entry_does_not_read_them(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of format"):
        CostModel.from_json(FAST.model_copy(update=change), "", taught().to_json())


def test_more_replicas_or_another_bucket_read_them() -> None:
    placement = FAST.placement.model_copy(update={"replicas": 9})
    other = FAST.model_copy(update={"placement": placement, "batch": BatchPolicy(rows=4)})
    costs = CostModel.from_json(other, "", taught().to_json())
    assert costs.learned_steps().keys() == set(SHAPES)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "of another version"),
        (["format"], None),
        (["cells"], []),
        (["cells", "step"], {"1280 2": {"at": 1, "s": []}}),
        (["cells", "step"], {"1280 2": {"at": 1, "s": [-1]}}),
        (["cells", "step"], {"1280": {"at": 1, "s": [1]}}),
        (["cells", "step"], {"many few": {"at": 1, "s": [1]}}),
        (["cells", "step"], {"0 2": {"at": 1, "s": [1]}}),
        (["cells", "step"], {"1280 2": {"at": 1, "s": [math.inf]}}),
        (["cells", "sleep"], {"": {"at": 1, "s": [1]}}),
        (["errors", "step"], {"n": 1, "recent": [[1, 2]]}),
    ],
)
def test_damaged_figures_are_refused_and_change_nothing(path: list[str], value: Any) -> None:
    costs = taught()
    before = costs.to_json()
    document = json.loads(before)
    inside = document
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    with pytest.raises(ValueError, match=r"format|valid|size|figures|int"):
        costs.adopt(json.dumps(document))
    with pytest.raises(ValueError, match="JSON"):
        costs.adopt("{")
    assert costs.to_json() == before


def test_what_is_not_folded_yet_survives_what_others_say() -> None:
    costs = CostModel(MODEL)
    others = CostModel(MODEL)
    others.observe_decode(10**6, 3.0)
    others.fold()
    costs.observe_encode(5.0)
    costs.adopt(others.to_json())
    costs.fold()
    assert costs.decode_s(10**6) == pytest.approx(3.0)
    assert costs.encode_s == pytest.approx(5.0)


# Properties.

tokens = st.integers(1, 200_000)
rows = st.integers(1, 16)
seconds = st.floats(1e-5, 1e5)
observations = st.lists(st.tuples(tokens, rows, seconds), max_size=40)


@settings(max_examples=100, deadline=None)
@given(observations, st.lists(st.tuples(tokens, rows), min_size=2, max_size=12), st.randoms())
def test_more_tokens_or_rows_never_take_less_and_nothing_is_free(
    seen: list[tuple[int, int, float]], asked: list[tuple[int, int]], rng: random.Random
) -> None:
    costs = CostModel(FAST)
    for each in seen:
        costs.observe_step(*each)
        costs.observe_step(*each)
        if rng.random() < 0.2:
            costs.fold()
    costs.fold()
    asked = asked + [(t, r) for t, r, _ in seen[:8]]
    for small in asked:
        assert 0 < costs.step_s(*small) < math.inf
        for large in asked:
            if small[0] <= large[0] and small[1] <= large[1]:
                assert costs.step_s(*small) <= costs.step_s(*large) * (1 + 1e-9)
        assert costs.marginal_step_ratio(*small, 2) >= 0
    again = CostModel.from_json(FAST, "", costs.to_json())
    assert [again.step_s(*each) for each in asked] == [costs.step_s(*each) for each in asked]


# Several device classes.


def pool(live: set[str], **encode_s: float) -> PoolCosts:
    learned = {}
    for device, each in encode_s.items():
        learned[device] = CostModel(MODEL, device)
        learned[device].observe_encode(each)
        learned[device].fold()
    return PoolCosts(CostModel(MODEL), learned, frozenset(live))


def encode_s(costs: PoolCosts, clip: ClipSpec | None = None) -> float:
    return costs.estimate(clip or spec()).encode_s


def test_the_slowest_class_with_a_live_replica_counts() -> None:
    assert encode_s(pool({"h200", "l4"}, h200=1, l4=5, cpu=60)) == pytest.approx(5)
    assert encode_s(pool({"h200"}, h200=1, l4=5)) == pytest.approx(1)


def test_where_nobody_lives_or_learned_the_next_best_is_taken() -> None:
    assert encode_s(pool(set(), h200=1, l4=5)) == pytest.approx(5), "scaled to none"
    assert encode_s(pool({"new"}, h200=1)) == pytest.approx(1), "it has run nothing yet"
    assert encode_s(pool({"new"})) == pytest.approx(MODEL.cost.encode_s)
