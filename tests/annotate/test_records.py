"""Records in the original's schema: written, filtered, and read back by the readers of the datasets."""

import json
import shutil

import pytest

from lgjax.annotate.records import TextLink, fault_of_chat, fault_of_grounded, grounded, prompted
from lgjax.annotate.writing import Scene, Writer
from lgjax.data.sources import gvc, visual_prompt
from lgjax.llm.request import Failure, Reply
from tests.annotate.sample import INSTANCES, draw_pictures, things, write_chats
from tests.annotate.test_reply import Told


@pytest.fixture
def chat(tmp_path) -> dict:
    return json.loads(write_chats(tmp_path / "chats.json").read_text())[0]


DOGS, TOILET = (1, 2), (3,)
LINKS = [
    TextLink(0, 9, 21, DOGS),  # "the two dogs"
    TextLink(1, 0, 8, DOGS),  # "The dogs"
    TextLink(1, 51, 61, TOILET),  # "the toilet"
    TextLink(4, 9, 19, TOILET),
    TextLink(5, 13, 28, (2,)),  # "one of the dogs"
]


def test_grounded_answers(chat):
    record = grounded(chat, LINKS)
    assert [message["value"] for message in record["conversations"]] == [
        "<image>\nWhat are the two dogs doing? (with grounding)",
        "<g_s> The dogs <g_e> <seg> look up at the camera. They stand next to <g_s> the toilet <g_e> <seg> .",
        "Is it outdoors?",
        "No, it is a bathroom.",
        "Where is the toilet? (with grounding)",
        "It is behind <g_s> one of the dogs <g_e> <seg> .",
    ]
    assert record["gd_ls"] == [[1, 2], [3], [2]]
    assert (record["id"], record["image"]) == (chat["id"], chat["image"])
    assert fault_of_grounded(record, {1, 2, 3}) == ""


def test_questions_about_regions(chat):
    record = prompted(chat, LINKS)
    assert record is not None
    assert record["new_qs"] == [
        "What are the object <obj> and the object <obj> doing?",
        None,
        "Where is the object <obj> ?",
    ]
    assert record["q_gd_ls"] == [[1, 2], None, [3]]
    assert record["conversations"][0]["value"] == f"<image>\n{record['new_qs'][0]}"
    assert record["conversations"][1] == chat["conversations"][1]
    for question, ids in zip(record["new_qs"], record["q_gd_ls"], strict=True):
        assert (question or "").count("<obj>") == len(ids or ())
    assert prompted(chat, LINKS[1:3]) is None


def test_the_readers_of_the_datasets_read_them(chat, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    draw_pictures(folder / "images")
    ids = [a["id"] for a in json.loads(INSTANCES.read_text())["annotations"] if a["image_id"] == 173350]
    links = [link._replace(ids=tuple(ids[i - 1] for i in link.ids)) for link in LINKS]
    shutil.copy(INSTANCES, folder / "instances_train2017.json")
    (folder / "grounded_visual_chat_data.json").write_text(json.dumps([grounded(chat, links)]))
    (folder / "llava_instruct_150k_visual_prompt.json").write_text(json.dumps([prompted(chat, links)]))
    record = gvc.read(folder)["train"][0]
    texts = [turn.text for turn in record.turns]
    assert texts[1] == chat["conversations"][1]["value"]
    found = [
        (texts[p.turn][slice(*p.span)], [record.objects[i].name for i in p.objects]) for p in record.phrases
    ]
    assert found == [("The dogs", ["dog"] * 2), ("the toilet", ["toilet"]), ("one of the dogs", ["dog"])]
    asked = visual_prompt.read(folder)["train"][0]
    assert [record.objects[region.object].name for region in asked.regions] == ["dog", "dog", "toilet"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda r: r.update(gd_ls=[]), "no phrase is grounded"),
        (lambda r: r.pop("gd_ls"), "no phrase is grounded"),
        (lambda r: r.update(gd_ls=[None, None, None]), "no phrase is grounded"),
        (
            lambda r: [m.update(value="What?") for m in r["conversations"][::2]],
            "no question asks for grounding",
        ),
        (lambda r: r["conversations"][3].update(value="Please provide the picture."), '"Please provide"'),
        (lambda r: r["gd_ls"].append([3]), "the numbers of"),
        (lambda r: r["conversations"][3].update(value="No <seg>"), "the numbers of"),
        (lambda r: r["conversations"][5].update(value="<g_s> <seg> <g_e>"), "a phrase is empty"),
        (lambda r: r["conversations"][5].update(value="<g_s>  <g_e> <seg>"), "a phrase is empty"),
        (lambda r: r["gd_ls"][1].append(4), "an id is not among"),
    ],
)
def test_every_filter_of_the_original_refuses_something(chat, change, fault):
    record = json.loads(json.dumps(grounded(chat, LINKS)))
    change(record)
    assert fault in fault_of_grounded(record, {1, 2, 3})


@pytest.mark.parametrize(
    ("chat", "fault"),
    [
        (None, "no conversation"),
        ({"image": "a.jpg", "conversations": [1]}, "no conversation"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no picture"),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "a"}]}, "do not go human, gpt"),
        ({"image": "a.jpg", "conversations": []}, "do not go human, gpt"),
        (
            {
                "image": "a.jpg",
                "conversations": [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "a"}],
            },
            "a message is blank",
        ),
        (
            {
                "image": "a.jpg",
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "a <obj>"}],
            },
            "already holds <obj>",
        ),
        (
            {
                "image": "a.jpg",
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "a <image> b"}],
            },
            "<image> stands behind the first question",
        ),
    ],
)
def test_chats_that_cannot_be_annotated(chat, fault):
    assert fault in fault_of_chat(chat)


def test_conversations_are_written_from_captions_and_boxes():
    scene = Scene("a/000000000042.jpg", ("A dog runs. ",), things(("dog", 0.1, 0.2)))
    model = Told(
        Reply("Question: What runs?\nAnswer: A dog\nruns.\n\nQuestion: Where?\nAnswer: On grass."),
        Reply("Sure! Here is one."),
        Reply("Question: What?\nAnswer: The caption says a dog."),
        Failure("answer cut at 8 tokens"),
    )
    good, formless, talks, cut = Writer(model, "m", "conversation").write([scene] * 4)
    assert isinstance(good, dict) and good["id"] == "000000000042" and good["image"] == "a/000000000042.jpg"
    texts = ["<image>\nWhat runs?", "A dog runs.", "Where?", "On grass."]
    assert [message["value"] for message in good["conversations"]] == texts
    assert fault_of_chat(good) == ""
    assert isinstance(formless, Failure) and "question, answer" in formless.reason
    assert isinstance(talks, Failure) and "speaks of captions" in talks.reason
    assert cut == Failure("answer cut at 8 tokens")
    asked = model.requests[0][0].messages[-1].content
    assert "A dog runs." in asked and "1.dog: [0.100, 0.100, 0.300, 0.300]" in asked
