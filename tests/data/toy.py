"""A small made-up dataset with every kind of record and deliberate faults, and a builder of it."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from lgjax.data.datasets import GroundedDataset
from lgjax.data.schema import Expression, Object, Phrase, Record, Source, Turn

SIZE = (48, 32)
BOX = [4, 4, 30, 4, 30, 28, 4, 28]
FAULTS = {3: "cut", 5: "missing", 7: "size", 11: "polygon", 13: "field", 17: "some polygon"}


def write(folder: Path, count: int, faults: dict[int, str] | None = None) -> Path:
    """Write `count` records; `faults` says which are broken, and how. Every fourth is text only."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    items: list[dict[str, Any]] = []
    for i in range(count):
        fault = (faults or {}).get(i, "")
        item = {"id": i, "kind": ("chat", "referring", "text", "caption")[i % 4], "masks": [[BOX], [BOX]]}
        if item["kind"] != "text":
            item["file"] = f"images/{i}.{'png' if i % 8 == 4 else 'jpg'}"
        items.append(item)
        if "file" in item and fault != "missing":
            size = (SIZE[1], SIZE[0]) if fault == "size" else SIZE
            path = folder / item["file"]
            PIL.Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
            if fault == "cut":
                path.write_bytes(path.read_bytes()[:300])
        if fault == "polygon":
            item["masks"] = [[], [[1, 2]]]
        if fault == "some polygon":
            item["masks"][0] = []
        if fault == "field":
            del item["masks"]
    (folder / "records.json").write_text(json.dumps(items))
    return folder


class LgToy(GroundedDataset, skip_registration=True):
    """Made-up records."""

    @staticmethod
    def read(folder: Path, seconds: float = 0.0) -> dict[str, Source]:
        def make(item: dict) -> Record:
            time.sleep(seconds)
            image = str(folder / item["file"]) if "file" in item else None
            text = item["kind"] == "text"
            things = tuple(
                Object(box=(4, 4, 30, 28), mask=mask, id=i) for i, mask in enumerate(item["masks"])
            )
            answer = Turn("gpt", f"A tüp of {item['id']}.")
            record = {
                "chat": dict(turns=(Turn("human", "What?"), answer)),
                "text": dict(turns=(Turn("human", "What?"), answer)),
                "caption": dict(turns=(answer,)),
                "referring": dict(expressions=(Expression(texts=("left",), objects=(0,)),)),
            }[item["kind"]]
            if item["kind"] == "chat":
                record["phrases"] = (Phrase(turn=1, span=(0, 5), objects=(0, 1)),)
            return Record(
                id=str(item["id"]),
                kind="chat" if text else item["kind"],
                image=image,
                size=None if text else SIZE,
                objects=() if text else things,
                **record,
            )

        file = folder / "records.json"
        items = json.loads(file.read_text())
        tenth = max(1, len(items) // 10)
        return {"train": Source(file, items[tenth:], make), "val": Source(file, items[:tenth], make)}


def main(source: str, target: str, workers: str, seconds: str) -> None:
    """Build slowly, as a process that tests can kill."""
    from lgjax.data.build import build

    dataset = LgToy(source=source, options={"seconds": float(seconds)})
    build(dataset, Path(target), workers=int(workers), shard_records=8)
