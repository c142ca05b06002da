"""A few output values of a fixed input for each part, from corners of few tensors: cheap to take and check.

The corners are cut out while a checkpoint streams by at conversion, and cut out again of the loaded
parameters; a wrong, mixed-up, transposed or badly cast tensor among them changes the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lgjax.config import ModelConfig
from lgjax.convert.meta import Form
from lgjax.convert.packed import TABLE, unpack
from lgjax.models.kernels import Packed, widen

Corner = tuple[slice, ...]
Values = dict[str, list[float]]

_ALL = slice(None)
_OUT = slice(0, 8)  # outputs that are kept
_INNER = slice(0, 64)  # hidden columns of an MLP that take part


def corners(config: ModelConfig, parts: tuple[str, ...]) -> dict[str, Corner]:
    """Say which slice of which parameter the fingerprint of these parts reads."""
    found: dict[str, Corner] = {}
    if "llama" in parts:
        llama = config.llama
        found[TABLE] = (slice(0, None, max(1, llama.vocab_size // 8)), _ALL)
        found["llama/norm/scale"] = (_ALL,)
        if not llama.tie_embeddings:
            found["llama/lm_head/kernel"] = (_ALL, slice(0, None, max(1, llama.vocab_size // 8)))
        for i in sorted({0, llama.num_layers - 1}):
            layer = f"llama/layers_{i}"
            found[f"{layer}/post_attention_layernorm/scale"] = (_ALL,)
            found[f"{layer}/self_attn/q_proj/kernel"] = (_ALL, _OUT)
            found[f"{layer}/mlp/gate_proj/kernel"] = (_ALL, _INNER)
            found[f"{layer}/mlp/up_proj/kernel"] = (_ALL, _INNER)
            found[f"{layer}/mlp/down_proj/kernel"] = (_INNER, _OUT)
    if "clip" in parts:
        found["clip/patch_embedding/kernel"] = (_ALL, _ALL, _ALL, _OUT)
        found["clip/position_embedding"] = (slice(0, 4), _ALL)
        for i in sorted({0, config.clip.used_layers - 1}):
            found[f"clip/layers_{i}/mlp/fc1/kernel"] = (_ALL, _INNER)
            found[f"clip/layers_{i}/mlp/fc2/kernel"] = (_INNER, _OUT)
    if "projector" in parts:
        found["projector/kernel"] = (_ALL, _OUT)
        found["projector/bias"] = (_OUT,)
    for part, head in (("grounding", "enc_output"), ("prompt", "obj_projector")):
        if part in parts:
            found[f"{part}/backbone/patch_embed/proj/kernel"] = (_ALL, _ALL, _ALL, _OUT)
            found[f"{part}/decoder/layers_0/linear1/kernel"] = (_ALL, _OUT)
            found[f"{part}/{head}/kernel"] = (_ALL, _OUT)
            found[f"{part}/{head}/bias"] = (_OUT,)
    if "grounding" in parts:
        found["grounding/class_embed"] = (_ALL, _OUT)
    return found


def compute(cut: Mapping[str, np.ndarray]) -> Values:
    """Compute the fingerprint from the corners, name of an output -> values; absent corners are left out.

    A matrix [in, out] is applied to the fixed vector cos(0), cos(1), ...; a convolution to one fixed patch;
    an embedding followed by norm and output head, and the MLPs with their gates, as the networks do.
    """
    cut = {path: np.asarray(value, np.float32) for path, value in cut.items()}
    values: dict[str, np.ndarray] = {}
    for path, kernel in cut.items():
        owner, _, leaf = path.rpartition("/")
        if leaf == "kernel" and kernel.ndim == 4:
            values[owner] = _fixed(kernel[..., 0].size) @ kernel.reshape(-1, kernel.shape[-1])
        elif path.endswith(("class_embed", "q_proj/kernel", "linear1/kernel")):
            values[owner if leaf == "kernel" else path] = _fixed(len(kernel)) @ kernel
        elif leaf == "bias" and f"{owner}/kernel" in cut:
            values[owner] = _fixed(len(cut[f"{owner}/kernel"])) @ cut[f"{owner}/kernel"] + kernel
        elif (
            path.endswith("mlp/down_proj/kernel")
            and f"{owner.removesuffix('/down_proj')}/up_proj/kernel" in cut
        ):
            mlp = owner.removesuffix("/down_proj")
            scale = cut[f"{mlp.removesuffix('/mlp')}/post_attention_layernorm/scale"]
            x = _fixed(len(scale)) * scale
            gate = x @ cut[f"{mlp}/gate_proj/kernel"]
            values[mlp] = (gate / (1 + np.exp(-gate)) * (x @ cut[f"{mlp}/up_proj/kernel"])) @ kernel
        elif path.endswith("mlp/fc2/kernel"):
            mlp = owner.removesuffix("/fc2")
            x = cut["clip/position_embedding"].sum(0) @ cut[f"{mlp}/fc1/kernel"]
            values[mlp] = (x / (1 + np.exp(-1.702 * x))) @ kernel
    if "llama/norm/scale" in cut:
        rows = cut[TABLE]
        x = rows / np.sqrt(np.mean(np.square(rows), -1, keepdims=True) + 1e-6) * cut["llama/norm/scale"]
        head = cut.get("llama/lm_head/kernel", rows.T)
        values["llama/logits"] = np.diag(x @ head[:, : len(rows)])
    return {
        name: [float(f"{value:.7g}") for value in np.ravel(found)] for name, found in sorted(values.items())
    }


def stored_corners(found: Mapping[str, Corner], forms: Mapping[str, Form]) -> dict[str, Corner]:
    """Turn the corners of parameters into those of the arrays that are stored for them."""
    stored: dict[str, Corner] = {}
    for path, corner in found.items():
        arrays = [f"{path}/{name}" for name in Packed._fields] if path in forms else []
        stored |= dict.fromkeys(arrays, _sharing(path, corner)) if arrays else {path: corner}
    return stored


def of_stored(
    cut: Mapping[str, np.ndarray], found: Mapping[str, Corner], forms: Mapping[str, Form]
) -> Values:
    """Compute the fingerprint from the `stored_corners`."""
    leaves = unpack(cut, forms).items()
    return compute({path: _numbers(path, leaf, found[path]) for path, leaf in leaves})


def of_parameters(params: Mapping[str, Any], config: ModelConfig, parts: tuple[str, ...]) -> Values:
    """Compute the fingerprint of loaded parameters: numpy or JAX arrays of any sharding and float dtype, or
    packed."""
    cut = {}
    for path, corner in corners(config, parts).items():
        leaf: Any = params
        for name in path.split("/"):
            leaf = leaf.get(name) if isinstance(leaf, Mapping) else None
        if leaf is not None:
            part = _sharing(path, corner) if isinstance(leaf, Packed) else corner
            cut[path] = _numbers(path, jax.tree.map(lambda array, part=part: array[part], leaf), corner)
    return compute(cut)


def _sharing(path: str, corner: Corner) -> Corner:
    """What shares the scales of a corner, in both arrays of a packed matrix: all inputs of its outputs."""
    return (corner[0], _ALL) if path == TABLE else (_ALL, corner[1])


def _numbers(path: str, part: Any, corner: Corner) -> np.ndarray:
    """The corner itself from what was cut out for it."""
    if not isinstance(part, Packed):
        return np.asarray(part)
    wide = np.asarray(widen(jax.tree.map(jnp.asarray, part)))
    return wide[:, corner[1]] if path == TABLE else wide[corner[0]]


def verify_fingerprint(
    params: Mapping[str, Any], config: ModelConfig, stored: Values, tolerance: float = 0.03
) -> None:
    """Recompute the outputs of the parts that are loaded and compare them with the stored ones.

    `tolerance` is relative to the largest value of an output; 0.03 leaves room for bfloat16 weights.

    Raises:
        ValueError: an output differs; names the worst ones.
    """
    found = of_parameters(params, config, tuple(params))
    wanted = {name: values for name, values in stored.items() if name.split("/")[0] in params}
    faults = [f"{name}: not computed" for name in sorted(wanted.keys() - found.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        want, got = np.asarray(wanted[name]), np.asarray(found[name])
        if want.shape != got.shape:
            faults.append(f"{name}: {len(got)} values, stored {len(want)}")
            continue
        scale = max(float(np.abs(want).max()), 1e-6)
        if not (np.abs(want - got) <= tolerance * scale).all():
            i = int(np.nanargmax(np.abs(want - got))) if np.isfinite(got).any() else 0
            faults.append(f"{name}: value {i} is {got[i]:.5g}, stored {want[i]:.5g}")
    if faults:
        shown = faults[:4] + ([f"{len(faults) - 4} more"] if len(faults) > 4 else [])
        raise ValueError(
            "the parameters do not give the outputs that were recorded with the checkpoint "
            f"({'; '.join(shown)}); convert it again"
        )


def _fixed(size: int) -> np.ndarray:
    return np.cos(np.arange(size, dtype=np.float32))
