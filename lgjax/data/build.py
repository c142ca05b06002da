"""Build a dataset: many processes, resumable, the same bytes whatever their number, with a manifest.

While a build runs, its shards stand in `<target>.incomplete`, each with a report of what went into it. A
killed build goes on where it stopped; at the end the folder gets its name in one step.
Source: spec/training_and_data.md 15.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from lgjax import __version__
from lgjax.data.datasets import GroundedDataset, split_info
from lgjax.data.read import MANIFEST, Manifest, checksum_of, read_manifest
from lgjax.data.schema import Records, reason_of
from lgjax.data.shards import (
    SHARD_RECORDS,
    Report,
    check_skips,
    features,
    shard_name,
    shards_of,
    tfds,
    write_shard,
)
from lgjax.data.workers import results

NOTES = (
    ".build"  # folder of what is needed while a build runs: reports of finished shards, the source, a lock
)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which records of a split become which file."""

    split: str
    name: str
    records: range


def build(
    dataset: GroundedDataset,
    target: Path,
    *,
    splits: Sequence[str] = (),
    workers: int | None = None,
    max_skips: float = 0.05,
    limit: int | None = None,
    shard_records: int = SHARD_RECORDS,
    console: Console | None = None,
) -> Manifest:
    """Build `dataset` into the folder `target`, or go on with a build that was stopped.

    splits: which ones, default all; workers: processes, default one a core; max_skips: the share of a split's
    records that may be unusable (ten always may); limit: only the first records of each split. Returns the
    manifest, which is also written. A target that holds this very dataset is left as it is.

    Raises:
        ValueError: an option or split that is not there, a target that holds something else, a source that
            changed since the build began, or too many unusable records.
        FileNotFoundError: the source folder lacks a file.
    """
    _check_options(workers, max_skips, limit)
    target = target.absolute()
    work = target.with_name(f"{target.name}.incomplete")
    begun = _identity(dataset, splits, limit, shard_records)
    if target.exists():
        return _already_built(target, begun)
    records = _records(dataset, splits)  # what is wrong with the source leaves no folder behind
    (work / NOTES).mkdir(parents=True, exist_ok=True)
    with _alone(work):
        if target.exists():  # another build has ended since
            return _already_built(target, begun)
        _same_source(work, begun)
        if not (work / MANIFEST).exists():
            sizes = {split: min(len(r), limit or len(r)) for split, r in records.items()}
            shards = _plan(dataset.name, sizes, shard_records)
            reports = _write(work, records, shards, sizes, workers, max_skips, console)
            _finish(work, dataset, begun, sizes, reports)
        shutil.rmtree(work / NOTES)
        work.rename(target)
    return read_manifest(target)


def _check_options(workers: int | None, max_skips: float, limit: int | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"workers {workers} must be 1 or more")
    if not 0 <= max_skips <= 1:
        raise ValueError(f"max_skips {max_skips} is a share, from 0 to 1")
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} must be 1 or more")


def _identity(
    dataset: GroundedDataset, splits: Sequence[str], limit: int | None, shard_records: int
) -> dict[str, Any]:
    """What decides the result: if any of it changes, shards of before must not be mixed with new ones."""
    return {
        "dataset": dataset.name,
        "version": str(dataset.version),
        "lgjax": __version__,
        "folder": None if dataset.source is None else str(dataset.source.absolute()),
        "files": {} if dataset.source is None else _files(dataset.source),
        "options": dataset.options,
        "splits": sorted(splits),
        "limit": limit,
        "shard_records": shard_records,
    }


def _files(source: Path) -> dict[str, list[int]]:
    """Size and time of every file below a folder that is no picture: those may be mended."""
    pictures = tuple(PIL.Image.registered_extensions())
    files, seen = {}, set()
    for folder, folders, names in os.walk(source, followlinks=True):
        is_built = NOTES in folders or "dataset_info.json" in names  # perhaps this very target
        if is_built or (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(names):
            path = Path(folder, name)
            if not name.lower().endswith(pictures) and path.is_file():
                stat = path.stat()
                files[str(path.relative_to(source))] = [stat.st_size, stat.st_mtime_ns]
    return files


def _difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [name for name in now if begun.get(name) != now[name]]
    if "files" in changed:
        before, after = begun.get("files", {}), now["files"]
        changed += sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))[:3]
    return ", ".join(changed)


def _already_built(target: Path, begun: Mapping[str, Any]) -> Manifest:
    if target.is_dir() and (target / MANIFEST).is_file():
        manifest = read_manifest(target)
        if not (changed := _difference(manifest.get("source", {}), begun)):
            return manifest
        raise ValueError(f"{target} holds another dataset ({changed} differ); remove it or choose another")
    raise ValueError(f"{target} is already there and no dataset; remove it or choose another folder")


