"""Grounded visual chat, LLaVA's files and visual-prompt chat."""

import functools
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lgjax.data import masks
from lgjax.data.schema import Region, Source, Turn
from lgjax.data.sources import gvc, llava, plain, visual_prompt
from lgjax.data.sources.common import OVERLAP, UNKNOWN_ID, Coco, Pictures
from tests.data.sources import examples
from tests.data.sources.examples import CAT, CHAIR, CROWD, DOG, OTHER_DOG, SOFA
from tests.data.sources.reading import outcomes, words


def test_grounded_visual_chat(tmp_path):
    folder = examples.write_gvc(tmp_path)
    records, refused = outcomes(gvc.read(folder)["train"])
    first = records[0]
    assert first.turns == (
        Turn("human", "What is on the sofa? (with grounding)"),
        Turn("gpt", "A cat sleeps on the sofa."),
        Turn("human", "Is it indoors?"),
        Turn("gpt", "Yes, it is indoors."),
    )
    assert words(first) == [("A cat", [CAT]), ("the sofa", [SOFA])]
    assert [(thing.id, thing.crowd) for thing in first.objects] == [
        (CAT, False),
        (SOFA, False),
        (CROWD, True),
        (CHAIR, False),
    ]
    assert first.image == folder / "train2014/COCO_train2014_000000000042.jpg"
    second = records[1]
    assert second.turns[0].text == "What is there? (with grounding)"
    assert words(second) == [("Dogs", [DOG, OTHER_DOG]), ("grass", []), ("a bird", [])]
    assert UNKNOWN_ID in second.dropped and second.image == folder / "train2014/000000000043.jpg"
    assert words(records[3]) == [("A bus", [])] and records[3].size == (30, 20)
    assert sorted(refused) == [2, 4]
    assert "record 2 (id 2): 1 <seg> in the answers, but 2 entries in gd_ls" in refused[2]
    assert "000000000046.jpg' is not there" in refused[4]


def test_lists_of_questions_go_first_and_nested_phrases_lose_the_inner(tmp_path):
    item = {
        "id": 1,
        "image": "000000000042.jpg",
        "conversations": examples.chat("What?", "<g_s> A cat on <g_s> a sofa <g_e> <seg> <g_e> <seg>"),
        "gd_ls": [],
        "q_gd_ls": [[SOFA], [CAT, CAT]],
    }
    examples.put(tmp_path / "grounded_visual_chat_data.json", [item, 5, {**item, "conversations": "x"}])
    examples.put(tmp_path / "instances_train2014.json", examples.coco())
    records, refused = outcomes(gvc.read(tmp_path)["train"])
    assert words(records[0]) == [("A cat on a sofa", [CAT])] and records[0].dropped == (OVERLAP,)
    assert sorted(refused) == [1, 2]


@pytest.mark.parametrize("name", ["grounded_visual_chat_data.json", "instances_train2017_gvc.json"])
def test_missing_files_of_grounded_visual_chat(tmp_path, name):
    folder = examples.write_gvc(tmp_path)
    (folder / "annotations" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name}") as error:
        gvc.read(folder)
    assert "expected layout:\n    folder/" in str(error.value)


def test_conversations_of_llava(tmp_path):
    records, refused = outcomes(llava.read(examples.write_llava(tmp_path))["train"])
    assert records[0].turns == (Turn("human", "What is it?"), Turn("gpt", "A cat."))
    assert records[0].size == (48, 64)
    assert records[1].image is None and records[1].size is None
    assert words(records[2]) == [("A cat", [])] and records[2].turns[1].text == "A cat."
    assert "llava_instruct_150k.json: record 3 (id 3): " in refused[3] and "broken.jpg'" in refused[3]
    assert "missing.jpg' is not there" in refused[4]


def test_which_file_of_llava(tmp_path):
    folder = examples.write_llava(tmp_path)
    examples.put(folder / "chat.json", [])
    with pytest.raises(ValueError, match=r"llava_instruct_150k.json and chat.json; say with `name`"):
        llava.read(folder)
    assert len(llava.read(folder, name="chat.json")["train"]) == 0
    examples.put(folder / "chat.json", {})
    with pytest.raises(ValueError, match=r"chat.json must be a list of records, found dict"):
        llava.read(folder, name="chat.json")


def test_visual_prompt_chat(tmp_path):
    records, refused = outcomes(visual_prompt.read(examples.write_visual_prompt(tmp_path))["train"])
    assert records[0].turns[0].text == "What is the object <obj> doing?"
    assert records[0].regions == (Region(0, 0),) and records[0].objects[0].id == CAT
    assert len(records[0].objects) == 4 and len(records[0].turns) == 4
    assert records[1].turns[0].text == "Is 50% of the object <obj> like the object <obj> ?"
    assert [records[1].objects[r.object].id for r in records[1].regions] == [DOG, OTHER_DOG]
    assert records[2].turns == (Turn("human", "Is it day?"), Turn("gpt", "Yes."))
    assert records[2].regions == () and records[2].dropped == (UNKNOWN_ID,)
    assert sorted(refused) == [3, 4]
    assert "1 <obj> but 0 ids in the question" in refused[3]
    assert f"no round is left: {UNKNOWN_ID}" in refused[4]


def test_one_entry_a_round(tmp_path):
    folder = examples.write_visual_prompt(tmp_path)
    file = folder / "annotations/llava_instruct_150k_visual_prompt.json"
    records = json.loads(file.read_text())
    examples.put(file, [{**records[0], "q_gd_ls": [[CAT]]}])
    _, refused = outcomes(visual_prompt.read(folder)["train"])
    assert "4 messages, but 1 entries in q_gd_ls" in refused[0]


def test_sources_go_to_other_processes(tmp_path):
    source = gvc.read(examples.write_gvc(tmp_path))["train"]
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


COCO = Coco(
    {42: {"id": 42, "file_name": "a.jpg", "width": 64, "height": 48}},
    {42: [{"id": i, "bbox": [i, i, 9, 9]} for i in range(5)]},
    {},
)
IDS = st.none() | st.lists(st.integers(0, 4), max_size=4, unique=True)
PIECE = st.text("ab Xé.,'()%>\n", max_size=8)
PHRASE = PIECE.filter(lambda text: text.strip())


@given(PIECE, st.lists(st.tuples(PHRASE, IDS, PIECE), max_size=5))
def test_marked_text_gives_its_phrases_and_objects_back(start, rest):
    assume(start.strip() or rest)
    marked = start + "".join(f" <g_s> {phrase} <g_e> <seg> {after}" for phrase, _, after in rest)
    lists = [ids for _, ids, _ in rest]
    item = {"id": 1, "image": "a.jpg", "conversations": examples.chat("What?", marked), "gd_ls": lists}
    record = Source(Path("x"), [item], functools.partial(gvc.make, COCO, Pictures((Path("."),))))[0]
    squeezed = "".join((start + "".join(phrase + after for phrase, _, after in rest)).split())
    assert "".join(record.turns[1].text.split()) == squeezed
    got = [("".join(text.split()), ids) for text, ids in words(record)]
    assert got == [("".join(phrase.split()), ids or []) for phrase, ids, _ in rest]
    assert record.dropped == () and masks.clean(record) == record
    line = {"turns": ["What?", marked], "objects": lists, "image": "a.jpg"}
    scene = plain.scene_of("a.jpg", COCO, Pictures((Path("."),)))
    own = plain._chat(line, scene.things, "'a.jpg'")
    assert own["turns"] == record.turns and own["phrases"] == record.phrases
