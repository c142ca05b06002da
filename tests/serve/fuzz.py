"""Fuzzing of pictures and JSON that is led by which lines of Pillow and of `lgjax.serve` are reached.

    python -m tests.serve.fuzz picture FOLDER -max_total_time=60      (or json; the options are libFuzzer's)

FOLDER gets what was found to reach new lines, and what made a fault of another kind than those allowed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "lgjax.serve"]):
    from tests.serve import hostile
    from tests.serve.server import ask

REGIONS = [
    {"type": "click", "x": 3, "y": 4.5},
    {"type": "box", "x0": 1, "y0": 2, "x1": 30, "y1": 40},
    {"type": "scribble", "points": [[1, 2], [3, 4]], "reading": "box"},
    {"type": "mask", "size": [90, 120], "counts": "PPYQ1", "reading": "click"},
    {"type": "again", "number": 1},
]
TALK = [ask("a?"), {"role": "assistant", "content": "b"}, {"role": "user", "content": "is % ?"}]


def seeds(what: str) -> list[bytes]:
    """Good ones to begin with."""
    if what == "picture":
        return hostile.FILES
    talks = [TALK, *[[*TALK[:2], {**TALK[2], "regions": [region]}] for region in REGIONS]]
    return [json.dumps({"messages": talk, "max_tokens": 3, "stop": ["x"]}).encode() for talk in talks]


def main() -> None:
    what, folder, *options = sys.argv[1:]
    for i, data in enumerate(seeds(what)):
        (Path(folder) / f"seed_{i}").write_bytes(data)
    check = {"picture": hostile.picture_or_fault, "json": hostile.question_or_fault}[what]
    # jax alone takes more memory than libFuzzer allows unasked
    most = ["-rss_limit_mb=8192", "-max_len=8192", f"-artifact_prefix={folder}/fault_"]
    atheris.Setup([sys.argv[0], folder, *most, *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
