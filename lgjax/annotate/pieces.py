"""Pieces: a run is cut into pieces of some chats each, and every piece is one file that is there or is not.

A line of a piece is a chat with what became of it:
`{"id", "image", "conversations", "links": [[turn, start, end, [ids]]], "faults": [[turn, reason]],`
` "repaired": 0}`, with marks also `marked` or `unmarked`; `fault` instead of the last three says why the
whole chat was rejected. All that is given out is made of these lines.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lgjax.annotate.inputs import Inputs
from lgjax.annotate.records import TextLink, fault_of_chat
from lgjax.annotate.task import Annotator, Marked
from lgjax.annotate.writing import Chat, Scene, Writer
from lgjax.data.sources.common import read_lines
from lgjax.llm.request import Failure, Pending

Line = dict[str, Any]
NO_INSTANCES = "the picture has no instances"
_FOLDER = "pieces"


def path_of(out: Path, piece: int) -> Path:
    """The file of a piece."""
    return out / _FOLDER / f"{piece:06d}.jsonl"


def ranges(num_items: int, size: int) -> list[range]:
    """The items of each piece."""
    return [range(start, min(start + size, num_items)) for start in range(0, num_items, size)]


def annotate(
    inputs: Inputs, items: Iterable[int], annotator: Annotator, writer: Writer | None, *, questions: bool
) -> list[Line] | None:
    """The lines of these items, in their order; None when answers to some are still to come.

    `writer` makes chats of scenes; questions: annotate the questions too.
    """
    chosen = [inputs.items[i] for i in items]
    scenes = [item for item in chosen if isinstance(item, Scene)]
    written = iter(writer.write(scenes) if writer else ())
    chats = [next(written) if isinstance(item, Scene) else item for item in chosen]
    faults = [_fault(inputs, chat) for chat in chats]
    turns = [
        (i, turn)
        for i, chat in enumerate(chats)
        if isinstance(chat, dict) and not faults[i]
        for turn in range(0 if questions else 1, len(chat["conversations"]), 1 if questions else 2)
    ]
    tasks = [inputs.task(chat, turn) for i, turn in turns if isinstance(chat := chats[i], dict)]
    marked = annotator.annotate(tasks)
    if any(one.pending for one in marked) or any(isinstance(chat, Pending) for chat in chats):
        return None
    results: list[list[tuple[int, Marked, tuple]]] = [[] for _ in chats]
    for (i, turn), one, task in zip(turns, marked, tasks, strict=True):
        results[i].append((turn, one, task.instances))
    return [
        _line(item, chat, fault, result)
        for item, chat, fault, result in zip(chosen, chats, faults, results, strict=True)
    ]


def _fault(inputs: Inputs, chat: Chat | Failure | Pending) -> str:
    if isinstance(chat, Failure | Pending):
        return chat.reason if isinstance(chat, Failure) else ""
    if fault := fault_of_chat(chat):
        return fault
    return "" if inputs.instances(chat["image"]) else NO_INSTANCES


def _line(
    item: Any, chat: Chat | Failure | Pending, fault: str, result: Sequence[tuple[int, Marked, tuple]]
) -> Line:
    source = chat if isinstance(chat, dict) else {"image": item.image} if isinstance(item, Scene) else {}
    line: Line = {name: source.get(name) for name in ("id", "image", "conversations")}
    if fault:
        return {**line, "fault": fault}
    line["links"] = [
        [turn, link.start, link.end, [instances[i].id for i in link.instances]]
        for turn, one, instances in result
        for link in one.links
    ]
    line["faults"] = [[turn, one.fault] for turn, one, _ in result if one.fault]
    line["repaired"] = sum(one.repaired for _, one, _ in result)
    return line


def links_of(line: Line) -> list[TextLink]:
    """The links of a line."""
    return [TextLink(turn, start, end, tuple(ids)) for turn, start, end, ids in line.get("links", ())]


def save(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file that gets its name when it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # containers on different machines have the same process numbers
    unfinished = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.tmp")
    with unfinished.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def save_piece(out: Path, piece: int, lines: Iterable[Line]) -> None:
    """Write a piece."""
    save(path_of(out, piece), (json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))


def read(out: Path, num_pieces: int) -> Iterator[Line]:
    """The lines of all pieces, in order.

    Raises:
        FileNotFoundError: a piece is missing.
        ValueError: a line is damaged.
    """
    for piece in range(num_pieces):
        for number, line in read_lines(path_of(out, piece)):
            if not (
                "fault" in line or {"image", "conversations", "links", "faults", "repaired"} <= line.keys()
            ):
                raise ValueError(f"{path_of(out, piece)}: line {number} is no line of a run; remove the file")
            yield line


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part I of N of the work: every N-th piece, from the I-th; I counts from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "I/N".

        Raises:
            ValueError: it is not that, or I is not below N.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(f"--shard '{text}' must be I/N with I from 0 to N - 1, for example 0/8")
        return cls(int(index), int(count))

    def of(self, num_pieces: int) -> range:
        """The pieces of this part."""
        return range(self.index, num_pieces, self.count)
