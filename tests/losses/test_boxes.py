"""Overlaps of boxes against counted pixels and the stored values of the original."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax.losses.boxes import generalized_iou, iou
from lgjax.models.position import cxcywh_to_xyxy
from tests.parity import cases

corners = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def cells(box) -> np.ndarray:
    out = np.zeros((12, 12), bool)
    out[box[1] : box[3], box[0] : box[2]] = True
    return out


@given(corners, corners)
def test_overlap_of_whole_pixels(a, b):
    both, either = (cells(a) & cells(b)).sum(), (cells(a) | cells(b)).sum()
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    found, union = iou(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    assert union == either and abs(found - both / max(either, 1e-6)) < 1e-5
    want = both / max(either, 1e-6) - (hull - either) / max(hull, 1e-6)
    whole = generalized_iou(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    assert abs(whole - want) < 1e-5 and -1 <= whole <= 1


@pytest.mark.parametrize("path", cases.files("openseed_ops*.npz"), ids=lambda path: path.stem)
def test_openseed_ops_boxes(path):
    stored = np.load(path)
    a, b = (cxcywh_to_xyxy(jnp.asarray(stored[f"box.{name}_cxcywh"])) for name in ("a", "b"))
    found, _ = iou(a[:, None], b[None])
    np.testing.assert_allclose(found, stored["box.iou"], rtol=0, atol=1e-6)
    whole = generalized_iou(a[:, None], b[None])
    np.testing.assert_allclose(whole, stored["box.giou"], rtol=0, atol=1e-6)
