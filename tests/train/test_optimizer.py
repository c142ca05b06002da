"""The optimiser against PyTorch's AdamW, its schedule against the formula of the original's trainer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lgjax.train.config import OptimConfig, Rates
from lgjax.train.optimizer import make_optimizer, schedule
from lgjax.train.start import abstract_state
from tests.train.micro import micro

STEPS = 20
SHAPES = {"llama/norm/scale": (5,), "grounding/backbone/kernel": (4, 3), "grounding/decoder/kernel": (2, 3)}
RATES = Rates(llama=1, grounding=5, slow=0.1)
TIMES = {"llama/norm/scale": 1.0, "grounding/backbone/kernel": 0.5, "grounding/decoder/kernel": 5.0}


def factor_by_hand(step: int, steps: int, warmup: float) -> float:
    """transformers.get_cosine_schedule_with_warmup with ceil(warmup * steps) steps of warm-up."""
    warm = math.ceil(warmup * steps)
    if step < warm:
        return step / max(1, warm)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


@pytest.mark.parametrize(
    ("steps", "warmup"),
    [(30_000, 0.03), (8_000, 0.03), (20_000, 0.03), (77, 0.03), (7, 0.5), (9, 0.0), (1, 1.0)],
)
def test_schedule(steps, warmup):
    some = np.unique(np.linspace(0, steps, 400).astype(int))
    found = jax.vmap(schedule(OptimConfig(warmup=warmup), steps))(jnp.asarray(some))
    want = [factor_by_hand(int(step), steps, warmup) for step in some]
    np.testing.assert_allclose(found, want, atol=2e-6)
    assert found[-1] == 0 or steps == 1
    assert found[0] == (0 if warmup else 1)


def arrays(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: (scale * rng.standard_normal(shape)).astype(np.float32) for path, shape in SHAPES.items()}


def torch_adam(optim: OptimConfig):
    """PyTorch's parameters and optimiser with a group for each array, and the schedule by hand."""
    params = {path: torch.nn.Parameter(torch.tensor(value)) for path, value in arrays(0).items()}
    adam = torch.optim.AdamW(
        [{"params": [param], "lr": optim.lr * TIMES[path]} for path, param in params.items()],
        weight_decay=optim.weight_decay,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
    )
    rates = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: factor_by_hand(step, STEPS, optim.warmup))
    return params, adam, rates


def run_both(optim: OptimConfig, scale: float = 1.0) -> tuple[dict, dict]:
    """Parameters after all steps here and with PyTorch, for the same gradients."""
    params, adam, rates = torch_adam(optim)
    ours = {path: jnp.asarray(value) for path, value in arrays(0).items()}
    optimizer = make_optimizer(optim, STEPS, ours)
    state = optimizer.init(ours)
    for step in range(STEPS):
        grads = arrays(step + 1, scale)
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        if not step:
            assert all(np.array_equal(ours[path], arrays(0)[path]) for path in ours)  # the rate begins at 0
        for path, param in params.items():
            param.grad = torch.tensor(grads[path])
        if optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), optim.clip_norm)
        adam.step()
        rates.step()
    return ours, {path: param.detach().numpy() for path, param in params.items()}


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_same_as_torch(weight_decay):
    found, want = run_both(OptimConfig(lr=0.02, rates=RATES, weight_decay=weight_decay, warmup=0.12))
    for path in SHAPES:
        np.testing.assert_allclose(found[path], want[path], atol=1e-5)
        assert np.abs(want[path] - arrays(0)[path]).max() > 0.02  # it went somewhere


