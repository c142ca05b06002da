"""The vision modules part by part, forward and backward, beside the same work in PyTorch, in turn.

    python -m tests.bench.parts [--cores N] [--rounds N] [--only WORD]

Both sides have the same weights and inputs, of the released sizes, float32; see `lgjax.bench.torch_vision`.
A line for each part: median seconds of both, the ratio of each round (below 1 lgjax is faster; median, least
and most), and how far results lie apart (`apart`). Of a backward part the norm of the gradient of all
parameters is compared.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from lgjax.bench import torch_vision
from lgjax.bench.torch_vision import Levels, Maps, Tree, linear, mlp, norm
from lgjax.bench.weights import parameters
from lgjax.config import GroundingConfig, llava_g_7b
from lgjax.models.decoder import Decoder, mask_logits
from lgjax.models.deformable import DeformableAttention
from lgjax.models.grounding import Grounding
from lgjax.models.pixel_encoder import ConvNorm, EncoderLayer, PixelEncoder, PixelFeatures
from lgjax.models.position import LevelSizes, anchor_logits, cell_centres, resize_bilinear
from lgjax.models.prompting import Prompting
from lgjax.models.swin import Swin

BOUND = 1e-4  # how far results may lie apart
PAUSE = 0.1  # seconds between turns: threads that wait for more work go to sleep


class Part(NamedTuple):
    """A piece of work: ours, and PyTorch's; both return all their results."""

    name: str
    ours: Callable[[], Any]
    torch: Callable[[], Any]


class TorchGrounding(torch.nn.Module):
    """The grounding model."""

    def __init__(self, config: GroundingConfig, params: Tree) -> None:
        super().__init__()
        self.swin = torch_vision.Swin(config.swin, params["backbone"])
        self.encoder = torch_vision.PixelEncoder(config.transformer, params["pixel_encoder"])
        self.decoder = torch_vision.Decoder(config.transformer, params["decoder"])
        self.own, self.config = torch_vision.tree(params, "backbone", "pixel_encoder", "decoder"), config

    def logits(self, states: torch.Tensor, phrases: torch.Tensor) -> torch.Tensor:
        """Score of states for phrases."""
        lifted = states @ self.own["class_embed"]
        lifted = lifted / (lifted.norm(dim=-1, keepdim=True) + 1e-7)
        return self.own["logit_scale"].exp() * lifted @ phrases.transpose(1, 2)

    def select(self, memory: torch.Tensor, phrases: torch.Tensor, sizes: LevelSizes) -> Maps:
        """Contents and box logits of the tokens that fit best."""
        anchors = torch.tensor(anchor_logits(sizes))
        valid = anchors[:, :1].isfinite()
        states = norm(linear(memory * valid, self.own["enc_output"]), self.own["enc_output_norm"])
        scores = self.logits(states, phrases).amax(-1).masked_fill(~valid[:, 0], -torch.inf)
        top = scores.topk(self.config.num_queries, 1).indices
        content = states.gather(1, top[..., None].expand(-1, -1, states.shape[-1]))
        return content, mlp(content, self.decoder.own["bbox_embed"]) + anchors[top]

    def forward(self, images: torch.Tensor, phrases: torch.Tensor, levels: Levels) -> Maps:
        """Logits, boxes and mask embeddings of the last layer, and mask features."""
        memory, mask_features = self.encoder(self.swin(images))
        content, boxes = self.select(memory, phrases, levels.sizes)
        hidden, references = self.decoder(content.detach(), boxes.sigmoid().detach(), memory, levels)
        state = norm(hidden[-1], self.decoder.own["norm"])
        box = self.decoder.refine(hidden[-1], references[-2])
        return self.logits(state, phrases), box, mlp(state, self.decoder.own["mask_embed"]), mask_features


def leaves(network: torch.nn.Module) -> list[torch.Tensor]:
    """All that learns."""

    def below(tree: Tree) -> list[torch.Tensor]:
        return [
            leaf for node in tree.values() for leaf in (below(node) if isinstance(node, dict) else [node])
        ]

    own = [leaf for module in network.modules() for leaf in below(getattr(module, "own", {}))]
    return [*network.parameters(), *own]


