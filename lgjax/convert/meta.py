"""What a checkpoint says about itself in `lgjax.json`, as dataclasses and as JSON."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from lgjax.config import ModelConfig

FILE = "lgjax.json"
VERSION = 1

SourceKind = Literal["llava-grounding", "llama", "clip", "openseed", "semantic-sam", "projector"]
Form = Literal["int8", "int4"]
FLOAT32_PARTS = ("grounding", "prompt")  # computed and loaded in float32 whatever is asked for the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceLayout:
    """Where a converted checkpoint came from, exactly enough to write the same files again.

    `files` holds, for each weight file, its keys in order with their dtypes. `skipped` are keys of the source
    that fit no parameter, `missing` parameters that the source does not hold (starting parts only).
    """

    kind: SourceKind
    format: Literal["bin", "safetensors"]
    files: dict[str, list[tuple[str, str]]]
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenIds:
    """Ids found in the tokenizer, and the rows of the embedding they were checked against."""

    rows: int
    g_s: int
    g_e: int
    seg: int
    percent: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """Everything about a checkpoint but its tensors.

    `parts` are the top-level parameter groups that are stored; sizes in `config` mean something for these
    only. `dtypes` counts the numbers of each dtype (or form) of each part; `fingerprint` see
    convert/fingerprint.py; `files` has size and checksum of each file, see `store.check_files`; `forms` names
    the parameters that are not kept as numbers, see convert/packed.py.
    """

    config: ModelConfig
    parts: tuple[str, ...]
    dtypes: dict[str, dict[str, int]]
    fingerprint: dict[str, list[float]]
    files: dict[str, tuple[int, int]]
    tokens: TokenIds | None = None
    source: SourceLayout | None = None
    forms: dict[str, Form] = dataclasses.field(default_factory=dict)


def write(folder: Path, meta: Meta) -> None:
    """Write `lgjax.json` into a folder."""
    content = {"version": VERSION, **dataclasses.asdict(meta)}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n")


def read(folder: str | Path) -> Meta:
    """Read `lgjax.json` of a checkpoint folder.

    Raises:
        FileNotFoundError: the folder is no lgjax checkpoint.
        ValueError: the file is damaged or of a newer version.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not an lgjax checkpoint: it has no {FILE} ({_hint(Path(folder))})"
        )
    try:
        content = json.loads(path.read_text())
        version = content.pop("version")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); convert the checkpoint again") from error
    if version != VERSION:
        raise ValueError(
            f"{path} has version {version}, this lgjax reads {VERSION}; convert the checkpoint again"
        )
    try:
        return from_json(Meta, content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); convert the checkpoint again") from error


def from_json(kind: Any, value: Any) -> Any:
    """Turn parsed JSON into the type that an annotation names: dataclasses, tuples, dicts, optional values.

    Raises:
        TypeError: the value does not have that form.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return from_json(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if unknown := value.keys() - hints.keys():
            raise TypeError(f"{sorted(unknown)} is no field of {getattr(kind, '__name__', kind)}")
        return typing.cast(Any, kind)(**{name: from_json(hints[name], item) for name, item in value.items()})
    if origin is tuple:
        items = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(from_json(item, v) for item, v in zip(items, value, strict=True))
    if origin is list:
        return [from_json(arguments[0], item) for item in value]
    if origin is dict:
        return {name: from_json(arguments[1], item) for name, item in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise TypeError(f"{value!r} is none of {arguments}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def _hint(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    if (folder / "config.json").is_file():
        return "it looks like a PyTorch checkpoint: run `lgjax convert` on it first"
    return "give the folder that `lgjax convert` wrote"
