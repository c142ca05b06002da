"""REC and RES: counted pixels, bounds, orders; samples of REFER's files and pictures that were trained on."""

import json
import pickle

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from lgjax.data.masks import encode
from lgjax.eval import refer, referring
from tests.data.sources import examples

corners = st.tuples(*[st.integers(0, 11)] * 4).map(
    lambda v: np.asarray([min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1], float)
)
samples = st.lists(st.tuples(st.none() | corners, corners), min_size=1, max_size=12)
bitmaps = hypothesis.extra.numpy.arrays(bool, (3, 4))
masks = st.lists(st.tuples(st.none() | bitmaps, bitmaps), min_size=1, max_size=12)


def pixels(box):
    out = np.zeros((12, 12), bool)
    if box is not None:
        x0, y0, x1, y1 = box.astype(int)
        out[y0:y1, x0:x1] = True
    return out


def apart(pairs):
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@hypothesis.given(samples, st.randoms())
def test_boxes_against_counted_pixels(pairs, random):
    iou = [(pixels(a) & pixels(b)).sum() / (pixels(a) | pixels(b)).sum() for a, b in pairs]
    scores = referring.box_scores(*apart(pairs))
    assert scores.accuracy == pytest.approx(np.mean([2 * v >= 1 for v in iou]))
    assert scores.accuracy_strict == pytest.approx(np.mean([2 * v > 1 for v in iou]))
    assert scores.mean_iou == pytest.approx(np.mean(iou))
    assert 0 <= scores.accuracy_giou <= scores.accuracy <= 1 and scores.accuracy_strict <= scores.accuracy
    shuffled = random.sample(pairs, len(pairs))
    again = referring.box_scores(*apart(shuffled))
    assert again.accuracy == scores.accuracy and again.mean_iou == pytest.approx(scores.mean_iou)
    right = referring.box_scores(*apart([*pairs, (pairs[0][1], pairs[0][1])]))
    assert right.accuracy >= scores.accuracy, "a right box never lowers it"


@hypothesis.given(samples)
def test_the_original_counts_the_best_of_several_targets(pairs):
    known = [(a, b) for a, b in pairs if a is not None]
    predicted, targets = apart(known)
    one = referring.training_accuracy(predicted, [target[None] for target in targets])
    assert one.total == len(known)
    if known:
        share = referring.box_scores(predicted, targets).accuracy_strict
        assert one.correct / one.total == pytest.approx(share)
    more = [np.stack([target, box]) for box, target in known]
    assert referring.training_accuracy(predicted, more) == (len(known), len(known))
    assert referring.training_accuracy(predicted, [np.zeros((0, 4))] * len(known)) == (0, 0)


@hypothesis.given(masks, st.randoms())
def test_masks_against_counted_pixels(pairs, random):
    def coded(some):
        return [None if a is None else encode(a) for a, _ in some], [encode(b) for _, b in some]

    whole = [(np.zeros((3, 4), bool) if a is None else a, b) for a, b in pairs]
    shared, either = [(a & b).sum() for a, b in whole], [(a | b).sum() for a, b in whole]
    iou = np.asarray([s / e if e else 1.0 for s, e in zip(shared, either, strict=True)])
    scores = referring.mask_scores(*coded(pairs))
    assert scores.miou == pytest.approx(iou.mean())
    assert (
        np.isnan(scores.ciou) if not sum(either) else scores.ciou == pytest.approx(sum(shared) / sum(either))
    )
    assert scores.precision == {t: pytest.approx((iou >= t).mean()) for t in (0.5, 0.6, 0.7, 0.8, 0.9)}
    nothing = [not a.any() for a, b in whole if not b.any()]
    assert scores.no_target == (
        pytest.approx(np.mean(nothing)) if nothing else pytest.approx(np.nan, nan_ok=True)
    )
    again = referring.mask_scores(*coded(random.sample(pairs, len(pairs))))
    assert again.ciou == pytest.approx(scores.ciou, nan_ok=True) and again.miou == pytest.approx(scores.miou)
    if sum(either):  # on a canvas of the picture's size the original's counters are these
        real = [(s, e) for s, e in zip(shared, either, strict=True) if e]
        columns = np.asarray(real, float).T
        out = referring.training_masks([(1024, 7)] * len(real), columns[0], columns[1])
        assert out.ciou == pytest.approx(scores.ciou)
        assert out.miou == pytest.approx(np.mean(columns[0] / columns[1]))


def test_masks_of_different_sizes():
    with pytest.raises(ValueError, match=r"sample 1: a mask has size \[3, 2\], the other \[2, 3\]"):
        codes = [encode(np.ones(size, bool)) for size in ((2, 3), (3, 2))]
        referring.mask_scores(codes, [codes[0], codes[0]])


def test_nothing_to_score():
    assert np.isnan(referring.box_scores([], []).accuracy) and np.isnan(referring.mask_scores([], []).ciou)


