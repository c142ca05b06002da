"""Sizes of every network as frozen dataclasses, and the presets that people start from."""

from __future__ import annotations

import dataclasses
from typing import Literal

SegState = Literal["before", "at"]
History = Literal["demo", "training"]
IMAGE_TOKEN = -200  # stands for a picture among token ids
IGNORE_LABEL = -100  # label of a position that is not learnt


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """CLIP vision tower. `select_layer` counts hidden states from the end, as in LLaVA.

    Source: spec/language_model.md 2.
    """

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1024
    mlp_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    select_layer: int = -2
    norm_eps: float = 1e-5

    @property
    def num_patches(self) -> int:
        """Image tokens that one picture puts into the language model."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def used_layers(self) -> int:
        """Blocks whose output can reach the selected hidden state; later ones are never run."""
        return self.num_layers + 1 + self.select_layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary frequency scaling of Hugging Face LLaMA configs ("linear" or "llama3")."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Decoder of any Hugging Face `LlamaForCausalLM`. Source: spec/language_model.md 4."""

    vocab_size: int = 32003
    hidden_size: int = 4096
    mlp_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """Swin backbone; the defaults are Swin-T. Source: spec/grounding_model.md 3."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch_size: int = 4
    mlp_ratio: int = 4
    drop_path_rate: float = 0.3

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of res2, res3, res4, res5."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Deformable transformer shared by pixel encoder and decoder. Source: spec/grounding_model.md 4, 5."""

    hidden_size: int = 256
    ffn_size: int = 2048
    num_heads: int = 8
    num_levels: int = 4
    num_points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 9
    norm_groups: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundingConfig:
    """OpenSeeD as changed by LLaVA-Grounding: phrases in, boxes and masks out.

    `image_size` is the side of the square canvas at inference, `num_queries` the default number of
    queries, `merge_iou` the IoU from which on boxes of a phrase are of the same thing and add up their
    probability, which is then multiplied by the number that the phrase begins with, "two dogs" (None: each
    query answers for itself, as released); no weight depends on these.
    """

    swin: SwinConfig = SwinConfig()
    transformer: TransformerConfig = TransformerConfig()
    image_size: int = 1024
    num_queries: int = 300
    merge_iou: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Visual-prompt model (Semantic-SAM with three mask tokens). Source: spec/visual_prompts.md."""

    swin: SwinConfig = SwinConfig()
    transformer: TransformerConfig = TransformerConfig()
    image_size: int = 1024
    num_mask_tokens: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model.

    `seg_state` says which hidden state stands for a `<seg>`: "before" the one that predicts it (released
    inference), "at" that of `<seg>` itself (released training). `history` says how earlier answers and the
    marks of regions stand in a prompt: "demo" as the released demo writes them, "training" as training does.
    Source: spec/language_model.md 7.4, 12; spec/visual_prompts.md 6.
    """

    clip: ClipConfig = ClipConfig()
    llama: LlamaConfig = LlamaConfig()
    grounding: GroundingConfig | None = GroundingConfig()
    prompt: PromptConfig | None = PromptConfig()
    seg_state: SegState = "before"
    history: History = "demo"


def llava_g_7b() -> ModelConfig:
    """LLaVA-Grounding 7B as released: CLIP ViT-L/14 at 224, Vicuna-7B with 32003 rows, two Swin-T modules."""
    return ModelConfig()


def tiny() -> ModelConfig:
    """The model that `launch/tiny.sh` trains on composed scenes: 160 pixels, 8 million parameters."""
    swin = SwinConfig(embed_dim=28, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4)
    transformer = TransformerConfig(
        hidden_size=96,
        ffn_size=160,
        num_heads=4,
        num_points=2,
        encoder_layers=2,
        decoder_layers=3,
        norm_groups=8,
    )
    return ModelConfig(
        clip=ClipConfig(
            image_size=160,
            patch_size=16,
            hidden_size=192,
            mlp_size=384,
            num_layers=6,
            num_heads=3,
            select_layer=-1,
        ),
        llama=LlamaConfig(
            vocab_size=1024,
            hidden_size=192,
            mlp_size=384,
            num_layers=4,
            num_heads=3,
            num_kv_heads=3,
            head_dim=64,
        ),
        grounding=GroundingConfig(
            swin=swin, transformer=transformer, image_size=160, num_queries=100, merge_iou=0.6
        ),
        prompt=PromptConfig(swin=swin, transformer=transformer, image_size=160),
        seg_state="at",
        history="training",
    )


def debug() -> ModelConfig:
    """A model of a few hundred thousand parameters with every part present, for tests and dry runs."""
    swin = SwinConfig(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window=4)
    transformer = TransformerConfig(
        hidden_size=32, ffn_size=64, num_heads=4, encoder_layers=2, decoder_layers=2, norm_groups=8
    )
    return ModelConfig(
        clip=ClipConfig(image_size=28, patch_size=14, hidden_size=32, mlp_size=64, num_layers=3, num_heads=2),
        llama=LlamaConfig(
            vocab_size=803,
            hidden_size=64,
            mlp_size=128,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
        ),
        grounding=GroundingConfig(swin=swin, transformer=transformer, image_size=128, num_queries=50),
        prompt=PromptConfig(swin=swin, transformer=transformer, image_size=128),
    )
