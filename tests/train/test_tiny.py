"""The recipe of the small model learns: its first stage, cut short, names things it never saw together."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lgjax.data.batch import NOTHING
from lgjax.data.drawings import classes
from lgjax.data.pipeline import batches
from lgjax.train.config import load_config
from lgjax.train.loop import train
from lgjax.train.report import LOG
from lgjax.train.start import load_tokenizer

CONFIG = Path(__file__).parents[2] / "configs" / "tiny_tower.py"


@pytest.mark.slow  # seven minutes of two cores
def test_the_first_stage_learns_names_in_minutes(tmp_path):
    config = dataclasses.replace(load_config(CONFIG, "paper"), steps=240, measure_every=240, save_every=240)
    sizes, tokenizer = config.data.batch(config.model), load_tokenizer(config)
    batch = next(iter(batches(config.data.held_out_mixture(), sizes, tokenizer, seed=0)))
    assert batch.grounding is not None
    words = batch.grounding.patch_words
    things = (words > NOTHING).sum() / (words >= 0).sum()
    train(config, tmp_path, console=Console(quiet=True))
    log = [json.loads(line) for line in (tmp_path / LOG).read_text().split("\n") if line]
    found = [line["held_out/words"] for line in log if "held_out/words" in line][-1]
    blind = things * math.log(len(classes()))  # knows where things are, and guesses what they are
    assert np.isfinite(found) and found < 0.75 * blind, (found, blind)
