"""Operations of a forward and of a step, against the traced model and against XLA's own count."""

import dataclasses
import functools
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from lgjax.config import (
    ClipConfig,
    GroundingConfig,
    LlamaConfig,
    ModelConfig,
    PromptConfig,
    SwinConfig,
    TransformerConfig,
    debug,
    llava_g_7b,
)
from lgjax.losses.grounding import mask_losses
from lgjax.losses.language import language_loss
from lgjax.models import llava_grounding
from lgjax.models.llava_grounding import Inputs, LlavaGrounding
from lgjax.models.splice import BatchPlan
from lgjax.parallel.mesh import make_mesh
from lgjax.train import flops
from tests.train.counting import traced_flops

DEBUG_SIZES = {
    "rows": 3,
    "length": 40,
    "grounded_rows": 2,
    "phrases": 4,
    "objects": 5,
    "prompts": 3,
    "queries": 20,
}


def odd() -> ModelConfig:
    """Sizes that divide nothing: padded windows, uneven maps, other counts of everything."""
    swin = SwinConfig(
        embed_dim=24, depths=(2, 1, 1, 2), num_heads=(1, 2, 3, 4), window=7, patch_size=4, mlp_ratio=3
    )
    transformer = TransformerConfig(
        hidden_size=40,
        ffn_size=72,
        num_heads=5,
        num_points=3,
        encoder_layers=1,
        decoder_layers=3,
        norm_groups=4,
    )
    return ModelConfig(
        clip=ClipConfig(
            image_size=48,
            patch_size=12,
            hidden_size=24,
            mlp_size=60,
            num_layers=4,
            num_heads=3,
            select_layer=-1,
        ),
        llama=LlamaConfig(
            vocab_size=301, hidden_size=56, mlp_size=88, num_layers=3, num_heads=6, num_kv_heads=3, head_dim=8
        ),
        grounding=GroundingConfig(swin=swin, transformer=transformer, image_size=160),
        prompt=PromptConfig(swin=swin, transformer=transformer, image_size=96, num_mask_tokens=2),
    )


ODD_SIZES = {
    "rows": 5,
    "length": 300,
    "grounded_rows": 3,
    "phrases": 7,
    "objects": 6,
    "prompts": 4,
    "queries": 31,
}


def wide() -> ModelConfig:
    """Few layers, but so wide that products outweigh norms and activations, which XLA counts too."""
    swin = SwinConfig(embed_dim=128, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window=4)
    transformer = TransformerConfig(
        hidden_size=256, ffn_size=1024, num_heads=4, encoder_layers=1, decoder_layers=2, norm_groups=8
    )
    return ModelConfig(
        clip=ClipConfig(image_size=56, hidden_size=384, mlp_size=1536, num_layers=2, num_heads=3),
        llama=LlamaConfig(
            vocab_size=1000,
            hidden_size=512,
            mlp_size=1024,
            num_layers=2,
            num_heads=8,
            num_kv_heads=4,
            head_dim=64,
        ),
        grounding=GroundingConfig(swin=swin, transformer=transformer, image_size=64),
        prompt=PromptConfig(swin=swin, transformer=transformer, image_size=64),
    )


WIDE_SIZES = {
    "rows": 2,
    "length": 256,
    "grounded_rows": 2,
    "phrases": 8,
    "objects": 3,
    "prompts": 4,
    "queries": 12,
}
FULL_SIZES = {
    "rows": 2,
    "length": 512,
    "grounded_rows": 1,
    "phrases": 16,
    "objects": 20,
    "prompts": 10,
    "queries": 300,
}


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def masks(embedding, features, count: int):
    """Compare the masks of the first `count` embeddings of each row, as the losses do."""
    rows = len(embedding)
    points = jnp.zeros((rows, count, 9, 2)), jnp.zeros((rows, count, 1, 2))
    return mask_losses(embedding[:, :count], features.mask_features, jnp.zeros((rows, count, 8, 8)), points)


