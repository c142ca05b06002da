"""Vision modules in PyTorch, to be timed beside ours: the same weights, and layers of transformers.

Swin and the deformable layers of encoder and decoder are those of transformers (attention by PyTorch's fused
kernels, deformable sampling in plain PyTorch); what lies between them is written after our modules, which say
where it comes from. Maps are [b, c, h, w] here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoderLayer,
    DeformableDetrEncoderLayer,
)

from lgjax.config import PromptConfig, SwinConfig, TransformerConfig
from lgjax.convert.store import flattened
from lgjax.models.kernels import Transposed, dense
from lgjax.models.position import LevelSizes, cell_centres, level_starts, sine_position_map

Maps = tuple[torch.Tensor, ...]
Names = tuple[tuple[str, str], ...]
Tree = dict[str, Any]

# our names, and those of transformers
_SWIN: Names = (
    ("patch_embed.proj", "swin.embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "swin.embeddings.norm"),
    ("layers_", "swin.encoder.layers."),
    (".blocks_", ".blocks."),
    (".attn.proj.", ".attention.o_proj."),
    (".attn.relative", ".attention.relative_position_bias.relative"),
    (".attn.", ".attention."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
)
_LAYER: Names = (("linear1", "mlp.fc1"), ("linear2", "mlp.fc2"), ("self_attn.out_proj", "self_attn.o_proj"))
_ENCODER: Names = (*_LAYER, ("norm1", "self_attn_layer_norm"), ("norm2", "final_layer_norm"))
_DECODER: Names = (
    *_LAYER,
    ("cross_attn", "encoder_attn"),
    ("norm1", "encoder_attn_layer_norm"),
    ("norm2", "self_attn_layer_norm"),
    ("norm3", "final_layer_norm"),
)


def _tensors(params: Tree) -> dict[str, torch.Tensor]:
    """Parameters under PyTorch's last names and with its axes; packed projections one by one."""
    found = {}
    for path, leaf in flattened(params).items():
        value = np.array(dense(leaf) if isinstance(leaf, Transposed) else leaf)
        name = path.replace("/", ".").replace("in_proj.", "qkv.")
        if name.endswith("kernel"):
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        name = name.replace(".kernel", ".weight").replace(".scale", ".weight")
        packed = ".qkv." in name or name.startswith("qkv.")
        for part, piece in zip("qkv", np.split(value, 3) if packed else [value], strict=packed):
            found[name.replace("qkv", f"{part}_proj")] = torch.from_numpy(np.ascontiguousarray(piece))
    return found


def tree(params: Tree, *without: str) -> Tree:
    """The same as a tree of what learns, without the branches whose names begin so."""
    found: Tree = {}
    rest = {name: value for name, value in params.items() if not name.startswith(without)}
    for name, value in _tensors(rest).items():
        *path, last = name.split(".")
        node = found
        for step in path:
            node = node.setdefault(step, {})
        node[last] = torch.nn.Parameter(value)
    return found


def _loaded(network: torch.nn.Module, params: Tree, names: Names) -> Any:
    """A network of transformers with our parameters under its names.

    Raises:
        ValueError: it has other names.
    """
    state = {}
    for name, value in _tensors(params).items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        state[name] = value
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith("swin.layernorm.")]
    if unexpected or missing:
        raise ValueError(
            f"{type(network).__name__} of transformers has other names: {[*unexpected, *missing][0]}"
        )
    return network.eval()


class Levels(NamedTuple):
    """Sizes (height, width) of levels, as transformers wants them."""

    sizes: LevelSizes
    arguments: dict[str, Any]

    @classmethod
    def of(cls, sizes: LevelSizes) -> Levels:
        """The levels in this order."""
        return cls(
            sizes,
            {
                "spatial_shapes": torch.tensor(sizes),
                "spatial_shapes_list": sizes,
                "level_start_index": torch.tensor(level_starts(sizes)),
            },
        )


