"""Tiny checkpoints of voices with random weights, made on the spot, for tests.

Each has every file that a released one has, so whatever loads it loads real weights; only what it
says means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    BarkCoarseConfig,
    BarkConfig,
    BarkFineConfig,
    BarkModel,
    BarkSemanticConfig,
    EncodecConfig,
    GenerationConfig,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
)

from serving.models.tiny import SEED, byte_tokenizer

VITS_LETTERS = " abcdefghijklmnopqrstuvwxyz'-"


def tiny_vits(folder: Path, *, speakers: int = 1, **tokenizer: object) -> Path:
    """A VITS checkpoint of 16 kHz in ``folder``, which reads letters and no digits, as MMS does.
    ``tokenizer``: more of its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {letter: index for index, letter in enumerate([*VITS_LETTERS, "<unk>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"language": "eng", "phonemize": False, "pad_token": " ", **tokenizer}
    VitsTokenizer(str(folder / "vocab.json"), **settings).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = VitsModel(
            VitsConfig(
                vocab_size=len(vocabulary),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                ffn_dim=32,
                flow_size=16,
                spectrogram_bins=33,
                num_speakers=speakers,
                speaker_embedding_size=8 if speakers > 1 else 0,
                upsample_initial_channel=32,
                upsample_rates=[8, 8, 4],
                upsample_kernel_sizes=[16, 16, 8],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1, 3]],
                duration_predictor_filter_channels=16,
                duration_predictor_num_flows=2,
                prior_encoder_num_flows=2,
                prior_encoder_num_wavenet_layers=1,
                posterior_encoder_num_wavenet_layers=1,
                depth_separable_num_layers=1,
                sampling_rate=16_000,
            )
        )
    model.save_pretrained(folder)
    return folder


def tiny_bark(folder: Path, voices: Sequence[str] = ("v2/en_speaker_6",)) -> Path:
    """A Bark checkpoint of 24 kHz in ``folder``, with these voices, which says half a second."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save_pretrained(folder)
    # Wide enough that what came before, such as a voice, is heard.
    sizes = {
        "block_size": 256,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_size": 16,
        "initializer_range": 0.25,
    }
    semantic, codes = 100, 32
    coarse = semantic + 2 * codes
    parts = {
        "semantic_config": BarkSemanticConfig(
            input_vocab_size=400, output_vocab_size=semantic + 1, **sizes
        ),
        "coarse_acoustics_config": BarkCoarseConfig(
            input_vocab_size=coarse + 2, output_vocab_size=coarse + 2, **sizes
        ),
        "fine_acoustics_config": BarkFineConfig(
            input_vocab_size=codes + 1, output_vocab_size=codes + 1, **sizes
        ),
        "codec_config": EncodecConfig(
            codebook_size=codes,
            codebook_dim=16,
            hidden_size=16,
            num_filters=4,
            num_lstm_layers=1,
            target_bandwidths=[6.0],
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = BarkModel(BarkConfig(**{name: part.to_dict() for name, part in parts.items()}))
        # What training would fill: all codes would sound alike.
        for layer in model.codec_model.quantizer.layers:
            layer.codebook.embed.normal_()
    model.generation_config = GenerationConfig(
        semantic_config={
            "do_sample": True,
            "max_new_tokens": 25,
            "max_input_semantic_length": 64,
            "eos_token_id": semantic,
            "semantic_vocab_size": semantic,
            "text_encoding_offset": semantic + 1,
            "text_pad_token": 398,
            "semantic_infer_token": 399,
        },
        coarse_acoustics_config={
            "do_sample": True,
            "coarse_semantic_pad_token": coarse,
            "coarse_infer_token": coarse + 1,
            "max_coarse_input_length": 32,
            "max_coarse_history": 60,
        },
        fine_acoustics_config={
            "temperature": 0.5,
            "max_fine_history_length": 32,
            "max_fine_input_length": 64,
        },
        codebook_size=codes,
    )
    model.save_pretrained(folder)
    _add_voices(folder, voices, semantic, codes)
    return folder


def _add_voices(folder: Path, voices: Sequence[str], semantic: int, codes: int) -> None:
    draw = np.random.default_rng(SEED)
    listed: dict[str, object] = {"repo_or_path": str(folder)}
    for voice in voices:
        prompts = {
            "semantic_prompt": draw.integers(0, semantic, 30),
            "coarse_prompt": draw.integers(0, codes, (2, 40)),
            "fine_prompt": draw.integers(0, codes, (8, 40)),
        }
        names = {name: f"speaker_embeddings/{voice}_{name}.npy" for name in prompts}
        for name, prompt in prompts.items():
            (folder / names[name]).parent.mkdir(parents=True, exist_ok=True)
            np.save(folder / names[name], prompt)
        listed[voice] = names
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(listed))
