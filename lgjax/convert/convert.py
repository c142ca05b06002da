"""From a checkpoint in the original's layout, or a part that training starts from, to an lgjax checkpoint;
also from one of these to a smaller one.

Source: spec/language_model.md 14, spec/grounding_model.md 13, spec/visual_prompts.md 10.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import ml_dtypes
import numpy as np

from lgjax.convert import hf_config, keys, lazy, manifest, packed, read, store, verify
from lgjax.convert import meta as metas
from lgjax.convert.ahead import stored_tensors
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.meta import Meta, SourceKind, SourceLayout
from lgjax.text import tokenizer as tokenizers

DtypeName = Literal["float32", "bfloat16", "float16"]

_VISION = "model.vision_tower.vision_tower."
_PARTS: dict[SourceKind, str] = {
    "llama": "llama",
    "clip": "clip",
    "openseed": "grounding",
    "semantic-sam": "prompt",
    "projector": "projector",
}
_OUTER = {"openseed": "seg_model.model.", "semantic-sam": "interactive_model.model."}
# matched by name and shape, as the original does; what is absent or does not fit stays fresh
_STARTS = ("openseed", "semantic-sam")
# how newer releases of transformers name a tower that is saved alone
_CLIP_BARE = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
_SMALL_FILE = 1 << 24


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    seg_state: str | None = None,
    tokenizer: str | Path | None = None,
    overwrite: bool = False,
    progress: store.Progress | None = None,
) -> Meta:
    """Convert a folder or file of PyTorch weights into the checkpoint folder `target`; return what was found.

    `source` is a LLaVA-Grounding folder, or a part: a LLaMA or CLIP folder, an OpenSeeD .pt, a Semantic-SAM
    .pth, an mm_projector.bin. `dtype` is that of language model, vision tower and projector (the two vision
    models then become float32); None keeps every tensor's own, so that an export is bit-equal. `quantize`,
    "int8" or "int4", packs the matrices of these parts, see convert/packed.py; the source may then also be an
    lgjax checkpoint, whose `seg_state` and tokenizer stay. `tokenizer` names a folder or tokenizer.model when
    the source has none. `seg_state` is recorded, see ModelConfig
    (default: "before"). `progress` is called with (parameter path,
    bytes done, bytes in all).

    Raises:
        FileNotFoundError: no such source, or nothing in it that is known.
        FileExistsError, OSError: the target exists, or the disk is too small.
        ValueError: everything that is wrong with the source, in one message.
        ImportError: PyTorch files without PyTorch.
    """
    source, target = Path(source), Path(target)
    if dtype is not None and dtype not in get_args(DtypeName):
        raise ValueError(f"dtype '{dtype}' is none of {', '.join(get_args(DtypeName))}")
    if quantize is not None and quantize not in get_args(metas.Form):
        raise ValueError(f"quantize '{quantize}' is none of {', '.join(get_args(metas.Form))}")
    form = cast(metas.Form | None, quantize)
    if seg_state not in (None, "before", "at"):
        raise ValueError(f"seg_state '{seg_state}' is neither 'before' nor 'at'")
    if not source.exists():
        raise FileNotFoundError(f"no checkpoint at {source}")
    if (source / metas.FILE).is_file():
        content = _content_of(source)
        if tokenizer is not None or seg_state not in (None, content.config.seg_state):
            raise ValueError(
                f"{source} is an lgjax checkpoint, which keeps its own tokenizer and seg_state "
                f"'{content.config.seg_state}'; leave --tokenizer and --seg-state out"
            )
        if dtype is None and quantize is None:
            raise ValueError(
                f"{source} is an lgjax checkpoint already; --quantize or --dtype write it in another form"
            )
        return store.write(target, _smaller(content, dtype, form), overwrite=overwrite, progress=progress)
    opened = read.open_folder(source) if source.is_dir() else read.open_file(source)
    if opened.findings and not opened.tensors:
        verify.refuse(str(source), opened.findings)
    raw, findings = _read_config(source)
    kind = _kind(source, opened.tensors)
    tensors, skipped = _full_names(kind, opened.tensors)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    parts = None if kind == "llava-grounding" else (_PARTS[kind],)
    try:
        config = (
            hf_config.llava_config(raw, shapes)
            if parts is None
            else hf_config.part_config(parts[0], raw, shapes)
        )
    except ValueError as error:
        findings += [] if findings else str(error).splitlines()
        verify.refuse(str(source), [*opened.findings, *findings])
        raise
    config = dataclasses.replace(config, seg_state=seg_state or "before")
    entries = manifest.manifest(config, parts)
    findings += opened.findings
    missing: list[str] = []
    if kind in _STARTS:
        tensors, unfit, missing = _fitting(tensors, entries)
        skipped += unfit
        findings += verify.check_start(tensors, entries, missing)
    elif not opened.findings:  # what stands in an unreadable file cannot be told from what is missing
        findings += verify.check_tensors(tensors, entries, config, all_names=opened.format == "bin")
    found, tokens, faults = _tokens(kind, source, tokenizer, tensors)
    verify.refuse(str(source), findings + faults)

    leaves, unused = verify.select(tensors, entries, config)
    content = store.Content(
        config=config,
        leaves=leaves,
        unused={} if kind in _STARTS else unused,
        tokenizer=found,
        source_files=_small_files(source),
        tokens=tokens,
        source=SourceLayout(
            kind=kind,
            format=opened.format,
            files={
                name: [(key, opened.tensors[key].dtype.name) for key in listed]
                for name, listed in opened.files.items()
            },
            skipped=tuple(sorted(skipped)),
            missing=tuple(sorted(missing)),
        ),
    )
    return store.write(target, _smaller(content, dtype, form), overwrite=overwrite, progress=progress)


def _smaller(content: store.Content, dtype: str | None, form: metas.Form | None) -> store.Content:
    """What is stored: matrices packed, everything else in the dtype that is asked for."""
    forms = packed.forms_of(content.leaves, form) if form else {}
    if form and not forms:
        parts = ", ".join(sorted({path.split("/")[0] for path in content.leaves}))
        raise ValueError(
            f"there is nothing to keep in {form}: the source holds {parts}, which stay as they are"
        )
    leaves = dict(content.leaves)
    if dtype is not None:
        wanted = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        for path, leaf in leaves.items():
            if path not in forms:
                own = store.part_dtype(path.split("/")[0], wanted, leaf.dtype)
                leaves[path] = lazy.cast(leaf, own, path)
    # packed matrices cannot be exported, so what only an export needs is left out
    unused = {} if forms else content.unused
    return dataclasses.replace(content, leaves=leaves, forms=forms, unused=unused)


def _content_of(folder: Path) -> store.Content:
    """A checkpoint of ours, to be written again."""
    meta = metas.read(folder)
    store.check_files(folder, meta)
    packed.refuse(folder, meta, "a conversion")
    stored = store.stored_leaves(folder)
    in_order = sorted(stored, key=lambda path: meta.parts.index(path.split("/")[0]))
    return store.Content(
        config=meta.config,
        leaves=stored_tensors({path: stored[path] for path in in_order}, folder),
        unused=read.open_file(folder / store.UNUSED).tensors,
        tokenizer=_files_of(folder / store.TOKENIZER),
        source_files=_files_of(folder / store.SOURCE),
        tokens=meta.tokens,
        source=meta.source,
    )


def _files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def _kind(source: Path, tensors: Mapping[str, Any]) -> SourceKind:
    """Tell what a source is by its keys."""
    if source.is_dir():
        if any(
            key.startswith(("model.mm_projector.", "seg_model.", "interactive_model.")) for key in tensors
        ):
            return "llava-grounding"
        if any(key.startswith("model.layers.") for key in tensors):
            return "llama"
        if any(key.endswith("embeddings.class_embedding") for key in tensors):
            return "clip"
    elif any(key.endswith("mm_projector.weight") for key in tensors):
        return "projector"
    elif any("sem_seg_head." in key for key in tensors):
        prompt = any(key.endswith(("mask_tokens.weight", "pb_embedding.weight")) for key in tensors)
        return "semantic-sam" if prompt else "openseed"
    shown = ", ".join(list(tensors)[:3]) or "nothing"
    raise FileNotFoundError(
        f"{source} is no checkpoint that is known ({len(tensors)} keys: {shown} ...); expected a "
        "LLaVA-Grounding, LLaMA or CLIP folder, an OpenSeeD .pt, a Semantic-SAM .pth or an mm_projector.bin"
    )


def _full_names(
    kind: SourceKind, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Give the tensors of a part the keys they have in the whole checkpoint; the rest is named as skipped."""
    named, skipped = {}, []
    for key, tensor in tensors.items():
        name = key
        if kind == "clip":
            bare = f"vision_model.{key}" if key.startswith(_CLIP_BARE) else key
            name = _VISION + bare if bare.startswith("vision_model.") else ""
        elif kind == "projector":
            end = key.rpartition("mm_projector.")[2]
            name = f"model.mm_projector.{end}" if "mm_projector." in key else ""
        elif kind in _OUTER:
            while name.startswith("model."):
                name = name.removeprefix("model.")
            name = name if name.startswith(_OUTER[kind]) else _OUTER[kind] + name
        if name:
            named[name] = tensor
        else:
            skipped.append(key)
    return named, skipped