REFS = [
    (1, examples.CAT, 42, "train", ["Left cat"]),
    (2, examples.SOFA, 42, "val", ["the couch", "SOFA under it"]),
    (3, examples.DOG, 43, "testA", ["first dog"]),
    (4, examples.OTHER_DOG, 43, "testAB", ["dog behind"]),
]


def write(folder, refs=REFS, **fields):
    listed = [
        {
            "ref_id": number,
            "ann_id": instance,
            "image_id": image,
            "category_id": 17,
            "split": split,
            "sentences": [
                {"sent_id": 10 * number + k, "sent": text.lower(), "raw": text}
                for k, text in enumerate(texts)
            ],
            **fields,
        }
        for number, instance, image, split, texts in refs
    ]
    (folder / "refs(umd).p").write_bytes(pickle.dumps(listed))
    examples.put(folder / "instances.json", examples.coco("COCO_train2014_"))
    return folder


def test_one_sample_is_one_sentence(tmp_path):
    val = refer.read_samples(write(tmp_path), "umd")["val"]
    assert [(s.id, s.text) for s in val] == [("20", "the couch"), ("21", "sofa under it")]
    assert val[0].image == "COCO_train2014_000000000042.jpg" and val[0].size == (48, 64)
    assert val[0].box.tolist() == [0, 20, 60, 46]
    assert val[0].mask == encode(examples.bitmap(0, 20, 60, 26))
    assert list(refer.read_samples(tmp_path, "umd")) == ["testA", "val"], "not train, and no name of two"
    for split, ids in (("testA", "30 40"), ("testB", "40"), ("test", "30 40"), ("train", "10")):
        assert [s.id for s in refer.read_samples(tmp_path, "umd", [split])[split]] == ids.split()


def test_overlapping_polygons_are_one_mask(tmp_path):
    write(tmp_path)
    data = examples.coco("COCO_train2014_")
    data["annotations"][1]["segmentation"] = [
        *examples.rectangle(0, 0, 10, 10),
        *examples.rectangle(5, 5, 10, 10),
    ]
    examples.put(tmp_path / "instances.json", data)
    mask = refer.read_samples(tmp_path, "umd")["val"][0].mask
    assert mask == encode(examples.bitmap(0, 0, 10, 10) | examples.bitmap(5, 5, 10, 10))


@pytest.mark.parametrize(
    ("refs", "split", "message"),
    [
        (
            [(1, 777, 42, "val", ["x"])],
            "val",
            r"refs\(umd\).p: ref 1 \(annotation 777\): .* no such annotation",
        ),
        ([(1, examples.CAT, 7, "val", ["x"])], "val", r"ref 1 .*instances.json has no such picture 7"),
        ([(1, examples.CAT, 42, "val", ["x", " "])], "val", r"ref 1 .*: sentence 1 has no text"),
        ([(1, examples.BALL, 43, "val", ["x"])], "val", r"ref 1 .*: bbox .* has 3 numbers"),
        ([(1, examples.CAT, 42, "val", ["x"])], "testB", r"no sentence of the split testB; its splits: val"),
        ([], "testD", "split 'testD' is none of train, val, test, testA"),
    ],
)
def test_faulty_files(tmp_path, refs, split, message):
    with pytest.raises(ValueError, match=message):
        refer.read_samples(write(tmp_path, refs), "umd", [split])


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no refs\(unc\).p in"):
        refer.read_samples(write(tmp_path), "unc")


def test_pictures_that_were_trained_on(tmp_path):
    folder = write(tmp_path)
    tested = refer.read_samples(folder, "umd", ["test"])["test"]
    files = {
        "coco.json": {"images": [{"id": 1, "file_name": "train2017/000000000043.jpg"}], "annotations": []},
        "list.json": [
            {"image": "COCO_train2014_000000000043.jpg"},
            {"image": "a.jpg"},
            {"text": "no picture"},
        ],
        "other.json": [{"image": "000000000044.jpg"}],
    }
    for name, data in files.items():
        examples.put(tmp_path / name, data)
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"image_id": 43}) + "\n" + json.dumps({"image_id": 1}) + "\n"
    )
    paths = [*(tmp_path / name for name in (*files, "lines.jsonl")), folder / "refs(umd).p"]
    assert [len(leak.pictures) for leak in refer.leaks(tested, paths)] == [1, 1, 0, 1, 0]
    val = refer.read_samples(folder, "umd")["val"]  # the picture of val is one of train, too
    assert refer.leaks(val, paths[-1:])[0].pictures == {"42"}
    examples.put(tmp_path / "none.json", [{"text": "x"}])
    with pytest.raises(ValueError, match=r"none.json names no picture"):
        refer.leaks(tested, [tmp_path / "none.json"])
    with pytest.raises(FileNotFoundError, match="no file"):
        refer.leaks(tested, [tmp_path / "gone.json"])
