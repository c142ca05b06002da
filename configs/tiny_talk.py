"""The small model: the language model learns to talk about what is pointed at, too."""

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
                DataStream(sorts=("description",), seed=2, weight=2),
                DataStream(sorts=("description",), seed=3, size=160, weight=2),
                DataStream(sorts=("questions",), seed=4, weight=1),
                DataStream(sorts=("presence",), seed=5, weight=1),
                DataStream(sorts=("referring",), seed=6, weight=0.5),
                DataStream(sorts=("prompts",), seed=7, size=160, weight=2),
                DataStream(sorts=("marks", "marked description"), seed=8, size=160, weight=2),
            ),
            held_out=(
                DataStream(sorts=("description", "questions"), split="combinations", count=256, seed=1),
            ),
            grounded_rows=24,
            length=220,
            phrases=8,
            objects=6,
            mask_side=64,
            words=True,
        ),
        loss=LossConfig(
            parts=("language", "prompting", "phrases", "words"),
            points=16,  # prompts do not learn here
            drop_path=False,
        ),
        optim=OptimConfig(
            method="muon",
            lr=2e-3,
            b2=0.98,
            clip_norm=1.0,
            rates=Rates(clip=0.3, projector=0.3, head=1, llama=1),
        ),
        steps=800,
        log_every=10,
        save_every=100,
        measure_every=200,
    )
