"""Read built datasets: records by position, with their pictures as the bytes of files.

A dataset lies in a folder or in a bucket of Google Cloud Storage ("gs://BUCKET/DIR"). Of a bucket nothing is
copied: a record is read when it is asked for, so each host of a run reads the records of its own rows alone.

Source: spec/training_and_data.md 15.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any, overload

from etils import epath

from lgjax.data.schema import Record
from lgjax.data.shards import features, record_of, sha256_of, tfds

MANIFEST = "manifest.json"
_OTHER_BUCKETS = ("s3://", "az://", "hf://")  # epath reads them, array_record does not
Manifest = dict[str, Any]


class Dataset(Sequence[Any]):  # of Record; said here, run-time type checks would read one
    """The records of a split of a built dataset, in the order of their source.

    split may be a slice as TFDS knows them: "train[:10%]". Files are opened when a record is asked for, in
    each process anew, so a dataset can be sent to workers.

    Raises:
        ValueError: the folder is no built dataset, has no such split, or a shard is missing or truncated.
        ImportError: it lies in a bucket, and what reads buckets is not installed.
    """

    def __init__(self, folder: epath.PathLike, split: str = "train") -> None:
        self.folder, self.split = epath.Path(folder), split
        self._source = self._open()

    def _open(self) -> Any:
        builder = _builder(self.folder)
        splits = builder.info.splits
        try:
            found = splits[self.split]
        except (KeyError, ValueError) as error:
            names = ", ".join(splits)
            raise ValueError(f"{self.folder} has no split '{self.split}'; it has {names}") from error
        files = [epath.Path(instruction.filename) for instruction in found.file_instructions]
        if not files:
            raise ValueError(f"split '{self.split}' of {self.folder} has no records")
        _check_sizes(self.folder, files)
        decoders = {"image": tfds.decode.SkipDecoding()}
        return builder.as_data_source(self.split, decoders=decoders)

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """The record at `index`.

        Raises:
            ValueError: its shard is damaged.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return record_of(self._source[index % len(self)])
        # array_record raises RuntimeError, protobuf errors of its own
        except Exception as error:
            raise ValueError(
                f"{self.folder}: record {index} of '{self.split}' cannot be read: {error}; "
                f"`lgjax data verify {self.folder}` says which files are damaged"
            ) from error

    def __repr__(self) -> str:
        return f"Dataset({str(self.folder)!r}, {self.split!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)


def _builder(folder: epath.Path) -> Any:
    _check_bucket(str(folder))
    if not (folder / "dataset_info.json").is_file():
        unfinished = folder.with_name(f"{folder.name}.incomplete")
        why = (
            f"its build has not ended, {unfinished} is there"
            if unfinished.is_dir()
            else "no dataset_info.json that this machine can read"
        )
        raise ValueError(f"{folder} is no built dataset ({why}); make one with `lgjax data build`")
    try:
        builder = tfds.builder_from_directory(folder)
        found: Any = builder.info.features
    except Exception as error:  # whatever TFDS meets in damaged files
        raise ValueError(f"{folder} is damaged: {error}") from error
    if set(found) != set(features()):
        raise ValueError(f"{folder} is no dataset of lgjax: it holds {', '.join(sorted(found))}")
    return builder


def _check_bucket(folder: str) -> None:
    if folder.startswith(_OTHER_BUCKETS):
        raise ValueError(f"{folder} is no folder and no gs:// bucket; mount this bucket as a folder")
    if folder.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise ImportError(f'{folder} lies in a bucket: pip install "lgjax[gcs]"')


def _check_sizes(folder: epath.Path, files: Sequence[epath.Path]) -> None:
    there = {path.name for path in folder.iterdir()}  # one request to a bucket, which also learns the sizes
    if missing := [file.name for file in files if file.name not in there]:
        raise ValueError(f"{folder} lacks {len(missing)} shards, first {missing[0]}")
    if not (folder / MANIFEST).is_file():  # built by TFDS itself
        return
    shards = read_manifest(folder)["shards"]
    for file in files:
        if (size := file.stat().length) != shards[file.name]["bytes"]:
            raise ValueError(f"{file} has {size} bytes, but {shards[file.name]['bytes']} were written")


def read_manifest(folder: epath.PathLike) -> Manifest:
    """Read the manifest of a built dataset.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = epath.Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no sound {MANIFEST}; was it made by `lgjax data build`?") from error
    if not isinstance(manifest, dict) or not {"checksum", "shards", "source"} <= manifest.keys():
        raise ValueError(f"{folder / MANIFEST} is no manifest of a dataset")
    return manifest


def checksum_of(shards: Mapping[str, Mapping[str, Any]]) -> str:
    """The checksum of a dataset: of the checksums and names of its shards, in order."""
    lines = (f"{shard['sha256']}  {name}\n" for name, shard in shards.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def verify(folder: epath.PathLike) -> Manifest:
    """Hold every shard of a built dataset to the checksums of its manifest, and return that.

    Raises:
        ValueError: it is no built dataset, or a file is missing or was changed.
    """
    folder = epath.Path(folder)
    _builder(folder)
    manifest = read_manifest(folder)
    wrong = [
        name
        for name, shard in manifest["shards"].items()
        if not (folder / name).is_file() or sha256_of(folder / name) != shard["sha256"]
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} shards of {folder} are missing or changed: {', '.join(wrong[:3])}")
    if checksum_of(manifest["shards"]) != manifest["checksum"]:
        raise ValueError(f"the checksum of {folder / MANIFEST} is not that of its shards")
    return manifest