def flat(found: Any) -> list[Any]:
    """The arrays or tensors of a result."""
    return [x for part in found for x in flat(part)] if isinstance(found, list | tuple) else [found]


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far numbers lie apart, by the largest; of masks the share of pixels that differ."""
    if ours.dtype == bool:
        return float((ours != theirs).mean())
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def forward(name: str, ours: Any, given: tuple, theirs: Any, inputs: tuple) -> Part:
    """`ours(*given)` and `theirs(*inputs)`."""
    program = jax.jit(ours).lower(*given).compile()

    @torch.inference_mode()
    def run() -> Any:
        return theirs(*inputs)

    return Part(name, lambda: jax.block_until_ready(program(*given)), run)


def backward(name: str, ours: Any, given: tuple, theirs: Any, inputs: tuple, learning: list) -> Part:
    """Gradients of parameters, `given[0]` and `learning`: the mean square of all results is the loss."""

    def loss(*args: Any) -> Any:
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(ours(*args)))

    def norm_and_gradient(*args: Any) -> Any:
        gradient = jax.grad(loss)(*args)
        return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient))), gradient

    program = jax.jit(norm_and_gradient).lower(*given).compile()

    def run() -> Any:
        total: Any = sum(x.square().mean() for x in flat(theirs(*inputs)))
        found = torch.autograd.grad(total, learning, allow_unused=True)
        return torch.stack([leaf.square().sum() for leaf in found if leaf is not None]).sum().sqrt()

    return Part(name, lambda: jax.block_until_ready(program(*given))[0], run)


def parts() -> Iterator[Callable[[], Part]]:
    """All parts, each made when it is asked for; a part's name is that of its function's first argument."""
    config = llava_g_7b()
    model, prompt = config.grounding, config.prompt
    assert model is not None and prompt is not None
    shape, side, embed = model.transformer, model.image_size, config.llama.hidden_size
    heads, width, queries = shape.num_heads, shape.hidden_size, model.num_queries
    trees = parameters(config, "grounding", "prompt")
    tree, rng = trees["grounding"], np.random.default_rng(0)
    encoding, decoding = tree["pixel_encoder"], tree["decoder"]

    def draw(*size: int) -> Any:
        return rng.standard_normal(size, np.float32)

    def tensor(x: Any) -> torch.Tensor:
        return torch.tensor(np.asarray(x))

    def chw(x: Any) -> torch.Tensor:
        return tensor(np.asarray(x).transpose(0, 3, 1, 2)).contiguous()

    def hwc(found: Any) -> Any:
        return [x.permute(0, 2, 3, 1) if x.ndim == 4 else x for x in flat(found)]

    def applied(module: Any, *rest: Any, **options: Any) -> Any:
        return lambda params, *args: module.apply({"params": params}, *args, *rest, **options)

    def canvas_masks(embedding: Any, mask_features: Any) -> Any:
        logits = mask_logits(embedding, mask_features)[0, ..., None]
        return resize_bilinear(logits, side, side)[None, ..., 0] > 0

    swin, encoder, decoder = Swin(model.swin), PixelEncoder(shape), Decoder(shape)
    grounding, prompting = Grounding(model, embed), Prompting(prompt, embed)
    attention = DeformableAttention(heads, shape.num_levels, shape.num_points)
    # what a part is given is what the parts before it make
    images, phrases, mask = draw(1, side, side, 3), draw(1, 8, embed), np.ones((1, 8), bool)
    maps = jax.jit(applied(swin))(tree["backbone"], images)
    features: Any = jax.jit(applied(encoder))(encoding, maps)
    sizes, tokens = features.level_sizes, features.memory.shape[1]
    network = TorchGrounding(model, tree)
    levels, fine = Levels.of(sizes), Levels.of(sizes[::-1])

    def add(make: Any, name: str, *rest: Any) -> Callable[[], Part]:
        return functools.partial(make, name, *rest)

    yield add(
        forward,
        "Swin",
        applied(swin),
        (tree["backbone"], images),
        lambda x: hwc(network.swin(x)),
        (chw(images),),
    )
    for key, source in (("input_proj_0", maps[1]), ("layer_1", features.mask_features)):
        conv = encoding[key]["conv"]
        kernel = conv["kernel"].shape[0]
        yield add(
            forward,
            f"convolution {kernel} x {kernel} of {source.shape[1]} x {source.shape[2]}, norm",
            applied(ConvNorm(width, kernel, shape.norm_groups, use_bias="bias" in conv)),
            (encoding[key], source),
            lambda x, key=key: hwc(network.encoder.conv_norm(key, x)),
            (chw(source),),
        )
    x, position = draw(1, tokens, width), draw(1, tokens, width)
    centres = np.asarray(cell_centres(sizes[::-1]))[None, :, None]
    spread = tensor(centres).expand(-1, -1, shape.num_levels, -1)
    layer, theirs = encoding["layers_0"], network.encoder.layers[0]
    yield add(
        forward,
        f"deformable attention of {tokens} queries",
        lambda p, x, y: attention.apply({"params": p}, x + y, centres, x, sizes[::-1]),
        (layer["self_attn"], x, position),
        lambda x, y: theirs.self_attn(x, None, x, None, y, spread, **fine.arguments)[0],  # type: ignore[operator]
        (tensor(x), tensor(position)),
    )
    yield add(
        forward,
        "a layer of the encoder",
        applied(EncoderLayer(shape), sizes[::-1]),
        (layer, x, position),
        lambda x, y: theirs(x, None, y, spread, **fine.arguments),
        (tensor(x), tensor(position)),
    )
    finest, (height, columns) = draw(1, *sizes[-1], width), maps[0].shape[1:3]
    yield add(
        forward,
        f"resizing to {height} x {columns}",
        lambda x: resize_bilinear(x, height, columns),
        (finest,),
        lambda x: hwc(torch.nn.functional.interpolate(x, (height, columns), mode="bilinear")),
        (chw(finest),),
    )
    yield add(
        forward,
        f"pixel encoder of {shape.encoder_layers} layers",
        applied(encoder),
        (encoding, maps),
        lambda *maps: hwc(network.encoder(maps)),
        tuple(map(chw, maps)),
    )
    memory = tensor(features.memory)

    def choose(model: Grounding, features: PixelFeatures, phrases: jax.Array, mask: jax.Array) -> tuple:
        return model.select_queries(features, model.lower(phrases, mask), queries)

    yield add(
        forward,
        f"choice of {queries} queries",
        applied(grounding, method=choose),
        (tree, features, phrases, mask),
        lambda m, p: network.select(m, p, sizes),
        (memory, tensor(phrases)),
    )
    content, place = draw(1, queries, width), draw(1, queries, width)
    boxes = rng.uniform(0.2, 0.8, (1, queries, 4)).astype(np.float32)
    corners = tensor(boxes)[:, :, None].expand(-1, -1, shape.num_levels, -1)
    cross: Any = network.decoder.layers[0].encoder_attn
    yield add(
        forward,
        f"deformable attention of {queries} queries",
        lambda p, x, y, r, m: attention.apply({"params": p}, x + y, r[:, :, None], m, sizes),
        (decoding["layers_0"]["cross_attn"], content, place, boxes, features.memory),
        lambda x, y, m: cross(x, None, m, None, y, corners, **levels.arguments)[0],
        (tensor(content), tensor(place), memory),
    )
    for count in (queries, 8 * prompt.num_mask_tokens):
        yield add(
            forward,
            f"decoder of {shape.decoder_layers} layers, {count} queries",
            applied(decoder, sizes),
            (decoding, content[:, :count], boxes[:, :count], features.memory),
            lambda *args: network.decoder(*args, levels),
            (tensor(content[:, :count]), tensor(boxes[:, :count]), memory),
        )
    chosen = draw(1, 16, width)
    yield add(
        forward,
        f"masks of 16 queries, {side} x {side}",
        canvas_masks,
        (chosen, features.mask_features),
        torch_vision.canvas_masks,
        (tensor(chosen), chw(features.mask_features)),
    )

    def whole(p: Any, x: Any, phrases: Any) -> Any:
        out, features = applied(grounding)(p, x, phrases, mask, queries)
        return (*out["final"], features.mask_features)

    asked = (chw(images), tensor(phrases))
    yield add(
        forward,
        "grounding, whole",
        whole,
        (tree, images, phrases),
        lambda *args: hwc(network(*args, levels)),
        asked,
    )

    def read(p: Any, x: Any, regions: Any) -> Any:
        objects, predictions, features = applied(prompting)(p, x, regions, is_box, mask, True)
        return objects, canvas_masks(predictions[-1].mask_embedding[:, :, 0], features.mask_features)

    reader = torch_vision.Prompting(prompt, trees["prompt"])
    regions, is_box = rng.uniform(0.2, 0.6, (1, 8, 4)).astype(np.float32), np.arange(8)[None] % 2
    yield add(
        forward,
        "visual prompts, whole",
        read,
        (trees["prompt"], images, regions),
        lambda x, r: reader(x, r, tensor(is_box), levels),
        (chw(images), tensor(regions)),
    )
    yield add(
        backward,
        "Swin, backward",
        applied(swin),
        (tree["backbone"], images),
        network.swin,
        (chw(images),),
        leaves(network.swin),
    )
    yield add(
        backward,
        "pixel encoder, backward",
        applied(encoder),
        (encoding, maps),
        lambda *maps: network.encoder(maps),
        tuple(map(chw, maps)),
        leaves(network.encoder),
    )
    yield add(
        backward,
        "decoder, backward",
        applied(decoder, sizes),
        (decoding, content, boxes, features.memory),
        lambda *args: network.decoder(*args, levels),
        (tensor(content), tensor(boxes), memory),
        leaves(network.decoder),
    )
    yield add(
        backward,
        "grounding, whole, backward",
        whole,
        (tree, images, phrases),
        lambda *args: network(*args, levels),
        asked,
        leaves(network),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="parts whose name holds this word")
    arguments = parser.parse_args()
    # before jax makes its threads
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    torch.set_num_threads(arguments.cores)
    for make in parts():
        if arguments.only not in make.args[0]:  # type: ignore[attr-defined]
            continue
        part = make()
        ours = [np.asarray(x) for x in jax.tree.leaves(part.ours())]
        theirs = [x.numpy() for x in flat(part.torch())]
        differs = max(apart(a, b) for a, b in zip(ours, theirs, strict=True))
        if differs > BOUND:
            raise SystemExit(f"{part.name}: results lie {differs:.0e} apart, more than {BOUND:.0e}")
        del ours, theirs
        seconds: dict[str, list[float]] = {"ours": [], "torch": []}
        for _ in range(arguments.rounds):
            for side, run in (("ours", part.ours), ("torch", part.torch)):
                time.sleep(PAUSE)
                start = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
        mine, other = (statistics.median(seconds[side]) for side in ("ours", "torch"))
        print(
            f"{part.name:44} {mine:8.4f} {other:8.4f} s   {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})   apart {differs:.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
