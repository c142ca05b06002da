"""Samples and batches: what they hold, against the records they were made of and worked examples."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgjax.config import IGNORE_LABEL, debug, llava_g_7b
from lgjax.data import masks
from lgjax.data.batch import CUTS, NOTHING, Batch, BatchConfig, SampleMaker, concatenate
from lgjax.data.images import place_on_canvas, square_canvas
from lgjax.data.schema import Expression, Object, Phrase, Record, Region, Turn, check
from lgjax.text.markup import parse_ids
from tests.data.records import (
    CONFIG,
    SIZE,
    TOKENIZER,
    caption,
    chat,
    objects,
    picture,
    referring,
    region,
    words,
)

MAKER = SampleMaker(CONFIG, TOKENIZER, grounded=True)
SCALE = 64 / 48  # of canvas to picture


def make(record: Record, seed: int = 0, **changes) -> Batch:
    check(record)
    config = dataclasses.replace(CONFIG, **changes)
    return SampleMaker(config, TOKENIZER, grounded=True)(record, np.random.default_rng(seed))


def cuts(batch: Batch) -> dict[str, int]:
    return dict(zip(CUTS, batch.notes.cuts[0].tolist(), strict=True))


def bitmaps(batch: Batch) -> np.ndarray:
    return np.unpackbits(batch.grounding.masks[0], axis=-1).astype(bool)


def phrase_texts(batch: Batch) -> list[str]:
    """The phrase in front of each seg position, read back from the tokens of the row."""
    tokens, out = batch.language.plan.tokens[0], []
    for position, real in zip(batch.grounding.seg_positions[0], batch.grounding.seg_mask[0], strict=True):
        if real:
            assert tokens[position] == TOKENIZER.seg_id
            start = max(np.flatnonzero(tokens[:position] == TOKENIZER.g_s_id), default=position)
            out.append(parse_ids(tokens[start : position + 1], TOKENIZER).phrases[-1].text)
    return out


def test_answers_alone_are_learnt():
    plan = make(chat(5)).language.plan
    labels = plan.labels[0]
    learnt = labels[labels != IGNORE_LABEL]
    answers = [
        "<g_s> A man <g_e> <seg> and <g_s> 5 horses <g_e> <seg> near a house.</s>",
        "<g_s> The cup <g_e> <seg> is 50 % full.</s>",
    ]
    assert learnt.tolist() == [i for text in answers for i in TOKENIZER.encode(text)[1:]]
    assert np.array_equal(plan.tokens[0][labels != IGNORE_LABEL], learnt)


def test_picture_stands_where_the_tag_was():
    plan = make(chat()).language.plan
    assert plan.patches[0][plan.patches[0] >= 0].tolist() == [0, 1, 2, 3]
    assert (plan.tokens[0][plan.patches[0] >= 0] == -1).all()
    assert plan.mask[0].sum() == plan.lengths[0] and plan.mask[0][: plan.lengths[0]].all()


def test_phrases_point_at_their_objects():
    batch = make(chat(5))
    assert phrase_texts(batch) == ["A man", "5 horses"]  # "The cup" names nothing that is known
    assert batch.grounding.object_phrases[0, :4, :2].tolist() == [
        [False, True],
        [True, False],
        [False] * 2,
        [False, True],
    ]
    assert batch.grounding.object_mask[0].tolist() == [True] * 4 + [False]
    assert batch.grounding.weight[0] == 1


def test_hidden_state_before_the_token():
    at, before = make(chat()), make(chat(), seg_state="before")
    real = at.grounding.seg_mask
    assert np.array_equal(at.grounding.seg_positions[real] - 1, before.grounding.seg_positions[real])


def test_boxes_and_masks_lie_on_the_canvas():
    record = chat(3)
    batch = make(record)
    for i, thing in enumerate(record.objects):
        x0, y0, x1, y1 = (v * SCALE / 64 for v in thing.box)
        np.testing.assert_allclose(
            batch.grounding.boxes[0, i], [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], atol=1e-6
        )
        if thing.mask is None:
            assert not batch.grounding.has_mask[0, i] and not bitmaps(batch)[i].any()
            continue
        assert np.array_equal(bitmaps(batch)[i], masks.on_canvas(thing.mask, place_on_canvas(SIZE, 64)))
        # a filled box: mask and box agree to the cell
        np.testing.assert_allclose(masks.box_of(bitmaps(batch)[i]) / 64, [x0, y0, x1, y1], atol=1.01 / 64)


def test_boxes_are_clipped_and_tight_where_referring_asks():
    wide = Object(box=(-5, 4, 60, 20), mask=[[4, 4, 20, 4, 20, 20, 4, 20]])
    record = dataclasses.replace(chat(), objects=(wide,) * 4)
    np.testing.assert_allclose(
        make(record).grounding.boxes[0, 0], [0.5, 12 * SCALE / 64, 1, 16 * SCALE / 64], atol=1e-6
    )
    tight = dataclasses.replace(referring(count=1), objects=(wide,))
    box = masks.box_of(masks.on_canvas(wide.mask, place_on_canvas(SIZE, 64)))
    found = make(tight).grounding.boxes[0, 0]
    np.testing.assert_allclose(found, [*((box[:2] + box[2:]) / 128), *((box[2:] - box[:2]) / 64)], atol=1e-6)


def test_pictures_are_both_views():
    batch = make(chat(2))
    assert np.array_equal(batch.grounding.images[0], square_canvas(load(chat(2)), 64)[0])
    assert batch.language.clip_images.shape == (1, 28, 28, 3) and batch.language.clip_images.any()


def load(record):
    from lgjax.data.images import load_image

    return load_image(record.image)


def test_regions_take_the_slot_of_their_object():
    record = chat(1, regions=True)
    batch = make(record)
    plan = batch.language.plan
    assert plan.objects[0][plan.objects[0] >= 0].tolist() == [2]
    # " %" of the answer stays a word that is learnt
    assert (plan.tokens[0] == TOKENIZER.percent_id).sum() == 1
    assert (plan.labels[0] == TOKENIZER.percent_id).sum() == 1


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_prompts_are_clicks_first_then_boxes(seed):
    record = region(count=4)
    batch = make(record, seed)
    ground, count = batch.grounding, len(record.objects)
    is_box = ground.is_box[0, :count]
    clicks = int((1 - is_box).sum())
    assert int(0.33 * count) <= clicks <= count and is_box.tolist() == [0] * clicks + [1] * (count - clicks)
    for i in range(count):
        cx, cy, w, h = ground.prompts[0, i] * 64
        box = ground.boxes[0, i] * 64
        if i < clicks:
            # a click moves by less than a tenth of a pixel
            assert abs(w - 6) < 0.03 and abs(h - 6) < 0.03
            assert not ground.has_mask[0, i] or bitmaps(batch)[i][round(cy), round(cx)]
        else:
            assert abs(cx - box[0]) <= 0.2 * box[2] + 1e-3 and abs(w - box[2]) <= 0.4 * box[2] + 1e-3
    assert (ground.prompts >= 0).all() and (ground.prompts <= 1).all()


def test_coarse_masks_keep_clicks_where_they_belong():
    record = dataclasses.replace(
        chat(), objects=(Object(box=(10, 10, 22, 22), mask=[[10, 10, 22, 10, 22, 22, 10, 22]]),) * 4
    )
    for seed in range(30):
        batch = make(record, seed, mask_side=32)
        assert batch.grounding.masks.shape == (1, 5, 32, 4)
        click = batch.grounding.prompts[0, 0]
        if not batch.grounding.is_box[0, 0]:
            assert (click[:2] * 64 >= 10 * SCALE - 1).all() and (click[:2] * 64 <= 22 * SCALE + 1).all()


def test_crowds_stay_only_where_they_are_named():
    crowd = [dataclasses.replace(thing, crowd=True) for thing in objects(4)]
    record = dataclasses.replace(chat(), objects=(*crowd, objects(1)[0]))
    kept = make(record).grounding.object_mask[0].sum()
    assert kept == 4  # 0, 1 and 3 are named, 4 is no crowd


@given(
    texts=st.lists(st.text("abcd ", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(deadline=None, max_examples=100)
def test_phrases_and_objects_survive(texts, seed, data):
    """Whatever is marked: each phrase of the batch names the objects of the record's phrase."""
    spans, text = [], ""
    for piece in texts:
        text += "and "
        spans.append((len(text), len(text) + len(piece.strip())))
        text += piece.strip() + " "
    count = data.draw(st.integers(1, 8))
    named = [tuple(sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=3)))) for _ in texts]
    record = Record(
        id="p",
        kind="chat",
        image=picture(0),
        size=SIZE,
        objects=objects(count, seed=seed),
        turns=(Turn("human", "What?"), Turn("gpt", text)),
        phrases=tuple(Phrase(turn=1, span=s, objects=n) for s, n in zip(spans, named, strict=True)),
    )
    batch = make(record, seed, length=400)
    ground = batch.grounding
    want = [(text[a:b], numbers) for (a, b), numbers in zip(spans, named, strict=True) if numbers][
        : CONFIG.phrases
    ]
    assert [" ".join(t.split()) for t in phrase_texts(batch)] == [" ".join(t.split()) for t, _ in want]
    assert cuts(batch)["phrases"] == sum(bool(n) for n in named) - len(want)
    # slots are known by their boxes
    boxes = {tuple(np.round(b, 5)): i for i, b in enumerate(boxes_of(record))}
    slots = [boxes[tuple(np.round(b, 5))] for b in ground.boxes[0][ground.object_mask[0]].astype(np.float64)]
    assert slots == sorted(slots) or len(set(map(tuple, boxes_of(record).round(5)))) < count
    for i, (_, numbers) in enumerate(want):
        found = [slots[s] for s in np.flatnonzero(ground.object_phrases[0, :, i])]
        assert set(found) <= set(numbers)
        if cuts(batch)["objects"] == 0 and len(boxes) == count:
            assert found == list(numbers)
    assert cuts(batch)["objects"] == max(0, count - CONFIG.objects)


