"""The small model: the grounding model looks at other scenes, some of them sharper, and ends more slowly.

As `tiny_eyes.py`, from its end.
"""

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_polish",
        model=tiny(),
        start=("runs/tiny/eyes/model",),
        data=DataConfig(
            grounded=(
                DataStream(sorts=("description",), max_things=10, seed=2, weight=2),
                DataStream(sorts=("description",), max_things=10, seed=3, size=160),
            ),
            held_out=(DataStream(sorts=("description",), split="combinations", count=256, seed=1),),
            grounded_rows=24,
            length=360,  # the text is not learnt here
            phrases=10,
            objects=10,
            mask_side=160,
            words=True,
        ),
        loss=LossConfig(
            parts=("grounding", "names"),
            phrases="names",
            queries=100,
            points=256,
            drop_path=False,
        ),
        optim=OptimConfig(method="muon", lr=2e-3, b2=0.98, clip_norm=5.0, rates=Rates(grounding=1, slow=1)),
        steps=1200,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
