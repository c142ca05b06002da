"""The losses of rows: what they are divided by, where their gradients go, and that padding means nothing."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from lgjax.config import IGNORE_LABEL
from lgjax.convert.store import flattened
from lgjax.data.batch import BatchConfig, Grounding, Language, SampleMaker, concatenate
from lgjax.data.schema import KINDS
from lgjax.data.sources.scenes import Scenes
from lgjax.models.llava_grounding import abstract_params
from lgjax.models.splice import BatchPlan
from lgjax.parallel.mesh import make_mesh
from lgjax.train.config import LossConfig, MeshConfig, TrainConfig, load_config
from lgjax.train.groups import EMBED, HEAD, NEW, group_of, rate_of, split
from lgjax.train.objective import Rows, Shape, families, normalisers
from lgjax.train.start import load_tokenizer
from lgjax.train.step import TrainState, init_state, make_objective, make_step, on_mesh
from tests.train.micro import micro, micro_model, stacked, whole
from tests.train.quick import OPTIONS
from tests.weights import fill

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS, GROUNDED, TEXT, LENGTH, PHRASES, OBJECTS = 3, 2, 1, 12, 4, 5


@functools.cache
def mesh() -> Mesh:
    return make_mesh()


def random_rows(seed: int) -> Rows:
    """Rows as they may come: of any kind, with any number of labels, phrases and objects, also none."""
    rng = np.random.default_rng(seed)
    b, g = GROUPS * (GROUNDED + TEXT), GROUPS * GROUNDED
    labels = np.where(rng.random((b, LENGTH)) < 0.4, rng.integers(0, 9, (b, LENGTH)), IGNORE_LABEL)
    labels[rng.integers(b)] = IGNORE_LABEL
    real_objects = np.arange(OBJECTS) < rng.integers(0, OBJECTS + 1, (g, 1))
    real_phrases = np.arange(PHRASES) < rng.integers(0, PHRASES + 1, (g, 1))
    empty = np.zeros((b, LENGTH), np.int32)
    plan = BatchPlan(empty, empty, empty, labels.astype(np.int32), empty == 0, np.full(b, LENGTH, np.int32))
    lm_weight = (rng.random(b) < 0.8).astype(np.float32)
    kind = rng.integers(0, len(KINDS), b).astype(np.int32)
    stream = rng.integers(0, 3, b).astype(np.int32)
    language = Language(
        np.zeros((b, 2, 2, 3), np.uint8), plan, lm_weight, kind, stream, np.arange(b, dtype=np.uint32)
    )
    grounding = Grounding(
        images=np.zeros((g, 4, 4, 3), np.uint8),
        seg_positions=np.zeros((g, PHRASES), np.int32),
        seg_mask=real_phrases,
        boxes=np.zeros((g, OBJECTS, 4), np.float32),
        object_mask=real_objects,
        has_mask=real_objects,
        object_phrases=np.zeros((g, OBJECTS, PHRASES), bool),
        masks=np.zeros((g, OBJECTS, 8, 1), np.uint8),
        prompts=np.zeros((g, OBJECTS, 4), np.float32),
        is_box=np.zeros((g, OBJECTS), np.int32),
        object_words=np.full((g, OBJECTS), -1, np.int32),
        patch_words=np.full((g, 1), -1, np.int32),
        weight=real_phrases.any(1).astype(np.float32),
    )
    return Rows(language, grounding)


def count_by_hand(rows: Rows, loss: LossConfig) -> dict[str, list[float]]:
    """Spec 4, 14.3 with loops: rows stand group by group, first the grounded ones."""
    language, ground = rows.language, rows.grounding
    size = GROUNDED + TEXT
    learnt = []
    for row in range(len(language.lm_weight)):
        targets = [label for label in language.plan.labels[row].tolist()[1:] if label != IGNORE_LABEL]
        learnt.append(len(targets) if language.lm_weight[row] else 0)
    tokens = []
    for row, weight in enumerate(language.lm_weight):
        alike = [
            n
            for n, stream in zip(learnt, language.stream, strict=True)
            if loss.language_mean == "batch" or stream == language.stream[row]
        ]
        tokens.append(float(weight) / max(sum(alike), 1))
    own = [(group, group * size + row) for group in range(GROUPS) for row in range(GROUNDED)]
    objects_of = [int(mask.sum()) for mask in ground.object_mask]
    phrases_of = [int(mask.sum()) if w else 0 for mask, w in zip(ground.seg_mask, ground.weight, strict=True)]

    def objects(counts: list[int]) -> list[float]:
        out = []
        for group, row in own:
            if loss.object_mean == "group":
                mine = sum(n for n, (other, _) in zip(counts, own, strict=True) if other == group)
                out.append(GROUPS * max(mine, 1))
                continue
            alike = [
                n
                for n, (_, other) in zip(counts, own, strict=True)
                if loss.object_mean == "batch" or language.stream[other] == language.stream[row]
            ]
            out.append(max(sum(alike), 1))
        return out

    phrases = []
    for number, (group, row) in enumerate(own):
        mine = [
            n
            for n, (other, at) in zip(phrases_of, own, strict=True)
            if other == group and language.stream[at] == language.stream[row]
        ]
        phrases.append(max(mine) if loss.phrase_mean == "group" else phrases_of[number])
    grounded = [n if w else 0 for n, w in zip(objects_of, ground.weight, strict=True)]
    return {
        "tokens": tokens,
        "objects": objects(grounded),
        "prompts": objects(objects_of),
        "phrases": phrases,
    }


@pytest.mark.parametrize("language_mean", ["batch", "stream"])
@pytest.mark.parametrize("object_mean", ["batch", "stream", "group"])
@pytest.mark.parametrize("phrase_mean", ["group", "sample"])
def test_normalisers_against_counting(language_mean, object_mean, phrase_mean):
    loss = LossConfig(language_mean=language_mean, object_mean=object_mean, phrase_mean=phrase_mean)
    for seed in range(12):
        rows = random_rows(seed)
        found = normalisers(rows, loss, Shape(GROUNDED, TEXT))._asdict()
        for name, want in count_by_hand(rows, loss).items():
            np.testing.assert_allclose(found[name], want, rtol=1e-6, err_msg=f"{name} {seed}")


def test_normalisers_of_nothing():
    """Fillers alone: nothing is divided by zero, and nothing weighs anything."""
    rows = random_rows(0)
    plan = rows.language.plan._replace(labels=np.full_like(rows.language.plan.labels, IGNORE_LABEL))
    language = rows.language._replace(plan=plan, lm_weight=np.zeros_like(rows.language.lm_weight))
    none = {
        name: np.zeros_like(getattr(rows.grounding, name)) for name in ("object_mask", "seg_mask", "weight")
    }
    for mean in ("batch", "stream", "group"):
        loss = LossConfig(object_mean=mean)
        found = normalisers(Rows(language, rows.grounding._replace(**none)), loss, Shape(GROUNDED, TEXT))
        assert not np.asarray(found.tokens).any()
        assert set(np.asarray(found.objects).tolist()) == {GROUPS if mean == "group" else 1}
        assert np.isfinite(np.asarray(found.phrases)).all()


@pytest.mark.parametrize("apart", [False, True])
def test_labels_that_weigh_more_make_the_mean_larger(apart):
    """The language loss is a mean over the weights of the labels, of which the first is never predicted."""
    rows = random_rows(4)
    weights = np.random.default_rng(0).uniform(0.5, 4, rows.language.plan.labels.shape).astype(np.float32)
    heavy = rows._replace(language=rows.language._replace(label_weights=weights))
    loss = LossConfig(language_mean="stream" if apart else "batch")
    found = normalisers(heavy, loss, Shape(GROUNDED, TEXT)).tokens
    language = rows.language
    for row, stream in enumerate(language.stream):
        total = sum(
            weights[i, t]
            for i, t in np.argwhere(language.plan.labels != IGNORE_LABEL)
            if t and language.lm_weight[i] and (language.stream[i] == stream or not apart)
        )
        np.testing.assert_allclose(found[row], language.lm_weight[row] / max(total, 1), rtol=1e-5)
    alike = rows._replace(language=language._replace(label_weights=np.ones_like(weights)))
    same = [normalisers(one, loss, Shape(GROUNDED, TEXT)).tokens for one in (alike, rows)]
    np.testing.assert_array_equal(*same)


def test_text_alone_has_no_objects():
    found = normalisers(random_rows(1)._replace(grounding=None), LossConfig(), Shape(0, 3))
    assert found.objects.shape == found.prompts.shape == found.phrases.shape == (0,)


def test_spread_undoes_cut():
    shape = Shape(2, 3)
    rows = np.random.default_rng(0).random((15, 4, 2)).astype(np.float32)
    cut = shape.cut(jnp.asarray(rows))
    assert np.array_equal(cut, rows[[0, 1, 5, 6, 10, 11]])
    whole_again = np.asarray(shape.spread(cut))
    grounded = np.isin(np.arange(15) % 5, (0, 1))
    assert np.array_equal(whole_again[grounded], rows[grounded]) and not whole_again[~grounded].any()


MODEL = micro_model()
PARTS = ("language", "grounding", "prompting")


def config_of(**loss: Any) -> TrainConfig:
    return micro(data={"grounded_rows": 2, "text_rows": 1}, loss=loss)


def composed(config: TrainConfig, fillers: int = 0, **sizes: int) -> Rows:
    """Two groups of a description, a question about a click or box, and text; then groups of fillers."""
    batch = dataclasses.replace(
        BatchConfig.of(MODEL, mask_side=32, length=128, phrases=4, objects=6), **sizes
    )
    tokenizer = load_tokenizer(config)
    grounded, text = (SampleMaker(batch, tokenizer, grounded=kind) for kind in (True, False))
    makers = {"description": grounded, "prompts": grounded, "marks": text}
    rows = [
        maker(Scenes(sorts=(sort,), count=9)[group], np.random.default_rng(group))
        for group in range(2)
        for sort, maker in makers.items()
    ]
    rows += [maker.filler("") for _ in range(fillers) for maker in makers.values()]
    joined = concatenate(rows)
    return Rows(joined.language, joined.grounding)


@functools.cache
def params() -> dict:
    return jax.tree.map(jnp.asarray, fill(abstract_params(MODEL), seed=1))


def jacobian(config: TrainConfig, rows: Rows) -> tuple[np.ndarray, dict, dict]:
    """Sums of the losses of each part, their gradients by path (the part in front), and losses by name."""
    objective = make_objective(config, mesh())
    kinds = {"language": "language", "prompt": "prompting"}

    def sums(params: dict, rows: Rows) -> tuple[jax.Array, dict]:
        counts = normalisers(rows, config.loss, objective.shape)
        losses = objective(params, rows, counts, jax.random.key(7))
        totals = dict.fromkeys(PARTS, jnp.zeros(()))
        for name, value in losses.items():
            totals[kinds.get(name.split("_")[0], "grounding")] += value
        return jnp.stack([totals[part] for part in PARTS]), losses

    def run(params: dict, rows: Rows) -> tuple[jax.Array, dict, dict]:
        totals, back, losses = jax.vjp(lambda params: sums(params, rows), params, has_aux=True)
        # not vmap: XLA for CPU (0.10.2) then gets the gradient of layer normalisation wrong
        return totals, jax.lax.map(lambda one: back(one)[0], jnp.eye(len(PARTS))), losses

    start = params()
    with on_mesh(mesh()):
        totals, gradients, losses = jax.jit(run, compiler_options=OPTIONS)(start, rows)
    flat = {path: np.asarray(leaf) for path, leaf in flattened(gradients).items()}
    return np.asarray(totals), flat, {name: float(value) for name, value in losses.items()}


@functools.cache
def plain() -> tuple[np.ndarray, dict, dict]:
    config = config_of()
    return jacobian(config, composed(config))


def gradient(gradients: dict, loss: str, *starts: str) -> dict[str, np.ndarray]:
    """Gradients of one part's losses to parameters whose path starts like this."""
    return {path: leaf[PARTS.index(loss)] for path, leaf in gradients.items() if path.startswith(starts)}