def boxes_of(record: Record) -> np.ndarray:
    corners = np.asarray([thing.box for thing in record.objects]) * SCALE / 64
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)


@pytest.mark.parametrize(
    "record",
    [chat(1), chat(2, regions=True), caption(), referring(count=3), region(), words()],
    ids=lambda r: r.id,
)
def test_room_to_spare_changes_nothing(record):
    """More positions, phrases and objects only add padding."""
    small, large = make(record, 4), make(record, 4, length=300, phrases=9, objects=11)
    length, p, t = CONFIG.length, CONFIG.phrases, CONFIG.objects
    for name, fill in {
        "tokens": -1,
        "patches": -1,
        "objects": -1,
        "labels": IGNORE_LABEL,
        "mask": False,
    }.items():
        a, b = getattr(small.language.plan, name), getattr(large.language.plan, name)
        assert np.array_equal(a, b[:, :length]) and (b[:, length:] == fill).all(), name
    a, b = small.grounding, large.grounding
    for name in ("boxes", "object_mask", "has_mask", "masks", "prompts", "is_box"):
        assert np.array_equal(getattr(a, name), getattr(b, name)[:, :t]), name
    for name in ("seg_positions", "seg_mask"):
        assert np.array_equal(getattr(a, name), getattr(b, name)[:, :p]), name
    assert np.array_equal(a.object_phrases, b.object_phrases[:, :t, :p])
    assert (
        not b.object_mask[:, t:].any() and not b.seg_mask[:, p:].any() and not b.object_phrases[:, t:].any()
    )
    assert np.array_equal(small.language.sample_id, large.language.sample_id)


