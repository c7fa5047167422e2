"""What only a device shows: what batching brings by tokens, and what is copied beside the steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from loadtest.engine.driver import NO_CHECKPOINTS, Driver
from loadtest.engine.figures import EVERY_OTHER_STEP, PREVIEW_STEPS, yields_ms
from loadtest.engine.flops import Shape
from loadtest.engine.timing import share_of_laden
from loadtest.engine.work import Bench, clip_of
from serving.engine import unpack
from serving.plan.catalog import BatchPolicy, PreviewPolicy
from serving.plan.clip import ClipSpec

YIELD_STEPS = 1000
"""Of a clip that is told to leave: it never comes to its end."""


def spec_of(shape: Shape, steps: int, number: int = 0) -> ClipSpec:
    return clip_of(shape.width, shape.height, shape.frames, number=number, steps=steps)


def batch_curve(
    bench: Bench,
    shape: Shape,
    jobs: Sequence[int],
    *,
    steps: int,
    rounds: int,
    expired: Callable[[], bool],
) -> dict[str, Any]:
    """By number of jobs with guidance in one forward: job-steps per second over those of one job.

    Forwards have just the rows they carry. A number is left out once ``expired``.
    """
    policy = BatchPolicy(rows=2 * max(jobs), reproducible="fast")
    seconds: dict[int, list[float]] = {count: [] for count in jobs}
    with Driver.of(bench.family(policy)) as driver:
        for number in range(rounds):
            for count in jobs if number % 2 == 0 else reversed(jobs):
                if not expired():
                    clips = [spec_of(shape, steps, number) for number in range(count)]
                    seconds[count] += driver.crowd_s(clips)
    rates = {count: count / statistics.median(found) for count, found in seconds.items() if found}
    alone = rates.get(1)
    return {
        "tokens": shape.tokens,
        "relative": {
            str(count): round(rate / alone, 4) for count, rate in rates.items() if alone is not None
        },
        "job_steps_per_s": {str(count): round(rate, 4) for count, rate in rates.items()},
        "seconds": {
            str(count): [round(each, 5) for each in found] for count, found in seconds.items()
        },
    }


def checkpoints(bench: Bench, shape: Shape, *, steps: int, runs: int) -> dict[str, Any]:
    """A snapshot after every other step, packed beside the next, against the steps between; and
    whether a clip that goes on from the last of them ends with the same bits."""
    spec = spec_of(shape, steps)
    with Driver.of(bench.family(), EVERY_OTHER_STEP) as driver:
        driver.run(spec_of(shape, 1))
        ran = [driver.run(spec) for _ in range(runs)]
        step, packed = max(ran[-1].saved.items())
        resumed = driver.run(spec, unpack(packed, spec, driver.family.fingerprint))
    share = share_of_laden(run.steps for run in ran)
    plain_s = statistics.median(seconds for run in ran for seconds, laden in run.steps if not laden)
    same = bool((resumed.latents == ran[-1].latents).all())
    return {
        "slowdown": round(share, 5),
        "ms": round(1000 * share * plain_s, 3),
        "bytes": len(packed),
        "resumed_after_step": step,
        "agrees": same and len(resumed.steps) == steps - step,
        "steps": [[[round(seconds, 5), laden] for seconds, laden in run.steps] for run in ran],
    }


def previews(bench: Bench, shape: Shape, *, steps: int, runs: int) -> dict[str, Any]:
    """A picture every few steps, against the steps beside those, spread over all."""
    policy = PreviewPolicy(every_s=NO_CHECKPOINTS.every_s, every_steps=PREVIEW_STEPS)
    family = bench.family()
    family.fit_previews()
    with Driver.of(family, previews=policy) as driver:
        driver.run(spec_of(shape, 1))
        ran = [driver.run(spec_of(shape, steps)).steps for _ in range(runs)]
    return {
        "slowdown": round(share_of_laden(ran) / PREVIEW_STEPS, 5),
        "every_steps": PREVIEW_STEPS,
        "steps": [[[round(seconds, 5), laden] for seconds, laden in run] for run in ran],
    }


def yields(bench: Bench, shape: Shape, count: int) -> dict[str, Any]:
    """From the end of the step in progress until a clip that was told to had left, at various
    moments of a step. Its snapshot may still be on its way to the CPU."""
    with Driver.of(bench.family()) as driver:
        found = yields_ms(driver, spec_of(shape, YIELD_STEPS), count)
    return {
        "max_ms": round(max(found), 3),
        "median_ms": round(statistics.median(found), 3),
        "ms": [round(each, 3) for each in found],
    }
