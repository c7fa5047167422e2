"""Prompts that are projected once, against the library that does it in every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import WanTransformer3DModel

from serving.models.text_embedding import embed
from serving.models.text_states import TextStates
from serving.models.tiny import tiny_pipeline
from serving.models.wan import WanFamily
from serving.plan.catalog import BatchPolicy, LoadOptions
from tests.jobs import spec

CPU = torch.device("cpu")
TOKENS = 16
ROW_BYTES = 2 * 4 * TOKENS * 128 * 4
"""Keys and values, 4 layers, 128 channels of float32."""


@pytest.fixture
def transformer() -> WanTransformer3DModel:
    return tiny_pipeline().transformer


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def prompts(*seeds: int) -> list[torch.Tensor]:
    return [
        torch.randn(1, TOKENS, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]


def count_projections(transformer: WanTransformer3DModel) -> list[int]:
    found: list[int] = []
    transformer.condition_embedder.text_embedder.register_forward_hook(
        lambda module, inputs, output: found.append(len(output)) if output.numel() else None
    )
    return found


def predict(transformer: WanTransformer3DModel, text: torch.Tensor, rows: int = 4) -> torch.Tensor:
    latents = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    prediction: torch.Tensor = transformer(
        hidden_states=latents.expand(rows, -1, -1, -1, -1),
        timestep=torch.full((rows,), 500.0),
        encoder_hidden_states=text,
        return_dict=False,
    )[0]
    return prediction


def test_predictions_are_those_of_the_library(transformer: WanTransformer3DModel) -> None:
    texts = prompts(1, 2, 3, 4)
    expected = predict(transformer, torch.cat(texts))
    states = TextStates(transformer)
    with states.read("shape", texts, 4) as places:
        assert places is not None
        got = predict(transformer, torch.empty(4, 0, 64))
    assert (got[places] - expected).abs().max() < 1e-5
    # Outside, the transformer is the library's again, to the bit.
    assert torch.equal(predict(transformer, torch.cat(texts)), expected)


def test_a_prompt_is_projected_once_and_stays_in_its_row(
    transformer: WanTransformer3DModel,
) -> None:
    projected = count_projections(transformer)
    states = TextStates(transformer)
    a, b, c = prompts(1, 2, 3)

    def places(*texts: torch.Tensor) -> list[int] | None:
        with states.read("shape", texts, 4) as found:
            return found

    assert places(a, b) == [0, 1]
    assert places(b, a) == [1, 0]
    assert places(b) == [1]
    assert places(c, b) == [0, 1]
    assert len(projected) == 3
    assert places(a, a.clone()) == [0, 1], "two rows, although the prompt is one"
    assert len(projected) == 4
    states.clear()
    assert states.bytes == 0
    assert places(a) == [0]


def test_shapes_have_buffers_of_their_own_within_a_bound(
    transformer: WanTransformer3DModel,
) -> None:
    projected = count_projections(transformer)
    states = TextStates(transformer, bytes_max=5 * ROW_BYTES)
    a, b = prompts(1, 2)
    for shape in ("one", "two", "one", "two"):
        with states.read(shape, [a, b], 2):
            assert states.bytes <= 5 * ROW_BYTES
    assert len(projected) == 4
    assert states.bytes == 4 * ROW_BYTES
    # A third takes the place of the one used longest ago.
    for shape in ("three", "two"):
        with states.read(shape, [a, b], 2):
            pass
    assert len(projected) == 6
    # One that does not fit alone is read as ever, and takes nobody's place.
    with states.read("large", [a, b], 8) as places:
        assert places is None
    assert states.bytes == 4 * ROW_BYTES


def test_memory_that_is_too_small_changes_no_number_beyond_rounding() -> None:
    latents = []
    for size in (0, 1, 10**9):
        family = WanFamily(
            tiny_pipeline(),
            device=CPU,
            prompt_tokens=TOKENS,
            batch=BatchPolicy(rows=4),
            text_states_bytes=size,
        )
        run = family.begin(spec())
        while not run.done:
            family.step([run])
        latents.append(run.latents)
    assert torch.equal(latents[0], latents[1])
    assert (latents[0] - latents[2]).abs().max() < 1e-4


def test_offload_leaves_prompts_to_the_library() -> None:
    assert LoadOptions().text_states_bytes == 2_000_000_000
    assert LoadOptions(offload="model").text_states_bytes == 0


@pytest.mark.parametrize("text", ["", "a red ball", "x" * 200])
def test_an_embedding_without_padding_is_the_pipelines(text: str) -> None:
    pipeline = tiny_pipeline()
    expected, _ = pipeline.encode_prompt(
        text, do_classifier_free_guidance=False, max_sequence_length=64, device=CPU
    )
    got = embed(pipeline, text, 64, CPU, torch.float32)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-5


def test_compiled_blocks_share_one_graph(transformer: WanTransformer3DModel) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    texts = prompts(1, 2, 3, 4)
    expected = predict(transformer, torch.cat(texts))
    states = TextStates(transformer)
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
    for order in (texts, texts[::-1], texts[:2]):
        with states.read("shape", order, 4) as places:
            assert places is not None
            got = predict(transformer, torch.empty(4, 0, 64))
        wanted = [next(row for row, text in enumerate(texts) if text is each) for each in order]
        assert (got[places] - expected[wanted]).abs().max() < 1e-5
    assert len(graphs) == 1
