"""Words to states: a tokenizer of the captions' words and a T5 encoder of two layers.

The encoder learns to tell the attributes of a caption by a head that is thrown away. Then it stays
as it is, as real ones do: if it went on learning with the denoiser, its states would come to stand
for whole captions, and a pair of words that training never had together would mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from deployments.demo_models.sound.captions import caption, held_out, vocabulary
from deployments.demo_models.sound.world import AXES, Sound

TEXT_CHANNELS = 64
TOKENS = 20
"""Every prompt is padded to these; the longest caption has 14."""
STRANGE_WORDS = 0.1
"""How often a caption in training has a word that the tokenizer does not know."""


def new_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the captions, in lower case; ``<unk>`` for any other."""
    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TOKENS,
        clean_up_tokenization_spaces=False,
    )


def new_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(vocabulary()) + 3,
            d_model=TEXT_CHANNELS,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, [texts, TOKENS] each, as ``StableAudioPipeline`` makes them."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return tokens.input_ids, tokens.attention_mask


def training_caption(sound: Sound, random: Random) -> str:
    """One that is not held out, sometimes with a strange word in it."""
    while held_out(text := caption(sound, random)):
        pass
    words = text.split()
    if random.random() < STRANGE_WORDS:
        words.insert(random.randrange(len(words) + 1), "???")
    return " ".join(words)


class AttributeHead(nn.Module):
    """What a caption says on every axis of its kind, and the kind, from the encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = [("kind", list(AXES))] + [
            (f"{kind}.{axis}", list(values))
            for kind, axes in AXES.items()
            for axis, values in axes.items()
        ]
        self.heads = nn.ModuleList(
            nn.Linear(TEXT_CHANNELS, len(values)) for _, values in self.answers
        )

    def forward(self, states: Tensor, mask: Tensor, sounds: Sequence[Sound]) -> Tensor:
        """Cross entropy, summed over kind and axes; axes of other kinds count for nothing.

        ``states`` [captions, TOKENS, TEXT_CHANNELS], ``mask`` [captions, TOKENS].
        """
        weight = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weight).sum(dim=1) / weight.sum(dim=1)
        loss = states.new_zeros(())
        for head, (name, values) in zip(self.heads, self.answers, strict=True):
            wanted = torch.tensor([_answer(name, values, sound) for sound in sounds])
            loss = loss + nn.functional.cross_entropy(
                head(pooled), wanted.to(states.device), ignore_index=-1, reduction="sum"
            )
        return loss / len(sounds)


def _answer(name: str, values: list[str], sound: Sound) -> int:
    kind, _, axis = name.partition(".")
    if not axis:
        return values.index(sound.kind)
    return values.index(sound[axis]) if kind == sound.kind else -1
