"""What learns, how fast, and how trained and frozen parts make one model: against the specification's tables
by the original's own names, and against PyTorch's optimiser on whole tables."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from lgjax.config import ModelConfig, debug, llava_g_7b
from lgjax.convert.manifest import manifest
from lgjax.convert.store import flattened, nested
from lgjax.models.kernels import Packed
from lgjax.models.llava_grounding import LlavaGrounding, abstract_params
from lgjax.models.splice import plan_batch, plan_row
from lgjax.train.config import OptimConfig, Rates, TrainConfig, load_config
from lgjax.train.groups import (
    EMBED,
    HEAD,
    NEW,
    NEW_EMBED,
    NEW_HEAD,
    group_of,
    is_unchanged,
    join,
    leaf_of,
    split,
)
from lgjax.train.optimizer import make_optimizer
from tests.train.micro import EVERYTHING, micro, micro_model, stacked, whole
from tests.weights import fill

CONFIGS = Path(__file__).parents[2] / "configs"
KEY = jax.random.key(5)


def group_by_key(key: str) -> str:
    """Group of one of the original's keys: spec/training_and_data.md 3.2, substring tests on full names."""
    whole_names = {"model.embed_tokens.weight": "embed", "lm_head.weight": "head"}
    if key in whole_names:
        return whole_names[key]
    if key.startswith("model."):
        inner = {"mm_projector": "projector", "vision_tower": "clip"}
        return next((group for name, group in inner.items() if key.startswith(f"model.{name}.")), "llama")
    part = {"seg_model": "grounding", "interactive_model": "prompt"}[key.split(".")[0]]
    slow = any(mark in key for mark in ("backbone", "reference_points", "sampling_offsets"))
    return f"{part}_slow" if slow else part


@functools.cache
def abstract(model: ModelConfig, scan_layers: bool = False) -> dict:
    return flattened(abstract_params(model, scan_layers))


@functools.cache
def groups_of_7b() -> dict[str, str]:
    return {entry.path: group_by_key(key) for key, entry in manifest(llava_g_7b()).items() if entry.path}


@pytest.mark.parametrize(
    ("model", "scan_layers"),
    [(debug(), False), (debug(), True), (llava_g_7b(), True)],
    ids=["debug", "debug scanned", "7b"],
)
def test_every_parameter_is_of_the_group_that_its_name_in_the_original_says(model, scan_layers):
    wanted, sizes = {}, {}
    for key, entry in manifest(model).items():
        if entry.path:
            path, group = scanned(entry.path) if scan_layers else entry.path, group_by_key(key)
            assert wanted.setdefault(path, group) == group
            sizes[group] = sizes.get(group, 0) + math.prod(entry.shape)
    params = abstract(model, scan_layers)
    assert {path: group_of(path) for path in params} == wanted
    fields = {field.name for field in dataclasses.fields(Rates)} - {"slow", "new_tokens"}
    assert {group.removesuffix("_slow") for group in wanted.values()} == fields
    for group, size in sizes.items():
        assert size == sum(math.prod(leaf.shape) for path, leaf in params.items() if group_of(path) == group)


def scanned(path: str) -> str:
    """Where the layers of the language model are stacked, layers_7/... is one slice of layers/..."""
    return f"llama/layers/{path.split('/', 2)[2]}" if path.startswith("llama/layers_") else path


# spec/training_and_data.md 3.2 (which rate) and 11, 2.2 (Table 15: grounding model 1e-4 in stage 2)
_STAGE1 = {"projector": 1e-4, "new_tokens": 1e-4, "grounding": 1e-4, "grounding_slow": 1e-5}
_LANGUAGE = {"llama": 2e-5, "projector": 2e-5, "embed": 2e-5}
RATES = {
    ("stage0", "paper"): {"projector": 2e-3},
    ("stage0", "as_code"): {"projector": 2e-3},
    ("stage1", "paper"): _STAGE1,
    ("stage1", "as_code"): _STAGE1,
    ("stage2", "paper"): {**_LANGUAGE, "grounding": 1e-4, "grounding_slow": 1e-5},
    ("stage2", "as_code"): {**_LANGUAGE, "grounding": 2e-5, "grounding_slow": 2e-6},
    ("stage3", "paper"): {"prompt": 2e-5, "prompt_slow": 2e-6},
    ("stage3", "as_code"): {"prompt": 2e-5, "prompt_slow": 2e-6},
}


