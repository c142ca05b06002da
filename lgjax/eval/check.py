"""Whether a prediction can be about what it is compared with."""

from __future__ import annotations

from lgjax.eval.predictions import Prediction


def same_size(prediction: Prediction, size: tuple[int, int]) -> None:
    """Hold a prediction to the size (height, width) that the annotations give its picture.

    Raises:
        ValueError: it has another.
    """
    if prediction.size != size:
        raise ValueError(
            f"{prediction.where}: '{prediction.image}' is {prediction.size[1]} x {prediction.size[0]} pixels "
            f"large, the annotations say {size[1]} x {size[0]}"
        )
