"""The checkpoint folder of lgjax: written whole or not at all, one tensor at a time; read to its devices.

    DIR/lgjax.json     sizes, ids, dtypes, fingerprint, layout of the source (written last)
    DIR/params/        Orbax: one array for each parameter, layers apart, no compression
    DIR/unused.safetensors  tensors that only an export needs
    DIR/tokenizer/  DIR/source/   small files of the source, byte for byte

Source: spec/language_model.md 14, 15.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import type_handlers

from lgjax.config import ModelConfig
from lgjax.convert import fingerprint, lazy, packed, safe_file
from lgjax.convert import meta as metas
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.meta import FLOAT32_PARTS, Form, Meta, SourceLayout, TokenIds

PARAMS, UNUSED, TOKENIZER, SOURCE = "params", "unused.safetensors", "tokenizer", "source"
_CHUNK_BYTES = 1 << 25  # pieces that a sharded restore can read apart

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `params` is the nested parameter dict of the parts that were asked for."""

    config: ModelConfig
    params: dict[str, Any]
    meta: Meta
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What goes into a checkpoint folder. `leaves` maps parameter paths to tensors in our layout; those of
    `forms` are packed when they are written."""

    config: ModelConfig
    leaves: Mapping[str, LazyTensor]
    unused: Mapping[str, LazyTensor] = dataclasses.field(default_factory=dict)
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    source_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    tokens: TokenIds | None = None
    source: SourceLayout | None = None
    forms: Mapping[str, Form] = dataclasses.field(default_factory=dict)


def part_dtype(part: str, dtype: np.dtype | None, stored: np.dtype) -> np.dtype:
    """Dtype of a part's arrays when `dtype` is asked for: float32 for the two vision models.

    Source: spec/language_model.md 15.
    """
    if dtype is None:
        return stored
    return np.dtype(np.float32) if part in FLOAT32_PARTS else dtype


def write(
    target: Path, content: Content, *, overwrite: bool = False, progress: Progress | None = None
) -> Meta:
    """Write a checkpoint folder, reading each tensor once and holding few at a time.

    Everything goes to a hidden sibling that is renamed at the end, so a killed run leaves no checkpoint.

    Raises:
        FileExistsError: the target exists (with `overwrite`: and is no checkpoint of ours).
        OSError: too little free disk.
        ValueError: a tensor that does not survive its cast, or with numbers that are not finite.
    """
    leaves = packed.pack(content.leaves, content.forms)
    total = sum(leaf.nbytes for leaf in leaves.values())
    parts = tuple(dict.fromkeys(path.split("/")[0] for path in leaves))
    with replacing(target, total + sum(leaf.nbytes for leaf in content.unused.values()), overwrite) as folder:
        corners = fingerprint.corners(content.config, parts)
        wanted = fingerprint.stored_corners(corners, content.forms)
        cut: dict[str, np.ndarray] = {}
        done = 0

        def passing(path: str, leaf: LazyTensor) -> LazyTensor:
            def load() -> np.ndarray:
                nonlocal done
                value = lazy.contiguous(leaf.load())
                if wrong := lazy.count_non_finite(value):
                    raise ValueError(
                        f"parameter '{path}' holds {wrong} numbers that are not finite (NaN or infinite); "
                        "the source is damaged"
                    )
                if path in wanted:
                    cut[path] = np.array(value[wanted[path]])
                done += value.nbytes
                if progress is not None:
                    progress(path, done, total)
                return value

            return dataclasses.replace(leaf, load=load)

        _save_orbax(folder / PARAMS, nested({path: passing(path, leaf) for path, leaf in leaves.items()}))
        safe_file.write(folder / UNUSED, content.unused)
        for name, files in ((TOKENIZER, content.tokenizer), (SOURCE, content.source_files)):
            (folder / name).mkdir()
            for file, data in files.items():
                (folder / name / file).write_bytes(data)
        meta = Meta(
            config=content.config,
            parts=parts,
            dtypes=_count_dtypes(content),
            fingerprint=fingerprint.of_stored(cut, corners, content.forms),
            files=_list_files(folder),
            tokens=content.tokens,
            source=content.source,
            forms=dict(content.forms),
        )
        metas.write(folder, meta)
    return meta


def save(
    target: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    tokenizer: Mapping[str, bytes] | None = None,
    tokens: TokenIds | None = None,
    overwrite: bool = False,
) -> Meta:
    """Write parameters that did not come from a conversion (numpy or JAX arrays), each in its own dtype.

    Raises:
        FileExistsError, OSError: see `write`.
    """
    leaves = {
        path: LazyTensor(tuple(leaf.shape), np.dtype(leaf.dtype), lambda leaf=leaf: np.asarray(leaf))
        for path, leaf in flattened(params).items()
    }
    content = Content(config=config, leaves=leaves, tokenizer=tokenizer or {}, tokens=tokens)
    return write(Path(target), content, overwrite=overwrite)


def load(
    folder: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    parts: Sequence[str] | None = None,
) -> Checkpoint:
    """Read a checkpoint as JAX arrays, on one device or straight to its sharding over `mesh`.

    `dtype` is that of language model, vision tower and projector (None: as stored); grounding and visual
    prompts are always float32, packed matrices stay packed. `parts` restricts what is read, for example to
    ("llama",).

    Raises:
        FileNotFoundError: no checkpoint, or a part that it does not hold.
        ValueError: damaged.
    """
    folder = Path(folder)
    meta = metas.read(folder)
    check_files(folder, meta)
    wanted = tuple(meta.parts if parts is None else parts)
    if absent := [part for part in wanted if part not in meta.parts]:
        raise FileNotFoundError(f"{folder} holds {', '.join(meta.parts)}, but not {', '.join(absent)}")
    stored = {p: leaf for p, leaf in stored_leaves(folder).items() if p.split("/")[0] in wanted}
    forms: dict[str, Form] = {p: form for p, form in meta.forms.items() if p.split("/")[0] in wanted}
    packed.check(folder, stored, forms)
    asked = None if dtype is None else np.dtype(dtype)
    float32 = np.dtype(np.float32)

    def target(path: str, leaf: Any) -> np.dtype:
        part = path.split("/")[0]
        if path.rpartition("/")[0] in forms:
            return np.dtype(leaf.dtype)
        return float32 if part in FLOAT32_PARTS else part_dtype(part, asked, np.dtype(leaf.dtype))

    where = _placements(stored, meta, mesh)
    arguments = {
        path: ocp.ArrayRestoreArgs(
            restore_type=jax.Array,
            dtype=target(path, leaf),
            sharding=where[path],
            global_shape=tuple(leaf.shape),
        )
        for path, leaf in stored.items()
    }
    params = flattened(_restore(folder, {path: 0 for path in stored}, arguments))
    return Checkpoint(meta.config, nested(packed.unpack(params, forms)), meta, folder)


def check_files(folder: Path, meta: Meta) -> None:
    """Hold the files of a checkpoint against what was recorded when it was written.

    Sizes of all files, contents of the small ones (tokenizer, config); weights are not read.

    Raises:
        ValueError: a file that is missing or differs.
    """
    found = _list_files(folder)
    for name, (size, checksum) in meta.files.items():
        if name not in found:
            raise ValueError(f"{folder / name} is missing; convert the checkpoint again")
        if found[name][0] != size:
            raise ValueError(
                f"{folder / name} has {found[name][0]:,} bytes, {size:,} were written; convert it again"
            )
        if found[name][1] != checksum:
            raise ValueError(
                f"{folder / name} is not the file that was written; convert the checkpoint again"
            )


def _list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and, for files of the tokenizer and the source, CRC-32 of every file (0 for the others)."""
    listed = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.name != metas.FILE:
            small = name.parts[0] in (TOKENIZER, SOURCE)
            listed[name.as_posix()] = (path.stat().st_size, zlib.crc32(path.read_bytes()) if small else 0)
    return listed


