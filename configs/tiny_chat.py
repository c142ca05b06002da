"""The small model: the language model learns to talk about composed scenes.

From the tower and a language model that can compare words (`launch/tiny_lists.py`). The state of a
<seg> learns to be the word for its phrase, which is what the grounding model, trained beside it
(`tiny_eyes.py`), listens to.
"""

import dataclasses

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_chat",
        model=dataclasses.replace(tiny(), grounding=None, prompt=None),
        start=("runs/tiny/tower/model", "runs/tiny/lists"),
        data=DataConfig(
            grounded=(
                DataStream(sorts=("description",), weight=5),
                DataStream(sorts=("questions",), weight=2),
                DataStream(sorts=("presence",), weight=3),
                DataStream(sorts=("referring",), weight=0.5),
                DataStream(sorts=("marks", "marked description"), weight=1),
            ),
            held_out=(
                DataStream(sorts=("description", "questions"), split="combinations", count=256, seed=1),
            ),
            grounded_rows=24,
            length=220,
            phrases=8,
            objects=8,
            mask_side=32,
            words=True,
        ),
        loss=LossConfig(parts=("language", "phrases")),
        optim=OptimConfig(
            method="muon",
            lr=3e-3,
            b2=0.98,
            clip_norm=1.0,
            rates=Rates(head=1, llama=1),
        ),
        steps=2200,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