@functools.cache
def stage(name: str, preset: str) -> tuple[TrainConfig, dict, dict]:
    """A configuration, and what of the 7B model learns and is frozen in it."""
    config = load_config(CONFIGS / f"{name}.py", preset)
    assert config.scan_layers
    parts = {part for part in ("grounding", "prompt") if getattr(config.model, part) is not None}
    parts |= {"clip", "projector", "llama"}
    params = {
        path: leaf for path, leaf in abstract(llava_g_7b(), True).items() if path.split("/")[0] in parts
    }
    return config, *jax.eval_shape(lambda params: split(params, config, KEY), params)


@pytest.mark.parametrize(("name", "preset"), RATES)
def test_stages_learn_what_the_specification_says(name, preset):
    """Spec table 1: each parameter of the original that a stage names learns, and no other."""
    _, trained, frozen = stage(name, preset)
    learning = RATES[name, preset]
    everything = set(trained) - {NEW_EMBED, NEW_HEAD} | set(frozen)
    groups = {scanned(path): group for path, group in groups_of_7b().items() if scanned(path) in everything}
    assert groups.keys() == everything
    wanted = {path for path, group in groups.items() if group in learning}
    if "new_tokens" in learning:
        wanted |= {NEW_EMBED, NEW_HEAD}
        assert trained[NEW_EMBED].shape == (3, 4096) and trained[NEW_HEAD].shape == (4096, 3)
    assert set(trained) == wanted
    assert set(frozen) == everything - wanted


@pytest.mark.parametrize(("name", "preset"), RATES)
def test_rates_of_groups(name, preset):
    """What a step takes: with gradients of 1 Adam moves every number by its rate."""
    config, trained, _ = stage(name, preset)
    some = {group_of(path): path for path in trained}
    params = {path: jnp.zeros(1) for path in some.values()}
    optim = dataclasses.replace(config.optim, warmup=0.0, weight_decay=0.0)
    optimizer = make_optimizer(optim, config.steps, params)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    moved = {group_of(path): -float(update[0]) for path, update in updates.items()}
    assert moved == pytest.approx(RATES[name, preset], rel=1e-4)


@pytest.mark.parametrize("name", ["stage0", "stage1", "stage2", "stage3"])
def test_weight_decay_of_presets(name):
    """The paper: none; the released code: torch's default on everything (spec 3.1)."""
    assert stage(name, "paper")[0].optim.weight_decay == 0
    assert stage(name, "as_code")[0].optim.weight_decay == 0.01


MODEL = micro_model()


@functools.cache
def start(scan_layers: bool = False) -> dict[str, np.ndarray]:
    """Random parameters by path, in float32."""
    params = fill(nested(abstract(MODEL)), seed=2)
    found = stacked(params) if scan_layers else flattened(params)
    return {path: np.asarray(leaf) for path, leaf in found.items()}


@functools.partial(jax.jit, static_argnames=("dtype", "scan_layers"))
def _outputs(params: dict, dtype: str, scan_layers: bool) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    rows = [[1, 5, -200, 9, 535, 17, 802, 800, 801], [1, -200, 535, 7, 802]]
    plan = jax.tree.map(jnp.asarray, plan_batch([plan_row(row, MODEL.clip.num_patches) for row in rows]))
    pictures = jnp.asarray(rng.standard_normal((2, 28, 28, 3), np.float32))
    model = LlavaGrounding(MODEL, jnp.dtype(dtype), scan_layers)

    def run(module):
        hidden = module.read(plan, module.image_tokens(pictures.astype(dtype)))
        return hidden, module.logits(hidden)

    return model.apply({"params": params}, method=run)


