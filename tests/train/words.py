"""The micro run without pictures to ground: only the language model learns. It compiles in a few seconds.

Also a configuration file: `lgjax train --config tests/train/words.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lgjax.train.config import Rates, TrainConfig
from tests.train.micro import micro, micro_model


def words(**changes: Any) -> TrainConfig:
    """Rows of text in 2 groups of 2; `changes` as of `micro`."""
    changes["data"] = {
        "grounded": (),
        "held_out": (),
        "grounded_rows": 0,
        "text_rows": 2,
        **changes.get("data", {}),
    }
    changes["loss"] = {"parts": ("language",), **changes.get("loss", {})}
    changes["optim"] = {"rates": Rates(projector=1, embed=1, head=1, llama=1), **changes.get("optim", {})}
    model = dataclasses.replace(micro_model(), grounding=None, prompt=None)
    return micro(model=model, **changes)


def get_config() -> TrainConfig:
    return words()
