"""`reelserve bench gpu`: the step engine with a released model's architecture, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline

from loadtest.engine import device_figures, outputs
from loadtest.engine.attention import bench_attention
from loadtest.engine.flops import WAN_1_3B, Shape
from loadtest.engine.kernels import (
    Kernel,
    Kernels,
    Variant,
    compiled_variants,
    eager_variants,
    figures,
)
from loadtest.engine.sections import Sections
from loadtest.engine.work import Bench
from loadtest.summary import judged
from serving.models.tiny import TRANSFORMER, random_pipeline, tiny_pipeline
from serving.plan.catalog import BatchPolicy, IntRange, Model

Tell = Callable[[str], None]
Find = Callable[[], dict[str, Any]]
OfKernels = Callable[[Shape, Sequence[Variant]], dict[str, Any]]

LARGE, SMALL = Shape(832, 480, 81), Shape(256, 256, 17)
BETWEEN = (Shape(480, 272, 33), Shape(832, 480, 33))
AT_MOST = {
    f"step_s at {LARGE.name}": 1.10,
    f"checkpoint_slowdown at {LARGE.name}": 0.005,
    "yield_ms_beyond_step": 5.0,
}
AT_LEAST = {
    f"mfu at {LARGE.name}": 0.52,
    f"over_library at {LARGE.name}": 1.35,
    f"engine_over_library at {LARGE.name}": 0.99,
    f"engine_over_library at {SMALL.name}": 0.97,
    f"batch of 8 jobs at {SMALL.name}": 2.5,
}
FEW_STEPS_FROM_TOKENS = 10_000
"""Where a step of many jobs takes seconds, and the next takes just as long."""
CHECKS = ("float32", "half_precision", "same_bits", "demo_model")
"""Sections that say whether outputs agree, and nothing else."""


@dataclass(frozen=True)
class GpuPlan:
    """What is measured, and how often. ``large`` and ``small`` have figures of their own."""

    large: Shape = LARGE
    small: Shape = SMALL
    batched: tuple[Shape, ...] = BETWEEN
    """Beside those two, for the batch curve; their tokens lie between."""
    jobs: tuple[int, ...] = (1, 2, 4, 8)
    transformer: Mapping[str, Any] = field(default_factory=lambda: WAN_1_3B)
    backends: tuple[str, ...] = ("_native_cudnn",)
    compiled: bool = True
    attention_repeats: int = 5
    large_steps: int = 4
    large_rounds: int = 2
    small_steps: int = 9
    small_rounds: int = 5
    batch_steps: int = 8
    batch_steps_large: int = 2
    batch_rounds: int = 2
    laden_steps: int = 12
    laden_steps_small: int = 60
    laden_runs_small: int = 2
    yields: int = 12
    output_steps: int = 6
    demo_steps: int = 8
    peak_tflops: float = 989.0
    """Of the device in bfloat16, without sparsity; an H100's and an H200's."""

    @classmethod
    def tiny(cls) -> GpuPlan:
        """A model and clips for a CPU: it shows that the benchmark works, and nothing of speed."""
        return cls(
            large=Shape(96, 64, 9),
            small=Shape(32, 32, 5),
            batched=(),
            jobs=(1, 2),
            transformer=TRANSFORMER,
        )

    def quick(self) -> GpuPlan:
        return replace(
            self,
            attention_repeats=2,
            large_rounds=1,
            small_rounds=3,
            batch_rounds=1,
            laden_runs_small=1,
            yields=6,
        )


class _Made:
    """A catalog entry around random weights of its architecture, on one device."""

    def __init__(self, model: Model, plan: GpuPlan, device: torch.device) -> None:
        self._plan = plan
        self._device = device
        self.dtype: torch.dtype = getattr(torch, model.load.dtype)
        self._model = _asked_for(model, plan)
        self.text_tokens = model.load.prompt_tokens
        self.entry = Kernel(model.load.attention, model.load.compile)

    def bench(self, kernel: Kernel, make: Callable[[], WanPipeline] | None = None) -> Bench:
        """The entry as it is, but for its kernel."""
        changes = {"attention": kernel.attention, "compile": kernel.compile}
        load = self._model.load.model_copy(update=changes)
        model = self._model.model_copy(update={"load": load})
        return Bench(model, make or self._pipeline, self._device)

    def in_float32(self) -> Bench:
        """The same weights, with everything computed in float32, for the library."""
        return self.bench(Kernel(), lambda: _widened(self._pipeline()))

    def _pipeline(self) -> WanPipeline:
        return random_pipeline(
            self._plan.transformer, text_layers=1, dtype=self.dtype, device=self._device
        )


def _widened(pipeline: WanPipeline) -> WanPipeline:
    pipeline.transformer.float()
    pipeline.text_encoder.float()
    return pipeline


def _asked_for(model: Model, plan: GpuPlan) -> Model:
    """The entry with a default clip of the large shape, which is what a start compiles for, and
    with sizes and lengths for the others, which are what the compiler is allowed graphs for."""
    shapes = [plan.large, plan.small, *plan.batched]
    frames = [shape.frames for shape in shapes]
    video = model.video.model_copy(
        update={
            "sizes": {f"{shape.width}x{shape.height}": None for shape in shapes},
            "seconds": [1],
            "fps": IntRange(default=plan.large.frames, min=min(frames), max=max(frames)),
            "steps": IntRange(default=4, min=1, max=device_figures.YIELD_STEPS),
        }
    )
    return model.model_copy(update={"video": video})


def bench_gpu(
    model: Model,
    demo: Model,
    weights: Path,
    plan: GpuPlan,
    device: torch.device,
    tell: Tell,
    *,
    out: Path | None = None,
    budget_s: float = float("inf"),
) -> dict[str, Any]:
    """Every figure there is time for, and a verdict on outputs and targets.

    ``model`` is the entry of the checkpoint whose architecture ``plan.transformer`` is; ``demo``
    that of the demo model, whose shipped files are below ``weights``. ``out`` has the report after
    every section. A figure that cannot be had is missing, with the reason in ``sections``.
    """
    made = _Made(model, plan, device)
    value: dict[str, Any] = {
        "device": described(device),
        "mode": {
            "entry": model.id,
            "kernel": made.entry.name,
            "load": model.load.model_dump(),
            "batch": model.batch.model_dump(),
            "transformer": dict(plan.transformer),
            "peak_tflops": plan.peak_tflops,
        },
    }
    sections = Sections(value, tell, out=out, budget_s=budget_s)
    with Kernels.of(made.bench) as kernels:
        value["left_out"], value["ready_s"] = kernels.errors, kernels.ready_s
        of_kernels = partial(_kernels, made, plan, kernels, sections.expired, tell)
        for name, find in chain(
            _speed(made, plan, device, of_kernels),
            _checks(made, demo, weights, plan, device),
            _beside(made, plan),
            _curve(made, plan, (plan.small, *plan.batched), sections.expired),
            _compiled_speed(plan, of_kernels),
            _curve(made, plan, (plan.large,), sections.expired),
        ):
            sections.run(name, find)
    value["outputs"] = agreement(value)
    value["targets"] = verdicts(value, plan)
    sections.write()
    return value


# The sections, the most telling first: time may run out.


def _speed(
    made: _Made, plan: GpuPlan, device: torch.device, of_kernels: OfKernels
) -> Iterator[tuple[str, Find]]:
    shapes = (plan.small, plan.large)
    yield (
        "attention",
        partial(
            bench_attention,
            plan.transformer,
            shapes,
            device,
            made.dtype,
            plan.attention_repeats,
        ),
    )
    for shape in (plan.large, plan.small):
        small = shape == plan.small
        variants = eager_variants(made.entry, plan.backends, by_hand=small)
        yield f"kernels at {shape.name}", partial(of_kernels, shape, variants)


def _compiled_speed(plan: GpuPlan, of_kernels: OfKernels) -> Iterator[tuple[str, Find]]:
    """In sections of their own: who knows how long a compiler takes."""
    for shape in (plan.large, plan.small) if plan.compiled else ():
        variants = compiled_variants(plan.backends)
        yield f"compiled kernels at {shape.name}", partial(of_kernels, shape, variants)


def _kernels(
    made: _Made,
    plan: GpuPlan,
    kernels: Kernels,
    expired: Callable[[], bool],
    tell: Tell,
    shape: Shape,
    variants: Sequence[Variant],
) -> dict[str, Any]:
    small = shape == plan.small
    ran = kernels.measure(
        shape,
        variants,
        steps=plan.small_steps if small else plan.large_steps,
        rounds=plan.small_rounds if small else plan.large_rounds,
        expired=expired,
        tell=tell,
    )
    found = figures(
        shape,
        ran,
        transformer=plan.transformer,
        text_tokens=made.text_tokens,
        peak_tflops=plan.peak_tflops,
    )
    for name, each in found["variants"].items():
        tell(f"{shape.name}, {name}: {each['step_s']:.4f} s a step, {each['mfu']:.1%} of the peak")
    return found


def _checks(
    made: _Made, demo: Model, weights: Path, plan: GpuPlan, device: torch.device
) -> Iterator[tuple[str, Find]]:
    entry, steps = made.bench(made.entry), plan.output_steps
    tiny = Bench(demo, tiny_pipeline, device)
    yield "float32", partial(outputs.in_float32, tiny, BatchPolicy(rows=8))
    yield (
        "half_precision",
        partial(outputs.in_half_precision, entry, made.in_float32(), plan.small, steps),
    )
    yield "same_bits", partial(outputs.same_bits, entry, plan.small, steps)
    yield "demo_model", partial(outputs.as_on_the_cpu, demo, weights, device, plan.demo_steps)


def _beside(made: _Made, plan: GpuPlan) -> Iterator[tuple[str, Find]]:
    entry = made.bench(made.entry)
    steps, runs = plan.laden_steps_small, plan.laden_runs_small
    saved, shown = device_figures.checkpoints, device_figures.previews
    yield (
        f"checkpoints at {plan.large.name}",
        partial(saved, entry, plan.large, steps=plan.laden_steps, runs=1),
    )
    yield (
        f"checkpoints at {plan.small.name}",
        partial(saved, entry, plan.small, steps=steps, runs=runs),
    )
    yield (
        f"previews at {plan.small.name}",
        partial(shown, entry, plan.small, steps=steps, runs=runs),
    )
    yield "yields", partial(device_figures.yields, entry, plan.small, plan.yields)


def _curve(
    made: _Made, plan: GpuPlan, shapes: Sequence[Shape], expired: Callable[[], bool]
) -> Iterator[tuple[str, Find]]:
    for shape in shapes:
        few = shape.tokens >= FEW_STEPS_FROM_TOKENS
        yield (
            f"batch at {shape.name}",
            partial(
                device_figures.batch_curve,
                made.bench(made.entry),
                shape,
                plan.jobs,
                steps=plan.batch_steps_large if few else plan.batch_steps,
                rounds=1 if few else plan.batch_rounds,
                expired=expired,
            ),
        )


# What it comes to.


def agreement(value: Mapping[str, Any]) -> dict[str, Any]:
    """By check whether outputs agree, and whether all do; one that was not made does not."""
    checks: dict[str, bool] = {
        name: bool(value.get(name, {}).get("agrees", False)) for name in CHECKS
    }
    for name, found in value.items():
        if name.startswith("checkpoints at "):
            checks[f"resumed, {name}"] = found["agrees"]
        if "kernels at " in name:
            for variant, each in found["variants"].items():
                checks[f"{variant}, {name}"] = each.get("agrees", True)
    return {"agree": all(checks.values()), "checks": checks}


def verdicts(value: Mapping[str, Any], plan: GpuPlan) -> dict[str, dict[str, Any]]:
    """Each target there is a figure for, with the figure, and whether it was met."""
    found = dict(_found(value, plan))
    return judged(
        found,
        at_least={name: target for name, target in AT_LEAST.items() if name in found},
        at_most={name: target for name, target in AT_MOST.items() if name in found},
    )


def _found(value: Mapping[str, Any], plan: GpuPlan) -> Iterator[tuple[str, float]]:
    """The best of the engine's kernels counts for speed; the worst pair for what serving costs."""
    for shape in (plan.large.name, plan.small.name):
        sections = [value.get(f"{kind} at {shape}") for kind in ("kernels", "compiled kernels")]
        kernels = [found for found in sections if found is not None]
        variants = [pair for found in kernels for pair in found["variants"].items()]
        ours = [each for name, each in variants if name.startswith("engine, ")]
        if ours:
            best = min(ours, key=lambda each: float(each["step_s"]))
            for name in ("step_s", "mfu", "over_library"):
                if name in best:
                    yield f"{name} at {shape}", best[name]
        if ratios := [each for found in kernels for each in found["engine_over_library"].values()]:
            yield f"engine_over_library at {shape}", min(ratios)
        if saved := value.get(f"checkpoints at {shape}"):
            yield f"checkpoint_slowdown at {shape}", saved["slowdown"]
    if yields := value.get("yields"):
        yield "yield_ms_beyond_step", yields["max_ms"]
    for jobs, ratio in value.get(f"batch at {plan.small.name}", {}).get("relative", {}).items():
        yield f"batch of {jobs} jobs at {plan.small.name}", ratio


def described(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    if device.type != "cuda":
        return {"name": device.type, "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
