"""Seconds of a step by attention kernel, compiled or not: the library's loop, a loop by hand, and
the engine, which take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from loadtest.engine.attention import in_short
from loadtest.engine.driver import Driver, Ran
from loadtest.engine.flops import Shape, forward_flop, utilisation
from loadtest.engine.timing import taking_turns
from loadtest.engine.work import Bench, clip_of
from serving.plan.clip import ClipSpec

Tell = Callable[[str], None]
Way = Literal["library", "hand", "engine"]
ROWS = 2
"""Of a step with guidance."""
DIFFERENCE_MAX = 0.1
"""Of final latents in bfloat16 from the eager library's, relative: guidance multiplies the rounding
of two predictions by six. Another prompt or seed is as far as the latents are large."""


@dataclass(frozen=True)
class Kernel:
    """``attention`` is a backend's name; without one PyTorch picks."""

    attention: str | None = None
    compile: bool = False

    @property
    def name(self) -> str:
        return f"{self.attention or 'default'} {'compiled' if self.compile else 'eager'}"


@dataclass(frozen=True)
class Variant:
    way: Way
    kernel: Kernel

    @property
    def name(self) -> str:
        return f"{self.way}, {self.kernel.name}"


PLAIN = Variant("library", Kernel())
"""Diffusers as it comes: what everything is compared with."""


class Kernels:
    """Every variant that could be made here, loaded; those that could not, with the reason."""

    def __init__(self, bench: Callable[[Kernel], Bench]) -> None:
        self._bench = bench
        self._loaded: dict[Variant, Callable[[ClipSpec], Ran]] = {}
        self.errors: dict[str, str] = {}
        self.ready_s: dict[str, float] = {}
        """Seconds of loading, compiling and a first step, by variant and shape."""
        self._stack = ExitStack()

    @classmethod
    @contextmanager
    def of(cls, bench: Callable[[Kernel], Bench]) -> Iterator[Kernels]:
        """``bench`` makes what a variant runs on, from the entry with that kernel's options."""
        kernels = cls(bench)
        with kernels._stack:
            yield kernels

    def measure(
        self,
        shape: Shape,
        variants: Sequence[Variant],
        *,
        steps: int,
        rounds: int,
        expired: Callable[[], bool],
        tell: Tell,
    ) -> dict[Variant, list[Ran]]:
        """Rounds of one clip with guidance by each variant; a clip of one step before does not
        count, and neither does the first step of any. A variant is left out once ``expired``."""
        spec = clip_of(shape.width, shape.height, shape.frames, steps=steps)
        ready: dict[str, Callable[[], Ran]] = {}
        for variant in variants:
            name = f"{shape.name}, {variant.name}"
            if expired():
                self.errors[name] = "no time left"
                continue
            began = time.perf_counter()
            try:
                run = self._run(variant)
                run(spec.model_copy(update={"steps": 1}))
            except Exception as error:
                self.errors[name] = in_short(error)
                tell(f"{name}: {in_short(error)}")
                continue
            self.ready_s[name] = round(time.perf_counter() - began, 2)
            tell(f"{name}: ready after {self.ready_s[name]} s")
            ready[variant.name] = partial(run, spec)
        ran = taking_turns(ready, rounds)
        return {variant: ran[variant.name] for variant in variants if variant.name in ran}

    def _run(self, variant: Variant) -> Callable[[ClipSpec], Ran]:
        if variant not in self._loaded:
            self._loaded[variant] = self._load(variant)
        return self._loaded[variant]

    def _load(self, variant: Variant) -> Callable[[ClipSpec], Ran]:
        bench = self._bench(variant.kernel)
        match variant.way:
            case "library":
                return bench.library_run
            case "hand":
                return _by_hand(bench)
            case "engine":
                return self._stack.enter_context(Driver.of(bench.family())).run


