"""LLaMA's SentencePiece tokenizer with the grounding tokens, id for id as the checkpoints were trained.

Current transformers tokenizers give other ids around added tokens, so this one stands directly on
`sentencepiece`. Source: spec/language_model.md 5, 6, 13.1.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

import sentencepiece

from lgjax.config import IMAGE_TOKEN

IMAGE_PLACEHOLDER = "<image>"
GROUNDING_TOKENS = ("<g_s>", "<g_e>", "<seg>")

MODEL_FILE = "tokenizer.model"
ADDED_FILE = "added_tokens.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
FILES = (MODEL_FILE, ADDED_FILE, CONFIG_FILE, SPECIAL_FILE)

_PERCENT = "▁%"
_Ids = Iterable[SupportsIndex]


class Tokenizer:
    """Text to ids and back, from the four tokenizer files of a checkpoint folder.

    `files` maps file names of `FILES` to their bytes; tokenizer.model is required, and the added tokens come
    from added_tokens.json or, without it, from tokenizer_config.json. The same mapping is kept as `files`,
    so a checkpoint can carry the tokenizer. `added` maps each added token to its id. Ids are taken from the
    files and never assumed. Source: spec/language_model.md 5, 6.

    Raises:
        ValueError: tokenizer.model is no SentencePiece model, or a token that grounding needs is missing.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        if MODEL_FILE not in files:
            raise ValueError(f"tokenizer files lack {MODEL_FILE}; found {', '.join(files) or 'none'}")
        self.files = dict(files)
        self._pieces = _processor(self.files[MODEL_FILE])
        self.bos_id: int = self._pieces.bos_id()
        self.eos_id: int = self._pieces.eos_id()
        self.unk_id: int = self._pieces.unk_id()
        self.pad_id: int = self.unk_id
        if min(self.bos_id, self.eos_id) < 0:
            raise ValueError(f"{MODEL_FILE} defines no <s> and </s>; a LLaMA tokenizer.model is needed")
        self.added = _added_tokens(self.files, self._pieces)
        if missing := [token for token in GROUNDING_TOKENS if token not in self.added]:
            raise ValueError(
                f"tokenizer has no {', '.join(missing)} among its added tokens "
                f"(found: {', '.join(self.added) or 'none'}); they belong in {ADDED_FILE} beside "
                f"{MODEL_FILE} of a LLaVA-Grounding checkpoint "
                "(for a plain LLaMA file use Tokenizer.from_model_file)"
            )
        self.g_s_id, self.g_e_id, self.seg_id = (self.added[token] for token in GROUNDING_TOKENS)
        self.percent_id: int = self._pieces.piece_to_id(_PERCENT)
        if self.percent_id == self.unk_id:
            raise ValueError(
                f"{MODEL_FILE} has no piece '{_PERCENT}', which marks visual prompts; "
                "is it LLaMA's tokenizer?"
            )
        self._added_text = {i: token for token, i in self.added.items()}
        self._special_ids = frozenset((self.bos_id, self.eos_id, self.unk_id))
        special = {self._pieces.id_to_piece(i): i for i in self._special_ids}
        self._token_ids = {**special, **self.added}
        tokens = sorted(self._token_ids, key=len, reverse=True)
        self._tokens = re.compile("(" + "|".join(re.escape(token) for token in tokens) + ")")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read the tokenizer of a checkpoint folder, or of the folder that holds the given tokenizer.model.

        Raises:
            FileNotFoundError: no such folder or file, or no tokenizer.model in it.
            ValueError: see `Tokenizer`.
        """
        path = Path(path)
        model = path / MODEL_FILE if path.is_dir() else path
        if not model.is_file():
            if (path / "tokenizer.json").is_file():
                raise FileNotFoundError(
                    f"{path} has tokenizer.json but no {MODEL_FILE}; the SentencePiece file is needed"
                )
            raise FileNotFoundError(
                f"no tokenizer at {model}; give a checkpoint folder that holds {MODEL_FILE}"
            )
        beside = {name: model.parent / name for name in FILES if name != MODEL_FILE}
        others = {name: file.read_bytes() for name, file in beside.items() if file.is_file()}
        return cls({MODEL_FILE: model.read_bytes(), **others})

    @classmethod
    def from_model_file(cls, path: str | Path, added: Sequence[str] = GROUNDING_TOKENS) -> Tokenizer:
        """Build the tokenizer from a bare SentencePiece file; `added` get the ids after its last piece.

        Raises:
            FileNotFoundError: no such file.
            ValueError: see `Tokenizer`.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no SentencePiece file at {path}; give the path of a {MODEL_FILE}")
        model = path.read_bytes()
        first = _processor(model).get_piece_size()
        return cls(_new_files(model, {token: first + i for i, token in enumerate(added)}))

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer files into `folder`, byte for byte as they were read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    @property
    def vocab_size(self) -> int:
        """Rows that the embedding needs: all pieces and all added tokens."""
        return max(self._pieces.get_piece_size(), *(i + 1 for i in self.added.values()))

    def encode(self, text: str) -> list[int]:
        """Turn text into ids, <s> in front and no </s> behind; "<image>" is ordinary text here.

        White space next to an added token disappears, and every stretch between special tokens is encoded
        on its own, so each starts with SentencePiece's dummy space. Source: spec/language_model.md 6.2.
        """
        items = self._tokens.split(text)
        ids = [self.bos_id]
        for i, item in enumerate(items):
            if i % 2:
                ids.append(self._token_ids[item])
                continue
            if i and items[i - 1] in self.added:
                item = item.lstrip()
            if i + 1 < len(items) and items[i + 1] in self.added:
                item = item.rstrip()
            if item:
                ids.extend(self._pieces.encode(item, out_type=int))
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Turn a prompt into ids with `IMAGE_TOKEN` in place of each "<image>".

        Source: spec/language_model.md 6.3.
        """
        first, *rest = (self.encode(chunk) for chunk in text.split(IMAGE_PLACEHOLDER))
        for chunk in rest:
            first += [IMAGE_TOKEN, *chunk[1:]]
        return first

    def segments(self, ids: _Ids) -> list[str | int]:
        """Cut ids into the texts of runs of ordinary ids and the single ids of added tokens, in order.

        <s>, </s> and <unk> are dropped, and a run loses its leading space.
        Source: spec/language_model.md 13.1.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        out: list[str | int] = []
        run: list[int] = []
        for i in map(operator.index, ids):
            if i in self._added_text:
                if run:
                    out.append(self._pieces.decode(run))
                    run = []
                out.append(i)
            elif i not in self._special_ids:
                run.append(self._known(i))
        return [*out, self._pieces.decode(run)] if run else out

    def decode(self, ids: _Ids) -> str:
        """Turn ids into text with the grounding tokens visible, one space around each.

        Source: spec/language_model.md 13.1.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        parts = self.segments(ids)
        return " ".join(part if isinstance(part, str) else self._added_text[part] for part in parts)

    def stop_length(self, ids: _Ids) -> int | None:
        """Return how many of the generated ids are kept: up to the first that completes "</s>" in the text.

        That is the id of </s> itself or the last of ordinary pieces that spell it; None when neither came.
        One pass over the ids. Source: spec/language_model.md 11.4.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        stop = self._pieces.id_to_piece(self.eos_id)
        tail = ""
        for count, i in enumerate(map(operator.index, ids), 1):
            if i == self.eos_id:
                return count
            if i in self._added_text or i in self._special_ids:
                tail = ""
                continue
            tail += self._surface(self._known(i))
            if stop in tail:
                return count
            tail = tail[-(len(stop) - 1) :]
        return None

    def _known(self, i: int) -> int:
        if not 0 <= i < self._pieces.get_piece_size():
            raise ValueError(f"id {i} is no token of this tokenizer ({self.vocab_size} rows)")
        return i

    def _surface(self, i: int) -> str:
        """Characters that one id adds to a text; a byte that is no ASCII character counts as unknown."""
        piece = self._pieces.id_to_piece(i)
        if self._pieces.is_byte(i):
            byte = int(piece[1:-1], 16)
            return chr(byte) if byte < 128 else "\N{REPLACEMENT CHARACTER}"
        return "" if self._pieces.is_control(i) else piece.replace("▁", " ")


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        start = model[:20]
        raise ValueError(
            f"{MODEL_FILE} ({len(model)} bytes, starts with {start!r}) is not a SentencePiece model"
        ) from error
    return processor


