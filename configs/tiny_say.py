"""The small model: the language model learns to name everything in the picture, each thing once.

As `tiny_talk.py`, but the tower rests, most rows are text for the language model alone, and names count most:
two or three of the twenty tokens of a description are names, and the rest is easy.
"""

import dataclasses

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_say",
        model=dataclasses.replace(tiny(), grounding=None),
        start=("runs/tiny/talk/model",),
        data=DataConfig(
            grounded=(
                DataStream(sorts=("prompts",), seed=9, size=160, weight=3),
                DataStream(sorts=("description",), seed=10, size=160, weight=2),
                DataStream(sorts=("referring",), seed=11, weight=1),
            ),
            text=(
                DataStream(sorts=("description",), seed=12, weight=6),
                DataStream(sorts=("questions",), seed=13, weight=2),
                DataStream(sorts=("presence",), seed=14, weight=2),
                DataStream(sorts=("marks", "marked description"), seed=15, size=160, weight=2),
            ),
            held_out=(
                DataStream(sorts=("description", "questions"), split="combinations", count=256, seed=1),
            ),
            grounded_rows=8,
            text_rows=40,
            length=220,
            phrases=8,
            objects=6,
            mask_side=32,
            words=True,
            name_weight=8.0,
        ),
        loss=LossConfig(
            parts=("language", "prompting", "phrases"),
            points=16,  # prompts do not learn here
            drop_path=False,
        ),
        optim=OptimConfig(method="muon", lr=2e-3, b2=0.98, clip_norm=1.0, rates=Rates(head=1, llama=1)),
        steps=1500,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
