"""Stage 1: projector, the three new tokens and the whole grounding model learn on captions and referring.

Starts from stage 0 (or any LLaVA projector) and the vision part of OpenSeeD Swin-T. Preset "paper":
Table 15, 10000 steps of two micro-batches of 32 + 32. Preset "as_code": the released script on 4 GPUs,
30000 steps of one, weight decay 0.01 on everything. Neither reads Visual Genome, which the paper lists
and the released code has switched off; one more stream of `data.grounded` adds it. Source:
spec/training_and_data.md 2.1, 3, 11.
"""

import dataclasses

from lgjax.config import llava_g_7b
from lgjax.train.config import (
    DataConfig,
    DataStream,
    LossConfig,
    MeshConfig,
    OptimConfig,
    Preset,
    Rates,
    TrainConfig,
)


def get_config(preset: Preset = "paper") -> TrainConfig:
    as_code = preset == "as_code"
    return TrainConfig(
        name="stage1",
        model=dataclasses.replace(llava_g_7b(), prompt=None, seg_state="at"),
        start=("runs/stage0/model", "checkpoints/openseed"),
        data=DataConfig(
            grounded=(
                DataStream(folder="data/flickr", weight=1),
                DataStream(folder="data/coco_panoptic", weight=3),
            ),
            text=(DataStream(folder="data/caption"),),
            held_out=(DataStream(folder="data/held_out"),),  # read with --measure-every alone
            grounded_rows=8,
            text_rows=8,
            groups=4 if as_code else 8,
            length=2303 if as_code else 768,
            phrases=16,
            objects=32,
            mask_side=1024 if as_code else 512,
        ),
        loss=LossConfig(object_mean="stream"),
        optim=OptimConfig(
            lr=1e-4,
            rates=Rates(projector=1, new_tokens=1, grounding=1),
            weight_decay=0.01 if as_code else 0.0,
        ),
        mesh=MeshConfig(fsdp=0),
        steps=30_000 if as_code else 10_000,
        accumulate=1 if as_code else 2,
        compute="bfloat16",
        frozen="bfloat16",
        model_dtype="bfloat16",
        remat=True,
        scan_layers=True,
    )