LANGUAGE_PARTS = ("clip", "projector", "llama")


def test_grounding_teaches_the_language_model():
    gradients = plain()[1]
    found = gradient(gradients, "grounding", *LANGUAGE_PARTS)
    assert not found.pop(HEAD).any()  # what is said does not matter, only what is thought
    assert [path for path, leaf in found.items() if not leaf.any()] == []
    found = gradient(gradients, "language", *LANGUAGE_PARTS)
    assert [path for path, leaf in found.items() if not leaf.any()] == []


def test_detached_grounding_teaches_the_language_model_nothing():
    """Paper Table 14."""
    config = config_of(detach_seg=True)
    totals, found, _ = jacobian(config, composed(config))
    np.testing.assert_allclose(totals, plain()[0], rtol=1e-5)
    assert not any(leaf.any() for leaf in gradient(found, "grounding", *LANGUAGE_PARTS, "prompt").values())
    for loss, starts in (("language", ("",)), ("prompting", ("",)), ("grounding", ("grounding",))):
        assert_close(gradient(found, loss, *starts), gradient(plain()[1], loss, *starts))


def assert_close(found: dict, want: dict) -> None:
    """Hold each array's difference against its norm, and against the largest where it is but rounding."""
    assert found.keys() == want.keys()
    largest = max(float(np.linalg.norm(leaf)) for leaf in want.values())
    for path, leaf in want.items():
        allowed = 1e-4 * np.linalg.norm(leaf) + 1e-7 * largest
        assert np.linalg.norm(found[path] - leaf) <= allowed, path


