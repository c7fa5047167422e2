"""The cache of prompt embeddings: bounded, and never seen in a result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from serving.models.prompts import PromptCache
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from tests.jobs import spec

CPU = torch.device("cpu")
ROW_BYTES = 4 * 64


class Encoder:
    """Gives a text's own numbers, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def of(self, text: str, rows: int = 1) -> Callable[[], torch.Tensor]:
        def encode() -> torch.Tensor:
            self.asked.append(text)
            return torch.full((1, rows, 64), float(len(self.asked)))

        return encode


def test_a_text_is_encoded_once_and_counted() -> None:
    cache, encoder = PromptCache(10 * ROW_BYTES), Encoder()
    first, again = (cache.get(("a", 8), CPU, encoder.of("a")) for _ in range(2))
    assert torch.equal(first, again)
    cache.get(("a", 9), CPU, encoder.of("a, longer"))
    assert encoder.asked == ["a", "a, longer"]
    assert (cache.hits, cache.misses, cache.bytes) == (1, 2, 2 * ROW_BYTES)


def test_what_was_used_last_stays_and_the_bytes_are_bounded() -> None:
    cache, encoder = PromptCache(3 * ROW_BYTES), Encoder()
    for text in ("a", "b", "c", "a", "d"):
        cache.get((text,), CPU, encoder.of(text))
        assert cache.bytes <= 3 * ROW_BYTES
    assert encoder.asked == ["a", "b", "c", "d"]
    for text in ("a", "c", "d", "b"):
        cache.get((text,), CPU, encoder.of(text))
    assert encoder.asked == ["a", "b", "c", "d", "b"]
    cache.get(("two rows",), CPU, encoder.of("two rows", rows=2))
    assert cache.bytes == 3 * ROW_BYTES


@pytest.mark.parametrize(("bytes_max", "rows"), [(0, 1), (ROW_BYTES, 2)])
def test_what_does_not_fit_is_not_kept_and_drives_nothing_out(bytes_max: int, rows: int) -> None:
    cache, encoder = PromptCache(bytes_max), Encoder()
    small = cache.get(("small",), CPU, encoder.of("small")) if bytes_max else None
    for _ in range(2):
        cache.get(("large",), CPU, encoder.of("large", rows))
    assert encoder.asked.count("large") == 2
    if small is not None:
        assert torch.equal(cache.get(("small",), CPU, encoder.of("small")), small)
        assert encoder.asked.count("small") == 1


def test_writing_to_an_embedding_changes_nobody_elses() -> None:
    cache, encoder = PromptCache(ROW_BYTES), Encoder()
    for _ in range(3):
        got = cache.get(("a",), CPU, encoder.of("a"))
        assert (got == 1).all()
        got.zero_()


def test_a_failure_leaves_nothing_behind() -> None:
    def fail() -> torch.Tensor:
        raise RuntimeError("out of memory")

    cache, encoder = PromptCache(ROW_BYTES), Encoder()
    with pytest.raises(RuntimeError):
        cache.get(("a",), CPU, fail)
    assert (cache.get(("a",), CPU, encoder.of("a")) == 1).all()
    assert (cache.hits, cache.misses) == (0, 1)


def test_a_clip_has_the_same_bits_with_and_without_the_cache() -> None:
    def latents(family: WanFamily) -> torch.Tensor:
        run = family.begin(spec(steps=2, negative_prompt="blur"))
        while not run.done:
            family.step([run])
        return run.latents

    without = latents(WanFamily(tiny_pipeline(), device=CPU, prompt_tokens=16))
    family = WanFamily(tiny_pipeline(), device=CPU, prompt_tokens=16, prompt_cache_bytes=10**6)
    family.begin(spec(prompt="blur", negative_prompt="a red ball"))  # in company of another text
    assert torch.equal(latents(family), without)
    assert torch.equal(latents(family), without)
    assert family.counters == {"prompt_cache_hits": 4, "prompt_cache_misses": 2}


def test_the_text_encoder_rests_while_the_prompts_are_known() -> None:
    pipeline = tiny_pipeline()
    forwards: list[int] = []
    pipeline.text_encoder.register_forward_hook(
        lambda module, inputs, output: forwards.append(len(output[0]))
    )
    family = WanFamily(pipeline, device=CPU, prompt_tokens=16, prompt_cache_bytes=10**6)
    for seed in range(3):
        family.begin(spec(seed=seed))
    assert forwards == [1, 1]
    family.begin(spec(prompt="another", guidance_scale=1.0))
    assert forwards == [1, 1, 1]
