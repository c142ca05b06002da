"""The datasets as TFDS builders: `LgCoco(data_dir="data", source="coco").download_and_prepare()`.

`lgjax data build` makes the same examples with many processes, can be resumed, and writes a manifest.
Source: spec/training_and_data.md 15.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgjax.data.scenes import SceneConfig, Split
from lgjax.data.schema import Records
from lgjax.data.shards import (
    Report,
    check_skips,
    examples,
    features,
    shard_name,
    shards_of,
    tfds,
    write_shard,
)
from lgjax.data.sources import (
    coco,
    coco_panoptic,
    flickr,
    gvc,
    llava,
    plain,
    refcoco,
    region_caption,
    visual_genome,
    visual_prompt,
)
from lgjax.data.sources.common import look_for
from lgjax.data.sources.scenes import Scenes

Splits = Mapping[str, Records]


class GroundedDataset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the datasets: a subclass says how the `source` folder is read.

    options: keywords of the reader, for example {"split_by": "umd"}.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, source: str | Path | None = None, options: Mapping[str, Any] | None = None, **keywords: Any
    ) -> None:
        self.source = None if source is None else Path(source)
        self.options = dict(options or {})
        super().__init__(**{"file_format": "array_record", **keywords})

    @staticmethod
    def read(folder: Path) -> Splits:
        """Return the records of every split; subclasses may take options."""
        raise NotImplementedError

    def records(self) -> Splits:
        """Read the source folder.

        Raises:
            ValueError: there is none, an option that this dataset does not have, or a file of another layout.
            FileNotFoundError: the folder or a file of it is not there.
        """
        if self.source is None:
            raise ValueError(f"{self.name} is made of files: name their folder (--from DIR, source=)")
        try:
            inspect.signature(self.read).bind(self.source, **self.options)
        except TypeError as error:
            raise ValueError(f"options {self.options} of {self.name}: {error}") from error
        return self.read(self.source, **self.options)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(), description=inspect.getdoc(type(self)), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(records) for split, records in self.records().items()}

    def _generate_examples(self, records: Records) -> Any:
        return examples(records, range(len(records)), Report())

    def _generate_splits(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> list[tfds.core.SplitInfo]:
        """Write shards in the order of the source.

        TFDS's own writer holds and sorts a whole split, and past 1 GB needs TensorFlow.
        """
        if self.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f'{self.name} is written with file_format="array_record" only')
        infos = []
        for split, records in self.records().items():
            reports = []
            num_records = min(len(records), download_config.max_examples_per_split or len(records))
            shards = shards_of(num_records)
            for index, indices in enumerate(shards):
                path = Path(self.data_dir) / shard_name(self.name, split, index, len(shards))
                reports.append(write_shard(path, records, indices))
            check_skips(split, num_records, reports, 1.0)
            infos.append(split_info(split, reports, self._get_filename_template(split)))
        return infos


def split_info(split: str, reports: Sequence[Report], template: Any = None) -> tfds.core.SplitInfo:
    """What TFDS wants to know of a split whose shards gave these reports."""
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[report.records for report in reports],
        num_bytes=sum(report.num_bytes for report in reports),
        filename_template=template,
    )


class LgFlickr(GroundedDataset):
    """Flickr30k Entities: captions whose phrases have boxes, and masks where a file has them."""

    read = staticmethod(flickr.read)


class LgCoco(GroundedDataset):
    """COCO instances: categories of a picture with the masks of their objects."""

    read = staticmethod(coco.read)


class LgCocoPanoptic(GroundedDataset):
    """COCO panoptic: things and stuff of a picture with their segments."""

    read = staticmethod(coco_panoptic.read)


class LgRefcoco(GroundedDataset):
    """RefCOCO, RefCOCO+ and RefCOCOg: expressions that name an object (option `split_by`)."""

    read = staticmethod(refcoco.read)


class LgGvc(GroundedDataset):
    """Grounded visual chat: conversations whose phrases have masks."""

    read = staticmethod(gvc.read)


class LgVisualPrompt(GroundedDataset):
    """Conversations whose questions point at objects."""

    read = staticmethod(visual_prompt.read)


class LgRegionCaption(GroundedDataset):
    """Captions of single objects, made of RefCOCO's expressions."""

    read = staticmethod(region_caption.read)


class LgVisualGenome(GroundedDataset):
    """Visual Genome: captions of boxes."""

    read = staticmethod(visual_genome.read)


class LgPlain(GroundedDataset):
    """One's own pictures and texts in the plain JSONL layout."""

    read = staticmethod(plain.read)


class LgInstruct(GroundedDataset):
    """LLaVA-Instruct: conversations without objects (option `name`: the file)."""

    @staticmethod
    def read(folder: Path, name: str = "llava_instruct_150k.json") -> Splits:
        return llava.read(folder, name)


class LgCaption(GroundedDataset):
    """Captions of CC3M-595K as conversations without objects (option `name`: the file)."""

    @staticmethod
    def read(folder: Path, name: str | None = None) -> Splits:
        names = [known for known in llava.NAMES if known != "llava_instruct_150k.json"]
        return llava.read(folder, name or next((n for n in names if look_for(folder, [n])), names[0]))


class LgScenes(GroundedDataset):
    """Composed scenes of drawn things (options `count` of "train", `seed`, `size` in pixels).

    "combinations" and "styles" hold out pairs of classes and classes in a style; they have a tenth as many.
    """

    @staticmethod
    def read(folder: Path | None, count: int = 10_000, seed: int = 0, size: int = 128) -> Splits:
        config = SceneConfig(size=size)
        counts: dict[Split, int] = {"train": count, "combinations": count // 10, "styles": count // 10}
        return {
            split: Scenes(config=config, split=split, seed=seed, count=number)
            for split, number in counts.items()
            if number or split == "train"
        }

    def records(self) -> Splits:
        if self.source is not None:
            raise ValueError(f"{self.name} is composed and read from no folder; leave out --from")
        return self.read(None, **self.options)


DATASETS = (
    LgFlickr,
    LgCoco,
    LgCocoPanoptic,
    LgRefcoco,
    LgGvc,
    LgVisualPrompt,
    LgRegionCaption,
    LgVisualGenome,
    LgPlain,
    LgInstruct,
    LgCaption,
    LgScenes,
)
