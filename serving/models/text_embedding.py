"""A prompt's embedding as Wan's pipelines compute it, without the padding's share of the work.

The encoder's attention is masked so that padding changes nothing, and its embedding is replaced by
zeros; so it is enough to encode the tokens that are there. Each prompt is encoded at batch 1, so
its bits depend on nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils.torch_utils import get_module_execution_device
from torch.nn.functional import pad


def embed(
    pipeline: Any, text: str, tokens: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """[1, tokens, text channels]: the first ``tokens`` tokens of ``text``, then zeros."""
    read = pipeline.tokenizer(
        [prompt_clean(text)], max_length=tokens, truncation=True, return_tensors="pt"
    )
    encoder_device = get_module_execution_device(pipeline.text_encoder)
    embedding = pipeline.text_encoder(
        read.input_ids.to(encoder_device), read.attention_mask.to(encoder_device)
    ).last_hidden_state.to(device, dtype)
    return pad(embedding, (0, 0, 0, tokens - embedding.shape[1]))
