"""Make a checkpoint whose visual-prompt model has the weights of a trained grounding model.

python launch/tiny_prompt_start.py runs/tiny/eyes/model runs/tiny/prompt_start
"""

import dataclasses
import sys
from pathlib import Path

from lgjax.convert import meta, store
from lgjax.convert.lazy import LazyTensor
from lgjax.models.llava_grounding import abstract_params

SHARED = ("backbone", "pixel_encoder", "decoder")


def main(source: Path, target: Path) -> None:
    config = meta.read(source).config
    wanted = store.flattened(abstract_params(config)["prompt"])
    paths = {f"grounding/{path}": f"prompt/{path}" for path in wanted if path.split("/")[0] in SHARED}
    arrays = store.read_arrays(source, list(paths))
    leaves = {
        paths[path]: LazyTensor(array.shape, array.dtype, lambda array=array: array)
        for path, array in arrays.items()
    }
    store.write(target, store.Content(config=dataclasses.replace(config, grounding=None), leaves=leaves))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
