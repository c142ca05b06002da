"""The commands of `lgjax data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

app = tyro.extras.SubcommandApp()
HELP = "Build, check and look at datasets."
Name = Literal[
    "lg_flickr",
    "lg_coco",
    "lg_coco_panoptic",
    "lg_refcoco",
    "lg_gvc",
    "lg_visual_prompt",
    "lg_region_caption",
    "lg_visual_genome",
    "lg_plain",
    "lg_instruct",
    "lg_caption",
]


@app.command
def build(
    dataset: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    /,
    *,
    target: Annotated[Path, tyro.conf.arg(name="to", metavar="DIR")],
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None,
    split: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="SPLIT")] = (),
    workers: int | None = None,
    max_skips: float = 0.05,
    limit: int | None = None,
    split_by: str | None = None,
    file: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
) -> None:
    """Turn annotation files and pictures into a dataset that training reads.

    Records that cannot be used are counted and left out. A build that was stopped goes on with the same
    command; the folder has its name only when it is complete.

    Args:
        dataset: One of lg_flickr, lg_coco, lg_coco_panoptic, lg_refcoco, lg_gvc, lg_visual_prompt,
            lg_region_caption, lg_visual_genome, lg_plain, lg_instruct, lg_caption.
        source: Folder with the dataset's own files, in the layout that the dataset's authors give them.
        target: Folder to write; it must not be there yet.
        split: Only this split; may be given several times.
        workers: Processes (default: one a core). The result is the same for any number.
        max_skips: Stop when a larger share of a split's records cannot be used; ten always may.
        limit: Only the first records of each split.
        split_by: lg_refcoco: which of several refs(*).p to read, for example unc.
        file: lg_instruct and lg_caption: the annotation file, when it has another name than the authors'.
    """
    from rich.console import Console

    from lgjax.data import build as building
    from lgjax.data.datasets import DATASETS

    given: dict[str, Any] = {"split_by": split_by, "name": file}
    options = {name: value for name, value in given.items() if value is not None}
    builder = {known.name: known for known in DATASETS}[dataset](source=source, options=options)
    console = Console(stderr=True)
    manifest = building.build(
        builder,
        target,
        splits=split,
        workers=workers,
        max_skips=max_skips,
        limit=limit,
        console=console,
    )
    _show(manifest)
    print(f"wrote {target}, checksum {manifest['checksum'][:16]}")


@app.command
def verify(folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")], /) -> None:
    """Hold every file of a dataset to the checksums that were taken when it was built.

    Args:
        folder: Folder made by `lgjax data build`.
    """
    from lgjax.data import read

    manifest = read.verify(folder)
    _show(manifest)
    print(f"{folder} is as it was built, checksum {manifest['checksum'][:16]}")


def _show(manifest: dict[str, Any]) -> None:
    """Print what each split holds, and why records and objects were left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = ("records", "skipped", "turns", "objects", "dropped", "phrases", "regions", "expressions")
    table = Table("", *manifest["splits"], box=None, header_style="dim")
    for name in rows:
        table.add_row(name, *(f"{counts.get(name, 0):,}" for counts in manifest["splits"].values()))
    console = Console()
    console.print(table)
    for split, counts in manifest["splits"].items():
        for reason, found in list(counts["skip_reasons"].items())[:5]:
            line = f"{split}: {found['count']} records skipped: {reason}; first: {found['examples'][0]}"
            console.print(Text(line), soft_wrap=True)
        for reason, count in list(counts["drop_reasons"].items())[:5]:
            console.print(Text(f"{split}: {count} objects dropped: {reason}"), soft_wrap=True)
