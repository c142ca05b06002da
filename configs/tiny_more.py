"""The small model, last stage: the language model goes on as in `tiny_say.py`.

From its end, on other scenes, at half its rate.
"""

import dataclasses

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_more",
        model=dataclasses.replace(tiny(), grounding=None),
        start=("runs/tiny/say/model",),
        data=DataConfig(
            grounded=(
                DataStream(sorts=("prompts",), seed=59, size=160, weight=3),
                DataStream(sorts=("description",), seed=60, size=160, weight=2),
                DataStream(sorts=("referring",), seed=61, weight=1),
            ),
            text=(
                DataStream(sorts=("description",), seed=62, weight=6),
                DataStream(sorts=("questions",), seed=63, weight=2),
                DataStream(sorts=("presence",), seed=64, weight=2),
                DataStream(sorts=("marks", "marked description"), seed=65, size=160, weight=2),
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
        optim=OptimConfig(method="muon", lr=1e-3, b2=0.98, clip_norm=1.0, rates=Rates(head=1, llama=1)),
        steps=1000,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
