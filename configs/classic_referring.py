"""The end of the classic model's training: 10000 steps of 32 referring samples after `configs/classic.py`.


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
        name="classic_referring",
        model=dataclasses.replace(llava_g_7b(), prompt=None, seg_state="at"),
        start=("runs/classic/model",),
        data=DataConfig(
            grounded=(DataStream(folder="data/refcoco"),),
            held_out=(DataStream(folder="data/held_out"),),  # read with --measure-every alone
            grounded_rows=8,
            groups=4,
            length=768,
            phrases=16,
            objects=32,
        ),
        loss=LossConfig(object_mean="stream", queries=50),
        optim=OptimConfig(lr=1e-4, rates=Rates(projector=1, new_tokens=1, grounding=1)),
        mesh=MeshConfig(fsdp=0),
        steps=10_000,
        compute="bfloat16",
        frozen="bfloat16",
        model_dtype="bfloat16",
        remat=True,
        scan_layers=True,
    )
