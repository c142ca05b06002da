"""The small model: the grounding model's backbone and encoder learn what things are called.

From nothing. Every token of the encoder is read as a word by the input table of the language model, which
stays as it was drawn; boxes and masks come afterwards (`tiny_eyes.py`): they would drown names that are not
known yet.
"""

from pathlib import Path

from lgjax.config import tiny
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        name="tiny_names",
        model=tiny(),
        tokenizer=str(Path(__file__).with_name("tiny_tokenizer.model")),
        data=DataConfig(
            grounded=(DataStream(sorts=("description",), max_things=10),),
            held_out=(DataStream(sorts=("description",), split="combinations", count=256, seed=1),),
            grounded_rows=32,
            length=360,  # the text is not learnt here
            phrases=10,
            objects=10,
            mask_side=64,
            words=True,
        ),
        loss=LossConfig(parts=("names",), drop_path=False),
        optim=OptimConfig(method="muon", lr=4e-3, b2=0.98, clip_norm=5.0, rates=Rates(grounding=1, slow=1)),
        steps=800,
        log_every=20,
        save_every=200,
        measure_every=200,
    )