def read_arrays(folder: Path, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Read some parameters as numpy arrays in their stored dtype."""
    arguments = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths}
    return flattened(_restore(folder, {path: 0 for path in arguments}, arguments))


def stored_leaves(folder: Path) -> dict[str, Any]:
    """Parameter path -> shape and dtype, from the checkpoint's metadata alone.

    Raises:
        ValueError: the parameters are absent or damaged.
    """
    try:
        found: Any = ocp.Checkpointer(_handler()).metadata((folder / PARAMS).absolute())
        return flattened(found.item_metadata.tree)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / PARAMS} is damaged ({error}); convert the checkpoint again") from error


@contextlib.contextmanager
def replacing(target: Path, size: int, overwrite: bool = False) -> Iterator[Path]:
    """Give a new empty folder that takes the name `target` when the block ends well, and vanishes otherwise.

    Raises:
        FileExistsError: the target exists (with `overwrite`: and is no checkpoint of ours).
        OSError: fewer than `size` bytes (and a little) are free.
    """
    target = target.absolute()
    new, old = (target.with_name(f".{target.name}.{state}") for state in ("partial", "old"))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not overwrite:
            raise FileExistsError(
                f"{target} exists; choose another folder (`lgjax convert --overwrite` replaces one)"
            )
        if not (target / metas.FILE).is_file():
            raise FileExistsError(f"{target} exists and is no lgjax checkpoint; it is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    free, needed = shutil.disk_usage(target.parent).free, size * 1.01 + (1 << 20)
    if free < needed:
        raise OSError(f"{target.parent} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed")
    new.mkdir()
    try:
        yield new
    except BaseException:
        _remove(new)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a folder into which threads that are ending may still write."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"a/b": x} into {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Undo `nested`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat.update(flattened(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return flat


class _InTurn(type_handlers.TypeHandler):
    """Writes `LazyTensor` leaves as Orbax's own numpy arrays, loaded in small batches in their turn."""

    def __init__(self) -> None:
        self._numpy = type_handlers.NumpyHandler(deepcopy_host_arrays=False)

    def typestr(self) -> str:
        return self._numpy.typestr()

    async def metadata(self, infos: Any) -> Any:
        return await self._numpy.metadata(infos)

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        return await self._numpy.deserialize(infos, args)

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        for batch in lazy.batches(list(zip(values, infos, args, strict=True)), lambda item: item[0].nbytes):
            arrays = [leaf.load() for leaf, _, _ in batch]
            _, some_infos, some_args = zip(*batch, strict=True)
            for written in await self._numpy.serialize(arrays, some_infos, some_args):
                written.result()
        return []


def _handler(**arguments: Any) -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False, **arguments)