def outputs(params: dict, dtype: str = "float32") -> list[np.ndarray]:
    """Hidden states and logits of two rows with pictures."""
    language = {part: params[part] for part in ("clip", "projector", "llama")}
    return [np.asarray(out) for out in _outputs(language, dtype, "layers" in language["llama"])]


def assert_close(got: list, want: list) -> None:
    for one, other in zip(got, want, strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)


def cut(config: TrainConfig, scan_layers: bool = False) -> tuple[dict, dict]:
    return jax.jit(lambda params: split(params, config, KEY))(start(scan_layers))


def arrays(params: dict) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flattened(params).items()}


def is_matrix(path: str) -> bool:
    return path.startswith("llama/layers") and path.endswith("kernel")


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    "rates",
    [EVERYTHING, Rates(projector=1, new_tokens=1, grounding=1), Rates(llama=1, embed=1), Rates(clip=1)],
    ids=["all", "stage 1", "language", "tower"],
)
def test_parts_in_float32_join_to_the_same_bits(rates, scan_layers):
    trained, frozen = cut(micro(optim={"rates": rates}), scan_layers)
    assert not trained.keys() & frozen.keys()
    joined = arrays(join(trained, frozen, jnp.float32))
    assert joined.keys() == start(scan_layers).keys()
    for path, leaf in joined.items():
        assert leaf.dtype == np.float32 and np.array_equal(leaf, start(scan_layers)[path]), path


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(("frozen", "lora"), [("float32", 0), ("float32", 3), ("int8", 3)])
def test_whole_is_the_layout_of_checkpoints(scan_layers, frozen, lora):
    rates = Rates(llama=1) if lora else Rates(new_tokens=1, grounding=1)
    config = micro(optim={"rates": rates, "lora": lora}, frozen=frozen)
    params = arrays(jax.jit(whole)(*cut(config, scan_layers)))
    shapes = {path: leaf.shape for path, leaf in abstract(MODEL).items()}
    assert {path: leaf.shape for path, leaf in params.items()} == shapes
    for path, leaf in params.items():
        want = start()[path]
        if frozen == "int8" and is_matrix(path):
            assert (np.abs(leaf - want) <= 0.501 * np.abs(want).max(0) / 127).all(), path
        else:
            kept = (
                "bfloat16" if frozen == "int8" and path.startswith(("llama", "clip", "proj")) else "float32"
            )
            assert leaf.dtype == np.float32 and np.array_equal(leaf, want.astype(kept)), path


OPTIONS = {
    "all": (EVERYTHING, 0),
    "new rows": (Rates(projector=1, new_tokens=1, grounding=1), 0),
    "language": (Rates(llama=1), 0),
    "low rank": (Rates(llama=1, prompt=1), 2),
    "tower": (Rates(clip=1), 0),
}


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_training_cannot_have_changed(name, scan_layers):
    """Exactly what stays as it is when every trained number moves."""
    rates, lora = OPTIONS[name]
    trained, frozen = cut(micro(optim={"rates": rates, "lora": lora}), scan_layers)
    moved = {path: leaf + 0.1 for path, leaf in trained.items()}
    before, after = (arrays(whole(part, frozen)) for part in (trained, moved))
    for path, leaf in before.items():
        assert is_unchanged(trained, path) == np.array_equal(leaf, after[path]), path


