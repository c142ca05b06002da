"""Find everything that is wrong with a checkpoint before anything is written.

Source: spec/language_model.md 5, 14.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from lgjax.config import ModelConfig
from lgjax.convert import keys, manifest
from lgjax.convert.lazy import LazyTensor
from lgjax.convert.manifest import Entry
from lgjax.convert.meta import TokenIds
from lgjax.text.tokenizer import GROUNDING_TOKENS, MODEL_FILE, Tokenizer

_FLOATS = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)}
_START_SHARE = 0.75  # of the numbers of a starting part; the heads that may differ are far less
_SHOWN = 12  # lines of one kind of fault in a message


def refuse(what: str, findings: list[str]) -> None:
    """Do nothing without findings, else raise all of them in one message, long lists of one kind cut short.

    Raises:
        ValueError: there are findings.
    """
    if not findings:
        return
    kinds: dict[str, list[str]] = {}
    for finding in findings:
        kinds.setdefault(finding.split(":")[0], []).append(finding)
    lines = []
    for kind, found in kinds.items():
        lines += found[:_SHOWN]
        if len(found) > _SHOWN:
            lines.append(f"{kind}: {len(found) - _SHOWN} more")
    count = f"{len(findings)} faults" if len(findings) > 1 else "1 fault"
    raise ValueError(f"{what} cannot be converted, {count} found:\n  " + "\n  ".join(lines))


def check_start(
    tensors: Mapping[str, LazyTensor], entries: Mapping[str, Entry], missing: list[str]
) -> list[str]:
    """Refuse a starting part of which hardly anything fits by name and shape, and tied names that disagree.

    The original fills the rest with fresh values; a text head of another width is such a rest, a whole
    backbone is not.
    """
    sizes = {entry.path: int(np.prod(entry.shape)) for entry in entries.values() if entry.kind == "parameter"}
    share = 1 - sum(sizes[path] for path in missing) / sum(sizes.values())
    groups: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if entry.kind == "alias":
            groups.setdefault(entry.canonical, []).append(key)
    findings = _check_aliases(tensors, groups)
    if share < _START_SHARE:
        shown = ", ".join(missing[:3])
        findings.append(
            f"too little fits: {share:.0%} of the numbers by name and shape ({len(missing)} of {len(sizes)} "
            f"parameters have no tensor: {shown} ...); is it a checkpoint of this model?"
        )
    return findings


def check_tensors(
    tensors: Mapping[str, LazyTensor], entries: Mapping[str, Entry], config: ModelConfig, all_names: bool
) -> list[str]:
    """Compare what a file holds with what it should hold; one line for each fault.

    Keys missing or unexpected, shapes, dtypes, aliases that differ from their tensor, window indices that
    differ from ours. Buffers may be absent. `all_names`: every alias must be there, as the original's strict
    loading asks; otherwise one name of each tied group is enough (safetensors files drop the others).
    """
    groups: dict[str, list[str]] = {}
    for key, entry in entries.items():
        if entry.kind == "alias":
            groups.setdefault(entry.canonical, []).append(key)
    findings = []
    for key, entry in entries.items():
        if key in tensors or entry.kind == "buffer":
            continue
        names = (
            [entry.canonical, *groups[entry.canonical]]
            if entry.kind == "alias"
            else [key, *groups.get(key, [])]
        )
        untied = key == "lm_head.weight" and entry.kind == "alias"
        if untied or (not all_names and any(name in tensors for name in names)):
            continue
        if all_names or entry.kind != "alias":
            findings.append(f"missing: '{key}', expected shape {list(entry.shape)}")
    optional = dict([manifest.position_ids(config.clip)])
    for key, tensor in tensors.items():
        shape = entries[key].shape if key in entries else optional.get(key)
        if shape is None:
            findings.append(f"unexpected: '{key}' of shape {list(tensor.shape)} fits nothing in this model")
        elif tensor.shape != shape:
            findings.append(f"wrong shape: '{key}' is {list(tensor.shape)}, expected {list(shape)}")
        elif key in entries and entries[key].kind != "buffer" and tensor.dtype not in _FLOATS:
            findings.append(f"wrong dtype: '{key}' is {tensor.dtype}, expected float16, bfloat16 or float32")
    findings += _check_aliases(tensors, groups)
    for key, entry in entries.items():
        tensor = tensors.get(key) if key.endswith(".relative_position_index") else None
        if tensor is None or tensor.shape != entry.shape:
            continue
        if not np.array_equal(tensor.load(), manifest.buffer_value(key, entry.shape, config)):
            findings.append(
                f"wrong buffer: '{key}' orders the window differently; this Swin is not supported"
            )
    return findings


def _check_aliases(tensors: Mapping[str, LazyTensor], groups: Mapping[str, list[str]]) -> list[str]:
    findings = []
    for canonical, names in groups.items():
        present = [name for name in (canonical, *names) if name in tensors]
        if len(present) < 2:
            continue
        first = tensors[present[0]]
        want = first.load().tobytes()
        for name in present[1:]:
            tensor = tensors[name]
            if tensor.shape != first.shape:
                continue  # reported as a wrong shape
            if tensor.dtype != first.dtype:
                findings.append(
                    f"unequal aliases: '{name}' is {tensor.dtype}, '{present[0]}' is {first.dtype}"
                )
            elif tensor.load().tobytes() != want:
                findings.append(
                    f"unequal aliases: '{name}' differs from '{present[0]}', but both are one tensor"
                )
    return findings


def check_tokens(path: Path, rows: int | None) -> tuple[Tokenizer | None, TokenIds | None, list[str]]:
    """Read the tokenizer and hold its ids against the rows of the embedding (None: unknown).

    The grounding tokens must be the last three rows in the order `<g_s> <g_e> <seg>`, as the original adds
    and trains them. Source: spec/language_model.md 5.
    """
    try:
        tokenizer = Tokenizer.from_model_file(path) if path.is_file() else Tokenizer.load(path)
    except (FileNotFoundError, ValueError) as error:
        return None, None, [f"tokenizer: {error}"]
    if rows is None:
        return tokenizer, None, []
    ids = (tokenizer.g_s_id, tokenizer.g_e_id, tokenizer.seg_id)
    findings = []
    if tokenizer.vocab_size != rows:
        findings.append(
            f"row count: the embedding has {rows} rows, the tokenizer {tokenizer.vocab_size} ids; "
            f"{MODEL_FILE} or added_tokens.json is of another checkpoint"
        )
    elif ids != (rows - 3, rows - 2, rows - 1):
        found = ", ".join(f"{token} {i}" for token, i in zip(GROUNDING_TOKENS, ids, strict=True))
        findings.append(
            f"token ids: {found}; expected {rows - 3}, {rows - 2}, {rows - 1} (the last three rows)"
        )
    percent = tokenizer.percent_id
    return tokenizer, TokenIds(rows=rows, g_s=ids[0], g_e=ids[1], seg=ids[2], percent=percent), findings


def check_pieces(files: Mapping[str, bytes], tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Hold the pieces of a plain LLaMA tokenizer, if there is one, against the rows of the embedding."""
    import sentencepiece

    embedding = tensors.get("model.embed_tokens.weight")
    if MODEL_FILE not in files or embedding is None or not embedding.shape:
        return []
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=files[MODEL_FILE]).get_piece_size()
    except RuntimeError:
        return [f"tokenizer: {MODEL_FILE} is damaged or no SentencePiece model"]
    rows = embedding.shape[0]
    return [f"row count: the embedding has {rows} rows, {MODEL_FILE} has {pieces} pieces"] * (pieces > rows)


