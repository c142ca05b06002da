"""RefCOCO in both layouts, pickles that are refused, region captions read and built."""

import collections
import json
import pickle

import pytest

from lgjax.data.questions import REGION
from lgjax.data.sources import refcoco, region_caption
from lgjax.data.sources.common import UNKNOWN_ID
from lgjax.data.sources.refcoco import NO_TEXT
from tests.data.sources import examples
from tests.data.sources.examples import CAT, CHAIR, CROWD, SOFA
from tests.data.sources.reading import outcomes


def said(record):
    return [(e.texts, [record.objects[i].id for i in e.objects]) for e in record.expressions]


def test_files_of_refer(tmp_path):
    folder = examples.write_refcoco(tmp_path)
    sources = refcoco.read(folder)
    assert {split: len(source) for split, source in sources.items()} == {"train": 1, "val": 1, "testA": 1}
    record = sources["train"][0]
    assert said(record) == [(("cat on the left", "Left cat", "the tabby"), [CAT])]
    assert sorted(record.dropped) == sorted([UNKNOWN_ID, NO_TEXT])
    assert [thing.id for thing in record.objects] == [CAT, SOFA]
    assert record.image == folder / "train2014/COCO_train2014_000000000042.jpg" and record.image.is_file()
    _, refused = outcomes(sources["testA"])
    assert f"refs(unc).p: record 0 (id 44): no expression is left: {UNKNOWN_ID}" in refused[0]


def test_several_files_of_refer(tmp_path):
    folder = examples.write_refcoco(tmp_path)
    (folder / "refs(google).p").write_bytes((folder / "refs(unc).p").read_bytes())
    with pytest.raises(ValueError, match=r"refs\(google\).p, refs\(unc\).p; .* or say which with split_by"):
        refcoco.read(folder)
    assert len(refcoco.read(folder, split_by="unc")) == 3
    with pytest.raises(FileNotFoundError, match=r"no refs\(umd\).p in"):
        refcoco.read(folder, split_by="umd")


def test_merged_file_without_pictures_of_other_splits(tmp_path):
    folder = examples.write_refcoco_merged(tmp_path)
    sources = refcoco.read(folder)
    records, refused = outcomes(sources["train"])
    assert list(sources) == ["train"] and list(records) == [0] and not refused
    assert said(records[0]) == [(("cat on the left", "Left cat"), [CAT]), (("the couch",), [SOFA])]
    assert refcoco.read_merged(folder / "annotations/grounding_train2017.json", folder).held_out == {43, 44}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_pickles_with_plain_values(tmp_path, protocol):
    path = tmp_path / "refs(x).p"
    ref = {"split": "train", "image_id": 1, "ann_id": 2, "sentences": [], "more": {1, 2}, "x": (1.5, None)}
    path.write_bytes(pickle.dumps([ref], protocol=protocol))
    assert refcoco.read_refs(path) == [ref]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_with_anything_else_are_refused(tmp_path, protocol):
    path = tmp_path / "refs(x).p"
    for value in (Touch(tmp_path / "made"), collections.OrderedDict(), eval, getattr):
        path.write_bytes(pickle.dumps([value], protocol=protocol))
        with pytest.raises(ValueError, match=r"refs\(x\).p is refused: it holds '.*'; only lists"):
            refcoco.read_refs(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04]", b"cos\nsystem\n(S'true'\ntR.", b"no pickle", b"P1\n."]
)
def test_damaged_pickles(tmp_path, content):
    path = tmp_path / "refs(x).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\(x\).p is refused"):
        refcoco.read_refs(path)
    path.write_bytes(pickle.dumps([{"split": "train"}]))
    with pytest.raises(ValueError, match="ref 0 must have"):
        refcoco.read_refs(path)


def test_region_captions_of_the_released_layout(tmp_path):
    records, refused = outcomes(region_caption.read(examples.write_region_caption(tmp_path))["train"])
    record = records[0]
    assert said(record) == [(("cat on the left", "Left cat"), [CAT]), (("the couch",), [SOFA])]
    assert {e.question for e in record.expressions} == {"Briefly describe the object <obj> ."}
    assert [thing.id for thing in record.objects] == [CAT, SOFA, CROWD, CHAIR]
    assert record.kind == "region" and record.dropped == (UNKNOWN_ID,)
    assert list(refused) == [1] and "no expression is left" in refused[1]


def test_region_captions_without_the_released_files_and_built(tmp_path):
    folder = examples.write_refcoco_merged(tmp_path)
    examples.put(folder / "annotations/instances_train2017.json", examples.coco())
    made = region_caption.read(folder)["train"][0]
    assert said(made) == [(("cat on the left", "Left cat"), [CAT]), (("the couch",), [SOFA])]
    assert [e.question for e in made.expressions] == [None, None]
    out = tmp_path / "out/annotations"
    region_caption.build(
        folder / "annotations/grounding_train2017.json",
        folder / "annotations/instances_train2017.json",
        out,
    )
    assert sorted(path.name for path in out.iterdir()) == [region_caption.INSTRUCT, region_caption.INSTANCES]
    first = json.loads((out / region_caption.INSTRUCT).read_text())[0]
    assert first == {
        "id": "000000000042",
        "image": "000000000042.jpg",
        "conversations": [
            {"from": "human", "value": REGION[0].replace("<obj>", "%")},
            {"from": "gpt", "value": ["cat on the left", "Left cat"]},
        ],
        "q_gd_ls": [[CAT]],
    }
    built = region_caption.read(out.parent)["train"][0]
    assert said(built) == said(made) and built.objects == made.objects
    assert [e.question for e in built.expressions] == list(REGION[:2])