def _fitting(
    tensors: Mapping[str, LazyTensor], entries: Mapping[str, manifest.Entry]
) -> tuple[dict[str, LazyTensor], list[str], list[str]]:
    """Take what fits by name and shape: (what fits, keys that do not, parameters without a tensor)."""
    fitting = {key: t for key, t in tensors.items() if key in entries and entries[key].shape == t.shape}
    given = {keys.canonical(key) for key in fitting}
    unfit = [f"{key} {list(tensors[key].shape)}" for key in tensors.keys() - fitting.keys()]
    missing = [entry.path for key, entry in entries.items() if entry.kind == "parameter" and key not in given]
    return fitting, unfit, missing


def _read_config(source: Path) -> tuple[dict[str, Any], list[str]]:
    """Parse config.json of a folder; a file has none."""
    path = source / "config.json"
    if not source.is_dir():
        return {}, []
    if not path.is_file():
        return {}, ["config.json: not found beside the weights"]
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        return {}, [f"config.json: not valid JSON: {error}"]
    return (
        (raw, [])
        if isinstance(raw, dict)
        else ({}, [f"config.json: holds a {type(raw).__name__}, expected names"])
    )


def _tokens(
    kind: SourceKind, source: Path, given: str | Path | None, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, bytes], Any, list[str]]:
    """Tokenizer files to carry, ids (whole models only) and faults."""
    if kind == "llava-grounding":
        embedding = tensors.get("model.embed_tokens.weight")
        rows = embedding.shape[0] if embedding is not None and embedding.shape else None
        tokenizer, tokens, findings = verify.check_tokens(Path(given or source), rows)
        return (tokenizer.files if tokenizer else {}), tokens, findings
    folder = source if given is None else Path(given)
    if kind != "llama" or not folder.is_dir():
        return {}, None, []
    paths = {name: folder / name for name in tokenizers.FILES}
    files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    return files, None, verify.check_pieces(files, tensors)


def _small_files(source: Path) -> dict[str, bytes]:
    """Config files beside the weights, kept for the export; the tokenizer is kept apart."""
    if not source.is_dir():
        return {}
    return {
        path.name: path.read_bytes()
        for path in sorted(source.glob("*.json"))
        if path.name not in tokenizers.FILES and path.stat().st_size <= _SMALL_FILE
    }
