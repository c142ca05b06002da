"""Datasets as TFDS builders: every layout is read, TFDS's own way gives the same, no TensorFlow."""

import io
import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from lgjax.data.build import build
from lgjax.data.cli import Name
from lgjax.data.datasets import DATASETS
from lgjax.data.read import Dataset
from lgjax.data.schema import Record, Turn
from lgjax.data.shards import Report, examples, record_of
from tests.data.sources import examples as layouts
from tests.data.toy import FAULTS, LgToy, write

WRITERS = {
    "lg_flickr": layouts.write_flickr,
    "lg_coco": layouts.write_coco,
    "lg_coco_panoptic": layouts.write_panoptic,
    "lg_refcoco": layouts.write_refcoco,
    "lg_gvc": layouts.write_gvc,
    "lg_visual_prompt": layouts.write_visual_prompt,
    "lg_region_caption": layouts.write_region_caption,
    "lg_visual_genome": layouts.write_visual_genome,
    "lg_plain": layouts.write_plain,
    "lg_instruct": layouts.write_llava,
}


def test_the_command_line_knows_every_dataset():
    assert list(typing.get_args(Name)) == [dataset.name for dataset in DATASETS]
    assert all(issubclass(dataset, tfds.core.GeneratorBasedBuilder) for dataset in DATASETS)


@pytest.mark.parametrize("dataset", [d for d in DATASETS if d.name in WRITERS], ids=lambda d: d.name)
def test_every_layout_builds_and_reads_back(dataset, tmp_path):
    builder = dataset(source=WRITERS[dataset.name](tmp_path / "source"))
    manifest = build(builder, tmp_path / "out", workers=1, max_skips=1.0, splits=("train",))
    for split in manifest["splits"]:
        records = builder.records()[split]
        read = Dataset(tmp_path / "out", split)
        kept, report = {}, Report()
        for index, example in examples(records, range(len(records)), report):
            kept[index] = record_of(example)
        assert list(read) == list(kept.values()) and len(read) > 0
        assert manifest["splits"][split]["skipped"] == len(report.skipped) == len(records) - len(kept)


def test_captions_and_instructions_choose_their_file(tmp_path):
    layouts.write_llava(tmp_path)
    file = next(tmp_path.rglob("llava_instruct_150k.json"))
    items = json.loads(file.read_text())
    file.with_name("chat.json").write_text(json.dumps(items[:1]))
    file.with_name("mine.json").write_text(json.dumps(items[:2]))
    by_name = {dataset.name: dataset for dataset in DATASETS}

    def length(dataset: str, **options) -> int:
        return len(by_name[dataset](source=tmp_path, options=options).records()["train"])

    assert length("lg_instruct") == len(items) and length("lg_caption") == 1
    assert length("lg_instruct", name="mine.json") == length("lg_caption", name="mine.json") == 2
    with pytest.raises(ValueError, match=r"options .* of lg_instruct: .*'split_by'"):
        length("lg_instruct", split_by="unc")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path, tfds.core.DatasetBuilder]:
    folder = tmp_path_factory.mktemp("toy")
    source = write(folder / "source", 50, FAULTS)
    builder = LgToy(data_dir=folder / "tfds", source=source)
    builder.download_and_prepare()
    build(LgToy(source=source), folder / "own", workers=1, max_skips=0.5)
    return folder, source, builder


def test_tfds_itself_gives_the_same_examples(prepared):
    folder, _, builder = prepared
    assert Path(builder.data_dir) == folder / "tfds" / "lg_toy" / "1.0.0"
    for split in ("train", "val"):
        assert list(Dataset(builder.data_dir, split)) == list(Dataset(folder / "own", split))
    for shard in (folder / "own").glob("*.array_record-*"):
        assert (Path(builder.data_dir) / shard.name).read_bytes() == shard.read_bytes()
    manager = tfds.download.DownloadManager(download_dir=folder / "downloads")
    generated = builder._split_generators(manager)["val"]
    assert [record_of(example) for _, example in generated] == list(Dataset(folder / "own", "val"))


def test_any_reader_of_tfds_can_decode(prepared):
    folder, source, _ = prepared
    data = tfds.builder_from_directory(folder / "own").as_data_source("train[:8]")
    assert [example["id"].decode() for example in data] == [
        r.id for r in Dataset(folder / "own", "train[:8]")
    ]
    for example in data:
        record = json.loads(example["record"])
        if "size" not in record:
            assert example["image"].shape == (1, 1, 3)
            continue
        [path] = (source / "images").glob(f"{record['id']}.*")
        with PIL.Image.open(path) as picture:
            # two JPEG decoders differ by a little
            assert np.abs(np.asarray(picture, int) - example["image"]).mean() < 2
    assert "tensorflow" not in sys.modules


def test_only_array_record_is_written(prepared, tmp_path):
    with pytest.raises(ValueError, match="array_record"):
        LgToy(data_dir=tmp_path, source=prepared[1], file_format="tfrecord").download_and_prepare()


def test_pictures_in_memory_are_kept_to_the_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    turns = (Turn("human", "a"), Turn("gpt", "b"))
    for image in (pixels, PIL.Image.fromarray(pixels)):
        record = Record(id="1", kind="chat", image=image, size=(7, 9), turns=turns)
        [(_, example)] = examples([record], range(1), Report())
        assert (np.asarray(PIL.Image.open(io.BytesIO(record_of(example).image))) == pixels).all()


def test_a_build_loads_neither_jax_nor_tensorflow(tmp_path):
    write(tmp_path / "source", 8)
    code = (
        "import sys\nfrom tests.data import toy\n"
        f"toy.main({str(tmp_path / 'source')!r}, {str(tmp_path / 'out')!r}, '1', '0')\n"
        "heavy = {'jax', 'grain', 'tensorflow', 'torch'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
