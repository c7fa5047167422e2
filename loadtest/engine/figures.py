"""Each figure of the engine's benchmark: what is compared with what."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loadtest.engine.driver import NO_CHECKPOINTS, Driver
from loadtest.engine.timing import in_turns, share_of_laden, speed_up, step_cost, typical_s
from loadtest.engine.work import Bench, clip, mixed_clips
from serving.plan.catalog import BatchPolicy, CheckpointPolicy, Model, PreviewPolicy
from serving.plan.clip import ClipSpec

Tell = Callable[[str], None]

TOLERANCE = 1e-3
"""Latents are about 1; float32 leaves some 1e-5 after a dozen steps with guidance."""
TARGETS = {
    "vs_raw_loop": {4: 6.0, 32: 3.5, 108: 1.75, 320: 1.25},
    "overhead_ratio_b1": {320: 1.02},
    "overhead_ms_per_step_b1": {4: 1.0, 32: 1.0, 108: 1.0, 320: 1.0},
    "checkpoint_slowdown": {320: 0.02, 1280: 0.02},
    "preview_slowdown": {320: 0.01, 1280: 0.01},
    "yield_ms_beyond_step": 5.0,
}
"""At least for the first, at most for the others."""
SMALLEST = BatchPolicy(rows=2)
EVERY_OTHER_STEP = CheckpointPolicy(every_s=NO_CHECKPOINTS.every_s, every_steps=2, bytes_per_s=1e12)
PREVIEW_STEPS = 4
"""Every few steps; the shipped schedule, every two seconds, is rarer with most models."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    jobs: int = 16
    batch_tokens: Sequence[int] = (4, 32, 108, 320)
    alone_tokens: Sequence[int] = (4, 32, 108, 320)
    checkpoint_tokens: Sequence[int] = (320, 1280)
    repeats: int = 5
    alone_repeats: int = 8
    alone_steps: int = 12
    laden_steps: int = 100
    laden_runs: int = 5
    yields: int = 20

    @classmethod
    def quick(cls) -> Plan:
        return cls(
            repeats=2, alone_repeats=3, alone_steps=8, laden_steps=16, laden_runs=2, yields=8
        )


def bench_engine(model: Model, plan: Plan, tell: Tell) -> dict[str, Any]:
    """Every figure. ``model`` is the demo model's catalog entry, whose weights are made anew.

    Raises :class:`EngineFailed` when a clip does not come out of the engine.
    """
    bench = Bench(model)
    versus = {tokens: _vs_raw_loop(bench, plan, tokens, tell) for tokens in plan.batch_tokens}
    overhead = {tokens: _overhead(bench, plan, tokens, tell) for tokens in plan.alone_tokens}
    lone = {tokens: _lone_job(bench, plan, tokens, tell) for tokens in plan.alone_tokens}
    saved = {tokens: _checkpoints(bench, plan, tokens, tell) for tokens in plan.checkpoint_tokens}
    shown = {tokens: _previews(bench, plan, tokens, tell) for tokens in plan.checkpoint_tokens}
    yields_ms = _yields_ms(bench, plan, tell)
    value: dict[str, Any] = {
        "vs_raw_loop": {tokens: each["median"] for tokens, each in versus.items()},
        "overhead_ratio_b1": {tokens: each["ratio"] for tokens, each in overhead.items()},
        "overhead_ms_per_step_b1": {
            tokens: each["ms_per_step"] for tokens, each in overhead.items()
        },
        "checkpoint_slowdown": saved,
        "preview_slowdown": shown,
        "yield_ms_beyond_step": round(max(yields_ms), 3),
        "lone_job_ratio": lone,
        "outputs": {
            "max_abs_difference": max(each["difference"] for each in versus.values()),
            "tolerance": TOLERANCE,
            "agree": all(each["difference"] < TOLERANCE for each in versus.values()),
        },
        "detail": {
            "vs_raw_loop": versus,
            "overhead_b1": overhead,
            "yield_ms_beyond_step": {
                "median": round(statistics.median(yields_ms), 3),
                "max": round(max(yields_ms), 3),
            },
        },
        "mode": {
            **model.batch.model_dump(),
            "slots": model.placement.slots,
            "prompt_tokens": model.load.prompt_tokens,
            "jobs": plan.jobs,
            "threads": torch.get_num_threads(),
        },
    }
    value["targets"] = judged(value)
    return value


