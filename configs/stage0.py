"""Stage 0: the projector learns to put pictures before a frozen language model (plain LLaVA pre-training).

Starts from Vicuna-7B v1.3 and CLIP ViT-L/14, each turned into a folder by `lgjax convert`. Gives the
mm_projector that the released scripts ask for and that was never released. Source: spec/training_and_data.md
2.0 (the authors' script; one epoch of 595K captions is 4650 steps of 128).
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
    model = dataclasses.replace(llava_g_7b(), grounding=None, prompt=None, seg_state="at")
    return TrainConfig(
        name="stage0",
        model=model,
        start=("checkpoints/vicuna", "checkpoints/clip"),
        data=DataConfig(
            text=(DataStream(folder="data/caption"),),
            held_out=(DataStream(folder="data/held_out"),),  # read with --measure-every alone
            text_rows=16,
            groups=8,
            length=2303 if preset == "as_code" else 512,
            template="plain",
        ),
        loss=LossConfig(parts=("language",)),
        optim=OptimConfig(
            lr=2e-3, rates=Rates(projector=1), weight_decay=0.01 if preset == "as_code" else 0.0
        ),
        mesh=MeshConfig(fsdp=0),
        steps=4650,
        compute="bfloat16",
        frozen="bfloat16",
        model_dtype="bfloat16",
        remat=True,
        scan_layers=True,
    )
