"""A prediction drawn into its picture."""

from __future__ import annotations

import PIL.Image

from lgjax.draw import overlay
from lgjax.eval.predictions import Prediction
from lgjax.infer.answer import Phrase


def drawn(image: PIL.Image.Image, prediction: Prediction) -> PIL.Image.Image:
    """The picture with boxes and masks of all phrases, and the answer below.

    Raises:
        ValueError: the picture has another size than the prediction says.
    """
    if image.size[::-1] != prediction.size:
        height, width = prediction.size
        raise ValueError(
            f"{prediction.where}: the prediction is of a picture of {width} x {height} pixels, "
            f"but '{prediction.image}' has {image.width} x {image.height}"
        )
    phrases = [
        Phrase(
            p.text, p.span, p.boxes.astype("float32"), p.scores.astype("float32"), p.bitmaps(prediction.size)
        )
        for p in prediction.phrases
    ]
    return overlay(image, prediction.text, phrases)
