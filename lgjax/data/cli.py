"""The commands of `lgjax data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

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
    "lg_scenes",
]
Folders = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR[=WEIGHT]")]


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
    count: int | None = None,
    seed: int | None = None,
    size: int | None = None,
) -> None:
    """Turn annotation files and pictures into a dataset that training reads.

    Records that cannot be used are counted and left out. A build that was stopped goes on with the same
    command; the folder has its name only when it is complete.

    Args:
        dataset: One of lg_flickr, lg_coco, lg_coco_panoptic, lg_refcoco, lg_gvc, lg_visual_prompt,
            lg_region_caption, lg_visual_genome, lg_plain (your own data), lg_instruct, lg_caption, lg_scenes
            (composed here, without any files).
        source: Folder with the dataset's own files, in the layout that the dataset's authors give them.
        target: Folder to write; it must not be there yet.
        split: Only this split; may be given several times.
        workers: Processes (default: one a core). The result is the same for any number.
        max_skips: Stop when a larger share of a split's records cannot be used; ten always may.
        limit: Only the first records of each split.
        split_by: lg_refcoco: which of several refs(*).p to read, for example unc.
        file: lg_instruct and lg_caption: the annotation file, when it has another name than the authors'.
        count: lg_scenes: how many (default 10000).
        seed: lg_scenes: another seed gives other scenes.
        size: lg_scenes: side of the pictures in pixels (default 128).
    """
    from rich.console import Console

    from lgjax.data import build as building

    console = Console(stderr=True)
    manifest = building.build(
        _dataset(dataset, source, split_by=split_by, name=file, count=count, seed=seed, size=size),
        target,
        splits=split,
        workers=workers,
        max_skips=max_skips,
        limit=limit,
        console=console,
    )
    _show(manifest)
    print(f"wrote {target}, checksum {manifest['checksum'][:16]}")


def _dataset(dataset: str, source: Path | None, /, **options: Any) -> Any:
    """The builder of a dataset; options that were not given are left out."""
    from lgjax.data.datasets import DATASETS

    given = {option: value for option, value in options.items() if value is not None}
    return {known.name: known for known in DATASETS}[dataset](source=source, options=given)


@app.command
def scene(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    /,
    *,
    number: int = 0,
    seed: int = 0,
    split: Literal["train", "combinations", "styles"] = "train",
    most: int = 6,
    size: int = 384,
) -> None:
    """Compose a scene of drawn things, write its picture, and say what is in it.

    Args:
        file: The picture to write, with a suffix that Pillow knows.
        number: Which scene of the split.
        seed: Another seed gives other scenes.
        split: "train": what the small model learns from; "combinations": pairs of classes that it never sees
            together; "styles": drawings that it never sees.
        most: Most things in it.
        size: Side of the picture in pixels.
    """
    from lgjax.data.scenes import SceneConfig
    from lgjax.data.sources.scenes import Scenes

    composed = Scenes(config=SceneConfig(size=size, max_things=most), split=split, seed=seed).scene(number)
    composed.image.save(file)
    for thing in composed.things:
        box = ", ".join(f"{value:.0f}" for value in thing.box)
        print(f"{thing.colour or ''} {thing.kind.name} at ({box})".strip())
    print(f"wrote {file}")


@app.command
def show(
    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME_OR_DIR")],
    /,
    *,
    out: Path,
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="DIR")] = None,
    split: str = "train",
    count: int = 12,
    seed: int | None = None,
    marked: bool = False,
    split_by: str | None = None,
    file: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
) -> None:
    """Write a sheet to look at: pictures, coloured phrases, boxes, masks, prompts.

    Args:
        dataset: A folder made by `lgjax data build`, or the name of a dataset: lg_scenes as it is, any other
            with its own files in --from.
        out: The sheet, sheet.html or sheet.png.
        source: Folder with the dataset's own files.
        split: Which split.
        count: How many records.
        seed: Draw the records at random; without it the first ones are shown.
        marked: Turn grounded chat into chat about numbered marks.
        split_by: lg_refcoco: which of several refs(*).p to read, for example unc.
        file: lg_instruct and lg_caption: the annotation file, when it has another name than the authors'.
    """
    from lgjax.data.marks import MarkedSource
    from lgjax.data.read import Dataset
    from lgjax.data.sheet import show as write

    if dataset in get_args(Name):
        splits = _dataset(dataset, source, split_by=split_by, name=file).records()
        if split not in splits:
            raise ValueError(f"{dataset} has no split '{split}'; it has {', '.join(splits)}")
        records = splits[split]
    elif "://" in dataset or Path(dataset).is_dir():
        records = Dataset(dataset, split)
    else:
        raise ValueError(f"'{dataset}' is no folder and none of {', '.join(get_args(Name))}")
    faults = write(MarkedSource(records) if marked else records, out, count, seed)
    print(f"wrote {out}" + (f"; {faults} of its records cannot be used, it says why" if faults else ""))


@app.command
def bench(
    grounded: Folders = (),
    text: Folders = (),
    grounded_rows: int = 8,
    text_rows: int = 8,
    length: int = 1536,
    canvas: int = 1024,
    mask_side: int = 512,
    workers: int = 0,
    seconds: float = 20.0,
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None,
    plan: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    hosts: int = 1,
) -> None:
    """Measure how fast training batches are made, and where the time goes.

    Without folders it makes the batch of stage 2 of composed scenes.

    Args:
        grounded: Folders made by `lgjax data build` for grounded rows; "=3" behind one is its weight.
        text: The same for rows of text for the language model alone.
        grounded_rows: Grounded rows of a batch.
        text_rows: Text rows of a batch.
        length: Positions of a row, the picture's included.
        canvas: Side of the grounding view in pixels.
        mask_side: Side of the masks in pixels.
        workers: Processes for the second measurement (0: threads of this process).
        seconds: How long to measure.
        tokenizer: A tokenizer.model, or a folder with the tokenizer of a checkpoint (default: a small one).
        plan: What `lgjax plan --json` printed of the step that these batches are for: says whether machines
            like this one keep up with it.
        hosts: How many machines share the rows of that step.
    """
    from lgjax.data import bench as benching
    from lgjax.data.batch import BatchConfig

    if hosts < 1:
        raise ValueError(f"--hosts {hosts}: there must be at least one")
    planned = None if plan is None else benching.Planned.read(plan)
    config = BatchConfig(length=length, canvas=canvas, mask_side=min(mask_side, canvas))
    mixture = benching.mixture_of(grounded, text, grounded_rows, text_rows)
    maker = benching.maker_of(config, tokenizer)
    print(benching.report(mixture, maker, workers, seconds, planned, hosts))


@app.command
def verify(folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")], /) -> None:
    """Hold every file of a dataset to the checksums that were taken when it was built.

    Args:
        folder: Folder made by `lgjax data build`, or gs://BUCKET/DIR with a copy of it.
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
        for reason, found in list(counts["drop_reasons"].items())[:5]:
            line = f"{split}: {found['count']} objects dropped: {reason}; first in record {found['first']}"
            console.print(Text(line), soft_wrap=True)
