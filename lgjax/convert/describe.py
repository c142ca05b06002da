"""What `lgjax inspect` prints about a folder."""

from __future__ import annotations

from pathlib import Path

from lgjax.config import ModelConfig
from lgjax.convert import meta as metas
from lgjax.convert import store
from lgjax.convert.meta import Meta


def describe(folder: str | Path) -> str:
    """Describe a checkpoint in plain lines: parts, sizes, dtypes, ids, source, fingerprint, disk.

    Raises:
        FileNotFoundError: the folder is no lgjax checkpoint; says what it looks like instead.
        ValueError: it is one, but damaged.
    """
    folder = Path(folder)
    meta = metas.read(folder)
    store.check_files(folder, meta)
    stored = store.stored_leaves(folder)
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lines = [
        f"lgjax checkpoint {folder}: {len(stored) - len(meta.forms)} parameters, {disk / 1e6:,.1f} MB on disk"
    ]
    for part in meta.parts:
        counts = meta.dtypes[part]
        dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in counts.items())
        lines.append(f"  {part:<10} {dtypes}; {_sizes(part, meta.config)}")
    lines += _identity(meta)
    lines.append("  fingerprint")
    lines += [
        f"    {name:<36} {' '.join(f'{value:.5g}' for value in values[:4])}"
        for name, values in meta.fingerprint.items()
    ]
    return "\n".join(lines)


def _sizes(part: str, config: ModelConfig) -> str:
    llama, clip = config.llama, config.clip
    if part == "llama":
        tied = ", tied embeddings" if llama.tie_embeddings else ""
        return (
            f"{llama.num_layers} layers of {llama.hidden_size}, {llama.num_heads} heads "
            f"({llama.num_kv_heads} for keys), {llama.vocab_size} rows{tied}"
        )
    if part == "clip":
        return (
            f"{clip.num_layers} blocks of {clip.hidden_size} ({clip.used_layers} used), "
            f"{clip.num_heads} heads, images of {clip.image_size}, patches of {clip.patch_size}"
        )
    if part == "projector":
        return f"{clip.hidden_size} to {llama.hidden_size}"
    model = config.grounding if part == "grounding" else config.prompt
    if model is None:
        return "sizes unknown"
    depths = "-".join(map(str, model.swin.depths))
    return (
        f"Swin {model.swin.embed_dim} ({depths}), {model.transformer.encoder_layers} encoder and "
        f"{model.transformer.decoder_layers} decoder layers of {model.transformer.hidden_size}"
    )


def _identity(meta: Meta) -> list[str]:
    lines = [f"  <seg> state: {meta.config.seg_state}; chats written as by: {meta.config.history}"]
    if (ids := meta.tokens) is not None:
        lines.append(
            f"  ids: <g_s> {ids.g_s}, <g_e> {ids.g_e}, <seg> {ids.seg}, % {ids.percent}; {ids.rows} rows"
        )
    if (source := meta.source) is None:
        return [*lines, "  source: trained here"]
    held = sum(map(len, source.files.values()))
    lines.append(f"  source: {source.kind}, {len(source.files)} {source.format} file(s), {held} keys")
    for title, names in (("skipped", source.skipped), ("kept fresh", source.missing)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(f"  {title}: {', '.join(names[:5])}{more}")
    return lines
