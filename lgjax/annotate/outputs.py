"""What a run gives out, made of its pieces: files in the original's schema, marked chat, a report.

    annotations/
      grounded_visual_chat_data.json            grounded chat, read by lg_gvc
      instances_train2017_gvc.json              the instances of its pictures
      llava_instruct_150k_visual_prompt.json    with questions: chat about regions, read by lg_visual_prompt
      instances_train2014_filter.json           the instances of its pictures
    marked/chat.json, marked/images/            with marks: chat about numbered marks, read by lg_instruct
                                                (--file chat.json)
    report.json                                 counts, rejects by reason; written last

Source: spec/training_and_data.md 5.3, 5.4, 9.3, 9.4, 10.
"""

from __future__ import annotations

import collections
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lgjax.annotate import pieces
from lgjax.annotate.inputs import Inputs
from lgjax.annotate.pieces import Line, links_of
from lgjax.annotate.records import fault_of_grounded, grounded, prompted
from lgjax.data.marks import marked, picture_of
from lgjax.data.schema import Record, RecordError, read_json, reason_of
from lgjax.data.sources import gvc
from lgjax.data.sources.common import Pictures, plain_name
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER

REPORT = "report.json"
_JPEG_QUALITY = 95


def grounded_of(line: Line, inputs: Inputs) -> tuple[dict[str, Any] | None, str]:
    """The record of grounded chat of a line, or None and why there is none."""
    if "fault" in line:
        return None, line["fault"]
    record = grounded(line, links_of(line))
    fault = fault_of_grounded(record, {one.id for one in inputs.instances(line["image"])})
    return (None, fault) if fault else (record, "")


def record_of(line: Line, inputs: Inputs, images: Path) -> Record:
    """The same as the reader of lg_gvc gives it, with its picture below `images`.

    Raises:
        RecordError: there is none.
    """
    record, fault = grounded_of(line, inputs)
    if record is None:
        raise RecordError(f"{line.get('image')}: {fault}")
    try:
        return gvc.make(inputs.coco, Pictures.below(images, "train2014", "train2017"), record)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RecordError(f"{line['image']}: {error}") from error


def with_marks(
    out: Path, lines: Sequence[Line], items: Iterable[int], inputs: Inputs, images: Path
) -> list[Line]:
    """The lines with `marked`, their chat about numbered marks, or `unmarked`, why there is none.

    The pictures with the marks are drawn.
    """
    done = []
    for line, item in zip(lines, items, strict=True):
        try:
            chat = marked(record_of(line, inputs, images))
            drawn = picture_of(chat)
        except (ValueError, OSError) as error:
            done.append({**line, "unmarked": str(error)})
            continue
        file, name = io.BytesIO(), f"{item:08d}.jpg"
        drawn.save(file, "JPEG", quality=_JPEG_QUALITY)
        pieces.save(out / "marked" / "images" / name, [file.getvalue()])
        messages = [{"from": turn.speaker, "value": turn.text} for turn in chat.turns]
        messages[0]["value"] = f"{IMAGE_PLACEHOLDER}\n{messages[0]['value']}"
        done.append({**line, "marked": {"id": line["id"], "image": name, "conversations": messages}})
    return done


def join(out: Path, num_pieces: int, inputs: Inputs, instances: Path, *, questions: bool) -> None:
    """Write all files from the pieces; the report is the last.

    Raises:
        FileNotFoundError: a piece is missing.
        ValueError: a piece is damaged.
    """

    def lines() -> Iterator[Line]:
        return pieces.read(out, num_pieces)

    counts = _Counts()
    files = out / "annotations"
    kept = (record for line in lines() if (record := counts.add(line, inputs)) is not None)
    _save_with_instances(files / "grounded_visual_chat_data.json", kept, instances, "instances_train2017_gvc")
    if questions:
        asked = (r for line in lines() if "fault" not in line and (r := prompted(line, links_of(line))))
        name = "llava_instruct_150k_visual_prompt.json"
        _save_with_instances(files / name, counts.asked(asked), instances, "instances_train2014_filter")
    if chats := [line["marked"] for line in lines() if "marked" in line]:
        pieces.save(out / "marked" / "chat.json", _list(chats))
        counts.numbers["chats with marks"] = len(chats)
    pieces.save(out / REPORT, [json.dumps(counts.report(), indent=1, ensure_ascii=False).encode() + b"\n"])