def test_other_numbers_of_adam():
    found, want = run_both(
        OptimConfig(lr=0.02, rates=RATES, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.3, warmup=0.0001)
    )
    for path in SHAPES:
        np.testing.assert_allclose(found[path], want[path], atol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_is_by_the_norm_of_all_groups_together(scale):
    optim = OptimConfig(lr=0.02, rates=RATES, clip_norm=1.0, eps=1e-2, warmup=0.12)
    found, want = run_both(optim, scale)
    for path in SHAPES:
        np.testing.assert_allclose(found[path], want[path], atol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_in_any_group(wrong):
    params = {path: jnp.asarray(value) for path, value in arrays(0).items()}
    optimizer = make_optimizer(OptimConfig(lr=0.1, rates=RATES, warmup=0.0), STEPS, params)
    _, state = optimizer.update(jax.tree.map(jnp.asarray, arrays(1)), optimizer.init(params), params)
    bad = jax.tree.map(jnp.asarray, arrays(2))
    bad["llama/norm/scale"] = bad["llama/norm/scale"].at[2].set(wrong)
    updates, after = optimizer.update(bad, state, params)
    assert all(not update.any() for update in jax.tree.leaves(updates))
    for one, other in zip(
        jax.tree.leaves(state.inner_state), jax.tree.leaves(after.inner_state), strict=True
    ):
        assert np.array_equal(one, other)
    assert (int(state.notfinite_count), int(after.notfinite_count)) == (0, 1)
    assert int(after.total_notfinite) == 1


def test_only_what_learns_has_moments():
    state = abstract_state(micro(optim={"rates": Rates(new_tokens=1, prompt=1)}))
    arrays = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    count = sum(leaf.size for leaf in state.trained.values())
    assert sum(leaf.size for leaf in arrays) == 2 * count
    assert {leaf.dtype.name for leaf in arrays} == {"float32"}
    assert count < sum(leaf.size for leaf in jax.tree.leaves(state.frozen))


MUON_SHAPES = {
    "llama/layers_0/mlp/kernel": (6, 4),
    "clip/patch_embedding/kernel": (2, 2, 3, 5),
    "llama/stack/kernel": (3, 4, 6),
    "llama/lm_head/kernel": (4, 7),
    "llama/norm/scale": (4,),
}


def test_muon_moves_matrices_along_orthogonal_ones():
    """Against singular value decompositions in float64; what is no inner matrix learns as with AdamW."""
    rng = np.random.default_rng(0)
    params = {path: jnp.zeros(shape) for path, shape in MUON_SHAPES.items()}
    rates = Rates(llama=1, clip=0.5, head=1)
    optims = [OptimConfig(method=m, lr=0.1, rates=rates, warmup=0.0) for m in ("muon", "adamw")]
    optimizers = [make_optimizer(optim, STEPS, params) for optim in optims]
    states = [optimizer.init(params) for optimizer in optimizers]
    momentum = {path: np.zeros(shape) for path, shape in MUON_SHAPES.items()}
    for step in range(3):
        grads = {path: rng.standard_normal(shape) for path, shape in MUON_SHAPES.items()}
        given = {path: jnp.asarray(value, jnp.float32) for path, value in grads.items()}
        updates = []
        for i, optimizer in enumerate(optimizers):
            update, states[i] = optimizer.update(given, states[i], params)
            updates.append(update)
        factor = 0.1 * factor_by_hand(step, STEPS, 0.0)
        for path, shape in MUON_SHAPES.items():
            momentum[path] = 0.95 * momentum[path] + 0.05 * grads[path]
            if path in ("llama/lm_head/kernel", "llama/norm/scale"):
                np.testing.assert_allclose(updates[0][path], updates[1][path], rtol=1e-6)
                continue
            # Nesterov's step, each part without the bias of its start
            ahead = 0.95 * momentum[path] / (1 - 0.95 ** (step + 2)) + 0.05 * grads[path] / (
                1 - 0.95 ** (step + 1)
            )
            ahead = ahead.reshape(-1, *shape[-2:])
            found = np.asarray(updates[0][path], np.float64).reshape(-1, *shape[-2:])
            if len(shape) == 4:  # one matrix from all inputs of a patch
                ahead, found = (x.reshape(1, -1, shape[-1]) for x in (ahead, found))
            for want, got in zip(ahead, found, strict=True):
                left, _, right = np.linalg.svd(want, full_matrices=False)
                scale = factor * 0.2 * math.sqrt(max(want.shape)) * (0.5 if path.startswith("clip") else 1)
                inner = left.T @ got @ right.T / -scale
                values = np.diagonal(inner)
                assert (values > 0.6).all() and (values < 1.3).all()  # five Newton-Schulz steps come so close
                np.testing.assert_allclose(inner, np.diag(values), atol=0.02)
