"""Stage 2: language model, projector, input table and grounding model learn on grounded visual chat.

Starts from stage 1. Preset "paper": Table 15, 8000 steps of 64 + 64, language model 2e-5, grounding 1e-4.
Preset "as_code": the released script, 10000 steps, 2e-5 for both, weight decay 0.01, and every group of
samples (there: a GPU) divides its grounding losses by its own number of objects. The output head does not
learn in either (no optimiser group names it); `--optim.rates.head 1` lets it. The flickr rows of the script
have no loss and are left out. Source: spec/training_and_data.md 2.2, 3.2, 4.2, 11.
"""

import dataclasses

from lgjax.config import llava_g_7b
from lgjax.losses.grounding import Weights
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
        name="stage2",
        model=dataclasses.replace(llava_g_7b(), prompt=None, seg_state="at"),
        start=("runs/stage1/model",),
        data=DataConfig(
            grounded=(DataStream(folder="data/gvc"),),
            text=(DataStream(folder="data/instruct"),),
            held_out=(DataStream(folder="data/held_out"),),  # read with --measure-every alone
            grounded_rows=8,
            text_rows=8,
            groups=8,
            length=2655 if as_code else 1536,
            mask_side=1024 if as_code else 512,
        ),
        loss=LossConfig(grounding=Weights(multiplier=0.1), object_mean="group" if as_code else "batch"),
        optim=OptimConfig(
            lr=2e-5,
            rates=Rates(projector=1, embed=1, llama=1, grounding=1 if as_code else 5),
            weight_decay=0.01 if as_code else 0.0,
        ),
        mesh=MeshConfig(fsdp=0),
        steps=10_000 if as_code else 8_000,
        compute="bfloat16",
        frozen="bfloat16",
        model_dtype="bfloat16",
        remat=True,
        scan_layers=True,
    )