@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_learnt_is_added_to_the_full_base(scan_layers):
    """A base that is kept in 8 bits for training is not what the finished model gets."""
    trained, frozen = cut(micro(optim={"rates": Rates(llama=1), "lora": 2}, frozen="int8"), scan_layers)
    trained = {path: leaf + 0.1 for path, leaf in trained.items()}
    path = "llama/layers_1/self_attn/v_proj/kernel"
    base = start()[path].astype(ml_dtypes.bfloat16)
    found = leaf_of(trained, frozen, path, base)
    place, where = ("layers", 1) if scan_layers else ("layers_1", ...)
    down, up = (trained[f"lora/llama/{place}/self_attn/v_proj/kernel/{side}"] for side in ("down", "up"))
    update = np.asarray(down, np.float64)[where] @ np.asarray(up, np.float64)[where]
    np.testing.assert_allclose(found, base.astype(np.float64) + update, atol=1e-6)


def test_stacked_undoes_whole():
    params = start(True)
    again = arrays(stacked(whole(*cut(micro(), True))))
    assert again.keys() == params.keys()
    assert all(np.array_equal(again[path], params[path]) for path in params)


def test_new_rows_stand_behind_frozen_tables():
    trained, frozen = cut(micro(optim={"rates": Rates(new_tokens=1)}))
    assert set(trained) == {NEW_EMBED, NEW_HEAD}
    joined = arrays(join({path: leaf + 1 for path, leaf in trained.items()}, frozen, jnp.float32))
    before = start()
    assert np.array_equal(joined[EMBED][:-NEW], before[EMBED][:-NEW])
    assert np.array_equal(joined[HEAD][:, :-NEW], before[HEAD][:, :-NEW])
    assert np.array_equal(joined[EMBED][-NEW:], before[EMBED][-NEW:] + 1)
    assert np.array_equal(joined[HEAD][:, -NEW:], before[HEAD][:, -NEW:] + 1)


