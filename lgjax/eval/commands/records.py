"""`lgjax eval records`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def records(
    predictions: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE_OR_DIR")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
) -> None:
    """Write predictions as the original's evaluator does: text, text with boxes, and boxes.

    Args:
        predictions: A file of predictions, or the folder of a run.
        out: The file to write, one JSON object a line.
    """
    from lgjax.eval.predictions import read
    from lgjax.eval.records import write_records

    print(f"wrote {write_records(read(predictions), out)} records to {out}")
