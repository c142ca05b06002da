"""The set of 1000 pictures of Grounding-Bench: its annotations and questions, from files of COCO.

The authors published the list of pictures, one COCO id a line, and neither questions nor annotations, so
figures on this set are near theirs, not the same. Source: spec/evaluation.md 1.1, 5.1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgjax.data.sources.common import plain_name, read_coco
from lgjax.eval.lines import lines_of, write_whole

QUESTION = "Describe this picture in detail."
ANNOTATIONS, QUESTIONS = "annotations.json", "questions.jsonl"


def read_ids(path: Path) -> dict[int, str]:
    """Read a list of COCO ids, one a line: each with "FILE, line N", in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is no id or blank, an id stands twice, or there are none.
    """
    ids: dict[int, str] = {}
    for where, line in lines_of(path):
        if not line.strip().isdecimal():
            raise ValueError(f"{where}: expected the id of a picture of COCO, found {line.strip()!r}")
        if (number := int(line)) in ids:
            raise ValueError(f"{where}: id {number} stands in {ids[number]} already")
        ids[number] = where
    if not ids:
        raise ValueError(f"{path} holds no ids")
    return ids


def subset(ids: dict[int, str], files: Sequence[Path]) -> dict[str, Any]:
    """Take pictures and their annotations out of COCO files of instances, in the order of `ids`.

    Several files together may hold them: those of 2014 and of 2017 have the same ids.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another layout, files whose categories differ, or a picture in none of them.
    """
    images: dict[int, dict[str, Any]] = {}
    annotations: dict[int, list[dict[str, Any]]] = {}
    categories: dict[int, str] | None = None
    for path in files:
        coco = read_coco(path)
        if categories not in (None, coco.categories):
            raise ValueError(f"{path} has other categories than {files[0]}")
        categories = coco.categories
        for number in ids.keys() & coco.images.keys() - images.keys():
            images[number] = coco.images[number]
            annotations[number] = coco.annotations.get(number, [])
    if lost := [number for number in ids if number not in images]:
        raise ValueError(
            f"{ids[lost[0]]}: picture {lost[0]} is in none of {', '.join(map(str, files))} "
            f"({len(lost)} of {len(ids)} are missing; the set is of val2014)"
        )
    return {
        "images": [images[number] for number in ids],
        "annotations": [annotation for number in ids for annotation in annotations[number]],
        "categories": [{"id": number, "name": name} for number, name in (categories or {}).items()],
    }


def build(ids: Path, files: Sequence[Path], out: Path, question: str = QUESTION) -> tuple[int, int]:
    """Write `out`/annotations.json and `out`/questions.jsonl; returns how many pictures and entities.

    Raises:
        FileNotFoundError, ValueError: see `read_ids` and `subset`.
    """
    chosen = subset(read_ids(ids), files)
    rows = [
        {
            "question_id": number,
            "image": plain_name(image["file_name"]),
            "text": question,
            "category": "detail",
        }
        for number, image in enumerate(chosen["images"])
    ]
    write_whole(out / ANNOTATIONS, json.dumps(chosen, ensure_ascii=False) + "\n")
    write_whole(out / QUESTIONS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows), sum(not annotation.get("iscrowd") for annotation in chosen["annotations"])
