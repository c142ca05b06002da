"""Make the vocabulary of the small model from what is said about composed scenes.

    python launch/tiny_vocabulary.py configs/tiny_tokenizer.model

Every name of a drawn thing is one piece, so that its first token tells which thing is meant; bytes stand for
characters that were never seen.
"""

import io
import sys
from pathlib import Path

import numpy as np
import sentencepiece

from lgjax.config import tiny
from lgjax.data.drawings import classes
from lgjax.data.rounds import render, rounds_of
from lgjax.data.scenes import SceneConfig
from lgjax.data.sources.scenes import Scenes
from lgjax.text.tokenizer import GROUNDING_TOKENS

SCENES = 2000


def sentences():
    """Prompts and answers of some scenes, all that is said about each."""
    scenes = Scenes(config=SceneConfig(size=64), split="train", seed=1)
    for index in range(SCENES):
        for record in scenes.records(index).values():
            yield from render(rounds_of(record, np.random.default_rng(index), "released")).split("\n")


def main(target: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=tiny().llama.vocab_size - len(GROUNDING_TOKENS),
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["▁%", *sorted("▁" + kind.name.replace(" ", "▁") for kind in classes())],
        num_threads=1,
    )
    target.write_bytes(model.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