def test_long_conversations_lose_whole_rounds():
    turns = tuple(
        Turn(s, t) for i in range(9) for s, t in (("human", f"Question {i}?"), ("gpt", f"A cat {i} sits."))
    )
    record = dataclasses.replace(
        chat(),
        turns=turns,
        phrases=tuple(Phrase(turn=2 * i + 1, span=(0, 7), objects=(0,)) for i in range(9)),
    )
    batch = make(record, phrases=20)
    kept = 9 - cuts(batch)["rounds"]
    assert 0 < kept < 9 and cuts(batch)["tokens"] == 0 and cuts(batch)["phrases"] == 0
    assert phrase_texts(batch) == [f"A cat {i}" for i in range(kept)]
    assert batch.language.plan.labels[0][batch.language.plan.lengths[0] - 1] == TOKENIZER.eos_id
    assert batch.language.plan.lengths[0] <= CONFIG.length


def test_one_long_answer_is_cut_with_the_phrases_behind():
    text = "A cat sits. " * 40
    spans = tuple(Phrase(turn=1, span=(12 * i, 12 * i + 5), objects=(i % 4,)) for i in range(40))
    record = dataclasses.replace(chat(), turns=(Turn("human", "What?"), Turn("gpt", text)), phrases=spans)
    batch = make(record, phrases=40)
    left = int(batch.grounding.seg_mask.sum())
    assert batch.language.plan.lengths[0] == CONFIG.length and cuts(batch)["tokens"] > 0
    assert 0 < left < 40 and cuts(batch)["phrases"] == 40 - left
    assert phrase_texts(batch) == ["A cat"] * left


