"""How good annotations are: of a run alone, and against another run or a file that was checked by hand."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lgjax.annotate import pieces
from lgjax.annotate.inputs import Inputs
from lgjax.annotate.nouns import mentions
from lgjax.annotate.outputs import REPORT, record_of
from lgjax.annotate.pieces import Line, links_of
from lgjax.annotate.records import TextLink, text_of
from lgjax.annotate.reply import read_links, without_links
from lgjax.annotate.run import read_run
from lgjax.annotate.task import Task
from lgjax.data.schema import Record, RecordError, read_json
from lgjax.data.sheet import sheet
from lgjax.data.sources.common import plain_name, read_coco
from lgjax.text.coco_names import coco_lexicon

# the picture and the text; its links, all of turn 0
Texts = Mapping[tuple[str, str], Sequence[TextLink]]


class Agreement(NamedTuple):
    """Links (a phrase and one of its instances) of two annotators in the texts that both have.

    common: of the first, those that the second has on an overlapping phrase; found: the other way round.
    same_spans: phrases of the first that the second has with the same ends.
    """

    texts: int
    first: int
    second: int
    common: int
    found: int
    phrases: int
    same_spans: int

    @property
    def precision(self) -> float:
        """Share of the first's links that the second has too."""
        return self.common / self.first if self.first else 0.0

    @property
    def recall(self) -> float:
        """Share of the second's links that the first has too."""
        return self.found / self.second if self.second else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is complete: its lines, what they are about, where the pictures are, its counts."""

    lines: Sequence[Line]
    inputs: Inputs
    images: Path | None
    report: Mapping[str, Any]


def texts_of_run(run: Run) -> Texts:
    """The annotated texts of a run."""
    texts = {}
    for line in run.lines:
        for turn, text in _texts(line):
            links = [link._replace(turn=0) for link in links_of(line) if link.turn == turn]
            texts[plain_name(line["image"]), text] = links
    return texts


def _texts(line: Line) -> Iterator[tuple[int, str]]:
    """The texts of a line that were not rejected, with their turns."""
    if "fault" in line:
        return
    rejected = {turn for turn, _ in line["faults"]}
    for turn, message in enumerate(line["conversations"]):
        if turn not in rejected:
            yield turn, text_of(message)


def texts_of_file(path: Path, inputs: Inputs) -> Texts:
    """The texts of a checked file: `{"captions": [{"image_id", "marked"}]}`, links written as in answers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another layout, or an entry does not fit its picture.
    """
    data = read_json(path)
    entries = data.get("captions") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} is no checked file: it has no list 'captions'")
    texts = {}
    for number, entry in enumerate(entries):
        try:
            image = inputs.coco.images[entry["image_id"]]["file_name"]
            text = without_links(entry["marked"]).strip()
            task = Task(text, inputs.instances(image))
            links = read_links(task, entry["marked"].strip())
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}: entry {number} lacks 'marked' or a known 'image_id'") from None
        except ValueError as error:
            raise ValueError(f"{path}: entry {number}: {error}") from error
        texts[plain_name(image), text] = [
            TextLink(0, link.start, link.end, tuple(task.instances[i].id for i in link.instances))
            for link in links
        ]
    return texts


def agreement(first: Texts, second: Texts) -> Agreement:
    """Compare the links of two annotators.

    Raises:
        ValueError: they have no text in common.
    """
    common = [key for key in first if key in second]
    if not common:
        raise ValueError("the two have no text in common, so there is nothing to compare")
    counts = [(first[key], second[key]) for key in common]
    return Agreement(
        texts=len(common),
        first=sum(len(link.ids) for ours, _ in counts for link in ours),
        second=sum(len(link.ids) for _, theirs in counts for link in theirs),
        common=sum(_shared(ours, theirs) for ours, theirs in counts),
        found=sum(_shared(theirs, ours) for ours, theirs in counts),
        phrases=sum(len(ours) for ours, _ in counts),
        same_spans=sum(
            any(link[1:3] == other[1:3] for other in theirs) for ours, theirs in counts for link in ours
        ),
    )


def _shared(ours: Sequence[TextLink], theirs: Sequence[TextLink]) -> int:
    return sum(
        any(i in other.ids and link.start < other.end and other.start < link.end for other in theirs)
        for link in ours
        for i in link.ids
    )


def named_phrases(texts: Texts) -> tuple[int, int]:
    """How many noun phrases name a category of COCO, and how many of these are tied to instances."""
    total = tied = 0
    for (_, text), links in texts.items():
        for mention in mentions(text, coco_lexicon()):
            total += 1
            tied += any(link.start < mention.end and mention.start < link.end for link in links)
    return total, tied


def show(run: Run, out: Path, count: int, seed: int | None, other: Texts | None) -> int:
    """Write a sheet of `count` lines with phrases, the first or drawn by `seed`; how many it shows.

    With `other` it shows those whose links differ, each with the other's links behind it.

    Raises:
        ValueError: no pictures, nothing to show, or an `out` that is neither .html nor .png.
    """
    if run.images is None:
        raise ValueError("a sheet shows pictures: the run was made without --images")
    lines = [line for line in run.lines if "fault" not in line]
    pairs = [(line, None if other is None else _with_other(line, other)) for line in lines]
    differing = [(ours, theirs) for ours, theirs in pairs if _links(ours) != _links(theirs)]
    if seed is not None:
        random.Random(seed).shuffle(differing)
    if not differing or count < 1:
        raise ValueError(
            "there is nothing to show: no conversation differs" if other else "there is nothing to show"
        )
    chosen = [line for pair in differing[:count] for line in pair if line is not None]
    sheet((_record(run, line) for line in chosen), out)
    return min(len(differing), count)


def _with_other(line: Line, other: Texts) -> Line:
    """The line with the links of the other annotator."""
    links = [
        [turn, *link[1:]]
        for turn, text in _texts(line)
        for link in other.get((plain_name(line["image"]), text), ())
    ]
    return {**line, "id": f"{line['id']} (other)", "links": links}


def _links(line: Line | None) -> set[Any]:
    return {(*link[:3], frozenset(link.ids)) for link in links_of(line or {})}


def _record(run: Run, line: Line) -> Record | RecordError:
    assert run.images is not None
    try:
        return record_of(line, run.inputs, run.images)
    except RecordError as error:
        return error


def open_run(out: Path) -> Run:
    """Read a run that is complete.

    Raises:
        FileNotFoundError: there is none, or its instances are gone.
        ValueError: it is not complete, or damaged.
    """
    run = read_run(out)
    if not (out / REPORT).is_file():
        raise ValueError(f"the run in {out} is not complete: annotate its other shards first")
    inputs = Inputs((), read_coco(Path(run["instances"])))
    images = Path(run["images"]) if run["images"] else None
    return Run(list(pieces.read(out, run["pieces"])), inputs, images, read_json(out / REPORT))
