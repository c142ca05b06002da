"""A few records of every kind, with pictures in memory, for tests of what is made of them."""

from __future__ import annotations

import numpy as np

from lgjax.data import masks
from lgjax.data.batch import BatchConfig
from lgjax.data.schema import Expression, Object, Phrase, Record, Region, Turn
from tests.text.tiny import TOKENIZER

SIZE = (48, 36)
CONFIG = BatchConfig(
    length=160, phrases=4, objects=5, clip_side=28, num_patches=4, canvas=64, mask_side=64, seg_state="at"
)

__all__ = [
    "CONFIG",
    "SIZE",
    "TOKENIZER",
    "caption",
    "chat",
    "objects",
    "picture",
    "referring",
    "region",
    "words",
]


def picture(seed: int, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def objects(count: int, size=SIZE, seed: int = 0) -> tuple[Object, ...]:
    """Objects that alternate between polygon, run-length code and a box alone."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        x0, y0 = (int(v) for v in rng.integers(0, (size[0] - 12, size[1] - 12)))
        w, h = (int(v) for v in rng.integers(6, 12, 2))
        box = (x0, y0, x0 + w, y0 + h)
        bitmap = np.zeros((size[1], size[0]), bool)
        bitmap[y0 : y0 + h, x0 : x0 + w] = True
        polygon = [[x0, y0, x0 + w, y0, x0 + w, y0 + h, x0, y0 + h]]
        out.append(
            Object(box=box, mask=(polygon, masks.encode(bitmap), None)[i % 3], name=f"thing {i}", id=i)
        )
    return tuple(out)


def chat(number: int = 0, *, regions: bool = False) -> Record:
    """Two rounds; three phrases, one of several objects and one of none."""
    tag = " <obj>" if regions else ""
    return Record(
        id=f"chat {number}",
        kind="chat",
        image=picture(number),
        size=SIZE,
        objects=objects(4, seed=number),
        turns=(
            Turn("human", f"What is{tag} here? (with grounding)"),
            Turn("gpt", f"A man and {number} horses near a house."),
            Turn("human", "Is it half full?"),
            Turn("gpt", "The cup is 50 % full."),
        ),
        phrases=(
            Phrase(turn=1, span=(0, 5), objects=(1,)),
            Phrase(turn=1, span=(10, 10 + len(f"{number} horses")), objects=(0, 3)),
            Phrase(turn=3, span=(0, 7)),
        ),
        regions=(Region(0, 2),) if regions else (),
    )


def caption(number: int = 0) -> Record:
    return Record(
        id=f"caption {number}",
        kind="caption",
        image=picture(100 + number),
        size=SIZE,
        objects=objects(3, seed=number),
        turns=(Turn("gpt", "Two dogs chase a red ball ."),),
        phrases=(
            Phrase(turn=0, span=(0, 8), objects=(0, 1)),
            Phrase(turn=0, span=(15, 25), objects=(2,)),
        ),
    )


def referring(number: int = 0, count: int = 6) -> Record:
    return Record(
        id=f"referring {number}",
        kind="referring",
        image=picture(200 + number),
        size=SIZE,
        objects=objects(count, seed=number),
        expressions=tuple(Expression(texts=(f"Thing {i}", f"the {i}"), objects=(i,)) for i in range(count)),
    )


def region(number: int = 0, count: int = 3) -> Record:
    return Record(
        id=f"region {number}",
        kind="region",
        image=picture(300 + number),
        size=SIZE,
        objects=objects(count + 1, seed=number),
        expressions=tuple(Expression(texts=(f"Cat {i}", "it"), objects=(i,)) for i in range(count)),
    )


def words(number: int = 0) -> Record:
    """Text only."""
    turns = (Turn("human", f"Name {number} colours."), Turn("gpt", "Red, green."))
    return Record(id=f"words {number}", kind="chat", image=None, size=None, turns=turns)
