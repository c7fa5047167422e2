"""The transformer and the text encoder, and what is only there while they are trained.

Two things make a model as small as this learn in an hour of a laptop's time what it would not
learn in ten:

* Wan's transformer knows where a token is only from rotations of queries and keys, which say how
  far two tokens are apart. That a token is at the left edge it can only find out by looking for a
  neighbour that is not there, and in pure noise nothing rewards it for looking. So linear heads on
  an early block's states have to tell where each token is; in a few hundred steps they can.
* Linear heads on the text's states have to tell what the caption says, so that the transformer
  attends to words that mean something from its first step on.

Both are dropped when the training ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from deployments.demo_models.video.codec import LATENT_CHANNELS
from deployments.demo_models.video.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    every_caption,
)

PROMPT_TOKENS = 64
"""That every prompt is padded to."""
FLOW_SHIFT = 3.0
TEXT_CHANNELS = 128
CHANNELS = 192
KNOWS_WHERE = 2
"""The block whose states tell where a token is."""
PLACES = 24
"""More than the latent frames, rows or columns of anything that is trained on."""
ATTRIBUTES = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}


def new_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word of the world's captions, and bytes for any other text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        every_caption(),
        trainers.BpeTrainer(
            vocab_size=2000,
            show_progress=False,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", specials.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Attention by products of matrices, [clips, tokens, heads, channels]. On a CPU its gradients
    take a third to a seventh of the time that the fused kernel's do."""
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    attended: torch.Tensor = weights.softmax(dim=-1).to(value.dtype) @ value
    return attended.transpose(1, 2)


@contextmanager
def _attention_of(device: torch.device) -> Iterator[None]:
    fused = transformer_wan.dispatch_attention_fn
    if device.type == "cpu":
        transformer_wan.dispatch_attention_fn = _attend
    try:
        yield
    finally:
        transformer_wan.dispatch_attention_fn = fused


class Denoiser(nn.Module):
    """What is trained together."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=tokens,
                d_model=TEXT_CHANNELS,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
            )
        )
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=4,
            attention_head_dim=CHANNELS // 4,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            text_dim=TEXT_CHANNELS,
            freq_dim=64,
            ffn_dim=512,
            num_layers=6,
        )
        self.where = nn.Linear(CHANNELS, 6 * PLACES)
        self.what = nn.Linear(TEXT_CHANNELS, sum(map(len, ATTRIBUTES.values())))
        self._states: torch.Tensor | None = None
        self.transformer.blocks[KNOWS_WHERE].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, states: torch.Tensor) -> None:
        self._states = states

    def text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[captions, tokens, channels], zeros where there is no token, as the pipeline has it."""
        states: torch.Tensor = self.text_encoder(ids, mask).last_hidden_state
        return states * mask[..., None]

    def forward(
        self, latents: torch.Tensor, times: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """The velocity, as ``latents`` [clips, channels, frames, height, width]. ``times`` are
        from 0 to 1000, for each token: [clips, tokens]."""
        text = pad(text, (0, 0, 0, PROMPT_TOKENS - text.shape[1]))
        with _attention_of(latents.device):
            velocity: torch.Tensor = self.transformer(latents, times, text, return_dict=False)[0]
        return velocity

    def where_loss(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """Cross entropy of where each token of the last forward is: its frame, row and column,
        counted from either end."""
        if self._states is None:
            raise RuntimeError("there was no forward whose tokens could be asked")
        told: torch.Tensor = self.where(self._states.float())
        told = told.view(*told.shape[:2], 6, PLACES)
        loss = told.new_zeros(())
        for axis, size in enumerate(grid):
            shape = [1, 1, 1]
            shape[axis] = size
            index = torch.arange(size, device=told.device).view(shape).expand(grid).reshape(1, -1)
            for way, target in enumerate((index, size - 1 - index)):
                logits = told[..., 2 * axis + way, :].transpose(1, 2)
                loss = loss + cross_entropy(logits, target.expand(len(told), -1))
        return loss / 6

    def what_loss(
        self, text: torch.Tensor, mask: torch.Tensor, scenes: list[Scene]
    ) -> torch.Tensor:
        """Cross entropy of what each caption says."""
        mean = text.float().sum(dim=1) / mask.sum(dim=1, keepdim=True)
        loss = mean.new_zeros(())
        logits = self.what(mean).split([len(names) for names in ATTRIBUTES.values()], dim=-1)
        for (attribute, names), each in zip(ATTRIBUTES.items(), logits, strict=True):
            said = [names.index(getattr(scene, attribute)) for scene in scenes]
            loss = loss + cross_entropy(each, torch.tensor(said, device=each.device))
        return loss / len(ATTRIBUTES)


def new_pipeline(denoiser: Denoiser, codec: Any, tokenizer: PreTrainedTokenizerFast) -> WanPipeline:
    """For ``save_pretrained``. A first frame may be given, as to Wan 2.2's TI2V."""
    pipeline: WanPipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=denoiser.text_encoder.eval(),
        transformer=denoiser.transformer.eval(),
        vae=codec.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
        ),
        expand_timesteps=True,
    )
    return pipeline
