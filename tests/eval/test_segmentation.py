"""COCO's average precision and panoptic quality: known answers, pycocotools, counting by brute force."""

import copy
import json

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lgjax.data.masks import encode
from lgjax.eval import coco_instances, segmentation
from lgjax.eval.mentions import Lexicon
from lgjax.eval.segmentation import Instance, Quality, Segments, flatten, mean_quality, panoptic_quality
from tests.eval import coco_set


@pytest.fixture
def truth(tmp_path):
    return coco_instances.read_truth(coco_set.write(tmp_path, coco_set.content()))


def found(truth, prompts, answers):
    lexicon = Lexicon.of(truth.categories.values())
    return [
        one
        for question in coco_instances.asked(truth, prompts)
        for one in coco_instances.found_in(question, answers[question.id], lexicon, truth)
    ]


def quality(truth, instances):
    pairs = []
    for picture in truth.pictures.values():
        mine = [Instance(f.category, f.mask, f.score) for f in instances if f.picture == picture.id]
        pairs.append((flatten(truth.instances(picture.id), picture.size), flatten(mine, picture.size)))
    return mean_quality(panoptic_quality(pairs))


@pytest.mark.parametrize("prompts", ["names", "description"])
def test_perfect_answers_reach_one_and_empty_ones_zero(truth, prompts):
    for answers, want in ((coco_set.perfect(truth, prompts), 1.0), (coco_set.empty(truth, prompts), 0.0)):
        instances = found(truth, prompts, answers)
        for kind in ("bbox", "segm"):
            scores = segmentation.coco_ap(truth.content(), coco_instances.results(instances, kind), kind)
            assert [scores["AP"], scores["AP50"], scores["AR100"]] == pytest.approx([want] * 3)
        assert quality(truth, instances) == want


@pytest.mark.parametrize("prompts", ["names", "description"])
def test_guesses_stay_near_the_floor(truth, prompts):
    instances = found(truth, prompts, coco_set.random(truth, prompts, np.random.default_rng(0)))
    assert len(instances) > 5
    for kind in ("bbox", "segm"):
        scores = segmentation.coco_ap(truth.content(), coco_instances.results(instances, kind), kind)
        assert 0 <= scores["AP"] < 0.3
    assert 0 <= quality(truth, instances) < 0.3


def test_a_perfect_answer_about_classes_that_are_not_there(truth):
    answers = coco_set.perfect(truth, "names", all_classes=True)
    asked = coco_instances.asked(truth, "names", all_classes=True)
    assert len(asked) == len(answers) == 4 * 3 and len(coco_instances.asked(truth, "names")) == 6


