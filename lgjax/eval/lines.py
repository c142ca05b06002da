"""Files of JSON lines, read strictly: every fault is one line that names file, line and field.

A place is told as "FILE, line N: field"; messages are in the words of the file, not of Python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

SHARDS = "shard-*.jsonl"
_LARGEST = 1e12


@runtime_checkable
class Line(Protocol):
    """What a line of answers was read as."""

    @property
    def question_id(self) -> str | int: ...
    @property
    def where(self) -> str: ...


L = TypeVar("L", bound=Line)


def read_all(path: Path, parse: Callable[[str, str], L]) -> list[L]:
    """Read the answers of a file, or of all shards of a folder, by `parse` of (line, "FILE, line N").

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: see `lines_of` and `parse`; or a question was answered twice.
    """
    files = sorted(path.glob(SHARDS)) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no predictions in the folder {path}; expected files {SHARDS}")
    found: dict[str | int, L] = {}
    for file in files:
        for where, line in lines_of(file):
            item = parse(line, where)
            if (known := found.get(item.question_id)) is not None:
                raise ValueError(
                    f"{where}: question {item.question_id!r} was answered before, in {known.where}"
                )
            found[item.question_id] = item
    return list(found.values())


def lines_of(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file, each with "FILE, line N"; blank lines are allowed at the end only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, or a line between others is blank.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder '{path}'")
    try:
        lines = path.read_bytes().decode("utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    out = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]
    if lines == [""]:
        return []
    if blank := [where for where, line in out if not line.strip()]:
        raise ValueError(f"{blank[0]} is blank; take it out")
    return out


def write_whole(path: Path, text: str) -> None:
    """Write a text file that has its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def parse_json(line: str, where: str) -> Any:
    """The value of a line.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error.msg} at character {error.pos + 1}") from error
    except ValueError as error:  # Python reads no number of thousands of digits
        raise ValueError(f"{where} holds a number that is too long") from error
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None


def fields_of(
    value: Any, needed: Sequence[str], optional: Sequence[str] | None, where: str
) -> dict[str, Any]:
    """The fields of an object, those that are `needed` among them; `optional` None allows any others.

    Raises:
        ValueError: a field is missing or unknown, or it is no object.
    """
    fields = an_object(value, where)
    if lost := [name for name in needed if name not in fields]:
        raise ValueError(f"{where} has no {', '.join(lost)}")
    if optional is not None and (odd := sorted(set(fields) - {*needed, *optional})):
        raise ValueError(
            f"{where} has a field '{odd[0]}' that is not known; what is your own goes into extra"
        )
    return fields


def an_object(value: Any, where: str) -> dict[str, Any]:
    """The value if it is an object, else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with named fields, found {shown(value)}")
    return value


def a_list(value: Any, where: str) -> list[Any]:
    """The value if it is a list, else ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, found {shown(value)}")
    return value


def a_text(value: Any, where: str) -> str:
    """The value if it is a text, else ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{where} must be a text, found {shown(value)}")
    return value


def an_id(value: Any, where: str) -> str | int:
    """The value if a question can have it as its id, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where}: question_id must be a text or a whole number, found {shown(value)}")
    return value


def whole_numbers(value: Any, count: int, where: str) -> list[int]:
    """A list of `count` whole numbers, else ValueError."""
    numbers = numbers_of(value, count, where)
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError(f"{where} must be whole numbers, found {shown(value)}")
    return [int(number) for number in numbers]


def numbers_of(value: Any, count: int | None, where: str) -> list[int | float]:
    """A list of `count` finite numbers (None: of any length), else ValueError."""
    listed = a_list(value, where)
    if count is not None and len(listed) != count:
        raise ValueError(f"{where} must be {count} numbers, found {shown(value)}")
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{where} must be numbers, found {shown(number)}")
        if not abs(number) <= _LARGEST:  # NaN, too
            raise ValueError(f"{where} must be finite numbers, found {shown(number)}")
    return listed


def shown(value: Any) -> str:
    """The value as its file has it, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def boxes_of(value: Any, where: str) -> Float[np.ndarray, "_ 4"]:
    """A list of boxes (x0, y0, x1, y1) as float [n, 4].

    Raises:
        ValueError: other than four finite numbers, or a box that is turned round.
    """
    rows = [numbers_of(box, 4, where) for box in a_list(value, where)]
    boxes = np.asarray(rows, float).reshape(-1, 4)
    turned = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if turned.any():
        raise ValueError(f"{where}: box {boxes[turned][0].tolist()} is turned round; write x0, y0, x1, y1")
    return boxes
