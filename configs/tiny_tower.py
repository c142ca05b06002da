"""The small model, first stage: image tokens learn to be words for what they show.

From nothing: CLIP tower, projector and the head of the language model; its layers do not take part. The
input table stays as it was drawn: its rows are the names that every stage agrees on, so that stages need not
wait for each other. `launch/tiny.sh` runs all of them.
"""

import dataclasses
from pathlib import Path

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_tower",
        model=dataclasses.replace(tiny(), grounding=None, prompt=None),
        tokenizer=str(Path(__file__).with_name("tiny_tokenizer.model")),
        data=DataConfig(
            grounded=(DataStream(sorts=("description",), max_things=10),),
            held_out=(DataStream(sorts=("description",), split="combinations", count=256, seed=1),),
            grounded_rows=64,
            length=360,  # the text is not learnt here
            phrases=10,
            objects=10,
            mask_side=32,
            words=True,
        ),
        loss=LossConfig(parts=("words",)),
        optim=OptimConfig(
            method="muon", lr=4e-3, b2=0.98, clip_norm=1.0, rates=Rates(clip=1, projector=1, head=1)
        ),
        steps=1600,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