@hypothesis.given(st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=8)
def test_average_precision_is_that_of_pycocotools(seed):
    """Through files, as everybody calls it."""
    import contextlib
    import io
    import tempfile
    from pathlib import Path

    data, rng = coco_set.content(), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = coco_set.write(Path(folder), data)
        truth = coco_instances.read_truth(file)
        instances = found(truth, "names", coco_set.random(truth, "names", rng))
        for kind in ("bbox", "segm"):
            results = coco_instances.results(instances, kind)
            saved = Path(folder) / "results.json"
            saved.write_text(json.dumps(results))
            coco = COCO(str(file))
            judge = COCOeval(coco, coco.loadRes(str(saved)), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            before = copy.deepcopy(results)
            got = segmentation.coco_ap(truth.content(), results, kind)
            np.testing.assert_allclose([*got.values()], judge.stats, rtol=0, atol=1e-12)
            assert results == before, "results of the caller are not changed"


def test_average_precision_of_an_unknown_picture(truth):
    line = {"image_id": 7, "category_id": 1, "score": 1.0, "bbox": [0, 0, 1, 1]}
    with pytest.raises(ValueError, match="image 7 is not in the annotations"):
        segmentation.coco_ap(truth.content(), [line], "bbox")


def square(size, rows, columns):
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def test_a_mask_that_is_too_large_is_one_match_with_its_iou():
    size = (10, 10)
    small, large = square(size, slice(0, 5), slice(0, 8)), square(size, slice(0, 5), slice(0, 10))
    pair = [flatten([Instance("dog", encode(mask))], size) for mask in (small, large)]
    assert panoptic_quality([(pair[0], pair[1])]) == {"dog": Quality(tp=1, iou=40 / 50)}
    # twice the size: IoU is 0.5, which is no match; the background that it covers is judged
    large = square(size, slice(0, 10), slice(0, 8))
    pair = [flatten([Instance("dog", encode(mask))], size) for mask in (small, large)]
    assert panoptic_quality([(pair[0], pair[1])]) == {"dog": Quality(fp=1, fn=1)}


def test_a_false_thing_on_the_background_is_counted():
    size = (10, 10)
    dog, ghost = square(size, slice(0, 4), slice(0, 4)), square(size, slice(6, 9), slice(6, 9))
    target = flatten([Instance("dog", encode(dog))], size)
    found = flatten([Instance("dog", encode(dog)), Instance("cat", encode(ghost))], size)
    assert panoptic_quality([(target, found)]) == {"dog": Quality(tp=1, iou=1.0), "cat": Quality(fp=1)}


def test_things_in_a_crowd_are_not_counted():
    size = (10, 10)
    crowd = Instance("person", encode(square(size, slice(0, 10), slice(0, 5))), crowd=True)
    target = flatten([crowd], size)
    inside = Instance("person", encode(square(size, slice(0, 3), slice(0, 3))))
    half = Instance("dog", encode(square(size, slice(5, 7), slice(4, 6))))  # half of it is void, not more
    got = panoptic_quality([(target, flatten([inside, half], size))])
    assert got == {"dog": Quality(fp=1)}
    # void pixels do not count into a union
    thing = Instance("person", encode(square(size, slice(0, 4), slice(5, 8))))
    wide = Instance("person", encode(square(size, slice(0, 4), slice(3, 8))))
    got = panoptic_quality([(flatten([crowd, thing], size), flatten([wide], size))])
    assert got == {"person": Quality(tp=1, iou=1.0)}


def test_better_scores_lie_on_top_then_smaller_things():
    size = (4, 4)
    table, cup = square(size, slice(0, 4), slice(0, 4)), square(size, slice(0, 2), slice(0, 2))
    for instances in ([("table", table, 1.0), ("cup", cup, 1.0)], [("cup", cup, 0.3), ("table", table, 0.2)]):
        cut = flatten([Instance(name, encode(mask), score) for name, mask, score in instances], size)
        assert cut.categories[int(cut.ids[0, 0])] == "cup" and cut.categories[int(cut.ids[3, 3])] == "table"
    cut = flatten([Instance("cup", encode(cup), 0.2), Instance("table", encode(table), 0.3)], size)
    assert list(cut.categories.values()) == ["table"]


def brute_force(target, predicted):
    """Panoptic quality of one picture from masks, pair by pair."""
    out = {}
    void = target.ids == target.void
    matched = set()

    def add(name, **counts):
        out[name] = out.get(name, Quality()) + Quality(**counts)

    for t, name in target.categories.items():
        mask = target.ids == t
        if not mask.any():
            continue
        hits = []
        for p, other in predicted.categories.items():
            mine = predicted.ids == p
            iou = (mask & mine).sum() / ((mask | mine) & ~(mine & void)).sum() if (mask & mine).any() else 0
            if other == name and iou > 0.5:
                hits.append((p, iou))
        assert len(hits) <= 1
        if hits:
            matched.add(hits[0][0])
            add(name, tp=1, iou=float(hits[0][1]))
        else:
            add(name, fn=1)
    for p, name in predicted.categories.items():
        mine = predicted.ids == p
        if mine.any() and p not in matched and (mine & void).sum() / mine.sum() <= 0.5:
            add(name, fp=1)
    return out


maps = hypothesis.extra.numpy.arrays(np.int64, (4, 5), elements=st.integers(0, 4))
classes = st.lists(st.sampled_from("abc"), min_size=4, max_size=4)


@hypothesis.given(maps, classes, maps, classes, st.sampled_from([None, 0, 4]))
@hypothesis.settings(max_examples=150)
def test_panoptic_quality_is_that_of_counting_masks(first, names, second, others, void):
    target = Segments(first, {n: c for n, c in enumerate(names, 1) if n != void}, void)
    predicted = Segments(second, dict(enumerate(others, 1)))
    got, want = panoptic_quality([(target, predicted)]), brute_force(target, predicted)
    assert got.keys() == want.keys()
    for name, one in got.items():
        assert (one.tp, one.fp, one.fn) == (want[name].tp, want[name].fp, want[name].fn)
        assert one.iou == pytest.approx(want[name].iou) and 0 <= one.pq <= 1
        assert one.pq == pytest.approx(one.iou / (one.tp + one.fp / 2 + one.fn / 2))
    # numbers of segments mean nothing, and pictures add up
    renamed = Segments(9 - second, {9 - n: c for n, c in predicted.categories.items()})
    twice = panoptic_quality([(target, predicted), (target, renamed)])
    assert {name: one.tp for name, one in twice.items()} == {name: 2 * one.tp for name, one in got.items()}


def test_maps_of_different_sizes():
    pair = Segments(np.zeros((2, 2), int), {}), Segments(np.zeros((2, 3), int), {})
    with pytest.raises(ValueError, match=r"picture 0: predicted map has size \[2, 3\], its target \[2, 2\]"):
        panoptic_quality([pair])


def test_phrases_become_instances_of_the_class_they_are_about(truth):
    question = coco_instances.asked(truth, "description")[0]
    people = coco_set.rows_of(truth.annotations[1][:2])
    dog = coco_set.rows_of(truth.annotations[1][2:3])
    said = [
        ("a man beside a dog", people[:1]),
        ("the man", people[:1]),  # the same one again
        ("a woman", people[1:]),
        ("a puppy", dog),
        ("the weather", dog),  # no class
        ("a man and a dog", people + dog),  # which box is whose?
    ]
    answer = coco_set.prediction(question, (48, 64), said)
    got = coco_instances.found_in(question, answer, Lexicon.of(truth.categories.values()), truth)
    assert [(one.category, one.box.tolist()) for one in got] == [
        (1, people[0][0]),
        (1, people[1][0]),
        (18, dog[0][0]),
    ]


def test_a_picture_of_another_size(truth):
    question = coco_instances.asked(truth, "description")[0]
    answer = coco_set.prediction(question, (64, 48), [])
    with pytest.raises(ValueError, match="is 48 x 64 pixels large, the annotations say 64 x 48"):
        coco_instances.found_in(question, answer, Lexicon.of(()), truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 77}, "annotation 1 has the class 77"),
        ({"bbox": [1, 2, 3]}, r"annotation 1: bbox \[1, 2, 3\] has 3 numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 1: bbox .* finite"),
        ({"bbox": None}, "annotation 1: bbox"),
        ({"segmentation": []}, "annotation 1: empty polygon"),
        ({"segmentation": None}, "annotation 1: empty polygon"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "annotation 1: mask of another size"),
        ({"image_id": 50}, "annotation 1 is of image 50"),
    ],
)
def test_faulty_annotations(tmp_path, change, message):
    data = coco_set.content()
    data["annotations"][0] |= change
    with pytest.raises(ValueError, match=f"instances.json: {message}"):
        coco_instances.read_truth(coco_set.write(tmp_path, data))
