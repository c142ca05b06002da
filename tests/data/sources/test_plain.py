"""One's own data: what the docstring promises, and errors that name the line."""

import json
import re

import pytest

from lgjax.data.schema import Region
from lgjax.data.sources import plain
from tests.data.sources import examples
from tests.data.sources.examples import CAT, SOFA
from tests.data.sources.reading import outcomes, words

IMAGE = "000000000042.jpg"


def test_chats_expressions_and_splits(tmp_path):
    folder = examples.write_plain(tmp_path)
    sources = plain.read(folder)
    assert sorted(sources) == ["train", "val"] and len(sources["val"]) == 1
    records, refused = outcomes(sources["train"])
    assert words(records[0]) == [("A cat", [CAT]), ("fur", [])]
    assert records[0].regions == (Region(0, 1),) and records[0].objects[1].id == SOFA
    assert records[0].id == "line 1" and records[0].image == folder / "images" / IMAGE
    assert records[1].kind == "referring" and records[1].expressions[0].texts == ("left cat", "the cat")
    assert records[2].image is None
    assert list(refused) == [3]
    assert "records.jsonl: line 5: annotation id 9999 is not among those of '0000" in refused[3]
    assert "in instances.json: 1001, 1002, 1003, 1004" in refused[3]


def test_the_examples_of_the_docstring(tmp_path):
    text = re.sub(r"`\n\s*`", "", plain.__doc__)
    instances, chat, referring = (json.loads(code) for code in re.findall(r"`(\{.*?\})`", text))
    instances["annotations"].append({**instances["annotations"][0], "id": 8})
    examples.put(tmp_path / "instances.json", instances)
    (tmp_path / "records.jsonl").write_text(f"{json.dumps(chat)}\n{json.dumps(referring)}")
    examples.picture(tmp_path / "images/a.jpg")
    records, refused = outcomes(plain.read(tmp_path)["train"])
    assert len(records) == 2 and not refused
    assert words(records[0]) == [("A cat", [7])] and records[0].regions == (Region(0, 1),)


GOOD = {"image": IMAGE, "turns": ["What is <obj> ?", "<g_s> A cat <g_e> <seg>."], "objects": [[CAT]]}
TEXT = {"image": IMAGE, "expressions": [{"texts": ["cat"], "objects": [CAT]}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "region": [CAT]}, "unknown field 'region'; expected id, image, turns, objects, regions"),
        (GOOD, "1 <obj>, but 0 entries in 'regions'; each <obj> needs an annotation id"),
        ({**GOOD, "regions": [[CAT]]}, "annotation id [1001] is not among those"),
        ({**GOOD, "regions": [CAT], "objects": [CAT]}, "objects must be a list, found int"),
        ({**GOOD, "regions": [CAT], "objects": []}, "1 <seg>, but 0 entries in 'objects'"),
        ({**GOOD, "image": "b.jpg", "regions": [CAT]}, "image file"),
        ({**GOOD, "image": None, "regions": [CAT]}, "not among those of a line without image"),
        ({"image": "000000000043.jpg", "turns": ["a", "b"]}, "43.jpg' is not there"),
        ({"turns": ["a"]}, "turns must be question, answer, question, answer ..., found 1"),
        ({"turns": ["a", " "]}, "a turn must be a text that is not blank"),
        ({"turns": ["a", 3]}, "a turn must be a text that is not blank, found 3"),
        ({"turns": ["a", "<g_s> b <g_e>"]}, "turn 1 has <g_s><g_e>; each phrase is <g_s> phrase <g_e> <seg>"),
        ({"turns": ["<seg>", "b"]}, "turn 0 is a question and cannot have <seg>"),
        ({"turns": ["a", "<obj>"]}, "turn 1 is an answer and cannot have <obj>"),
        ({"image": IMAGE}, "either 'turns' (a chat) or 'expressions'"),
        ({**TEXT, "image": None}, "expressions need an 'image'"),
        ({**TEXT, "expressions": []}, "needs expressions"),
        ({**TEXT, "expressions": ["cat"]}, "expression 0 must be an object, found str"),
        ({**TEXT, "expressions": [{"texts": ["cat"]}]}, "expression 0 lacks 'objects'"),
        ({**TEXT, "expressions": [{"texts": ["a"], "objects": []}]}, "an expression needs objects"),
    ],
)
def test_errors_name_the_line_and_what_is_wrong(tmp_path, line, message):
    folder = examples.write_plain(tmp_path)
    (folder / "records.jsonl").write_text("\n" + json.dumps(line))
    _, refused = outcomes(plain.read(folder)["train"])
    assert f"{folder}/records.jsonl: line 2: " in refused[0] and message in refused[0]


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no instances.json in"):
        plain.read(tmp_path)
    folder = examples.write_plain(tmp_path)
    (folder / "records_val.jsonl").write_text('{"turns": []}\n[1]')
    with pytest.raises(ValueError, match=r"records_val.jsonl: line 2 must be an object, found list"):
        plain.read(folder)
    (folder / "records_val.jsonl").write_text('{"turns": ')
    with pytest.raises(ValueError, match=r"records_val.jsonl: line 1 is no JSON"):
        plain.read(folder)
    (folder / "records_val.jsonl").rename(folder / "records_train.jsonl")
    (folder / "records_train.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"are both the split 'train'; join them"):
        plain.read(folder)