def _read_json(files: Mapping[str, bytes], name: str) -> dict:
    try:
        found = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"{name} beside {MODEL_FILE} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} beside {MODEL_FILE} must hold a JSON object, found {type(found).__name__}")
    return found


def _added_tokens(
    files: Mapping[str, bytes], processor: sentencepiece.SentencePieceProcessor
) -> dict[str, int]:
    """Tokens beyond the pieces, with their ids; tokens that the files repeat from the pieces are left out."""
    if ADDED_FILE in files:
        found = {token: int(i) for token, i in _read_json(files, ADDED_FILE).items()}
    else:
        listed = _read_json(files, CONFIG_FILE).get("added_tokens_decoder", {})
        found = {token["content"]: int(i) for i, token in listed.items()}
    pieces = processor.get_piece_size()
    added = {token: i for token, i in sorted(found.items(), key=lambda item: item[1]) if i >= pieces}
    for token in sorted(found.keys() - added.keys()):
        if not 0 <= found[token] < pieces or processor.id_to_piece(found[token]) != token:
            raise ValueError(
                f"added token '{token}' has id {found[token]}, which is another piece of {MODEL_FILE} "
                f"({pieces} pieces); the tokenizer files do not belong together"
            )
    if len(set(added.values())) != len(added):
        raise ValueError(f"two added tokens share one id: {added}")
    return added


def _new_files(model: bytes, added: Mapping[str, int]) -> dict[str, bytes]:
    """The files of a checkpoint folder for a bare model, in the layout of the original's own."""
    processor = _processor(model)

    def token(i: int) -> dict:
        plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"content": processor.id_to_piece(i), **plain}

    names = {
        "bos_token": processor.bos_id(),
        "eos_token": processor.eos_id(),
        "unk_token": processor.unk_id(),
    }
    special = {name: token(i) for name, i in names.items()}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **{name: {"__type": "AddedToken", **value} for name, value in special.items()},
    }
    special["pad_token"] = special["unk_token"]["content"]

    def dump(value: Mapping) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    return {
        MODEL_FILE: model,
        ADDED_FILE: dump(added),
        CONFIG_FILE: dump(config),
        SPECIAL_FILE: dump(special),
    }
