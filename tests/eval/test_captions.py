"""Grounded captions: pairing by brute force, CIDEr against figures of the COCO tools, files with faults."""

import json

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from lgjax.data.masks import encode
from lgjax.eval import captions, text_scores
from lgjax.eval.predictions import PhrasePrediction, Prediction

matrices = hypothesis.extra.numpy.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4).flatmap(
    lambda shape: st.tuples(
        *[hypothesis.extra.numpy.arrays(float, shape, elements=st.integers(0, 10).map(lambda v: v / 10))] * 2
    )
)
CANDIDATES = ["a cat sits on a mat", "two dogs run", "people eat cake"]
REFERENCES = [
    ["the cat is on the mat", "a cat on a red mat"],
    ["two dogs are running in the park"],
    ["a family eats a birthday cake"],
]
# of pycocoevalcap 1.2, Cider().compute_score, for the texts above
THEIRS = [2.300072991835007, 1.5110277682745363, 0.5974928707995422]


@hypothesis.given(matrices)
@hypothesis.settings(max_examples=150)
def test_pairs_are_one_to_one_best_first(both):
    ious, similar = both
    order = sorted(np.ndindex(ious.shape), key=lambda rc: (-ious[rc], rc))  # brute force over all pairs

    def greedy(allowed):
        taken = []
        for target, other in filter(allowed, order):
            if all(target != t and other != o for t, o in taken):
                taken.append((target, other))
        return taken

    pairs = captions.pair(ious)
    assert pairs == greedy(lambda rc: ious[rc] > 0)
    want = float(np.mean([ious[rc] for rc in pairs])) if pairs else 0.0
    assert captions.image_miou(ious) == pytest.approx(want) and want <= 1
    found = captions.phrase_matches(ious, similar)
    assert found == greedy(lambda rc: ious[rc] >= 0.5 and similar[rc] >= 0.5)
    released = captions.phrase_matches(ious, similar, "released")
    assert released == found[: len(released)], "the released rule stops early and is otherwise the same"
    assert captions.phrase_matches(ious, np.ones_like(similar), "released") == [
        rc for rc in pairs if ious[rc] >= 0.5
    ]


def test_cider_is_that_of_the_coco_tools():
    np.testing.assert_allclose(text_scores.cider(CANDIDATES, REFERENCES), THEIRS, rtol=1e-12)
    same = text_scores.cider([texts[0] for texts in REFERENCES], [texts[:1] for texts in REFERENCES])
    np.testing.assert_allclose(same, 10)
    assert text_scores.cider(["nothing alike", "", "x"], REFERENCES) == [0, 0, 0]
    with pytest.raises(ValueError, match="one reference or more"):
        text_scores.cider(["x"], [[]])


def test_meteor_follows_its_formula():
    # all words match in one chunk: 1 - 0.5 (chunks / matches)^3
    got = text_scores.meteor(["Two dogs run.", "x", "dogs two"], [["two dogs run"], ["y"], ["two dogs"]])
    assert got == pytest.approx([1 - 0.5 / 27, 0, 1 - 0.5])
    best = text_scores.meteor(["two dogs run"], [["a cat", "two dogs run"]])
    assert best == pytest.approx(got[:1]), "the best reference counts"
    assert "nltk" in text_scores.meteor_used() and "stems" in text_scores.meteor_used()


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ("a red ball", "the red balls", 1.0),
        ("a man", "the dog", 0.0),
        ("a man in a hat", "a man", 2 / 3),
        ("the", "the", 1.0),
        ("", "x", 0.0),
    ],
)
def test_how_alike_phrases_are(a, b, want):
    assert text_scores.stem_similarity(a, b) == text_scores.stem_similarity(b, a) == pytest.approx(want)


def left(size=(4, 6)):
    mask = np.zeros(size, bool)
    mask[:, :3] = True
    return mask


def files(folder, told=None, marked=None):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    said = [
        {"image_id": 1, "caption": "A cat beside a dog on the grass.", "labels": ["A cat", "a dog"]},
        {"image_id": 1, "caption": "Two animals."},
        {"image_id": 2, "caption": "A boat on a lake in the evening.", "labels": ["A boat"]},
    ]
    found = [
        {"image_id": 1, "category_id": 1, "segmentation": encode(left())},
        {"image_id": 1, "category_id": 1, "segmentation": encode(~left())},
        {"image_id": 2, "category_id": 1, "segmentation": {"size": [4, 6], "counts": [4, 8, 12]}},
    ]
    paths = folder / "captions.json", folder / "masks.json"
    contents = ({"images": images, "annotations": said}, {"images": images, "annotations": found})
    for path, content, change in zip(paths, contents, (told, marked), strict=True):
        if change:
            change(content)
        path.write_text(json.dumps(content))
    return paths


