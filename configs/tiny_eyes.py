"""The small model: the grounding model learns to find things by their names.

From `tiny_names.py`. Its phrases are rows of the language model's input table, which stays as it was drawn,
so that neither text nor language model take part; every token of its encoder and every matched query is read
as a name too.
"""

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_eyes",
        model=tiny(),
        start=("runs/tiny/names/model",),
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
        loss=LossConfig(
            parts=("grounding", "names"),
            phrases="names",
            queries=100,
            points=256,
            drop_path=False,
        ),
        optim=OptimConfig(method="muon", lr=3e-3, b2=0.98, clip_norm=5.0, rates=Rates(grounding=1, slow=1)),
        steps=1500,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
