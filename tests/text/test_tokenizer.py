"""Tokenizer: rules of special tokens, decoding, stopping, the files of a checkpoint, and clear errors."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from lgjax.text import tokenizer as module
from lgjax.text.tokenizer import IMAGE_TOKEN, Tokenizer
from tests.text.tiny import MODEL, STOP_PIECES, TOKENIZER, grounding_ids, ordinary_ids, special_ids, stop_ids

PIECES = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
tags = st.sampled_from(["<s>", "</s>", "<unk>", "<g_s>", "<g_e>", "<seg>", " ", "\n", "<", "</", "seg>", "%"])
texts = st.lists(words | tags, max_size=12).map("".join)


def slow_encode(text: str) -> list[int]:
    """The rules of spec 6.2 by walking through the text, item by item."""
    added = {"<g_s>": 800, "<g_e>": 801, "<seg>": 802}
    special = {"<s>": 1, "</s>": 2, "<unk>": 0, **added}
    found = ["", *(match[0] for match in re.finditer("|".join(special), text)), ""]
    between = re.split("|".join(special), text)
    ids = [1]
    for left, item, right in zip(found, between, found[1:], strict=False):
        item = item.lstrip() if left in added else item
        item = item.rstrip() if right in added else item
        ids += PIECES.encode(item) if item else []
        ids += [special[right]] if right else []
    return ids


@given(texts)
def test_encode_follows_the_rules(text: str) -> None:
    assert TOKENIZER.encode(text) == slow_encode(text)


@given(st.lists(words | st.just("<image>"), max_size=8).map("".join))
def test_image_placeholders(text: str) -> None:
    ids = TOKENIZER.encode_prompt(text)
    assert ids[0] == TOKENIZER.bos_id
    assert ids.count(TOKENIZER.bos_id) == 1
    chunks = text.split("<image>")
    assert ids.count(IMAGE_TOKEN) == len(chunks) - 1
    cuts = [-1, *(i for i, token in enumerate(ids) if token == IMAGE_TOKEN), len(ids)]
    parts = [ids[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    assert [part if i == 0 else [1, *part] for i, part in enumerate(parts)] == list(map(slow_encode, chunks))


@given(st.text(st.characters(codec="utf-8", exclude_characters="▁ \n<"), min_size=1, max_size=20))
def test_text_without_tags_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(ordinary_ids | grounding_ids | special_ids, max_size=30))
def test_decode_by_runs(ids: list[int]) -> None:
    parts: list[list[int]] = []
    for i in [i for i in ids if i > 2]:
        if i < 800 and parts and parts[-1][-1] < 800:
            parts[-1].append(i)
        else:
            parts.append([i])
    names = {800: "<g_s>", 801: "<g_e>", 802: "<seg>"}
    assert TOKENIZER.decode(ids) == " ".join(names.get(part[0]) or PIECES.decode(part) for part in parts)


def visible_text(ids: list[int]) -> str:
    """What the original's loop searches for "</s>": the decoded text with special tokens left in."""
    out, run = "", []
    for i in [*ids, None]:
        if i is not None and 2 < i < 800:
            run.append(i)
            continue
        out += PIECES.decode(run) + " "
        out += {None: "", 0: "<unk>", 1: "<s>", 2: "</s>"}.get(i, "<added>")
        run = []
    return out


@given(st.lists(stop_ids | ordinary_ids | grounding_ids | special_ids, max_size=14))
def test_stop_length_is_the_shortest_prefix(ids: list[int]) -> None:
    shortest = next((n for n in range(len(ids) + 1) if "</s>" in visible_text(ids[:n])), None)
    assert TOKENIZER.stop_length(ids) == shortest


def spell(letter: str, as_byte: bool) -> int:
    i = PIECES.piece_to_id(letter)
    return PIECES.piece_to_id(f"<0x{ord(letter):02X}>") if as_byte or i == PIECES.unk_id() else i


@given(st.lists(ordinary_ids, max_size=5), st.tuples(*[st.booleans()] * 4))
def test_stop_spelled_by_pieces(before: list[int], as_byte: tuple[bool, ...]) -> None:
    ids = before + [spell(letter, byte) for letter, byte in zip("</s>", as_byte, strict=True)]
    assert "</s>" in PIECES.decode(ids)
    assert TOKENIZER.stop_length([*ids, 5, 6]) == len(ids)
    assert TOKENIZER.stop_length(ids[:-1]) is None


@pytest.mark.parametrize("token", ["<g_s>", "<seg>", "<s>", "<unk>"])
def test_a_special_token_breaks_the_spelling(token: str) -> None:
    ids = [spell(letter, True) for letter in "</s>"]
    (between,) = TOKENIZER.encode(token)[1:]
    for cut in range(1, 4):
        assert TOKENIZER.stop_length([*ids[:cut], between, *ids[cut:]]) is None


def test_the_stop_pieces_can_spell_the_stop() -> None:
    assert {"<", "/", "s", ">"} <= {PIECES.decode([PIECES.unk_id(), i])[-1:] for i in STOP_PIECES}


