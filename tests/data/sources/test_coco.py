"""COCO instances, COCO panoptic and Visual Genome: names and regions as expressions."""

import numpy as np
import pytest

from lgjax.data import masks
from lgjax.data.sources import coco, coco_panoptic, visual_genome
from tests.data.sources import examples
from tests.data.sources.reading import outcomes


def said(record):
    return [(e.texts, [record.objects[i].id for i in e.objects]) for e in record.expressions]


def test_names_of_instances(tmp_path):
    sources = coco.read(examples.write_coco(tmp_path))
    assert list(sources) == ["train", "val"]
    records, refused = outcomes(sources["train"])
    assert said(records[0]) == [
        (("cat",), [examples.CAT]),
        (("couch",), [examples.SOFA]),
        (("chair",), [examples.CHAIR]),
    ]
    assert records[0].dropped == ("crowd",) and records[0].objects[0].box == (4, 6, 24, 36)
    assert len(masks.clean(records[0]).expressions) == 2
    assert said(records[1]) == [(("dog",), [examples.DOG, examples.OTHER_DOG])]
    assert records[1].dropped == ("annotation without a box of four numbers",)
    assert list(refused) == [2] and "(id 44): no instance with a class name" in refused[2]


def test_variants_of_the_layout(tmp_path):
    examples.put(tmp_path / "instances_train2017_subset.json", examples.coco())
    examples.picture(tmp_path / "images/000000000042.jpg")
    assert coco.read(tmp_path)["train"][0].image == tmp_path / "images/000000000042.jpg"
    examples.put(tmp_path / "instances_train2017_other.json", examples.coco())
    with pytest.raises(ValueError, match=r"several files .*_other.json, .*_subset.json; leave one"):
        coco.read(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no list 'images'"),
        ({"images": [], "annotations": [{"id": 1}]}, "annotation 0 must be an object with id and image_id"),
        ({"images": [], "annotations": [{"id": 1, "image_id": [3]}]}, "annotation 0 must be"),
        ({"images": [{"id": 1}], "annotations": []}, "image 0 must be an object with id and file_name"),
    ],
)
def test_files_of_another_layout(tmp_path, data, message):
    examples.put(tmp_path / "instances_train2017.json", data)
    with pytest.raises(ValueError, match=message):
        coco.read(tmp_path)


def test_panoptic_names_without_suffixes(tmp_path):
    folder = examples.write_panoptic(tmp_path)
    records, refused = outcomes(coco_panoptic.read(folder)["train"])
    record = records[0]
    assert said(record) == [(("tree",), [258, 70000]), (("floor",), [3])]
    assert record.objects[1].box == (20, 0, 30, 10)
    want = examples.bitmap(0, 20, 64, 28)
    assert np.array_equal(masks.decode(record.objects[2].mask, record.size), want)
    assert record.dropped == ("crowd", "segment without pixels")
    assert "000000000043.png' (10 bytes) is not a picture" in refused[1]
    assert "no panoptic annotation" in refused[2]


def test_panoptic_map_that_is_missing_or_of_another_size(tmp_path):
    folder = examples.write_panoptic(tmp_path)
    maps = folder / "annotations/panoptic_train2017"
    (maps / "000000000042.png").unlink()
    examples.picture(maps / "000000000043.png", (9, 9))
    _, refused = outcomes(coco_panoptic.read(folder)["train"])
    assert "is not there" in refused[0] and r"has size (9, 9), its picture (64, 48)" in refused[1]


def test_panoptic_with_the_referring_set(tmp_path):
    examples.write_panoptic(tmp_path)
    examples.write_refcoco_merged(tmp_path)
    source = coco_panoptic.read(tmp_path)["train"]
    assert [image["id"] for image in source.items] == [42]
    assert source[0].expressions[0].texts == ("cat on the left", "Left cat")


def test_panoptic_file_of_another_layout(tmp_path):
    examples.put(tmp_path / "panoptic_val2017.json", {"images": []})
    with pytest.raises(ValueError, match=r"panoptic_val2017.json is not of COCO's panoptic layout: .*annot"):
        coco_panoptic.read(tmp_path)


def test_regions_of_visual_genome(tmp_path):
    folder = examples.write_visual_genome(tmp_path)
    records, refused = outcomes(visual_genome.read(folder)["train"])
    assert said(records[0]) == [(("a wooden bench",), [0]), (("sky",), [3])]
    assert records[0].objects[0].box == (10, 10, 30, 40)
    assert records[0].objects[0].mask is None and records[0].image == folder / "VG_100K/5.jpg"
    assert sorted(records[0].dropped) == [
        "annotation without a box of four numbers",
        "expression without a text",
    ]
    assert list(refused) == [1]
