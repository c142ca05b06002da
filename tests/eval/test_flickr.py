"""Flickr30k Entities: its files with faults, and recall against counting, its bounds and orders."""

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from lgjax.eval import flickr
from lgjax.eval.predictions import PhrasePrediction, Prediction

corners = st.tuples(*[st.integers(0, 9)] * 4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 1, max(v[1], v[3]) + 1]
)
phrases = st.lists(
    st.builds(
        lambda types, targets, boxes: flickr.GroundedPhrase(
            tuple(types), np.asarray(targets, float), np.asarray(boxes, float).reshape(-1, 4)
        ),
        st.lists(st.sampled_from(["people", "scene", "other"]), min_size=1, max_size=2, unique=True),
        st.lists(corners, min_size=1, max_size=3),
        st.lists(corners, max_size=12),
    ),
    min_size=1,
    max_size=6,
)


def covered(box):
    out = np.zeros((10, 10), bool)
    x0, y0, x1, y1 = map(int, box)
    out[y0:y1, x0:x1] = True
    return out


def hits(phrase, k, protocol):
    """Counted in pixels."""
    targets = [covered(target) for target in phrase.targets]
    if protocol == "merged":
        whole = np.zeros((10, 10), bool)
        rows, columns = np.nonzero(np.any(targets, axis=0))
        whole[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        targets = [whole]
    found = [covered(box) for box in phrase.boxes[:k]]
    return any(2 * (a & b).sum() >= (a | b).sum() for a in found for b in targets)


@hypothesis.given(phrases, st.sampled_from(["any", "merged"]), st.randoms())
@hypothesis.settings(max_examples=60)
def test_recall_against_counted_pixels(some, protocol, random):
    got = flickr.recall(some, protocol)
    for k, title in ((1, "R@1"), (5, "R@5"), (10, "R@10"), (None, "upper_bound")):
        for name in got[title]:
            mine = [phrase for phrase in some if name == "all" or name in phrase.types]
            assert got[title][name] == pytest.approx(np.mean([hits(p, k, protocol) for p in mine]))
    shares = [got[title]["all"] for title in ("R@1", "R@5", "R@10", "upper_bound")]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    shuffled = flickr.recall(random.sample(some, len(some)), protocol)
    assert {t: dict(sorted(v.items())) for t, v in shuffled.items()} == {
        t: dict(sorted(v.items())) for t, v in got.items()
    }
    target = (
        some[0].targets
        if protocol == "any"
        else [[*some[0].targets[:, :2].min(0), *some[0].targets[:, 2:].max(0)]]
    )
    better = some[0]._replace(boxes=np.concatenate([some[0].boxes, np.asarray(target)[:1]]))
    more = flickr.recall([better, *some[1:]], protocol)
    assert all(more[t][name] >= got[t][name] for t in got for name in got[t]), "a right box never lowers it"
    assert hits(better, None, protocol)


words = st.text("abcxyz.,'", min_size=1, max_size=5)
pieces = st.lists(
    st.tuples(st.lists(words, min_size=1, max_size=3), st.none() | st.integers(0, 99)), min_size=1, max_size=6
)


@hypothesis.given(pieces)
def test_sentences_there_and_back(parts):
    line = " ".join(
        " ".join(said) if chain is None else f"[/EN#{chain}/people/other {' '.join(said)}]"
        for said, chain in parts
    )
    sentence = flickr.parse_sentence(line)
    assert sentence.text.split(" ") == [word for said, _ in parts for word in said]
    assert [(p.text.split(" "), p.chain) for p in sentence.phrases] == [
        (said, str(chain)) for said, chain in parts if chain is not None
    ]
    for phrase in sentence.phrases:
        assert sentence.text[slice(*phrase.span)] == phrase.text and phrase.types == ("people", "other")
        assert sentence.text[: phrase.span[0]].count(" ") == phrase.first_word


@pytest.mark.parametrize(
    "line", ["[/EN#1/people A man runs", "A man] runs", "[A man] runs", "[/EN#x/people A] b"]
)
def test_brackets_that_belong_to_nothing(line):
    with pytest.raises(ValueError, match="belongs to no"):
        flickr.parse_sentence(line)


XML = """<annotation><filename>7.jpg</filename><size><width>64</width><height>48</height></size>
<object><name>1</name><name>2</name>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
<object><name>1</name><bndbox><xmin>31</xmin><ymin>2</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>4</name><scene>0</scene><nobndbox>1</nobndbox></object></annotation>"""
SENTENCES = """[/EN#1/people Two men] with [/EN#2/clothing/other a hat] in [/EN#3/scene a park] .
[/EN#3/scene A park] and [/EN#4/other wind] .
[/EN#0/notvisual Nobody] sees [/EN#2/other it] .
"""


def write(folder, sentences=SENTENCES, xml=XML):
    for name, text in (("test.txt", "7\n"), ("Sentences/7.txt", sentences), ("Annotations/7.xml", xml)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_captions_with_the_phrases_to_be_found(tmp_path):
    items = flickr.read_items(write(tmp_path), "test")
    assert [(item.id, item.image, item.size) for item in items] == [
        ("7/0", "7.jpg", (48, 64)),
        ("7/2", "7.jpg", (48, 64)),
    ]
    assert [[p.text for p in item.phrases] for item in items] == [["Two men", "a hat"], ["it"]]
    assert items[0].targets[0].tolist() == [[0, 1, 29, 39], [30, 1, 59, 39]]
    assert items[0].targets[1].tolist() == items[1].targets[0].tolist() == [[0, 1, 29, 39]]
    assert items[0].phrases[1].types == ("clothing", "other")


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (
            lambda f: (f / "Sentences/7.txt").unlink(),
            FileNotFoundError,
            "no file .*7.txt, but .*test.txt lists",
        ),
        (lambda f: (f / "Annotations/7.xml").unlink(), FileNotFoundError, "no file .*7.xml, but"),
        (lambda f: write(f, SENTENCES + "[/EN#1/people A man\n"), ValueError, "7.txt, line 4: bracket"),
        (lambda f: write(f, xml=XML[:90]), ValueError, "7.xml is no XML"),
        (lambda f: write(f, xml=XML.replace(">60<", ">nan<")), ValueError, "7.xml: bndbox/xmax .* 'nan'"),
        (lambda f: write(f, xml=XML.replace("width", "w")), ValueError, "7.xml: annotation/size/width"),
        (lambda f: write(f, "Nobody .\n"), ValueError, "no sentence of its pictures has a phrase with a box"),
    ],
)
def test_faulty_files(tmp_path, fault, kind, message):
    fault(write(tmp_path))
    with pytest.raises(kind, match=message):
        flickr.read_items(tmp_path, "test")


def test_another_number_of_phrases(tmp_path):
    item = flickr.read_items(write(tmp_path), "test")[0]
    one = PhrasePrediction("a", (0, 1), np.zeros((0, 4)), np.zeros(0))
    prediction = Prediction("7/0", "7.jpg", (48, 64), "a", (one,), {}, where="p.jsonl, line 3")
    with pytest.raises(
        ValueError, match=r"p.jsonl, line 3: question '7/0' has 1 phrases, the sentence has 2"
    ):
        flickr.grounded(item, prediction)
