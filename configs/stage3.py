"""Stage 3: the visual-prompt model learns, through the frozen language model, to read clicks and boxes.

Starts from stage 2 and a Semantic-SAM Swin-T. Both streams have normalisers of their own and their
losses are added, as in the released code, which runs a forward for each. Preset "as_code" adds the weight
decay of 0.01 and the released lengths. Source: spec/training_and_data.md 2.3, 4.3, 8;
spec/visual_prompts.md 7.
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
        name="stage3",
        model=dataclasses.replace(llava_g_7b(), seg_state="at"),
        start=("runs/stage2/model", "checkpoints/semantic_sam"),
        data=DataConfig(
            grounded=(DataStream(folder="data/visual_prompt"), DataStream(folder="data/region_caption")),
            held_out=(DataStream(folder="data/held_out"),),  # read with --measure-every alone
            grounded_rows=16,
            groups=8,
            length=2655 if as_code else 1536,
            mask_side=1024 if as_code else 512,
        ),
        loss=LossConfig(parts=("language", "prompting"), language_mean="stream", object_mean="stream"),
        optim=OptimConfig(lr=2e-5, rates=Rates(prompt=1), weight_decay=0.01 if as_code else 0.0),
        mesh=MeshConfig(fsdp=0),
        steps=20_000,
        compute="bfloat16",
        frozen="bfloat16",
        model_dtype="bfloat16",
        remat=True,
        scan_layers=True,
    )
