"""Wan checkpoints with random weights, made on the spot, for tests and benches.

They have every part a released checkpoint has, so whatever works with them works with real weights;
only their pictures mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

SEED = 20261120
TEXT_CHANNELS = 64
LATENT_CHANNELS = 16
CPU = torch.device("cpu")
TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "text_dim": TEXT_CHANNELS,
        "freq_dim": 64,
        "ffn_dim": 256,
        "num_layers": 4,
    }
)
"""The tiny transformer; of a released one, ``transformer/config.json`` says as much."""


def tiny_pipeline() -> WanPipeline:
    """The pipeline itself, on the CPU in float32."""
    return random_pipeline(TRANSFORMER)


def random_pipeline(
    transformer: Mapping[str, Any],
    *,
    text_layers: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> WanPipeline:
    """A pipeline around a transformer of this configuration, whose latents have 16 channels.

    The transformer and the text encoder are ``dtype``, the VAE is float32, as the catalog loads
    them. The transformer's weights are drawn on ``device``, where billions take no time, and lie
    there; the small parts are on the CPU. Other devices draw other weights.
    """
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=transformer["text_dim"],
                d_kv=16,
                d_ff=128,
                num_layers=text_layers,
                num_heads=4,
            )
        )
        with device:
            model = WanTransformer3DModel(**transformer)
        vae = AutoencoderKLWan(base_dim=8, z_dim=LATENT_CHANNELS, num_res_blocks=1)
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval().to(dtype),
        transformer=as_loaded(model.eval(), dtype),
        vae=vae.eval(),
        # The solver and the shift that Wan's own checkpoints carry.
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )


def as_loaded(transformer: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """With the dtypes that ``from_pretrained(dtype=…)`` gives: some parts stay float32."""
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if kept.isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, so that any prompt in any language has tokens."""
    specials = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
