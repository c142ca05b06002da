"""Join the parts of the small model, each trained by its own stage, into one checkpoint in 16 bits.

python launch/tiny_join.py runs/tiny/finish/model runs/tiny/more/model lgjax/assets/tiny

A part (tower, language model, grounding model, ...) is taken from the last folder that has it.
"""

import sys
from pathlib import Path

import numpy as np

from lgjax.config import tiny
from lgjax.convert import meta, store
from lgjax.convert.lazy import LazyTensor


def main(sources: list[Path], target: Path) -> None:
    leaves: dict[str, LazyTensor] = {}
    for source in sources:
        parts = meta.read(source).parts
        kept = {path: leaf for path, leaf in leaves.items() if path.split("/")[0] not in parts}
        arrays = store.read_arrays(source, list(store.stored_leaves(source)))
        leaves = kept | {path: _halved(array) for path, array in arrays.items()}
    last = sources[-1]
    files = {file.name: file.read_bytes() for file in (last / store.TOKENIZER).iterdir()}
    tokens = meta.read(last).tokens
    store.write(
        target, store.Content(config=tiny(), leaves=leaves, tokenizer=files, tokens=tokens), overwrite=True
    )


def _halved(array: np.ndarray) -> LazyTensor:
    return LazyTensor(array.shape, np.dtype(np.float16), lambda: array.astype(np.float16))


if __name__ == "__main__":
    *sources, target = map(Path, sys.argv[1:])
    main(sources, target)