def test_language_teaches_the_visual_prompts_and_not_the_other_way_round():
    gradients = plain()[1]
    found = gradient(gradients, "language", "prompt")
    # all that leads to the state of a prompt's first token; boxes, masks and quality do not
    aside = {
        "bbox_embed",
        "mask_embed",
        "iou_prediction_head",
        "adapter_1",
        "layer_1",
        "mask_features",
        "norm0",
    }
    assert {path for path, leaf in found.items() if not leaf.any()} == {
        path for path in found if aside & set(path.split("/"))
    }
    back = gradient(gradients, "prompting", *LANGUAGE_PARTS, "grounding")
    assert not any(leaf.any() for leaf in back.values())
    assert not any(leaf.any() for leaf in gradient(gradients, "language", "grounding").values())


def test_losses_by_kind_add_up():
    totals, _, losses = plain()
    kinds = families({name: jnp.asarray(value) for name, value in losses.items()})
    vision = ("mask_cls", "bbox", "giou", "mask_bce", "mask_dice")
    prompt = ("prompt_bbox", "prompt_giou", "prompt_mask_bce", "prompt_mask_dice", "prompt_iou_score")
    assert set(kinds) == {"language", *vision, *prompt}
    assert float(sum(kinds.values())) == pytest.approx(float(totals.sum()), rel=1e-5)
    assert len(losses) == 1 + 3 * 5 + 5  # outputs: proposals, first guess and a layer; prompts: a layer


