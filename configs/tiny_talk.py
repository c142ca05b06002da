"""The small model, last stage: the language model learns to talk about what is pointed at, too."""

import dataclasses

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_talk",
        model=dataclasses.replace(tiny(), grounding=None),
        start=("runs/tiny/prompts/model", "runs/tiny/chat/model"),
        data=DataConfig(
            grounded=(
                DataStream(sorts=("description",), weight=3),
                DataStream(sorts=("questions",), weight=2),
                DataStream(sorts=("referring",), weight=1),
                DataStream(sorts=("prompts",), weight=2),
                DataStream(sorts=("marks", "marked description"), weight=1),
            ),
            held_out=(
                DataStream(sorts=("description", "questions"), split="combinations", count=256, seed=1),
            ),
            grounded_rows=24,
            length=184,
            phrases=8,
            objects=6,
            mask_side=64,
            words=True,
        ),
        loss=LossConfig(
            parts=("language", "prompting", "phrases"),
            points=256,
            drop_path=False,
        ),
        optim=OptimConfig(
            method="muon",
            lr=2e-3,
            b2=0.98,
            clip_norm=1.0,
            rates=Rates(head=1, llama=1),
        ),
        steps=330,
        log_every=10,
        save_every=100,
        measure_every=330,
    )
