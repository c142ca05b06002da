"""The chat interface: answers, batches, conversations, regions, and what it refuses."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask

from lgjax.config import IMAGE_TOKEN
from lgjax.data import masks
from lgjax.infer import generate, run
from lgjax.infer.chat import GroundedChat
from lgjax.infer.regions import Box, Click, prompt_of
from lgjax.infer.request import Options
from lgjax.text.conversation import chat_prompt
from tests.infer.model import GROUNDED, chat, model, picture, tokenizer

SHORT = {"max_tokens": 12}


def test_answer_has_phrases_with_spans_boxes_and_masks():
    answer = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.02)
    assert answer.text == "A man rides two brown horses, slowly."
    assert [p.text for p in answer.phrases] == ["A man", "two brown horses"]
    for phrase in answer.phrases:
        assert answer.text[slice(*phrase.span)] == phrase.text
        assert len(phrase.boxes) == len(phrase.scores) == len(phrase.masks)
        assert (phrase.scores > 0.02).all() and (np.diff(phrase.scores) <= 0).all()
        assert phrase.masks.shape[1:] == (90, 120)
        assert (phrase.boxes >= 0).all() and (phrase.boxes <= [120, 90, 120, 90]).all()
    assert answer.finished and answer.region_mask is None


def test_a_number_of_things_shares_one_probability():
    grounding = dataclasses.replace(model().config.grounding, merge_iou=0.6)
    config = dataclasses.replace(model().config, grounding=grounding)
    talker = GroundedChat(dataclasses.replace(model(), config=config))
    one, two = talker.ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.0).phrases
    assert (one.text, two.text) == ("A man", "two brown horses")
    assert one.scores.sum() == pytest.approx(1, abs=1e-4)
    assert two.scores.sum() == pytest.approx(2, abs=1e-4)


def test_best_query_alone_without_threshold():
    many = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.0)
    best = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=None)
    for one, all_ in zip(best.phrases, many.phrases, strict=True):
        assert len(one.boxes) == 1 and len(all_.boxes) == 50
        np.testing.assert_allclose(one.boxes[0], all_.boxes[0], atol=1e-3)
        np.testing.assert_array_equal(one.masks[0], all_.masks[0])
        assert all_.scores.sum() == pytest.approx(1, abs=1e-4)


def test_number_of_queries_is_a_choice():
    answer = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.0, queries=100)
    assert {len(phrase.boxes) for phrase in answer.phrases} == {100}


def test_nothing_above_the_threshold_keeps_the_words():
    answer = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.99)
    assert answer.text == "A man rides two brown horses, slowly."
    assert all(len(phrase.boxes) == 0 for phrase in answer.phrases)
    assert not np.concatenate(answer.canvas_boxes).any()
    record = answer.record(7)
    assert record.boxes == [] and "two brown horses" in record.text


def test_record_holds_the_boxes_of_the_original():
    answer = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=None)
    record = answer.record("q1")
    assert len(record.boxes) == 2
    x0, y0, x1, y1 = (float(v) for v in record.boxes[0].strip("[]").split(","))
    want = answer.canvas_boxes[0][0] / [1, 0.75, 1, 0.75]  # 120 x 90: y was padded
    np.testing.assert_allclose([x0, y0, x1, y1], want, atol=6e-4)


def test_json_is_plain_and_its_masks_are_coco_codes():
    answer = chat().ask(picture(1), "Is % here?", Click(10, 20), answer=GROUNDED, threshold=None)
    loaded = json.loads(json.dumps(answer.to_json()))
    assert set(loaded) == {"text", "phrases", "remembered", "region_mask"}
    assert loaded["remembered"] == answer.remembered
    for phrase, want in zip(loaded["phrases"], answer.phrases, strict=True):
        assert set(phrase) == {"text", "span", "boxes", "scores", "masks"}
        assert loaded["text"][slice(*phrase["span"])] == phrase["text"]
        code = phrase["masks"][0]
        assert code["size"] == [90, 120]
        np.testing.assert_array_equal(coco_mask.decode(code).astype(bool), want.masks[0])
    np.testing.assert_array_equal(masks.decode(loaded["region_mask"], answer.image.size), answer.region_mask)


@pytest.mark.parametrize("kind", ["path", "pil", "array"])
def test_pictures_come_as_path_pil_or_array(kind: str, tmp_path):
    array = picture(0)
    PIL.Image.fromarray(array).save(tmp_path / "p.png")
    source = {"path": tmp_path / "p.png", "pil": PIL.Image.fromarray(array), "array": array}[kind]
    answer = chat().ask(source, "What is it?", answer=GROUNDED, threshold=None)
    want = chat().ask(array, "What is it?", answer=GROUNDED, threshold=None)
    np.testing.assert_array_equal(answer.phrases[0].masks, want.phrases[0].masks)


def same_answer(one, other) -> None:
    assert one.text == other.text and one.tagged_text == other.tagged_text
    for a, b in zip(one.phrases, other.phrases, strict=True):
        assert a.span == b.span and len(a.boxes) == len(b.boxes)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=2e-3)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-6)
        assert (a.masks != b.masks).mean() < 1e-3


QUESTIONS = ["What is it?", "Describe the whole scene in every detail, please.", "Where is the object % ?"]


def test_a_batch_gives_the_answers_of_one_at_a_time():
    pictures = [picture(0), picture(1, 130, 70), picture(2)]
    regions = [None, None, Box(5, 6, 60, 70)]
    for options in (SHORT, {"answer": GROUNDED, "threshold": 0.02}):
        together = chat().ask_batch(pictures, QUESTIONS, regions, **options)
        pairs = chat().ask_batch(pictures, QUESTIONS, regions, batch_size=2, **options)
        for i, answer in enumerate(together):
            same_answer(answer, chat().ask(pictures[i], QUESTIONS[i], regions[i], **options))
            same_answer(answer, pairs[i])


def test_sampling_depends_on_the_seed_alone():
    options = {"temperature": 1.0, "top_p": 0.9, **SHORT}
    one = chat().ask(picture(0), "What is it?", seed=5, **options)
    again = chat().ask_batch(
        [picture(1), picture(0)], ["A longer question?", "What is it?"], seed=5, **options
    )[1]
    other = chat().ask(picture(0), "What is it?", seed=6, **options)
    assert one.tagged_text == again.tagged_text != other.tagged_text


def test_token_limit_and_stop_texts():
    free = chat().ask(picture(0), "What is it?", **SHORT)
    assert free.num_tokens == 12 and not free.finished
    words = "A cat sits on a red mat ."
    forced = chat().ask(picture(0), "What is it?", answer=words, stop=("red",))
    assert forced.text == "A cat sits on a" and forced.finished
    unicode = chat().ask(picture(0), "What is it?", answer="A cat 🐈 🐈🐈x ends.", stop="x")
    assert unicode.text == "A cat 🐈 🐈🐈"
    untouched = chat().ask(picture(0), "What is it?", answer=words, stop=("blue",))
    assert untouched.text == "A cat sits on a red mat ."


def test_a_conversation_equals_its_prompt_computed_anew(monkeypatch):
    """The second question reuses the cache; a fresh model that never saw the first gives the same answer."""
    computed = []

    def spy(loaded, requests, *arguments):
        computed.append((requests[0].start, len(requests[0].plan.tokens)))
        return run.Batch(loaded, requests, *arguments)

    monkeypatch.setattr("lgjax.infer.chat.Batch", spy)
    talk = chat().start(picture(0))
    options = {"max_tokens": 12}
    talk.ask("What is it?", None, **options)
    talk.ask("Where is the object % ?", Click(30, 40), answer=GROUNDED, threshold=0.02)
    last = talk.ask("And what is % and 50 % of it?", Box(1, 2, 50, 60), **options)
    assert computed[0][0] == 0
    assert computed[1][0] > 40 and computed[2][0] > computed[1][0]

    fresh = chat().start(picture(0))
    fresh._turns = talk._turns[:2]
    same_answer(fresh.ask("And what is % and 50 % of it?", Box(1, 2, 50, 60), **options), last)
    assert computed[-1][0] == 0 and computed[-1][1] == computed[2][1]


def test_undo_forgets_the_question():
    talk, other = chat().start(picture(0)), chat().start(picture(0))
    options = {"max_tokens": 8}
    first = talk.ask("What is it?", None, **options)
    talk.ask("Is it red?", None, **options)
    talk.undo()
    again = talk.ask("How many are there?", None, **options)
    same_answer(first, other.ask("What is it?", None, **options))
    same_answer(again, other.ask("How many are there?", None, **options))
    with pytest.raises(ValueError, match="no question"):
        chat().start(picture(0)).undo()


def test_undo_forgets_the_region():
    """The next region takes the number of the forgotten one; the cache must not mix them up."""
    talk, fresh = chat().start(picture(0)), chat().start(picture(0))
    for conversation in (talk, fresh):
        conversation.ask("What is it?", max_tokens=8)
    talk.ask("What is % ?", Click(5, 5), max_tokens=8)
    talk.undo()
    same_answer(
        talk.ask("What is % ?", Box(40, 30, 110, 80), max_tokens=8),
        fresh.ask("What is % ?", Box(40, 30, 110, 80), max_tokens=8),
    )


def test_longer_turns_compile_seldom():
    talk = chat().start(picture(0))
    before = generate._advance._cache_size(), generate._prefill._cache_size()
    for turn in range(8):
        talk.ask(f"Question {turn}: what is there, where is it, and why is it there at all?", max_tokens=40)
    after = generate._advance._cache_size(), generate._prefill._cache_size()
    assert after[0] - before[0] <= 5 and after[1] - before[1] <= 7


def test_words_without_boxes_when_there_is_no_grounding_model():
    loaded = model()
    params = {name: part for name, part in loaded.params.items() if name != "grounding"}
    config = dataclasses.replace(loaded.config, grounding=None)
    answer = GroundedChat(dataclasses.replace(loaded, config=config, params=params)).ask(
        picture(0), "What is it?", answer=GROUNDED
    )
    assert [phrase.text for phrase in answer.phrases] == ["A man", "two brown horses"]
    assert all(phrase.masks.shape == (0, 90, 120) for phrase in answer.phrases)


def test_earlier_answers_stand_in_the_prompt_as_in_the_demo_or_as_in_training():
    for history, part in (("demo", "A man"), ("training", "<g_s> A man <g_e> <seg> rides")):
        talk = chat().start(picture(0), history=history)
        talk.ask("What is it?", None, answer=GROUNDED, threshold=None)
        tokens = talk.request("Next?", None, Options())[0].plan.tokens
        text = tokenizer().decode([int(t) for t in tokens if t >= 0])
        assert part in text and ("<seg>" in text) == (history == "training")


def test_a_checkpoint_says_how_its_chats_are_written():
    config = dataclasses.replace(model().config, history="training")
    trained = GroundedChat(dataclasses.replace(model(), config=config))
    for talker, written in ((chat(), "Is % red?"), (trained, "Is %  red?")):
        talk = talker.start(picture(0))
        plan = talk.request("Is % red?", Click(10, 10), Options())[0].plan
        expected = tokenizer().encode_prompt(chat_prompt([], f"{written} (with grounding)"))
        image = int(np.flatnonzero(plan.patches >= 0)[-1])
        own = np.where(plan.objects >= 0, tokenizer().percent_id, plan.tokens)[image + 1 :]
        assert list(own) == expected[expected.index(IMAGE_TOKEN) + 1 :]
        assert (plan.objects >= 0).sum() == 1
        answer = talk.ask("What is it?", None, answer=GROUNDED, threshold=None)
        assert (answer.remembered == answer.tagged_text) == (talker is trained)


def test_each_region_has_its_own_mark():
    talk = chat().start(picture(0))
    request, _ = talk.request("Is % left of % ?", [Click(10, 10), Box(50, 50, 80, 80)], Options())
    assert sorted(request.plan.objects[request.plan.objects >= 0]) == [0, 1]
    one, _ = talk.request("Is % left of % ?", Click(10, 10), Options())
    assert list(one.plan.objects[one.plan.objects >= 0]) == [0, 0]
    np.testing.assert_allclose(request.objects[0], one.objects[0], atol=1e-5)  # regions do not see each other
    none, _ = talk.request("Is 50 % of it red?", None, Options())
    assert not (none.plan.objects >= 0).any()


def test_a_box_of_an_answer_can_be_asked_about():
    whole = prompt_of(Box(0, 0, 120, 90), (120, 90))
    np.testing.assert_array_equal(whole, prompt_of(Box(0, 0, 119, 89), (120, 90)))
    with pytest.raises(ValueError, match="outside"):
        prompt_of(Box(0, 0, 121, 90), (120, 90))


def test_region_masks_have_the_size_of_the_picture():
    answer = chat().ask(picture(0), "Is % left of % ?", [Click(10, 10), Box(50, 50, 80, 80)], **SHORT)
    assert answer.region_masks.shape == (2, 90, 120)
    np.testing.assert_array_equal(answer.region_mask, answer.region_masks.any(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("What is it?", Click(5, 5)), "does not say where"),
        (("What are % and % and % ?", [Click(5, 5), Click(6, 6)]), "2 regions, but 3 marks"),
        (("What is % ?", Click(500, 5)), "outside the picture"),
        (("What is % ?", Box(5, 5, 50, 500)), "outside the picture"),
        (("   ", None), "empty"),
        (("<image> again?", None), "leave <image> out"),
    ],
)
def test_questions_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        chat().ask(picture(0), *arguments, **SHORT)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.5},
        {"queries": 0},
        {"queries": 901},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"max_tokens": 0},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ""},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Options(**options)


def test_a_bad_row_of_a_batch_is_named():
    with pytest.raises(ValueError, match=r"row 1: .*not there"):
        chat().ask_batch([picture(0), "nowhere.jpg"], ["a?", "b?"], **SHORT)
    with pytest.raises(ValueError, match="2 pictures, 1 texts"):
        chat().ask_batch([picture(0), picture(1)], ["a?"], **SHORT)


def test_a_fault_leaves_the_conversation_as_it_was(monkeypatch):
    talk, fresh = chat().start(picture(0)), chat().start(picture(0))
    options = {"max_tokens": 8}
    talk.ask("What is it?", None, **options)
    fresh.ask("What is it?", None, **options)
    with pytest.raises(ValueError, match="outside"):
        talk.ask("What is % ?", Click(999, 1), **options)

    def broken(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # in the middle of a run, after the cache was taken
        patch.setattr("lgjax.infer.run.build_answer", broken)
        with pytest.raises(KeyboardInterrupt):
            talk.ask("Is it red?", None, **options)
    same_answer(talk.ask("Is it blue?", None, **options), fresh.ask("Is it blue?", None, **options))


def test_at_and_before_states_differ():
    """`seg_state` decides which hidden state is grounded."""
    other = dataclasses.replace(model(), config=dataclasses.replace(model().config, seg_state="at"))
    one = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.0)
    two = GroundedChat(other).ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.0)
    assert one.text == two.text
    assert not np.allclose(one.phrases[0].boxes, two.phrases[0].boxes, atol=1e-2)
