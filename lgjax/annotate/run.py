"""A run of the data engine: annotate pieces, leave out what is done, and join when all are there.

    out/
      run.json                          what decides the result; a run goes on only with the same
      pieces/000012.jsonl               see `pieces`
      replies/                          what was paid for: answers of the language model
      batch/                            request and result files of batches
      images -> the pictures            so that `lgjax data build` finds them
      annotations/, marked/, report.json    see `outputs`

Processes share nothing but this folder: any number of them, on any machines, may work on shards of one run,
and go on with another number of shards. The one that sees the last piece joins; two that do write the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lgjax.annotate import outputs, pieces
from lgjax.annotate.inputs import Inputs
from lgjax.annotate.pieces import Shard
from lgjax.annotate.task import Annotator
from lgjax.annotate.writing import Writer
from lgjax.data.schema import read_json

RUN = "run.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made of which inputs, where.

    writer: makes chats where the inputs are scenes; instances: the file of the instances; images: the folder
    of the pictures, if they are at hand; questions: annotate these too; marks: make marked chat; piece: chats
    of a piece.
    """

    inputs: Inputs
    annotator: Annotator
    writer: Writer | None
    out: Path
    instances: Path
    images: Path | None = None
    questions: bool = False
    marks: bool = False
    piece: int = 200

    @property
    def ranges(self) -> list[range]:
        """The items of each piece."""
        return pieces.ranges(len(self.inputs.items), self.piece)

    def size_of(self, shard: Shard) -> int:
        """How many items a shard has."""
        return sum(len(self.ranges[piece]) for piece in shard.of(len(self.ranges)))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result, as JSON values."""
        identity = {
            "files": self.inputs.checksums,
            **self.annotator.identity,
            "writer": None if self.writer is None else self.writer.identity,
            "questions": self.questions,
            "marks": self.marks,
            "piece": self.piece,
        }
        return json.loads(json.dumps(identity))


def prepare(job: Job) -> None:
    """Make the folder of the run, or see that it belongs to this very run.

    Raises:
        ValueError: it holds another run or something else, there is nothing to do, or pictures are needed
            and their folder is not named or not there.
    """
    if job.piece < 1:
        raise ValueError(f"pieces of {job.piece} chats: 1 or more are needed")
    if job.marks and job.images is None:
        raise ValueError("numbers are drawn into the pictures: name their folder with --images")
    if job.images is not None and not job.images.is_dir():
        raise ValueError(f"there is no folder {job.images} with pictures")
    if not job.inputs.items:
        raise ValueError("there is nothing to annotate: the file of conversations or captions is empty")
    if (job.out / RUN).exists():
        _check_same(job, read_run(job.out))
    elif job.out.exists() and not _is_begun(job.out):
        raise ValueError(f"{job.out} is there already and holds no run; take another --to")
    else:
        images = None if job.images is None else str(job.images.absolute())
        begun = {
            "identity": job.identity,
            "pieces": len(job.ranges),
            "instances": str(job.instances.absolute()),
            "images": images,
        }
        pieces.save(job.out / RUN, [json.dumps(begun, indent=1).encode() + b"\n"])
    if job.images is not None:
        with contextlib.suppress(FileExistsError):
            (job.out / "images").symlink_to(job.images.absolute())


def read_run(out: Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the file is damaged.
    """
    run = read_json(out / RUN)
    kinds = {"identity": dict, "pieces": int, "instances": str, "images": str | None}
    if not isinstance(run, dict) or not all(isinstance(run.get(name), kinds[name]) for name in kinds):
        raise ValueError(f"{out / RUN} is no description of a run")
    return run


def _check_same(job: Job, begun: dict[str, Any]) -> None:
    old, new = begun["identity"], job.identity
    if names := sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
        raise ValueError(
            f"{job.out} was begun with other {', '.join(names)}; take another --to, or the options of before"
        )


def _is_begun(out: Path) -> bool:
    """Whether the folder holds nothing but what a process leaves that is killed before `run.json`."""
    return out.is_dir() and all(p.suffix == ".tmp" or p.name in ("replies", "batch") for p in out.iterdir())


def work(job: Job, shard: Shard, progress: Callable[[int], Any] = lambda chats: None) -> bool:
    """Annotate the pieces of a shard that are not there yet; whether all of them are there then.

    Only answers that are still to come keep a piece from being there. `progress` is told how many chats have
    been settled, each time.
    """
    complete = True
    for piece in shard.of(len(job.ranges)):
        if not pieces.path_of(job.out, piece).exists():
            items = job.ranges[piece]
            lines = pieces.annotate(job.inputs, items, job.annotator, job.writer, questions=job.questions)
            if lines is None:
                complete = False
                continue
            if job.marks and job.images is not None:
                lines = outputs.with_marks(job.out, lines, items, job.inputs, job.images)
            pieces.save_piece(job.out, piece, lines)
        progress(len(job.ranges[piece]))
    return complete


def finish(job: Job) -> dict[str, Any] | None:
    """Join the pieces when all of all shards are there; the report, or None while some are missing."""
    if not all(pieces.path_of(job.out, piece).exists() for piece in range(len(job.ranges))):
        return None
    if not (job.out / outputs.REPORT).exists():
        outputs.join(job.out, len(job.ranges), job.inputs, job.instances, questions=job.questions)
        for folder in ("pieces", "replies", "marked"):  # what killed processes left
            for left in (job.out / folder).rglob("*.tmp"):
                left.unlink(missing_ok=True)
    return read_json(job.out / outputs.REPORT)