def test_numpy_ids_are_fine() -> None:
    ids = np.array(TOKENIZER.encode("a <g_s> boat <g_e> <seg> .</s>"), np.int32)
    assert TOKENIZER.decode(ids) == "a <g_s> boat <g_e> <seg> ."
    assert TOKENIZER.stop_length(ids) == len(ids)


@pytest.mark.parametrize("bad", [-200, -1, 803, 10**6])
def test_unknown_ids_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=f"id {bad} is no token of this tokenizer"):
        TOKENIZER.decode([5, bad])
    with pytest.raises(ValueError, match=f"id {bad} is no token of this tokenizer"):
        TOKENIZER.stop_length([5, bad])


def test_save_and_load(tmp_path) -> None:
    TOKENIZER.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.files == TOKENIZER.files == Tokenizer.load(tmp_path / "a" / "tokenizer.model").files
    text = "a <g_s> boat <g_e> <seg> , 50 %</s>"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    loaded.save(tmp_path / "b")
    for name in module.FILES:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    added = json.loads((tmp_path / "b" / "added_tokens.json").read_bytes())
    assert added == {"<g_s>": 800, "<g_e>": 801, "<seg>": 802}


def test_a_read_folder_is_copied_byte_for_byte(tmp_path) -> None:
    TOKENIZER.save(tmp_path)
    odd = b'{"<seg>":802,\n\n"<g_e>":801, "<g_s>": 800}'
    (tmp_path / "added_tokens.json").write_bytes(odd)
    (tmp_path / "tokenizer_config.json").unlink()
    Tokenizer.load(tmp_path).save(tmp_path / "copy")
    assert (tmp_path / "copy" / "added_tokens.json").read_bytes() == odd
    assert not (tmp_path / "copy" / "tokenizer_config.json").exists()


def test_saved_files_are_read_by_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    TOKENIZER.save(tmp_path)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids(["<g_s>", "<g_e>", "<seg>"]) == [800, 801, 802]
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token) == ("<s>", "</s>", "<unk>")


def with_files(**changes: object) -> dict[str, bytes]:
    """The tiny tokenizer's files with some replaced (given as JSON values) or, when None, left out."""
    files = dict(TOKENIZER.files)
    for name, value in changes.items():
        files.pop(f"{name}.json")
        if value is not None:
            files[f"{name}.json"] = json.dumps(value).encode()
    return files


def test_ids_come_from_the_files() -> None:
    more = {"<g_s>": 804, "<g_e>": 801, "<seg>": 806, "<pad>": 800, "<s>": 1}
    tokenizer = Tokenizer(with_files(added_tokens=more))
    assert (tokenizer.g_s_id, tokenizer.g_e_id, tokenizer.seg_id) == (804, 801, 806)
    assert tokenizer.vocab_size == 807
    assert tokenizer.encode("<pad> a<seg>") == [1, 800, *PIECES.encode("a"), 806]
    assert tokenizer.decode([804, 261, 801, 806]) == f"<g_s> {PIECES.decode([261])} <g_e> <seg>"
    listed = {str(i): {"content": token, "lstrip": False} for token, i in more.items()}
    newer = Tokenizer(with_files(added_tokens=None, tokenizer_config={"added_tokens_decoder": listed}))
    assert newer.added == tokenizer.added


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "lack tokenizer.model; found none"),
        ({"tokenizer.model": b""}, "0 bytes, starts with b''"),
        ({"tokenizer.model": b"<html>not a model</html>"}, "is not a SentencePiece model"),
        ({"tokenizer.model": MODEL.read_bytes()[:5000]}, "is not a SentencePiece model"),
        ({"tokenizer.model": MODEL.read_bytes()}, "has no <g_s>, <g_e>, <seg> among its added tokens"),
        (with_files(added_tokens={"<g_s>": 800, "<g_e>": 801}), "has no <seg> among its added tokens"),
        (with_files(added_tokens={"<g_s>": 800, "<g_e>": 801, "<seg>": 5}), "'<seg>' has id 5"),
        (with_files(added_tokens={"<g_s>": 800, "<g_e>": 801, "<seg>": 801}), "share one id"),
        (with_files(added_tokens=["<seg>"]), "added_tokens.json .* JSON object, found list"),
        ({**TOKENIZER.files, "added_tokens.json": b"{"}, "added_tokens.json .* is not valid JSON"),
    ],
)
def test_bad_files(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(files)
    assert "\n" not in str(caught.value)


def test_a_model_without_percent_is_refused(tmp_path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small boat on a lake", "two red cars"] * 10),
        model_prefix=str(tmp_path / "other"),
        model_type="bpe",
        vocab_size=40,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="has no piece '▁%', which marks visual prompts"):
        Tokenizer.from_model_file(tmp_path / "other.model")


def test_missing_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"give a checkpoint folder that holds tokenizer\.model"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no SentencePiece file at"):
        Tokenizer.from_model_file(tmp_path / "none.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"has tokenizer\.json but no tokenizer\.model"):
        Tokenizer.load(tmp_path)