def _save_orbax(folder: Path, tree: dict[str, Any]) -> None:
    registry = type_handlers.create_type_handler_registry(
        (LazyTensor, _InTurn()), (jax.Array, type_handlers.ArrayHandler())
    )
    arguments = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with ocp.Checkpointer(_handler(type_handler_registry=registry)) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree, save_args=arguments))


def _restore(folder: Path, item: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    handler = _handler(restore_concurrent_gb=1)
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(
            (folder / PARAMS).absolute(),
            args=ocp.args.PyTreeRestore(
                item=nested(item), restore_args=nested(arguments), partial_restore=True
            ),
        )


def _placements(stored: dict[str, Any], meta: Meta, mesh: Mesh | None) -> dict[str, Any]:
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return dict.fromkeys(stored, device)
    from lgjax.models.llava_grounding import logical_axes
    from lgjax.parallel import rules

    axes = flattened(logical_axes(meta.config))
    return rules.shardings(stored, {path: packed.axes_of(path, meta.forms, axes) for path in stored}, mesh)


def _count_dtypes(content: Content) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for path, leaf in content.leaves.items():
        part = counts.setdefault(path.split("/")[0], {})
        kind = content.forms.get(path, leaf.dtype.name)
        part[kind] = part.get(kind, 0) + leaf.size
    return counts
