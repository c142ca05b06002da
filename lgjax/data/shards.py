"""Records as TFDS examples, checked one by one and written to shards in the order of their source.

An example holds the picture (the bytes of its file, or PNG), the record's id and kind, and the rest of the
record as JSON text. A record without a picture has no "size" in its JSON, and a picture of one grey pixel
stands in for it, so that any TFDS reader can decode it.
Source: spec/training_and_data.md 15.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from etils import epath

from lgjax.data.images import CANVAS_GREY, ImageSource, check_shape, load_image
from lgjax.data.masks import clean
from lgjax.data.schema import Record, RecordError, Records, Source, check, from_json, reason_of, to_json

try:
    import importlib_resources  # noqa: F401 (TFDS imports it when it writes, but does not install it)
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
except ImportError as error:
    raise ImportError(f'datasets need TFDS and array_record: pip install "lgjax[train]" ({error})') from error

SHARD_RECORDS = 512
Example = dict[str, Any]


def features() -> tfds.features.FeaturesDict:
    """What an example of every dataset holds."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), doc="the picture as its source has it"),
            "id": tfds.features.Text(doc="what the source calls the record"),
            "kind": tfds.features.Text(doc="chat, caption, referring or region"),
            "record": tfds.features.Text(doc="JSON of lgjax.data.schema.Record without its picture"),
        }
    )


@dataclasses.dataclass
class Report:
    """What became of some records: how many are kept, of what, and why others are not.

    skipped: one message each, naming file and record; dropped: reasons why objects were left out, and
    dropped_in: the id of the first record of each.
    """

    records: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped_in: dict[str, str] = dataclasses.field(default_factory=dict)
    num_bytes: int = 0
    sha256: str = ""

    def add(self, record: Record) -> None:
        """Count a record that is kept."""
        self.records += 1
        for name in ("turns", "objects", "phrases", "regions", "expressions"):
            self.counts[name] = self.counts.get(name, 0) + len(getattr(record, name))
        for reason in record.dropped:
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
            self.dropped_in.setdefault(reason, record.id)


def usable(records: Records, index: int) -> tuple[Record, bytes]:
    """Return the record at `index` without the objects that cannot be used, and its picture as a file.

    Raises:
        RecordError: the record cannot be made, its picture cannot be read or is of another size, or no
            expression or turn is left of it.
    """
    record = records[index]
    try:
        picture = _picture(record)
        record = clean(record)
        if record.kind in ("referring", "region") and not record.expressions:
            raise ValueError(f"no expression is left ({_why(record)})")
        if record.kind == "chat" and not record.turns:
            raise ValueError(f"no turn is left ({_why(record)})")
        check(record)
    except (ValueError, OSError) as error:
        file = f"{records.file}: " if isinstance(records, Source) else ""
        raise RecordError(f"{file}record {index} (id {record.id}): {error}") from error
    return record, picture


def _why(record: Record) -> str:
    return ", ".join(sorted(set(record.dropped)))


def _picture(record: Record) -> bytes:
    if record.image is None:
        return _png(PIL.Image.new("RGB", (1, 1), (CANVAS_GREY,) * 3))
    data = _file_of(record.image)
    width, height = load_image(record.image).size
    check_shape((width, height))
    if (width, height) != record.size:
        raise ValueError(f"picture is {width} x {height}, but the record says {record.size}")
    return data


def _file_of(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path) and Path(image).is_file():
        return Path(image).read_bytes()
    return _png(load_image(image))  # says what is wrong with a path


def _png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # a third of the usual level's time for 5% more bytes
    return file.getvalue()


def examples(records: Records, indices: Sequence[int], report: Report) -> Iterator[tuple[int, Example]]:
    """Yield (index, example) for the records that can be used; `report` takes down what became of each."""
    for index in indices:
        try:
            record, picture = usable(records, index)
        except RecordError as error:
            report.skipped.append(str(error))
            continue
        report.add(record)
        text = json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":"))
        yield index, {"image": picture, "id": record.id, "kind": record.kind, "record": text}


def record_of(example: Mapping[str, Any]) -> Record:
    """Turn an example, its picture not decoded, into its record."""
    fields = json.loads(example["record"])
    return from_json(fields, example["image"] if "size" in fields else None)


def shards_of(num_records: int, shard_records: int = SHARD_RECORDS) -> list[range]:
    """Which records go to which shard; skipped ones leave their shard shorter."""
    starts = range(0, num_records, shard_records)
    return [range(start, min(start + shard_records, num_records)) for start in starts]


def shard_name(dataset: str, split: str, index: int, num_shards: int) -> str:
    """The file name that TFDS gives a shard."""
    return f"{dataset}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


def write_shard(path: Path, records: Records, indices: Sequence[int]) -> Report:
    """Write a shard; it gets its name when it is complete, and the same records give the same bytes."""
    report = Report()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    to_example = _serializer()
    writer = ArrayRecordWriter(str(unfinished), "group_size:1")
    try:
        for _, example in examples(records, indices, report):
            # a protobuf map has no order of its own: without this two runs give different bytes
            data = to_example.get_tf_example(example).SerializeToString(deterministic=True)
            report.num_bytes += len(data)
            writer.write(data)
    finally:
        writer.close()
    report.sha256 = sha256_of(unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())  # a machine that is switched off leaves no empty file under the name
    unfinished.rename(path)
    return report


@functools.cache
def _serializer() -> ExampleSerializer:
    info: Any = features().get_serialized_info()
    return ExampleSerializer(info)


def sha256_of(path: Path | epath.Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as opened:
        file: Any = opened
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_skips(split: str, num_records: int, reports: Sequence[Report], max_skips: float) -> None:
    """Stop when too many records could not be used: more than `max_skips` of a split, and more than ten.

    Raises:
        ValueError: too many, or nothing is left when all are done; with the most frequent reasons.
    """
    skipped = list(itertools.chain.from_iterable(report.skipped for report in reports))
    empty = len(skipped) >= num_records
    if not empty and len(skipped) <= max(10, max_skips * num_records):
        return
    reasons = collections.Counter(map(reason_of, skipped)).most_common(3)
    often = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    limit = "none is left" if empty else f"more than {max_skips:.1%}"
    first = f" (first: {skipped[0]})" if skipped else ""
    raise ValueError(
        f"{len(skipped)} of {num_records} records of split '{split}' cannot be used, {limit}. {often}{first}"
    )