def judged(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each target with what was found, and whether it was met."""
    verdicts: dict[str, dict[str, Any]] = {}
    for name, targets in TARGETS.items():
        pairs = (
            [
                (f"{name} at {tokens} tokens", target, value[name].get(tokens))
                for tokens, target in targets.items()
            ]
            if isinstance(targets, dict)
            else [(name, targets, value[name])]
        )
        for label, target, found in pairs:
            if found is not None:
                met = found >= target if name == "vs_raw_loop" else found <= target
                verdicts[label] = {"target": target, "found": found, "met": met}
    return verdicts


def _vs_raw_loop(bench: Bench, plan: Plan, tokens: int, tell: Tell) -> dict[str, Any]:
    """The jobs through the shipped engine, against the library's pipeline, one after another.

    Both begin with text and end with final latents: tokenising, text encoding, every step and the
    solver are in both; the engine's thread, events and final snapshots are in ours.
    """
    clips = mixed_clips(tokens, plan.jobs)
    results: dict[str, list[torch.Tensor]] = {}
    with Driver.of(bench.family()) as driver:

        def library() -> float:
            began = time.perf_counter()
            results["library"] = bench.by_library(clips)
            return time.perf_counter() - began

        def engine() -> float:
            began = time.perf_counter()
            results["engine"] = driver.denoise(clips, bench.slots)
            return time.perf_counter() - began

        figures = speed_up(*in_turns(library, engine, plan.repeats))
    differences = [
        float((ours - theirs).abs().max())
        for ours, theirs in zip(results["engine"], results["library"], strict=True)
    ]
    # NaN is no agreement, and max() may lose it.
    difference = max(d if d == d else float("inf") for d in differences)
    tell(f"{tokens} tokens: {figures['median']:.2f} times the raw loop")
    return {**figures, "jobs": len(clips), "difference": difference}


def _overhead(bench: Bench, plan: Plan, tokens: int, tell: Tell) -> dict[str, float]:
    """One job with guidance in the smallest bucket, against a loop written by hand."""
    spec = clip(tokens, steps=plan.alone_steps)
    with Driver.of(bench.family(SMALLEST)) as driver:
        hand, engine = in_turns(
            lambda: bench.by_hand(spec), lambda: driver.steps_s(spec), plan.alone_repeats
        )
    ratio = step_cost(hand, engine)
    tell(f"{tokens} tokens: the engine takes {ratio:.3f} times the hand-written loop")
    return {
        "ratio": round(ratio, 4),
        "ms_per_step": round(1000 * (typical_s(engine) - typical_s(hand)), 4),
        "hand_ms_per_step": round(1000 * typical_s(hand), 3),
    }


def _lone_job(bench: Bench, plan: Plan, tokens: int, tell: Tell) -> float:
    """One job alone in the shipped bucket, against the smallest."""
    spec = clip(tokens, steps=plan.alone_steps)
    with Driver.of(bench.family(SMALLEST)) as small, Driver.of(bench.family()) as shipped:
        ratio = step_cost(
            *in_turns(
                lambda: small.steps_s(spec), lambda: shipped.steps_s(spec), plan.alone_repeats
            )
        )
    tell(f"{tokens} tokens: a lone job takes {ratio:.2f} times what it would in the smallest batch")
    return round(ratio, 3)


def _checkpoints(bench: Bench, plan: Plan, tokens: int, tell: Tell) -> float:
    """A snapshot after every other step, packed beside the next, against the steps between."""
    spec = clip(tokens, steps=plan.laden_steps)
    with Driver.of(bench.family(), EVERY_OTHER_STEP) as driver:
        share = share_of_laden(driver.timed_steps(spec) for _ in range(plan.laden_runs))
    tell(f"{tokens} tokens: a step takes {share:.1%} longer with a checkpoint")
    return round(share, 4)


def _previews(bench: Bench, plan: Plan, tokens: int, tell: Tell) -> float:
    """A picture every few steps, against the steps beside those, spread over all. The engine makes
    the pictures; the JPEG is made elsewhere."""
    policy = PreviewPolicy(every_s=NO_CHECKPOINTS.every_s, every_steps=PREVIEW_STEPS)
    spec = clip(tokens, steps=plan.laden_steps)
    family = bench.family()
    family.fit_previews()
    with Driver.of(family, previews=policy) as driver:
        share = share_of_laden(driver.timed_steps(spec) for _ in range(plan.laden_runs))
    share /= PREVIEW_STEPS
    tell(f"{tokens} tokens: {share:.2%} longer with a preview every {PREVIEW_STEPS} steps")
    return round(share, 4)


def _yields_ms(bench: Bench, plan: Plan, tell: Tell) -> list[float]:
    """Asked at various moments of a step of 320 tokens."""
    with Driver.of(bench.family()) as driver:
        found = yields_ms(driver, clip(320, steps=1000), plan.yields)
    tell(f"a yield takes at most {max(found):.2f} ms beyond the step in progress")
    return found


def yields_ms(driver: Driver, spec: ClipSpec, count: int) -> list[float]:
    """From the end of the step in progress until the clip has left; ``spec`` has steps enough."""
    step_s = statistics.median(driver.steps_s(spec.model_copy(update={"steps": 4})))
    delays_s = [step_s * number / count for number in range(count)]
    return [1000 * driver.yield_s_beyond_step(spec, delay_s) for delay_s in delays_s]
