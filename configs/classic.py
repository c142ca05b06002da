"""The model of the classic benchmarks (paper Table 5): stage 1 alone, on Visual Genome and RefCOCO/+/g.

Three rows of Visual Genome (boxes only) to one of referring, 50 queries, which suffice (paper Table 13),
30000 steps of two micro-batches of 64. The paper also names Flickr30K, which the authors' scripts leave
out. The authors then went on with referring alone:

  lgjax train --config configs/classic_referring.py

Source: spec/training_and_data.md 2.4.
"""

import dataclasses

from lgjax.config import llava_g_7b
from lgjax.train.config import (
    DataConfig,
    DataStream,
    LossConfig,
    MeshConfig,
    OptimConfig,
    Rates,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="classic",
        model=dataclasses.replace(llava_g_7b(), prompt=None, seg_state="at"),
        start=("runs/stage0/model", "checkpoints/openseed"),
        data=DataConfig(
            grounded=(
                DataStream(folder="data/visual_genome", weight=3),
                DataStream(folder="data/refcoco", weight=1),
            ),
            held_out=(DataStream(folder="data/held_out"),),  # read with --measure-every alone
            grounded_rows=8,
            groups=16,
            length=768,
            phrases=16,
            objects=32,
        ),
        loss=LossConfig(object_mean="stream", queries=50),
        optim=OptimConfig(lr=1e-4, rates=Rates(projector=1, new_tokens=1, grounding=1)),
        mesh=MeshConfig(fsdp=0),
        steps=30_000,
        accumulate=2,
        compute="bfloat16",
        frozen="bfloat16",
        model_dtype="bfloat16",
        remat=True,
        scan_layers=True,
    )
