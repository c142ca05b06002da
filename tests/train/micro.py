"""The smallest model and run with every part: what tests of training compile in seconds.

Also a configuration file: `lgjax train --config tests/train/micro.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lgjax.config import ModelConfig, SwinConfig, debug
from lgjax.convert.store import flattened, nested
from lgjax.data.scene_text import Sort
from lgjax.models.layers import stack_layers
from lgjax.models.llava_grounding import abstract_params
from lgjax.train.config import DataConfig, DataStream, LossConfig, OptimConfig, Rates, TrainConfig
from lgjax.train.groups import leaf_of

GROUNDED: tuple[Sort, ...] = ("description", "questions", "referring", "prompts")
EVERYTHING = Rates(projector=1, embed=1, head=1, llama=1, grounding=1, prompt=1)


def micro_model() -> ModelConfig:
    """`debug()` with one layer of each transformer on a canvas of 64 pixels."""
    model = debug()
    swin = SwinConfig(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window=4)
    assert model.grounding is not None and model.prompt is not None
    transformer = dataclasses.replace(model.grounding.transformer, encoder_layers=1, decoder_layers=1)
    small: Any = dict(swin=swin, transformer=transformer, image_size=64)
    return dataclasses.replace(
        model,
        clip=dataclasses.replace(model.clip, num_layers=2),
        grounding=dataclasses.replace(model.grounding, **small, num_queries=12),
        prompt=dataclasses.replace(model.prompt, **small),
        seg_state="at",
    )


def micro(**changes: Any) -> TrainConfig:
    """A run with all losses on composed scenes, 2 groups of a grounded row and a row of text.

    `changes` are fields of `TrainConfig`; those of data, loss and optim may be dicts of what changes in them.
    """
    config = TrainConfig(
        name="micro",
        model=micro_model(),
        data=DataConfig(
            grounded=(DataStream(sorts=GROUNDED, count=24),),
            text=(DataStream(sorts=("marks",), count=8),),
            held_out=(DataStream(sorts=GROUNDED, split="combinations", count=8),),
            grounded_rows=1,
            text_rows=1,
            groups=2,
            length=128,
            phrases=4,
            objects=6,
            mask_side=32,
        ),
        loss=LossConfig(parts=("language", "grounding", "prompting"), queries=12, points=128),
        optim=OptimConfig(lr=1e-3, rates=EVERYTHING),
        steps=10,
        log_every=1,
        save_every=0,
    )
    for name in ("data", "loss", "optim"):
        if isinstance(changes.get(name), dict):
            changes[name] = dataclasses.replace(getattr(config, name), **changes[name])
    return dataclasses.replace(config, **changes)


def get_config() -> TrainConfig:
    return micro()


def whole(trained: dict, frozen: dict, model: ModelConfig | None = None) -> dict:
    """Every parameter of a checkpoint of a run (default: of the micro model), as a nested dict."""
    config = model or micro_model()
    parts = {path.split("/")[0] for path in (*trained, *frozen)}
    paths = [path for path in flattened(abstract_params(config)) if path.split("/")[0] in parts]
    return nested({path: leaf_of(trained, frozen, path) for path in paths})


def stacked(params: dict) -> dict:
    """Parameters by path, the layers of the language model in one array each."""
    return flattened({**params, "llama": stack_layers(params["llama"])})