def said(truth, phrases, text):
    found = tuple(
        PhrasePrediction(
            name,
            (text.index(name), text.index(name) + len(name)),
            np.zeros((len(codes), 4)),
            np.linspace(0.9, 0.5, len(codes)),
            tuple(codes),
        )
        for name, codes in phrases
    )
    return captions.caption_of(truth, Prediction(truth.id, truth.image, (4, 6), text, found, {}))


def test_perfect_empty_and_half_right_captions(tmp_path):
    truths = captions.read_truth(*files(tmp_path))
    assert [truth.labels for truth in truths] == [("A cat", "a dog"), ("A boat",)]
    perfect = [
        said(t, [(n, [m]) for n, m in zip(t.labels, t.masks, strict=True)], t.captions[0]) for t in truths
    ]
    scores = captions.score(truths, perfect)
    assert scores.ap50 == scores.miou == scores.recall == scores.recall_released == 1
    # a caption of n words all in place: 1 - 0.5 / n^3
    assert scores.meteor == pytest.approx(1 - (0.5 / 8**3 + 0.5 / 8**3) / 2)
    assert scores.cider > 7
    nothing = captions.score(truths, [captions.Caption("", (), (), ())] * 2)
    assert (nothing.ap50, nothing.miou, nothing.recall, nothing.cider, nothing.meteor) == (0, 0, 0, 0, 0)
    # names exchanged: masks are all there, phrases are not
    swapped = [perfect[0]._replace(phrases=perfect[0].phrases[::-1]), perfect[1]]
    scores = captions.score(truths, swapped)
    assert scores.ap50 == scores.miou == 1 and scores.recall == pytest.approx(1 / 3)
    assert captions.score(truths, swapped, lambda a, b: 1.0).recall == 1


def test_all_masks_of_a_phrase_are_one(tmp_path):
    truth = captions.read_truth(*files(tmp_path))[0]
    got = said(truth, [("Both", [encode(left()), encode(~left())]), ("x", [])], "Both x")
    assert got.phrases == ("Both",) and got.masks == (encode(np.ones((4, 6), bool)),) and got.scores == (0.9,)


@pytest.mark.parametrize(
    ("told", "marked", "message"),
    [
        (lambda c: c.pop("images"), None, "captions.json has no list 'images'"),
        (lambda c: c["annotations"].pop(), None, "captions.json: image 2 has no caption"),
        (
            lambda c: c["annotations"][0]["labels"].pop(),
            None,
            "image 1 has 1 labels, but 2 masks in .*masks.json",
        ),
        (
            lambda c: c["annotations"][0].update(labels=[1, 2]),
            None,
            "labels of image 1 must be a list of texts",
        ),
        (lambda c: c["annotations"][1].update(caption=None), None, "annotation 1 needs 'caption', a text"),
        (
            None,
            lambda c: c["annotations"].append([]),
            "masks.json: annotation 3 needs 'segmentation', an object",
        ),
        (
            None,
            lambda c: c["annotations"][1].update(segmentation={"size": [4, 6], "counts": [5]}),
            "masks.json: annotation 1: segmentation is no run-length code",
        ),
        (
            None,
            lambda c: c["annotations"][1].update(segmentation=encode(left((2, 6)))),
            r"annotation 1: mask of size \[2, 6\], an earlier one of its picture \[4, 6\]",
        ),
    ],
)
def test_faulty_files(tmp_path, told, marked, message):
    with pytest.raises(ValueError, match=message):
        captions.read_truth(*files(tmp_path, told, marked))


def test_a_picture_of_another_size(tmp_path):
    truth = captions.read_truth(*files(tmp_path))[0]
    prediction = Prediction(1, "a.jpg", (6, 4), "", (), {}, where="p.jsonl, line 2")
    with pytest.raises(
        ValueError, match=r"p.jsonl, line 2: 'a.jpg' is 4 x 6 pixels large, the annotations say 6 x 4"
    ):
        captions.caption_of(truth, prediction)