@pytest.mark.parametrize(("frozen", "scan_layers"), [("float32", False), ("int8", True)])
def test_low_rank_updates_start_as_nothing_and_are_merged(frozen, scan_layers):
    config = micro(optim={"rates": Rates(llama=1), "lora": 2}, frozen=frozen)
    trained, fixed = cut(config, scan_layers)
    assert len(trained) == 2 * len([path for path in start(scan_layers) if is_matrix(path)])
    assert len([path for path in start() if is_matrix(path)]) == 7 * MODEL.llama.num_layers
    before = whole(trained, fixed)
    assert_close(outputs(join(trained, fixed, jnp.float32)), outputs(before))
    rng = np.random.default_rng(3)
    trained = {
        path: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in trained.items()
    }
    merged = whole(trained, fixed)
    assert_close(outputs(join(trained, fixed, jnp.float32)), outputs(merged))
    moved = np.linalg.norm(outputs(merged)[1] - outputs(before)[1])
    assert moved > 0.01 * np.linalg.norm(outputs(merged)[1])
    # by hand, for one matrix
    place, where = ("layers", 1) if scan_layers else ("layers_1", ...)
    sides = (trained[f"lora/llama/{place}/mlp/up_proj/kernel/{side}"] for side in ("down", "up"))
    down, up = (np.asarray(side, np.float64)[where] for side in sides)
    base = np.asarray(before["llama"]["layers_1"]["mlp"]["up_proj"]["kernel"], np.float64)
    found = merged["llama"]["layers_1"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_allclose(found, base + down @ up, atol=1e-6)


def test_int8_matrices_give_the_outputs_of_their_values():
    trained, frozen = cut(micro(optim={"rates": Rates(projector=1)}, frozen="int8"))
    assert {type(leaf) for path, leaf in frozen.items() if is_matrix(path)} == {Packed}
    assert {leaf.dtype.name for path, leaf in frozen.items() if path in (EMBED, HEAD)} == {"bfloat16"}
    assert_close(outputs(join(trained, frozen, jnp.float32)), outputs(whole(trained, frozen)))


def test_parts_in_bfloat16():
    """What is frozen is stored in 16 bits, what learns in 32 and cast for its use; vision models stay 32."""
    rates = Rates(projector=1, new_tokens=1)
    trained, frozen = cut(micro(optim={"rates": rates}, frozen="bfloat16", compute="bfloat16"))
    assert {leaf.dtype.name for leaf in trained.values()} == {"float32"}
    joined = join(trained, frozen, jnp.bfloat16)
    for path, leaf in arrays(joined).items():
        own = "float32" if path.startswith(("grounding", "prompt")) else "bfloat16"
        assert leaf.dtype == own and np.array_equal(leaf, start()[path].astype(own)), path
    rounded = nested({path: jnp.asarray(leaf, jnp.bfloat16) for path, leaf in start().items()})
    got, want = outputs(joined, "bfloat16"), outputs(rounded, "bfloat16")
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_new_rows_learn_as_if_all_others_were_overwritten_before_each_forward(weight_decay):
    """The original trains both whole tables and puts the old rows back at every forward (spec 2.1)."""
    rows, width, steps, lr = 14, 6, 15, 0.05
    rng = np.random.default_rng(4)
    tables = rng.standard_normal((rows, width)), rng.standard_normal((width, rows))
    ids = rng.integers(0, rows, (steps, 9))
    labels = rng.integers(0, rows, (steps, 9))
    ids[:, :4] = labels[:, 2:6] = rows - 1 - rng.integers(0, 3, (steps, 4))

    optim = OptimConfig(lr=lr, rates=Rates(new_tokens=1), weight_decay=weight_decay, warmup=0.2)
    config = micro(optim=optim, steps=steps)
    params = {EMBED: jnp.asarray(tables[0], jnp.float32), HEAD: jnp.asarray(tables[1], jnp.float32)}
    trained, frozen = split(params, config, KEY)
    assert set(trained) == {NEW_EMBED, NEW_HEAD}
    optimizer = make_optimizer(optim, steps, trained)

    @jax.jit
    def step(trained, state, ids, labels):
        def loss(trained):
            llama = join(trained, frozen, jnp.float32)["llama"]
            logits = jnp.tanh(llama["embed_tokens"][ids]) @ llama["lm_head"]["kernel"]
            return -jax.nn.log_softmax(logits)[jnp.arange(len(ids)), labels].mean()

        updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
        return jax.tree.map(jnp.add, trained, updates), state

    state = optimizer.init(trained)
    for number in range(steps):
        trained, state = step(trained, state, ids[number], labels[number])

    embed, head = (torch.nn.Parameter(torch.tensor(table, dtype=torch.float32)) for table in tables)
    old_embed, old_head = embed.detach().clone(), head.detach().clone()
    adam = torch.optim.AdamW([embed, head], lr=lr, weight_decay=weight_decay)
    warm = math.ceil(0.2 * steps)

    def factor(number: int) -> float:
        if number < warm:
            return number / warm
        return 0.5 * (1 + math.cos(math.pi * (number - warm) / (steps - warm)))

    rates = torch.optim.lr_scheduler.LambdaLR(adam, factor)
    for number in range(steps):
        with torch.no_grad():
            embed[:-3], head[:, :-3] = old_embed[:-3], old_head[:, :-3]
        logits = torch.tanh(embed[torch.tensor(ids[number])]) @ head
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels[number])).backward()
        adam.step()
        rates.step()
    embed, head = embed.detach(), head.detach()
    assert not torch.equal(embed[:-3], old_embed[:-3])  # what the original saves: one step of drift
    np.testing.assert_allclose(trained[NEW_EMBED], embed[-3:], atol=1e-5)
    np.testing.assert_allclose(trained[NEW_HEAD], head[:, -3:], atol=1e-5)
    assert np.abs(np.asarray(trained[NEW_EMBED]) - tables[0][-3:]).max() > lr
    final = join(trained, frozen, jnp.float32)["llama"]
    assert np.array_equal(final["embed_tokens"][:-3], old_embed[:-3])
    assert np.array_equal(final["lm_head"]["kernel"][:, :-3], old_head[:, :-3])