def test_too_many_objects_keep_the_named_ones():
    record = dataclasses.replace(chat(), objects=objects(12))
    for seed in range(20):
        batch = make(record, seed)
        assert cuts(batch)["objects"] == 7
        assert batch.grounding.object_phrases.any(1).sum() == 2 and batch.grounding.object_phrases.sum() == 3


def test_a_thing_smaller_than_a_cell_has_only_its_box():
    speck = Object(box=(10.0, 10.0, 10.2, 10.2), mask=[[10, 10, 10.2, 10, 10.2, 10.2]])
    batch = make(dataclasses.replace(chat(), objects=(speck,) * 4))
    assert batch.grounding.object_mask[0, :4].all() and not batch.grounding.has_mask.any()


def test_boxes_do_not_depend_on_the_masks_that_are_kept():
    """Tight boxes are those of the mask at the size of the canvas (spec 6.3)."""
    for seed in range(20):
        fine, coarse = make(referring(seed), seed), make(referring(seed), seed, mask_side=32)
        assert np.array_equal(fine.grounding.boxes, coarse.grounding.boxes)


def test_several_regions_of_one_question():
    record = dataclasses.replace(
        region(count=1),
        expressions=(Expression(texts=("two",), objects=(1, 0), question="What are <obj> and <obj> ?"),),
    )
    for wording in ("released", "varied"):
        plan = make(record, wording=wording).language.plan
        assert plan.objects[0][plan.objects[0] >= 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            dataclasses.replace(chat(), size=(47, 36)),
            r"the picture is \(48, 36\), but the record says \(47, 36\)",
        ),
        (dataclasses.replace(chat(), image="nowhere.jpg"), "is not there"),
        (
            dataclasses.replace(words(), turns=(Turn("human", "a"), Turn("gpt", "b </s> c"))),
            "turn 1 holds '</s>'",
        ),
        (
            dataclasses.replace(
                chat(),
                turns=(Turn("human", "<obj> " * 6), Turn("gpt", "x")),
                phrases=(),
                objects=objects(6),
                regions=tuple(Region(0, i) for i in range(6)),
            ),
            "6 objects with visual prompts, more than the 5",
        ),
    ],
)
def test_samples_that_cannot_be_made_say_why(record, message):
    with pytest.raises((ValueError, OSError), match=message):
        make(record)


def test_visual_prompts_need_a_grounded_row():
    with pytest.raises(ValueError, match="needs a grounded row"):
        SampleMaker(CONFIG, TOKENIZER, grounded=False)(chat(regions=True), np.random.default_rng(0))


def test_filler_weighs_nothing_and_fits():
    filler, sample = MAKER.filler("record 3: picture is damaged"), make(chat())
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), (filler, sample))
    assert shapes[0] == shapes[1]
    assert filler.language.lm_weight[0] == 0 and filler.grounding.weight[0] == 0
    assert (filler.language.plan.labels == IGNORE_LABEL).all()
    assert bytes(filler.notes.fault[0]).rstrip(b"\0") == b"record 3: picture is damaged"
    both = concatenate([filler, sample, SampleMaker(CONFIG, TOKENIZER, grounded=False).filler("x")])
    assert both.language.lm_weight.tolist() == [0, 1, 0] and len(both.grounding.weight) == 2