def parts(config: ModelConfig, sizes: dict[str, int]) -> dict:
    """Each part as a function of all parameters and of its inputs, with the shapes of these."""
    model = LlavaGrounding(config)
    width, side = config.llama.hidden_size, config.clip.image_size
    rows, length, grounded = sizes["rows"], sizes["length"], sizes["grounded_rows"]
    objects, prompts = sizes["objects"], sizes["prompts"]

    def bound(function):
        return lambda params, *inputs: model.apply({"params": params}, *inputs, method=function)

    def llama(self, embeds):
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        return self.llama(embeds, positions, key_mask=jnp.ones((rows, length), bool))[0]

    def head(self, hidden, labels):
        return language_loss(hidden, labels, self.logits, jnp.ones(rows))

    def ground(self, pixels, phrases):
        mask = jnp.ones(phrases.shape[:2], bool)
        outputs, features = self.grounding(pixels, phrases, mask, sizes["queries"])
        return outputs, [masks(output.mask_embedding, features, objects) for output in outputs.values()]

    def prompt(self, pixels, regions):
        kinds = jnp.ones(regions.shape[:2], jnp.int32)
        embeds, layers, features = self.prompt(pixels, regions, kinds, kinds > 0)
        first = [masks(layer.mask_embedding[:, :, 0], features, prompts) for layer in layers]
        return embeds, [layer._replace(mask_embedding=0, states=0) for layer in layers], first

    canvas, other = config.grounding.image_size, config.prompt.image_size
    return {
        "clip": (bound(lambda self, x: self.clip(x)), shape(rows, side, side, 3)),
        "projector": (
            bound(lambda self, x: self.projector(x)),
            shape(rows, config.clip.num_patches, config.clip.hidden_size),
        ),
        "llama": (bound(llama), shape(rows, length, width)),
        "head": (bound(head), shape(rows, length, width), shape(rows, length, dtype=jnp.int32)),
        "grounding": (
            bound(ground),
            shape(grounded, canvas, canvas, 3),
            shape(grounded, sizes["phrases"], width),
        ),
        "prompt": (bound(prompt), shape(grounded, other, other, 3), shape(grounded, prompts, 4)),
    }


@functools.cache
def abstract(config: ModelConfig) -> dict:
    return llava_grounding.abstract_params(config)


PARTS = ("clip", "projector", "llama", "head", "grounding", "prompt")


