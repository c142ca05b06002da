"""The small model: the visual-prompt model learns to read what a click or a box points at.

It starts as a copy of the grounding model (`launch/tiny_prompt_start.py`), which sees the same pictures.
"""

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_prompts",
        model=tiny(),
        start=("runs/tiny/eyes/model", "runs/tiny/prompt_start", "runs/tiny/chat/model"),
        data=DataConfig(
            grounded=(DataStream(sorts=("description",), max_things=10),),
            held_out=(DataStream(sorts=("description",), split="combinations", count=256, seed=1),),
            grounded_rows=24,
            length=360,  # the text is not learnt here
            phrases=10,
            objects=10,
            mask_side=160,
            words=True,
        ),
        loss=LossConfig(parts=("prompting", "words"), points=256, drop_path=False),
        optim=OptimConfig(method="muon", lr=3e-3, b2=0.98, clip_norm=5.0, rates=Rates(prompt=1, slow=1)),
        steps=800,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