def test_regions_drawn_from_many_stay_with_their_objects():
    record = Record(
        id="r",
        kind="region",
        image=picture(1),
        size=SIZE,
        objects=objects(5),
        expressions=tuple(Expression(texts=(f"c{i}",), objects=(i,)) for i in range(5)),
    )
    for seed in range(20):
        plan = make(record, seed).language.plan
        slots = plan.objects[0][plan.objects[0] >= 0].tolist()
        labels = plan.labels[0]
        answers = TOKENIZER.decode(labels[(labels != IGNORE_LABEL)])
        assert slots == [int(d) for d in answers if d.isdigit()]


def test_sizes_follow_the_model():
    assert BatchConfig.of(llava_g_7b()) == BatchConfig()
    small = BatchConfig.of(debug(), length=200)
    assert (small.clip_side, small.num_patches, small.canvas, small.mask_side, small.length) == (
        28,
        4,
        128,
        128,
        200,
    )
    with pytest.raises(ValueError, match="multiple of 8"):
        BatchConfig(mask_side=100)
    with pytest.raises(ValueError, match="no room for text"):
        BatchConfig(length=257)
    with pytest.raises(ValueError, match="name_weight 0 must be above 0 and finite"):
        BatchConfig(name_weight=0)


def test_words_of_objects_and_image_tokens():
    """The first token of each name; an image token has the word of what covers it."""
    record = chat()
    batch = make(record, words=True, num_patches=64, length=160)
    side = 8
    names = [record.objects[i].name for i in range(len(record.objects)) if not record.objects[i].crowd]
    wanted = [TOKENIZER.encode(name)[1] for name in names]
    found = batch.grounding.object_words[0]
    assert found[: len(wanted)].tolist() == wanted and (found[len(wanted) :] == -1).all()
    grid = batch.grounding.patch_words[0].reshape(side, side)
    assert set(np.unique(grid)) <= {-1, NOTHING, *wanted} and set(np.unique(grid)) & set(wanted)
    shares = [
        np.zeros((side, side)) if o.mask is None else masks.shares(masks.decode(o.mask, SIZE), side)
        for o in record.objects
        if not o.crowd
    ]
    for row, column in np.ndindex(side, side):
        covered = [share[row, column] for share in shares]
        if max(covered) > 0.3:
            assert grid[row, column] == wanted[int(np.argmax(covered))]
        elif sum(covered) == 0:
            assert grid[row, column] == NOTHING
    assert (make(record).grounding.patch_words == -1).all()


def test_names_of_objects_weigh_more():
    """Answers alone count, so nothing of a question; without a weight there is no array at all."""
    record = dataclasses.replace(
        chat(),
        turns=(
            Turn("human", "Is it a house ? (with grounding)"),
            Turn("gpt", "A house and a man near a house."),
            Turn("human", "Is there a man ?"),
            Turn("gpt", "Yes."),
        ),
        phrases=(Phrase(turn=1, span=(0, 7), objects=(0,)),),
        objects=(dataclasses.replace(chat().objects[0], name="house"), *chat().objects[1:]),
    )
    batch = make(record, name_weight=4.0)
    labels, weights = batch.language.plan.labels[0], batch.language.label_weights[0]
    known = {TOKENIZER.encode(thing.name)[1] for thing in record.objects}
    assert set(np.unique(weights)) == {1, 4}
    assert [label in known for label in labels.tolist()] == (weights == 4).tolist()
    house = TOKENIZER.encode("house")[1]
    assert labels[weights == 4].tolist().count(house) == 2  # not the one that was asked about
    filler = SampleMaker(dataclasses.replace(CONFIG, name_weight=4.0), TOKENIZER, grounded=True).filler("x")
    assert (filler.language.label_weights == 1).all()
    assert make(record).language.label_weights is None
