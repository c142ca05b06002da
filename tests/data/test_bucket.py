"""Datasets in a bucket: the same records as in a folder, each read by itself."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lgjax.cli import main
from lgjax.data.datasets import LgScenes
from lgjax.data.read import Dataset, verify
from tests.data.bucket import BUCKET, Bucket, serve

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason='nothing here reads buckets: pip install "lgjax[gcs]"'
)
COUNT = 60


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[Bucket]:
    root = tmp_path_factory.mktemp("bucket")
    builder = LgScenes(data_dir=root, options={"count": COUNT, "size": 256})
    builder.download_and_prepare()
    Path(builder.data_dir).rename(root / "scenes")
    with serve(root) as found:
        yield found


def shard(bucket: Bucket) -> Path:
    (path,) = (bucket.root / "scenes").glob("*-train.array_record-*")
    return path


def test_records_are_those_of_the_folder(bucket):
    found, want = Dataset(f"gs://{BUCKET}/scenes"), Dataset(bucket.root / "scenes")
    assert len(found) == COUNT and found[:20] == want[:20]
    assert found[-1] == want[COUNT - 1]
    again = pickle.loads(pickle.dumps(found))  # as it comes to a worker
    assert again[3] == want[3] and str(again.folder) == f"gs://{BUCKET}/scenes"


def test_a_record_is_read_without_the_others(bucket):
    path = shard(bucket)
    data = Dataset(f"gs://{BUCKET}/scenes")
    assert data[0].id  # finds out where records lie
    before = bucket.sent[f"scenes/{path.name}"]
    assert data[7].id
    sent = bucket.sent[f"scenes/{path.name}"] - before
    assert 0 < sent < path.stat().st_size / 2


def test_faults_are_told_as_of_a_folder(bucket):
    with pytest.raises(ValueError, match=f"{BUCKET}/none is no built dataset .no dataset_info.json that"):
        Dataset(f"gs://{BUCKET}/none")
    with pytest.raises(ValueError, match="has no split 'val'; it has"):
        Dataset(f"gs://{BUCKET}/scenes", "val")
    shutil.copytree(bucket.root / "scenes", bucket.root / "gone")
    (bucket.root / "gone" / shard(bucket).name).unlink()
    with pytest.raises(ValueError, match=f"gs://{BUCKET}/gone lacks 1 shards, first lg_scenes-train"):
        Dataset(f"gs://{BUCKET}/gone")
    with pytest.raises(ValueError, match=r"has no sound manifest\.json"):  # TFDS writes none
        verify(f"gs://{BUCKET}/scenes")


@pytest.mark.parametrize("folder", ["s3://things/scenes", "az://things/scenes"])
def test_other_buckets_are_refused(folder, capsys):
    with pytest.raises(SystemExit):
        main(["data", "verify", folder])
    said = capsys.readouterr().err
    assert said == f"lgjax: {folder} is no folder and no gs:// bucket; mount this bucket as a folder\n"


def test_what_reads_buckets_is_named_where_it_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    with pytest.raises(ImportError, match=r'gs://things/scenes lies in a bucket: pip install "lgjax\[gcs\]"'):
        Dataset("gs://things/scenes")