def verify_tokens(tokenizer: Tokenizer, tokens: TokenIds) -> None:
    """Check that a tokenizer still gives the ids that were recorded with the checkpoint.

    Raises:
        ValueError: an id or the row count differs.
    """
    found = {
        "rows": tokenizer.vocab_size,
        "g_s": tokenizer.g_s_id,
        "g_e": tokenizer.g_e_id,
        "seg": tokenizer.seg_id,
        "percent": tokenizer.percent_id,
    }
    faults = [
        f"{name} is {i}, recorded {getattr(tokens, name)}"
        for name, i in found.items()
        if i != getattr(tokens, name)
    ]
    if faults:
        raise ValueError(f"the tokenizer is not the one of this checkpoint: {'; '.join(faults)}")


def select(
    tensors: Mapping[str, LazyTensor], entries: Mapping[str, Entry], config: ModelConfig
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Split a verified source into parameters (path -> tensor in our layout) and tensors to keep for export.

    Kept are dead tensors and those buffers whose stored values cannot be computed again.
    """
    leaves: dict[str, LazyTensor] = {}
    kept: dict[str, LazyTensor] = {}
    names: dict[str, str] = {}
    for key, entry in entries.items():
        if key in tensors:
            names.setdefault(entry.canonical or key, key)
    for key, entry in entries.items():
        if entry.kind == "parameter" and key in names:
            leaves[entry.path] = _in_our_layout(tensors[names[key]], entry)
    for key, tensor in tensors.items():
        kind = entries[key].kind if key in entries else "buffer"
        if kind == "dead" or (kind == "buffer" and not _computable(key, tensor, config)):
            kept[key] = tensor
    return leaves, kept


def _in_our_layout(tensor: LazyTensor, entry: Entry) -> LazyTensor:
    shape = manifest.parameter_shape(entry)
    return LazyTensor(shape, tensor.dtype, lambda: keys.to_parameter(tensor.load(), entry.layout))


def _computable(key: str, tensor: LazyTensor, config: ModelConfig) -> bool:
    value = manifest.buffer_value(key, tensor.shape, config).astype(tensor.dtype)
    return value.tobytes() == tensor.load().tobytes()
