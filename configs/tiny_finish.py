"""The small model: the grounding model goes on, on scenes with fewer things, as they are asked about.

As `tiny_polish.py`, from its end, but more slowly, and half of the scenes are sharper and have at most six
things.
"""

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_finish",
        model=tiny(),
        start=("runs/tiny/polish/model",),
        data=DataConfig(
            grounded=(
                DataStream(sorts=("description",), max_things=10, seed=22, weight=1),
                DataStream(sorts=("description",), seed=23, size=160),
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
        optim=OptimConfig(method="muon", lr=1.5e-3, b2=0.98, clip_norm=5.0, rates=Rates(grounding=1, slow=1)),
        steps=1300,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
