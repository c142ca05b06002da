"""Records: what they must hold, JSON there and back, errors that name file and record."""

import dataclasses
import json
from pathlib import Path

import pytest

from lgjax.data.schema import (
    Expression,
    Object,
    Phrase,
    Record,
    RecordError,
    Region,
    Source,
    Turn,
    check,
    from_json,
    read_json,
    to_json,
)

CAT = Object(box=(1, 2, 30, 40), mask=[[1, 2, 30, 2, 30, 40]], name="cat", id=5)
CHAT = Record(
    id="7",
    kind="chat",
    image="a.jpg",
    size=(60, 50),
    turns=(Turn("human", "What is <obj> ?"), Turn("gpt", "A cat on a mat.")),
    objects=(CAT, Object(box=(0, 30, 60, 50), crowd=True)),
    phrases=(Phrase(turn=1, span=(0, 5), objects=(0,)), Phrase(turn=1, span=(9, 14))),
    regions=(Region(0, 0),),
    marks=(1,),
    dropped=("empty polygon",),
)
REFERRING = Record(
    id="8",
    kind="region",
    image=b"...",
    size=(60, 50),
    objects=(CAT,),
    expressions=(Expression(texts=("left cat", "cat"), objects=(0,), question="Name <obj> ."),),
)


@pytest.mark.parametrize(
    "record",
    [
        CHAT,
        REFERRING,
        Record(
            id="t",
            kind="chat",
            image=None,
            size=None,
            turns=(Turn("human", "Hi"), Turn("gpt", "Hi")),
        ),
    ],
)
def test_json_there_and_back(record):
    check(record)
    assert from_json(json.loads(json.dumps(to_json(record))), record.image) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "a picture needs its size"),
        ({"size": (0, 5)}, "has no pixels"),
        ({"turns": CHAT.turns[:1]}, "human, gpt"),
        ({"phrases": (Phrase(turn=0, span=(0, 1)),)}, "turn 0, which is no answer"),
        ({"phrases": (Phrase(turn=1, span=(0, 99)),)}, r"span \(0, 99\) lies outside"),
        ({"phrases": CHAT.phrases[::-1]}, "reading order"),
        ({"phrases": (Phrase(turn=1, span=(0, 5), objects=(2,)),)}, "object 2 is named, but there are 2"),
        ({"regions": ()}, r"1 <obj> in turns \[0\], but 0 regions"),
        ({"objects": (dataclasses.replace(CAT, box=(0, 0, float("nan"), 1)), CAT)}, "is not finite"),
        ({"kind": "referring"}, "needs expressions"),
        ({"kind": "caption"}, "one turn, of 'gpt'"),
        ({"kind": "region", "expressions": (Expression(texts=(" ",), objects=(0,)),)}, "is blank"),
        (
            {"kind": "region", "expressions": (Expression(texts=("a",), objects=(0,), question="x"),)},
            "question 'x' has 0 <obj> for 1 objects",
        ),
        ({"kind": "region", "expressions": (Expression(texts=("a",), objects=(0, 1)),)}, "1 <obj> for 2"),
        ({"kind": "referring", "expressions": (Expression(texts=("<seg> a",), objects=(0,)),)}, "'<seg>'"),
        ({"kind": "referring", "expressions": (Expression(texts=("<image>",), objects=(0,)),)}, "'<image>'"),
        ({"kind": "region", "expressions": (Expression(texts=("<obj> a",), objects=(0,)),)}, "'<obj>'"),
        ({"turns": (CHAT.turns[0], Turn("gpt", " ")), "phrases": ()}, "turn 1 is blank"),
        ({"turns": (CHAT.turns[0], Turn("gpt", "a ASSISTANT: b")), "phrases": ()}, "' ASSISTANT: '"),
    ],
)
def test_what_a_record_must_hold(change, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(CHAT, **change))


def test_errors_of_a_source_name_file_and_record():
    def make(item):
        return dataclasses.replace(CHAT, id=item["id"], size=item["size"])

    source = Source(
        Path("gvc.json"), [{"id": "a", "size": (9, 9)}, {"id": "b"}, {"id": "c", "size": (0, 9)}], make
    )
    assert source[0].id == "a" and len(source) == 3 and [r.id for r in source[:1]] == ["a"]
    with pytest.raises(RecordError, match=r"gvc.json: record 1 \(id b\) lacks 'size'"):
        source[1]
    with pytest.raises(RecordError, match=r"gvc.json: record 2 \(id c\): size"):
        source[2]


def test_files_that_are_missing_or_cut(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"id": 1}, {"i')
    with pytest.raises(ValueError, match=r"a.json is truncated or no JSON"):
        read_json(tmp_path / "a.json")