CONFIGS = {
    "debug": (debug(), DEBUG_SIZES),
    "odd": (odd(), ODD_SIZES),
    "wide": (wide(), WIDE_SIZES),
    "full": (llava_g_7b(), FULL_SIZES),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_product_of_the_traced_model_is_counted(name: str, part: str):
    config, sizes = CONFIGS[name]
    function, *inputs = parts(config, sizes)[part]
    assert flops.forward_flops(config, **sizes)[part] == traced_flops(function, abstract(config), *inputs)


# XLA also counts norms and activations: next to nothing in wide networks, a sixth where 16 to 64 channels
# stand beside them. It leaves out what convolutions multiply with padding, and the heads of the initial
# queries, which are those of the proposals again: that is why a count may be a little lower. An error
# function is one operation to it.
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name, least, most", [("debug", 1.0, 1.18), ("wide", 0.975, 1.01)])
def test_xla_counts_as_much(name: str, least: float, most: float, part: str):
    config, sizes = CONFIGS[name]
    function, *inputs = parts(config, sizes)[part]
    lowered = jax.jit(function).lower(abstract(config), *inputs)
    analysis = lowered.compile({"xla_backend_optimization_level": 0}).cost_analysis()
    assert least < analysis["flops"] / flops.forward_flops(config, **sizes)[part] < most


def test_full_size_language_model_takes_two_operations_a_parameter_and_token():
    config = llava_g_7b()
    rows, length = 16, 1536
    sizes = {**FULL_SIZES, "rows": rows, "length": length}
    forward = flops.forward_flops(config, **sizes)
    params = abstract(config)["llama"]
    kernels = {path: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "kernel"}
    head = int(np.prod(kernels.pop(("lm_head", "kernel")).shape))
    weights = sum(int(np.prod(leaf.shape)) for leaf in kernels.values())
    assert weights == pytest.approx(6.48e9, rel=0.002)
    scores = 2 * 2 * config.llama.num_layers * length * length * 4096 * rows
    assert forward["llama"] == 2 * weights * rows * length + scores
    assert forward["head"] == 2 * head * rows * length


def part_of(path: tuple[str, ...]) -> str:
    inside = {("llama", "lm_head"): "head", ("llama", "embed_tokens"): "embed"}
    return inside.get(path[:2], path[0])


def traced_step(config: ModelConfig, sizes: dict[str, int], trained: tuple[str, ...]) -> int:
    """Operations of losses and gradients with respect to the trained parts, as traced."""
    model = LlavaGrounding(config)
    rows, length, phrases, prompts = (sizes[key] for key in ("rows", "length", "phrases", "prompts"))
    side = (config.grounding or config.prompt).image_size
    flat = flatten_dict(abstract(config))
    learnt = {path: leaf for path, leaf in flat.items() if part_of(path) in trained}
    frozen = {path: leaf for path, leaf in flat.items() if path not in learnt}
    ints = shape(rows, length, dtype=jnp.int32)
    inputs = Inputs(
        clip_images=shape(rows, config.clip.image_size, config.clip.image_size, 3),
        pixels=shape(rows, side, side, 3),
        plan=BatchPlan(ints, ints, ints, ints, shape(rows, length, dtype=bool), shape(rows, dtype=jnp.int32)),
        seg_positions=shape(rows, phrases, dtype=jnp.int32),
        seg_mask=shape(rows, phrases, dtype=bool),
        prompts=shape(rows, prompts, 4),
        is_box=shape(rows, prompts, dtype=jnp.int32),
        prompt_mask=shape(rows, prompts, dtype=bool),
    )

    def losses(self, inputs):
        out = self(inputs, sizes["queries"])
        total = [language_loss(out.hidden, inputs.plan.labels, self.logits, jnp.ones(rows))[0]]
        for output in out.predictions.values():
            total += [output.logits, output.boxes]
            total += masks(output.mask_embedding, out.features, sizes["objects"])
        for layer in out.prompts:
            total += [layer.boxes, layer.ious]
            total += masks(layer.mask_embedding[:, :, 0], out.prompt_features, prompts)
        return sum(part.sum() for part in total)

    def loss(learnt, frozen, inputs):
        params = unflatten_dict({**learnt, **frozen})
        return model.apply({"params": params}, inputs, method=losses)

    return traced_flops(jax.value_and_grad(loss), learnt, frozen, inputs)


STAGES = [
    (("projector", "embed", "grounding"), "prompt"),
    (("projector", "embed", "head", "grounding"), "prompt"),
    (("projector", "embed", "llama", "grounding"), "prompt"),
    (("prompt",), "grounding"),
    (("clip", "projector", "embed", "llama", "head", "grounding", "prompt"), None),
]


@pytest.mark.parametrize("trained, absent", STAGES)
def test_a_step_counts_what_its_gradients_take(trained: tuple[str, ...], absent: str | None):
    config, sizes = CONFIGS["wide"]
    sizes = {**sizes, "rows": sizes["grounded_rows"]}
    config = config if absent is None else dataclasses.replace(config, **{absent: None})
    forward = flops.forward_flops(config, **sizes)
    again = forward["head"]  # the language loss computes its logits once more instead of keeping them
    # 3.1 %: the scores of a frozen language model, see `step_flops`
    assert flops.step_flops(forward, trained) == pytest.approx(
        traced_step(config, sizes, trained) - again, rel=0.031
    )


def test_a_part_counts_one_two_or_three_times():
    forward = {"clip": 1.0, "projector": 10.0, "llama": 100.0, "head": 1000.0, "grounding": 10000.0}
    assert flops.step_flops(forward, ()) == 11111
    assert flops.step_flops(forward, {"projector"}) == 1 + 30 + 200 + 2000 + 20000
    assert flops.step_flops(forward, {"embed"}) == 1 + 10 + 200 + 2000 + 20000
    assert flops.step_flops(forward, ["grounding"]) == 1 + 10 + 100 + 1000 + 30000
    assert flops.step_flops(forward, ["prompt"]) == 11111  # it does not run
    assert flops.step_flops({**forward, "prompt": 0.5}, ["prompt"]) == 1 + 10 + 200 + 2000 + 20000 + 1.5


def test_trained_names_are_checked():
    with pytest.raises(ValueError, match=r"cannot train \['lama'\]: the parts of a model are \['clip', "):
        flops.step_flops({"llama": 1.0}, {"lama"})


def test_parts_that_nothing_passes_are_absent():
    config = debug()
    assert set(flops.forward_flops(config, **DEBUG_SIZES)) == set(PARTS)
    for without in (
        flops.forward_flops(config, **{**DEBUG_SIZES, "grounded_rows": 0}),
        flops.forward_flops(dataclasses.replace(config, grounding=None, prompt=None), **DEBUG_SIZES),
    ):
        assert set(without) == {"clip", "projector", "llama", "head"}
    assert "grounding" not in flops.forward_flops(config, **{**DEBUG_SIZES, "phrases": 0})
    assert "prompt" not in flops.forward_flops(config, **{**DEBUG_SIZES, "prompts": 0})


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
        ("TPU v99", None),
    ],
)
def test_known_accelerators(kind: str, peak: float | None):
    device = SimpleNamespace(platform="tpu" if "TPU" in kind else "gpu", device_kind=kind, process_index=0)
    assert flops.peak_flops(device) == peak
    assert flops.peak_flops_of_all([device] * 4) == (None if peak is None else 4 * peak)


def test_rate_of_a_cpu_is_that_of_numpy():
    matrix = np.ones((1024, 1024), np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    peak = flops.peak_flops(jax.devices()[0])
    assert 0.25 < peak / (2 * 1024**3 / best) < 4  # other libraries, on a machine that may be busy


def test_cpu_devices_share_their_cores(monkeypatch):
    monkeypatch.setattr(flops, "_measured", lambda device: 5.0)
    assert len(jax.devices()) == 8
    assert flops.peak_flops_of_all(jax.devices()) == 5.0


def test_a_cpu_is_measured_inside_a_mesh():
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        assert flops.peak_flops(jax.devices()[3]) > 1e8
