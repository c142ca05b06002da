"""CLIP's view of a picture against the original's image processor; spec/language_model.md 2.1."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from lgjax.data import images
from tests.parity import cases

CASES = [
    pytest.param(path, name.removeprefix("image_"), id=f"{path.stem}-{name}")
    for path in cases.files("llm_clip_preprocess*.npz")
    for name in np.load(path).files
    if name.startswith("image_")
]


@pytest.mark.parametrize(("path", "number"), CASES)
def test_preprocess(path, number: str) -> None:
    stored = np.load(path)
    image = PIL.Image.fromarray(stored[f"image_{number}"])
    found = images.clip_preprocess(image, int(stored[f"size_{number}"]))
    crop = np.rint((found * np.array(images.CLIP_STD) + np.array(images.CLIP_MEAN)) * 255)
    np.testing.assert_array_equal(crop, stored[f"crop_uint8_{number}"])
    if f"pixel_values_{number}" in stored.files:
        wanted = stored[f"pixel_values_{number}"].transpose(1, 2, 0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
