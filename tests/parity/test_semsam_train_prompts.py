"""Training prompts against the original, on every `semsam_train*.npz`."""

import numpy as np
import pytest

from lgjax.data import masks, prompts
from tests.parity import cases

FILES = cases.files("semsam_train*.npz")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_semsam_train_prompts(path):
    stored = np.load(path)
    for i in range(int(stored["num_images"])):
        count, height, width = stored[f"masks{i}_shape"]
        size = (int(width), int(height))
        boxes, start = stored[f"boxes_xyxy{i}"], int(stored[f"box_start{i}"])
        is_box = (np.arange(count) >= start).astype(np.int32)
        np.testing.assert_array_equal(is_box, stored[f"pb{i}"])
        targets = prompts.normalise_boxes(boxes, size)
        np.testing.assert_allclose(targets, stored[f"target_boxes{i}"], rtol=0, atol=1e-6)
        clicks = [prompts.click_box(int(x), int(y), size) for x, y in stored[f"clicks_xy{i}"]]
        clean = targets.copy()
        clean[:start] = np.reshape(clicks, (-1, 4))
        np.testing.assert_allclose(clean, stored[f"boxes_dn{i}"], rtol=0, atol=1e-6)
        noisy = prompts.add_noise(clean, is_box, stored[f"noise_u{i}"])
        # the decoder starts from the inverse sigmoid of the noisy prompt, three mask tokens a prompt
        want = 1 / (1 + np.exp(-stored[f"refpoints_unsigmoid{i}"].reshape(count, 3, 4).astype(np.float64)))
        np.testing.assert_allclose(want, np.repeat(noisy[:, None], 3, 1).clip(1e-3, 1 - 1e-3), atol=1e-6)
        bits = stored[f"masks{i}_bits"]
        bitmaps = np.unpackbits(bits, axis=-1, count=width).astype(bool)
        for (x, y), mask in zip(stored[f"clicks_xy{i}"], bitmaps, strict=False):
            assert mask[y, x], "the pixel (x, y) of a click lies in its mask"
        np.testing.assert_array_equal(masks.pack(bitmaps), bits)
