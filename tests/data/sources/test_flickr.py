"""Flickr30k Entities: phrases of the worked example, shared boxes, overlaps, pseudo masks."""

import pytest

from lgjax.data import masks
from lgjax.data.schema import Phrase
from lgjax.data.sources import flickr
from lgjax.text.conversation import FLICKR_PHRASE
from tests.data.sources import examples
from tests.data.sources.reading import outcomes, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return examples.write_flickr(tmp_path_factory.mktemp("flickr"))


def test_worked_example(folder):
    record = flickr.read(folder)["train"][0]
    text = record.turns[0].text
    for phrase in reversed(record.phrases):
        start, end = phrase.span
        text = text[:start] + FLICKR_PHRASE.format(phrase=text[start:end]) + text[end:]
    assert text == "<g_s>Two dogs<g_e><seg> chase <g_s>a red ball<g_e><seg> ."
    labels = [[k for k, p in enumerate(record.phrases) if i in p.objects] for i in range(3)]
    assert labels == [[0], [0], [1]]
    assert [thing.box for thing in record.objects] == [
        (40, 60, 140, 110),
        (210, 80, 280, 140),
        (160, 150, 180, 170),
    ]
    assert record.size == (500, 375) and record.image == folder / "flickr30k-images/123.jpg"
    assert record.kind == "caption" and record.dropped == ()


def test_pseudo_masks_take_the_place_of_own_ones(folder):
    record = flickr.read(folder)["train"][0]
    assert masks.decode(record.objects[2].mask, record.size).sum() == 100
    assert masks.decode(record.objects[0].mask, record.size).sum() == 5000


def test_shared_boxes_and_overlapping_spans(folder):
    records, refused = outcomes(flickr.read(folder)["train"])
    record = records[1]
    # "A dog" and "its toy" lie inside "A dog with its toy"
    assert record.phrases == (Phrase(turn=0, span=(0, 18), objects=(1,)),)
    assert sorted(record.dropped) == sorted([flickr.BAD_SPAN, *["phrase that overlaps a longer one"] * 3])
    assert masks.clean(record).phrases == (Phrase(turn=0, span=(0, 18)),)
    assert list(refused) == [2] and "record 2 (id 9): the sentence has no boxed phrase" in refused[2]
    assert records[3].image == folder / "flickr30k-images/124.jpg"


def test_a_box_with_two_spans_is_one_object_of_two_phrases(folder):
    source = flickr.read(folder)["train"]
    coco = source.make.args[0]
    coco.annotations[8] = [a for a in coco.annotations[8] if a["id"] == 34]
    record = source[1]
    assert words(record) == [("A dog", [34]), ("its toy", [34])] and len(record.objects) == 1


def test_splits_and_missing_files(folder, tmp_path):
    sources = flickr.read(folder)
    assert {split: len(source) for split, source in sources.items()} == {"train": 4, "val": 1}
    with pytest.raises(FileNotFoundError) as error:
        flickr.read(tmp_path)
    for part in ("final_flickr_separateGT_val.json", str(tmp_path / "annotations"), "flickr30k-images/"):
        assert part in str(error.value)
    (folder / "annotations/flickr_masks.jsonl").write_text('{"id": 1}')
    with pytest.raises(ValueError, match=r"flickr_masks.jsonl: line 1 lacks 'segmentation'"):
        flickr.read(folder)