def test_padding_and_fillers_change_nothing():
    """Spec acceptance 5: longer rows, more room for phrases and objects, and a group of fillers."""
    config = config_of()
    totals, gradients, losses = jacobian(
        config, composed(config, fillers=1, length=144, phrases=6, objects=7)
    )
    np.testing.assert_allclose(totals, plain()[0], rtol=1e-5)
    assert losses == pytest.approx(plain()[2], rel=1e-4)
    for loss in PARTS:
        assert_close(gradient(gradients, loss, ""), gradient(plain()[1], loss, ""))


def test_words_teach_the_tower_and_names_the_grounding_model():
    """Word losses with names as phrases; more room for objects and fillers change none of them."""
    loss = {"parts": ("grounding", "words", "names", "phrases"), "phrases": "names", "drop_path": False}
    named = micro(data={"grounded_rows": 2, "text_rows": 1, "words": True}, loss=loss)
    objective, weights = make_objective(named, mesh()), params()

    def run(rows: Rows) -> tuple[dict, dict]:
        def total(params: dict, rows: Rows, part: str) -> tuple[jax.Array, dict]:
            counts = normalisers(rows, named.loss, objective.shape)
            losses = objective(params, rows, counts, jax.random.key(7))
            return sum((v for k, v in losses.items() if k.startswith(part)), jnp.zeros(())), losses

        def all_parts(params: dict, rows: Rows) -> tuple[dict, dict]:
            slopes = {
                part: jax.grad(total, has_aux=True)(params, rows, part)[0] for part in ("words", "names")
            }
            return slopes, total(params, rows, "words")[1]

        with on_mesh(mesh()):
            return jax.jit(all_parts, compiler_options=OPTIONS)(weights, rows)

    slopes, losses = run(composed(named, words=True))
    assert {"words", "names_tokens", "names_queries", "names_choice", "phrases"} <= set(losses)
    norms = {
        part: {
            name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope[name])) for name in slope
        }
        for part, slope in slopes.items()
    }
    for part, learns in (("words", {"clip", "projector", "llama"}), ("names", {"grounding"})):
        assert {name for name, norm in norms[part].items() if norm > 0} == learns, norms
    roomy = run(composed(named, fillers=2, words=True, objects=9))[1]
    assert_close({k: float(v) for k, v in roomy.items()}, {k: float(v) for k, v in losses.items()})
    alone = dataclasses.replace(named, loss=dataclasses.replace(named.loss, parts=("names",)))
    rows, objective = composed(named, words=True), make_objective(alone, mesh())
    with on_mesh(mesh()):
        counts = normalisers(rows, alone.loss, objective.shape)
        found = jax.jit(objective)(weights, rows, counts, jax.random.key(7))
    assert list(found) == ["names_tokens"]
    assert float(found["names_tokens"]) == pytest.approx(float(losses["names_tokens"]), rel=1e-5)