def _save_with_instances(path: Path, records: Iterable[dict[str, Any]], instances: Path, name: str) -> None:
    """Write records, and the part of the instance file that is about their pictures."""
    images: set[str] = set()

    def noting() -> Iterator[dict[str, Any]]:
        for record in records:
            images.add(plain_name(record["image"]))
            yield record

    pieces.save(path, _list(noting()))
    data = read_json(instances)
    data["images"] = [entry for entry in data["images"] if plain_name(entry["file_name"]) in images]
    used = {entry["id"] for entry in data["images"]}
    data["annotations"] = [one for one in data["annotations"] if one["image_id"] in used]
    pieces.save(path.with_name(f"{name}.json"), [json.dumps(data, ensure_ascii=False).encode()])


def _list(items: Iterable[Any]) -> Iterator[bytes]:
    """A JSON list, one item a line."""
    start = b"[\n"
    for item in items:
        yield start + json.dumps(item, ensure_ascii=False).encode()
        start = b",\n"
    yield b"\n]\n" if start == b",\n" else b"[]\n"


class _Counts:
    """What became of the lines."""

    def __init__(self) -> None:
        self.numbers: collections.Counter[str] = collections.Counter()
        self.chats: collections.Counter[str] = collections.Counter()
        self.texts: collections.Counter[str] = collections.Counter()
        self.unmarked: collections.Counter[str] = collections.Counter()
        self.seen: dict[str, int] = {}
        self.named: set[Any] = set()

    def add(self, line: Line, inputs: Inputs) -> dict[str, Any] | None:
        """Count a line; its record, if it has one."""
        record, fault = grounded_of(line, inputs)
        self.numbers["chats"] += 1
        if fault:
            self.chats[kind_of(fault)] += 1
        elif "unmarked" in line:
            self.unmarked[kind_of(line["unmarked"])] += 1
        if "fault" in line:
            return None
        self.seen[line["image"]] = len(inputs.instances(line["image"]))
        links = links_of(line)
        answers = [link for link in links if link.turn % 2]
        self.numbers["grounded chats"] += record is not None
        self.numbers["answers"] += len(line["conversations"]) // 2
        self.numbers["answers with phrases"] += len({link.turn for link in answers})
        self.numbers["phrases in answers"] += len(answers)
        self.numbers["phrases in questions"] += len(links) - len(answers)
        self.numbers["instances of phrases"] += sum(len(link.ids) for link in links)
        self.numbers["texts taken after repair"] += line["repaired"]
        self.texts.update(kind_of(reason) for _, reason in line["faults"])
        self.named |= {i for link in links for i in link.ids}
        return record

    def asked(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Count the records about regions on their way."""
        for record in records:
            self.numbers["chats about regions"] += 1
            yield record

    def report(self) -> dict[str, Any]:
        instances = sum(self.seen.values())
        phrases, answers = self.numbers["phrases in answers"], self.numbers["answers with phrases"]
        return {
            **self.numbers,
            "phrases in an answer that has some": round(phrases / answers, 3) if answers else 0.0,
            "share of instances that are named": round(len(self.named) / instances, 4) if instances else 0.0,
            "rejected chats": dict(self.chats.most_common()),
            "rejected texts": dict(self.texts.most_common()),
            "chats without marks": dict(self.unmarked.most_common()),
        }


def kind_of(reason: str) -> str:
    """A reason without what is particular to one text, so that equal ones are counted together."""
    return reason_of(re.sub(r"'.*?'(?!\w)", "'…'", reason))