def _detr(config: TransformerConfig) -> Any:
    settings: Tree = {
        "d_model": config.hidden_size,
        "num_feature_levels": config.num_levels,
        "activation_function": "relu",
        "attn_implementation": "sdpa",
    }
    for side in ("encoder", "decoder"):
        settings[f"{side}_attention_heads"] = config.num_heads
        settings[f"{side}_ffn_dim"] = config.ffn_size
        settings[f"{side}_n_points"] = config.num_points
    return transformers.DeformableDetrConfig(**settings)


def linear(x: torch.Tensor, p: Tree) -> torch.Tensor:
    """A linear layer."""
    return F.linear(x, p["weight"], p["bias"])


def mlp(x: torch.Tensor, p: Tree) -> torch.Tensor:
    """Linear layers with ReLU between."""
    for i in range(len(p)):
        x = linear(F.relu(x) if i else x, p[f"layers_{i}"])
    return x


def norm(x: torch.Tensor, p: Tree) -> torch.Tensor:
    """Layer normalisation."""
    return F.layer_norm(x, x.shape[-1:], p["weight"], p["bias"])


def conv_norm(x: torch.Tensor, p: Tree, groups: int, stride: int = 1) -> torch.Tensor:
    """Convolution and group normalisation."""
    weight = p["conv"]["weight"]
    x = F.conv2d(x, weight, p["conv"].get("bias"), stride, weight.shape[-1] // 2)
    return F.group_norm(x, groups, p["norm"]["weight"], p["norm"]["bias"])


def box_code(boxes: torch.Tensor, features: int) -> torch.Tensor:
    """Sine code of boxes, see `position.sine_box_code`."""
    divisors = 10000.0 ** (2 * (torch.arange(features) // 2) / features)
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * torch.pi) / divisors
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-3)


def canvas_masks(embedding: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
    """Masks at four times the size of the features; logits are resized, then cut at zero."""
    logits = torch.einsum("bqc,bchw->bqhw", embedding, mask_features)
    return F.interpolate(logits, scale_factor=4, mode="bilinear") > 0


class Swin(torch.nn.Module):
    """Images [b, 3, h, w] -> four maps."""

    def __init__(self, config: SwinConfig, params: Tree) -> None:
        super().__init__()
        settings: Tree = {
            "patch_size": config.patch_size,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            "window_size": config.window,
            "mlp_ratio": float(config.mlp_ratio),
            "drop_path_rate": 0.0,
            "out_features": [f"stage{i + 1}" for i in range(4)],
        }
        # norms of stages have the names of norms within blocks
        params = {f"of_{name}" if name.startswith("norm") else name: leaf for name, leaf in params.items()}
        stages = tuple((f"of_norm{i}.", f"hidden_states_norms.stage{i + 1}.") for i in range(4))
        network = transformers.SwinBackbone(transformers.SwinConfig(**settings))
        self.network = _loaded(network, params, (*stages, *_SWIN))

    def forward(self, images: torch.Tensor) -> Maps:
        """Maps at stride 4, 8, 16, 32."""
        return self.network(pixel_values=images).feature_maps


class PixelEncoder(torch.nn.Module):
    """Maps -> memory [b, n, c], levels coarse to fine, and mask features [b, c, h, w]."""

    def __init__(self, config: TransformerConfig, params: Tree) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            _loaded(DeformableDetrEncoderLayer(_detr(config)), params[f"layers_{i}"], _ENCODER)
            for i in range(config.encoder_layers)
        )
        self.own, self.config = tree(params, "layers_"), config

    def conv_norm(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        """The convolution and norm of this name."""
        return conv_norm(x, self.own[name], self.config.norm_groups, stride)

    def forward(self, maps: Maps) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of images, see `lgjax.models.pixel_encoder`."""
        config, res2 = self.config, maps[0]
        sources = [self.conv_norm(f"input_proj_{i}", x) for i, x in enumerate(maps[1:])]
        sources.append(self.conv_norm("input_proj_3", maps[3], 2))
        levels = Levels.of(tuple((int(s.shape[2]), int(s.shape[3])) for s in sources))
        codes = [torch.from_numpy(sine_position_map(h, w, config.hidden_size)) for h, w in levels.sizes]
        position = torch.cat([c + e for c, e in zip(codes, self.own["level_embed"], strict=True)])[None]
        reference = torch.tensor(cell_centres(levels.sizes))[None, :, None]
        reference = reference.expand(-1, -1, config.num_levels, -1)
        x = torch.cat([s.flatten(2).transpose(1, 2) for s in sources], 1)
        for layer in self.layers:
            x = layer(x, None, position, reference, **levels.arguments)
        parts = x.split([h * w for h, w in levels.sizes], 1)
        finest = parts[0].transpose(1, 2).unflatten(2, levels.sizes[0])
        y = self.conv_norm("adapter_1", res2) + F.interpolate(finest, res2.shape[2:], mode="bilinear")
        y = F.relu(self.conv_norm("layer_1", y))
        last = self.own["mask_features"]
        return torch.cat(parts[::-1], 1), F.conv2d(y, last["weight"], last["bias"])


class Decoder(torch.nn.Module):
    """Queries and references -> normed states and references of every layer."""

    def __init__(self, config: TransformerConfig, params: Tree) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            _loaded(DeformableDetrDecoderLayer(_detr(config)), params[f"layers_{i}"], _DECODER)
            for i in range(config.decoder_layers)
        )
        self.own, self.config = tree(params, "layers_"), config

    def refine(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Boxes after a layer."""
        return (mlp(x, self.own["bbox_embed"]) + torch.logit(reference, 1e-5)).sigmoid()

    def forward(
        self,
        x: torch.Tensor,
        reference: torch.Tensor,
        memory: torch.Tensor,
        levels: Levels,
        allowed: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """All layers; `levels` coarse to fine, `allowed` [q, q] says who may see whom."""
        hidden, references, own = [], [reference], self.own
        for layer in self.layers:
            start = references[-1].detach()
            position = mlp(box_code(start, self.config.hidden_size // 2), own["ref_point_head"])
            corners = start[:, :, None].expand(-1, -1, self.config.num_levels, -1)
            x = layer(
                x,
                position,
                corners,
                encoder_hidden_states=memory,
                attention_mask=allowed,
                **levels.arguments,
            )
            references.append(self.refine(x, start))
            hidden.append(norm(x, own["norm"]))
        return hidden, references


class Prompting(torch.nn.Module):
    """The visual-prompt model."""

    def __init__(self, config: PromptConfig, params: Tree) -> None:
        super().__init__()
        self.swin = Swin(config.swin, params["backbone"])
        self.encoder = PixelEncoder(config.transformer, params["pixel_encoder"])
        self.decoder = Decoder(config.transformer, params["decoder"])
        self.own, self.config = tree(params, "backbone", "pixel_encoder", "decoder"), config

    def forward(
        self, images: torch.Tensor, regions: torch.Tensor, is_box: torch.Tensor, levels: Levels
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of regions, which do not see each other, and their masks on the canvas."""
        memory, mask_features = self.encoder(self.swin(images))
        own, tokens = self.own, self.config.num_mask_tokens
        content = own["label_enc"][0] + own["pb_embedding"][is_box]
        queries = (content[:, :, None] + own["mask_tokens"]).flatten(1, 2)
        start = torch.logit(regions.repeat_interleave(tokens, 1), 1e-5).sigmoid()
        region = torch.arange(queries.shape[1]) // tokens
        hidden, _ = self.decoder(queries, start, memory, levels, region[:, None] == region)
        state = norm(hidden[-1], self.decoder.own["norm"])[:, ::tokens]
        masks = canvas_masks(mlp(state, self.decoder.own["mask_embed"]), mask_features)
        return linear(state, own["obj_projector"]), masks