def _by_hand(bench: Bench) -> Callable[[ClipSpec], Ran]:
    return lambda spec: Ran([(each, False) for each in bench.by_hand(spec)], torch.empty(0))


def eager_variants(entry: Kernel, backends: Sequence[str], *, by_hand: bool) -> list[Variant]:
    """The most telling first: the plain library, then the engine with what its ``entry`` says."""
    kernels = [Kernel(), *(Kernel(name) for name in backends)]
    variants = [PLAIN, Variant("engine", entry)]
    if by_hand:
        variants.append(Variant("hand", entry))
    for kernel in kernels:
        variants += [Variant("engine", kernel), Variant("library", kernel)]
    return list(dict.fromkeys([*variants, Variant("library", entry)]))


def compiled_variants(backends: Sequence[str]) -> list[Variant]:
    """Likewise; the last backend is thought the fastest."""
    variants = [PLAIN]
    for attention in (*reversed(backends), None):
        kernel = Kernel(attention, compile=True)
        variants += [Variant("engine", kernel), Variant("library", kernel)]
    return variants


def figures(
    shape: Shape,
    ran: Mapping[Variant, Sequence[Ran]],
    *,
    transformer: Mapping[str, Any],
    text_tokens: int,
    peak_tflops: float,
) -> dict[str, Any]:
    """Of one shape: each variant's median step, its utilisation, how many times as fast as the
    plain library it is, and how far its latents are from that; each engine over the library's loop
    with the same kernel."""
    flop = ROWS * forward_flop(transformer, shape.tokens, text_tokens)
    plain = ran.get(PLAIN)
    by_variant = {
        variant.name: _of_variant(runs, plain, flop, peak_tflops) for variant, runs in ran.items()
    }
    return {
        "tokens": shape.tokens,
        "tflop_per_step": round(flop / 1e12, 3),
        "variants": by_variant,
        "engine_over_library": _over(ran, "library"),
        "engine_over_hand": _over(ran, "hand"),
    }


def _of_variant(
    runs: Sequence[Ran], plain: Sequence[Ran] | None, flop: float, peak_tflops: float
) -> dict[str, Any]:
    seconds = [_step_s(run) for run in runs]
    step_s = statistics.median(seconds)
    found: dict[str, Any] = {
        "step_s": round(step_s, 5),
        "mfu": round(utilisation(flop, step_s, peak_tflops), 4),
        "seconds": [[round(each, 5) for each, _ in run.steps] for run in runs],
    }
    if plain is not None:
        found["over_library"] = round(
            statistics.median(_step_s(before) / _step_s(run) for before, run in pairs(plain, runs)),
            4,
        )
        if runs[-1].latents.numel():
            difference = relative_difference(runs[-1].latents, plain[-1].latents)
            found["relative_difference"] = difference
            found["agrees"] = difference < DIFFERENCE_MAX
    return found


def _over(ran: Mapping[Variant, Sequence[Ran]], way: Way) -> dict[str, float]:
    """By kernel: the loop's seconds per step over the engine's, median over pairs of neighbours."""
    return {
        variant.kernel.name: round(
            statistics.median(
                _step_s(loop) / _step_s(ours)
                for loop, ours in pairs(ran[Variant(way, variant.kernel)], runs)
            ),
            4,
        )
        for variant, runs in ran.items()
        if variant.way == "engine" and Variant(way, variant.kernel) in ran
    }


def pairs(before: Sequence[Ran], after: Sequence[Ran]) -> Iterator[tuple[Ran, Ran]]:
    return zip(before, after, strict=True)


def _step_s(run: Ran) -> float:
    """Mean seconds of a clip's steps after the first, which waits for the prompts as well. The
    library's are timed as one, without the first."""
    timed = [seconds for seconds, _ in run.steps]
    return statistics.fmean(timed[1:] or timed)


def relative_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The root mean square of the difference over that of what is wanted; infinite for NaN."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    share = float((found - wanted).norm() / wanted.norm())
    return share if share == share else float("inf")