def stage(name: str) -> TrainConfig:
    """The losses, rates and layout of a stage, on the micro model."""
    config = load_config(CONFIGS / f"{name}.py", "paper")
    parts = {part: getattr(MODEL, part) for part in ("grounding", "prompt") if getattr(config.model, part)}
    model = dataclasses.replace(MODEL, **{"grounding": None, "prompt": None, **parts})
    return dataclasses.replace(
        config,
        model=model,
        start=(),
        data=dataclasses.replace(config_of().data, groups=2),
        loss=dataclasses.replace(config.loss, queries=12, points=128),
        mesh=MeshConfig(),
        steps=10,
        accumulate=1,
    )


def three_steps(config: TrainConfig) -> tuple[TrainState, TrainState, dict]:
    """The state before and after, and the last metrics."""
    shapes = stacked(fill(abstract_params(config.model), seed=1))
    key = jax.random.key(0)
    trained, frozen = jax.jit(lambda params: split(params, config, key))(jax.tree.map(jnp.asarray, shapes))
    before = state = init_state(config, trained, frozen)
    metrics: dict = {}
    with on_mesh(mesh()):
        step = jax.jit(make_step(config, mesh()), compiler_options=OPTIONS)
        for _ in range(3):
            state, metrics = step(state, composed(config), key)
    return before, state, metrics


@pytest.mark.parametrize("name", ["stage1", pytest.param("stage2", marks=pytest.mark.slow), "stage3"])
def test_what_is_frozen_keeps_its_bits_and_all_else_learns(name):
    config = stage(name)
    before, after, metrics = three_steps(config)
    assert int(after.step) == 3 and not metrics["skipped"] and np.isfinite(metrics["loss"])
    learning = {group_of(path) for path in before.trained}
    assert {f"norm/{group}" for group in learning} == {n for n in metrics if n.startswith("norm/")}
    one, other = (flattened(whole(state.trained, state.frozen)) for state in (before, after))
    for path, leaf in one.items():
        new = np.asarray(other[path])
        group = group_of(path)
        if "new_tokens" in learning and path in (EMBED, HEAD):
            old, rows = (
                (slice(-NEW), slice(-NEW, None)) if path == EMBED else (np.s_[:, :-NEW], np.s_[:, -NEW:])
            )
            assert np.array_equal(leaf[old], new[old]) and (leaf[rows] != new[rows]).any(), path
        elif rate_of(group, config.optim.rates):
            assert group in learning and not np.array_equal(leaf, new), path
        else:
            assert group not in learning and np.array_equal(leaf, new), path
