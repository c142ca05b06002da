"""Matrices that a checkpoint keeps in whole steps of 8 or 4 bits: which ones, and how they are stored.

The kernel `a/kernel` lies in the folder as the arrays `a/kernel/values` and `a/kernel/scale` of
`lgjax.models.kernels.Packed`; `forms` of `lgjax.json` says for each such matrix which form it has.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lgjax.convert import lazy
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.meta import FLOAT32_PARTS, Form, Meta
from lgjax.models.kernels import GROUP, Bits, Packed, quantize, quantize_table

BITS: dict[Form, Bits] = {"int8": 8, "int4": 4}
TABLE = "llama/embed_tokens"
_NAMES = ("kernel", "embed_tokens")


def forms_of(leaves: Mapping[str, LazyTensor], wanted: Form) -> dict[str, Form]:
    """Choose the parameters that are packed: matrices and tables of language model, tower and projector.

    Of int4 the tables of words, the projector and matrices whose inputs do not divide into groups keep 8
    bits: they are few numbers, and much hangs on each.
    """
    forms: dict[str, Form] = {}
    for path, leaf in leaves.items():
        if path.split("/")[0] in FLOAT32_PARTS or len(leaf.shape) != 2 or not path.endswith(_NAMES):
            continue
        coarse = wanted == "int4" and "/layers_" in path and leaf.shape[0] % GROUP == 0
        forms[path] = "int4" if coarse else "int8"
    return forms


def pack(leaves: Mapping[str, LazyTensor], forms: Mapping[str, Form]) -> dict[str, LazyTensor]:
    """Replace each parameter of `forms` by its stored arrays, which are computed one matrix at a time."""
    packed: dict[str, LazyTensor] = {}
    for path, leaf in leaves.items():
        if path in forms:
            packed |= _stored(path, leaf, BITS[forms[path]])
        else:
            packed[path] = leaf
    return packed


def _stored(path: str, leaf: LazyTensor, bits: Bits) -> dict[str, LazyTensor]:
    make = quantize_table if path == TABLE else functools.partial(quantize, bits=bits)
    abstract = jax.eval_shape(make, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    held: dict[str, np.ndarray] = {}  # the other array of the matrix, until it is asked for

    def load(name: str) -> np.ndarray:
        if name not in held:
            matrix = lazy.contiguous(leaf.load())
            if wrong := lazy.count_non_finite(matrix):  # the steps would not show it
                raise ValueError(
                    f"parameter '{path}' holds {wrong} numbers that are not finite (NaN or infinite); "
                    "the source is damaged"
                )
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                found = make(matrix)
            held.update({field: np.asarray(array) for field, array in found._asdict().items()})
        return held.pop(name)

    return {
        f"{path}/{name}": LazyTensor(array.shape, np.dtype(array.dtype), functools.partial(load, name))
        for name, array in abstract._asdict().items()
    }


def unpack(flat: Mapping[str, Any], forms: Mapping[str, Form]) -> dict[str, Any]:
    """Put the stored arrays of packed parameters together; undoes the paths of `pack`."""
    joined = dict(flat)
    for path in forms:
        if f"{path}/values" in flat:
            joined[path] = Packed(*(joined.pop(f"{path}/{name}") for name in Packed._fields))
    return joined


def axes_of(path: str, forms: Mapping[str, Form], axes: Mapping[str, Any]) -> Any:
    """Logical axes of a stored array from those of the parameters."""
    owner, _, name = path.rpartition("/")
    if owner not in forms:
        return axes[path]
    first, last = axes[owner]
    if name == "values":
        return (first, last)
    return (first, None) if owner == TABLE else (None, last)


def check(folder: Path, stored: Mapping[str, Any], forms: Mapping[str, Form]) -> None:
    """Hold the arrays of packed parameters (anything with shape and dtype) against the recorded forms.

    Raises:
        ValueError: an array that is missing, of another form, or packed without a record.
    """
    owners = {path.rpartition("/")[0] for path in stored}
    for owner in sorted({path for path in owners if path.endswith(_NAMES)} | forms.keys()):
        found = [stored.get(f"{owner}/{name}") for name in Packed._fields]
        form = forms.get(owner)
        if form is None or not _is_of(form, owner, *found):
            kept = " and ".join(f"{leaf.dtype} {list(leaf.shape)}" for leaf in found if leaf is not None)
            raise ValueError(
                f"{folder} records '{owner}' as {form or 'plain numbers'}, but keeps {kept or 'nothing'} "
                "of it; convert the checkpoint again"
            )


def _is_of(form: Form, owner: str, values: Any, scale: Any) -> bool:
    if values is None or scale is None or scale.dtype != np.float32 or len(values.shape) != 2:
        return False
    height, width = values.shape
    if form == "int8":
        scales = (height, 1) if owner == TABLE else (1, width)
        return values.dtype == np.int8 and tuple(scale.shape) == scales
    return values.dtype == np.uint8 and tuple(scale.shape) == (2 * height // GROUP, width)


def refuse(folder: str | Path, meta: Meta, what: str) -> None:
    """Say that `what` needs the numbers themselves, where a checkpoint keeps steps.

    Raises:
        ValueError: it does.
    """
    if meta.forms:
        forms = " and ".join(sorted(set(meta.forms.values())))
        raise ValueError(
            f"{folder} is kept in {forms}, {what} needs full numbers: give the checkpoint it was made from"
        )
