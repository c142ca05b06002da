"""Sampling against PyTorch's grid_sample, and the choice of uncertain points against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lgjax.losses.grounding import Points
from lgjax.losses.points import RandomPoints, sample, sample_rows, uncertain_points

torch = pytest.importorskip("torch")  # part of the development install


def grid_sample(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """maps [n, h, w], points [n, k, 2] in [0, 1]."""
    grid = torch.as_tensor(points)[:, :, None] * 2 - 1
    found = torch.nn.functional.grid_sample(torch.as_tensor(maps)[:, None], grid, align_corners=False)
    return found[:, 0, :, 0].numpy()


def data(seed: int, n: int, h: int, w: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(n, h, w)).astype(np.float32)
    points = rng.uniform(-0.2, 1.2, (n, k, 2)).astype(np.float32)  # some lie outside
    points[:, :4] = [[0, 0], [1, 1], [0.5 / w, 0.5 / h], [1 - 0.5 / w, 0.5]]
    return maps, points


@pytest.mark.parametrize(("h", "w"), [(7, 5), (1, 9), (32, 40)])
def test_sample_is_grid_sample(h, w):
    maps, points = data(h, 3, h, w, 60)
    np.testing.assert_allclose(
        sample(jnp.asarray(maps), jnp.asarray(points)), grid_sample(maps, points), atol=2e-6
    )
    rows = np.moveaxis(maps, 0, -1)[None]  # one map of three channels at the points of the first
    found = sample_rows(jnp.asarray(rows), jnp.asarray(points[:1]))
    for channel in range(3):
        want = grid_sample(maps[channel : channel + 1], points[:1])
        np.testing.assert_allclose(found[..., channel], want, atol=2e-6)


def test_bitmaps_are_sampled_as_numbers():
    maps, points = data(0, 2, 6, 8, 30)
    bits = maps > 0
    want = grid_sample(bits.astype(np.float32), points)
    np.testing.assert_allclose(sample(jnp.asarray(bits), jnp.asarray(points)), want, atol=1e-6)


def test_gradient_of_sampling():
    maps, points = data(1, 2, 6, 8, 40)
    weights = np.random.default_rng(2).normal(size=(2, 40)).astype(np.float32)
    tensor = torch.as_tensor(maps).requires_grad_()
    grid = torch.as_tensor(points)[:, :, None] * 2 - 1
    found = torch.nn.functional.grid_sample(tensor[:, None], grid, align_corners=False)[:, 0, :, 0]
    (found * torch.as_tensor(weights)).sum().backward()
    grad = jax.grad(lambda m: (sample(m, jnp.asarray(points)) * weights).sum())(jnp.asarray(maps))
    np.testing.assert_allclose(grad, tensor.grad.numpy(), atol=1e-5)


def test_uncertain_points_are_those_of_the_smallest_logits():
    maps, over = data(3, 2, 9, 9, 90)
    extra = np.random.default_rng(4).random((2, 10, 2)).astype(np.float32)
    found = np.asarray(uncertain_points(jnp.asarray(maps), jnp.asarray(over), jnp.asarray(extra), 30))
    order = np.argsort(np.abs(grid_sample(maps, over)), axis=1, kind="stable")[:, :30]
    for row in range(2):
        want = {tuple(p) for p in over[row][order[row]]} | {tuple(p) for p in extra[row]}
        assert {tuple(p) for p in found[row]} == want and found.shape == (2, 40, 2)


def test_random_points_belong_to_sample_output_and_object():
    ids = jnp.asarray([7, 3, 9], jnp.uint32)
    source = RandomPoints(jax.random.key(0), ids, num_points=40)
    last, other = jnp.asarray(0), jnp.asarray(1)
    assert isinstance(source, Points)
    over, extra = source.losses(other, jnp.zeros((3, 4), jnp.int32))
    assert (
        over.shape == (3, 4, 120, 2)
        and extra.shape == (3, 4, 10, 2)
        and source.matching(other).shape == (3, 40, 2)
    )
    # rows in another order, and more objects, change nothing
    turned = RandomPoints(jax.random.key(0), ids[::-1], num_points=40)
    more, _ = turned.of_objects("loss", other, 6)
    np.testing.assert_array_equal(more[::-1, :4], over)
    np.testing.assert_array_equal(turned.matching(other)[::-1], source.matching(other))
    firsts = [over[i, j, 0] for i in range(3) for j in range(4)]
    firsts += [
        source.losses(last, jnp.zeros((3, 1), jnp.int32))[0][0, 0, 0],
        source.matching(other)[0, 0],
    ]
    firsts += [RandomPoints(jax.random.key(1), ids, 40).of_objects("loss", other, 1)[0][0, 0, 0]]
    assert len({tuple(np.asarray(point).tolist()) for point in firsts}) == 15
    every = np.asarray(over).ravel()
    assert every.min() >= 0 and every.max() < 1 and abs(every.mean() - 0.5) < 0.02