def _same_source(work: Path, begun: Mapping[str, Any]) -> None:
    file = work / NOTES / "source.json"
    if (work / MANIFEST).exists():
        before = read_manifest(work)["source"]
    elif file.exists():
        before = json.loads(file.read_bytes())
    else:
        before = begun
        _write_json(file, begun)
    if changed := _difference(before, begun):
        raise ValueError(
            f"{work} was begun with another source: {changed} changed; "
            "remove it to build anew, or choose another target"
        )


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the folder against a second build; the lock goes with the process and its workers."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    (work / NOTES).mkdir(parents=True, exist_ok=True)
    with (work / NOTES / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another build is at work in {work}") from error
        yield


def _records(dataset: GroundedDataset, splits: Sequence[str]) -> dict[str, Records]:
    records = dict(dataset.records())
    if unknown := sorted(set(splits) - records.keys()):
        raise ValueError(f"{dataset.source} has no split {', '.join(unknown)}; it has {', '.join(records)}")
    records = {split: r for split, r in records.items() if not splits or split in splits}
    if empty := [split for split, r in records.items() if not len(r)]:
        raise ValueError(f"split {', '.join(empty)} of {dataset.source} has no records")
    return records


def _plan(dataset: str, sizes: Mapping[str, int], shard_records: int) -> list[Shard]:
    shards = []
    for split, size in sizes.items():
        ranges = shards_of(size, shard_records)
        shards += [Shard(split, shard_name(dataset, split, i, len(ranges)), r) for i, r in enumerate(ranges)]
    return shards


def _write(
    work: Path,
    records: Mapping[str, Records],
    shards: Sequence[Shard],
    sizes: Mapping[str, int],
    workers: int | None,
    max_skips: float,
    console: Console | None,
) -> dict[Shard, Report]:
    """Write the shards that are not there yet; returns the reports of all, in order."""
    for unfinished in [*work.glob("*.tmp"), *(work / NOTES).glob("*.tmp")]:
        unfinished.unlink()
    done = {shard: report for shard in shards if (report := _finished(work, shard)) is not None}
    todo = [shard for shard in shards if shard not in done]
    workers = min(workers or os.cpu_count() or 1, max(1, len(todo)))
    write = functools.partial(_write_one, work, records)
    # processes start before the progress bar, whose thread they must not copy
    with results(write, todo, workers) as reports, _progress(console) as progress:
        bars = {split: progress.add_task(split, total=size, skipped=0) for split, size in sizes.items()}
        for shard, report in itertools.chain(list(done.items()), reports):
            done[shard] = report
            of_split = [r for s, r in done.items() if s.split == shard.split]
            progress.update(
                bars[shard.split],
                completed=sum(len(s.records) for s in done if s.split == shard.split),
                skipped=sum(len(r.skipped) for r in of_split),
            )
            try:
                check_skips(shard.split, sizes[shard.split], of_split, max_skips)
            except ValueError as error:
                raise ValueError(f"{error}. What is finished stays in {work}") from None
    return {shard: done[shard] for shard in shards}


def _report_file(work: Path, shard: Shard) -> Path:
    return work / NOTES / f"{shard.name}.json"


def _finished(work: Path, shard: Shard) -> Report | None:
    """The report of a shard that an earlier run completed; skipped records are tried again."""
    try:
        report = Report(**json.loads(_report_file(work, shard).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # not there, or cut by a machine that went off
        return None
    return report if (work / shard.name).is_file() and not report.skipped else None


def _write_one(work: Path, records: Mapping[str, Records], shard: Shard) -> Report:
    report = write_shard(work / shard.name, records[shard.split], shard.records)
    _write_json(_report_file(work, shard), dataclasses.asdict(report))  # the mark of a finished shard
    return report


def _write_json(path: Path, value: Any) -> None:
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.rename(path)


class _Rate(TextColumn):
    """Records a second of this run."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("records, {task.fields[skipped]} skipped"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
    )


def _finish(
    work: Path,
    dataset: GroundedDataset,
    begun: Mapping[str, Any],
    sizes: Mapping[str, int],
    reports: Mapping[Shard, Report],
) -> None:
    """Write what TFDS needs to read the folder, then the manifest."""
    by_split = {split: [r for shard, r in reports.items() if shard.split == split] for split in sizes}
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features=features(),
        split_infos=[split_info(split, some) for split, some in by_split.items()],
        version=str(dataset.version),
        description=dataset.info.description,
        disable_shuffling=True,
        check_data=False,  # it would need TensorFlow
    )
    shards = {
        shard.name: {
            "records": report.records,
            "bytes": (work / shard.name).stat().st_size,
            "sha256": report.sha256,
        }
        for shard, report in reports.items()
    }
    manifest = {
        "dataset": dataset.name,
        "version": str(dataset.version),
        "lgjax": __version__,
        "checksum": checksum_of(shards),
        "splits": {split: _summary(some) for split, some in by_split.items()},
        "source": begun,
        "shards": shards,
    }
    _write_json(work / MANIFEST, manifest)


def _summary(reports: Sequence[Report]) -> dict[str, Any]:
    """Add up the reports of a split; reasons come with the first three records they were met in."""
    skipped: dict[str, list[str]] = {}
    counts, dropped = collections.Counter(), collections.Counter()
    dropped_in: dict[str, str] = {}
    for report in reports:
        dropped_in = {**report.dropped_in, **dropped_in}
        counts.update(report.counts)
        dropped.update(report.dropped)
        for message in report.skipped:
            skipped.setdefault(reason_of(message), []).append(message)
    reasons = sorted(skipped.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        "records": sum(report.records for report in reports),
        "skipped": sum(map(len, skipped.values())),
        **counts,
        "dropped": sum(dropped.values()),
        "bytes": sum(report.num_bytes for report in reports),
        "skip_reasons": {
            reason: {"count": len(messages), "examples": messages[:3]} for reason, messages in reasons
        },
        "drop_reasons": {
            reason: {"count": count, "first": dropped_in[reason]}
            for reason, count in sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        },
    }
