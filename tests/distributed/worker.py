"""`lgjax` with a note of what it read: `python -m tests.distributed.worker NOTE train ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from lgjax.cli import main
from lgjax.data.batch import Batch
from lgjax.data.pipeline import Counted
from lgjax.train import loop


class Noted(Counted):
    """Counts rows and remembers the samples that came to this process."""

    seen: ClassVar[list[list[int]]] = []
    total = 0

    def __next__(self) -> Batch:
        batch = super().__next__()
        rows: jax.Array = batch.language.sample_id  # pyright: ignore[reportAssignmentType]
        ids = {int(one) for shard in rows.addressable_shards for one in np.asarray(shard.data)}
        Noted.seen.append(sorted(ids))
        Noted.total = self.rows
        return batch


if __name__ == "__main__":
    loop.Counted = Noted
    try:
        main(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps({"rows": Noted.total, "samples": Noted.seen}))
