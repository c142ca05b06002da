"""`lgjax eval referring, flickr, coco, captions`: from files to reports, and one line for every fault."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lgjax.cli import main
from lgjax.data.masks import box_of, encode
from lgjax.data.sources.common import Pictures
from lgjax.eval import (
    caption_report,
    captions,
    coco_instances,
    flickr,
    flickr_report,
    refer,
    referring_report,
)
from lgjax.eval.predictions import to_line
from lgjax.eval.rle import bitmap
from tests.data.sources import examples
from tests.eval import coco_set
from tests.eval.test_captions import files as write_captions
from tests.eval.test_flickr import write as write_flickr
from tests.eval.test_referring import write as write_refer


def save(folder, predictions):
    file = folder / "predictions.jsonl"
    file.write_text("".join(f"{to_line(one)}\n" for one in predictions))
    return file


def run(*arguments):
    """The figures that a command wrote, as {table: rows}."""
    folder = arguments[-1]
    main(["eval", *map(str, arguments[:-1]), "--out", str(folder)])
    content = json.loads((folder / "scores.json").read_text())
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    return content["tables"], content["settings"]


def column(rows, name):
    return {next(iter(row.values())): row[name] for row in rows}


def refused(capsys, *arguments):
    with pytest.raises(SystemExit):
        main(["eval", *map(str, arguments)])
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


class Question:
    def __init__(self, number, image):
        self.id, self.image = number, image


def referred(folder, change=lambda rows: rows):
    """Perfect answers to all sentences but those of train; `change` spoils the rows of one."""
    splits = refer.read_samples(write_refer(folder), "umd")
    out = []
    for samples in splits.values():
        for s in samples:
            rows = change([(s.box.tolist(), 1.0, s.mask)])
            out.append(coco_set.prediction(Question(s.id, s.image), s.size, [("", rows)]))
    return out


def test_referring(tmp_path, capsys):
    answers = referred(tmp_path)
    more = tmp_path / "more.json"
    examples.put(more, [{"image": "000000000043.jpg"}])
    command = (
        "referring",
        tmp_path,
        "--split-by",
        "umd",
        "--predictions",
        save(tmp_path, answers),
        "--train",
        more,
    )
    tables, settings = run(*command, tmp_path / "out")
    assert settings["split by"] == "umd" and settings["answer"] == "forced to one <seg>"
    figures = tables["REC and RES"]
    for split, count in (("val", 2), ("testA", 2)):
        values = column(figures, split)
        assert values.pop("sentences") == count and set(values.values()) == {100}
    leaks = tables["Pictures that were trained on"]
    assert [(row["split"], row["of them trained on"]) for row in leaks] == [
        *(("testA", 0), ("testA", 1)),
        *(("val", 1), ("val", 0)),
    ]
    assert column(tables["Answers"], "one <seg> %") == {"val": 100, "testA": 100}
    # of a split of which nothing was asked there are no figures
    tables, _ = run(*command, "--limit", 1, tmp_path / "out")
    counts = {split: column(tables["REC and RES"], split) for split in ("val", "testA")}
    assert sorted(values.pop("sentences") for values in counts.values()) == [0, 1]
    assert sorted(map(str, set().union(*(values.values() for values in counts.values())))) == [
        "100.0",
        "None",
    ]
    # nothing found
    save(tmp_path, referred(tmp_path, lambda rows: []))
    tables, _ = run(*command, tmp_path / "out")
    values = column(tables["REC and RES"], "val")
    assert values.pop("sentences") == 2 and set(values.values()) == {0}


def test_free_answers_to_referring_questions(tmp_path, capsys):
    first, second, third, fourth = referred(tmp_path)
    answers = [replace(first, phrases=()), second, third, replace(fourth, phrases=fourth.phrases * 2)]
    command = ("referring", tmp_path, "--split-by", "umd", "--predictions", save(tmp_path, answers))
    assert "line 1: question '30' has 0 phrases" in refused(capsys, *command)
    tables, settings = run(*command, "--free", tmp_path / "out")
    assert settings["answer"] == "free"
    shares = {
        row["split"]: (row["one <seg> %"], row["none %"], row["several %"]) for row in tables["Answers"]
    }
    assert shares == {"testA": (50, 50, 0), "val": (50, 0, 50)}
    assert column(tables["REC and RES"], "testA")["Acc@0.5 %"] == 50
    assert column(tables["REC and RES"], "val")["Acc@0.5 %"] == 100


def test_predictions_that_do_not_fit(tmp_path, capsys):
    answers = referred(tmp_path)
    command = ("referring", tmp_path, "--split-by", "umd", "--predictions", save(tmp_path, answers[1:]))
    assert "questions have no prediction, first '30'" in refused(capsys, *command)
    lines = [to_line(one) for one in answers]
    file = tmp_path / "predictions.jsonl"
    faults = {
        "line 2 is no JSON": [lines[0], "{", *lines[1:]],
        "line 5: question '20' was answered before": [*lines, lines[2]],
        "line 1: question '77' is none of those asked": [lines[0].replace('"30"', '"77"'), *lines[1:]],
        "line 4: question '21' is about the picture": [*lines[:3], lines[3].replace("0042.jpg", "0043.jpg")],
        "line 4: 'COCO_train2014_000000000042.jpg' is 90 x 48 pixels": [
            *lines[:3],
            to_line(
                coco_set.prediction(
                    Question("21", answers[3].image),
                    (48, 90),
                    [("", [([0, 0, 9, 9], 1, encode(np.ones((48, 90), bool)))])],
                )
            ),
        ],
    }
    for message, content in faults.items():
        file.write_text("\n".join(content))
        assert f"{file}, {message}" in refused(capsys, *command)


@pytest.mark.parametrize("prompts", ["names", "description"])
def test_coco(tmp_path, prompts):
    annotations = coco_set.write(tmp_path, coco_set.content())
    truth = coco_instances.read_truth(annotations)
    for picture in truth.pictures.values():
        examples.picture(tmp_path / "images" / picture.image, picture.size[::-1])
    wants = ((coco_set.perfect(truth, prompts), 1.0), (coco_set.empty(truth, prompts), 0.0))
    for answers, want in wants:
        file = save(tmp_path, answers.values())
        tables, settings = run(
            "coco",
            annotations,
            "--prompts",
            prompts,
            "--predictions",
            file,
            "--images",
            tmp_path / "images",
            tmp_path / "out",
        )
        boxes, masks = column(tables["Figures"], "boxes"), column(tables["Figures"], "masks")
        figures = [boxes["AP"], *(masks[name] for name in ("AP", "AP50", "PQ", "SQ"))]
        assert figures == pytest.approx([want] * 5)
        assert settings["PQ above"] == 0.2 and settings["prompts"] == prompts
        by_class = column(tables["Panoptic quality by class"], "missed")
        assert by_class == {
            name: 0 if want else count for name, count in (("person", 2), ("car", 1), ("dog", 3))
        }
    assert sorted((tmp_path / "out/worst").iterdir())


@pytest.mark.parametrize("prompts", ["boxes", "clicks"])
def test_coco_by_regions(tmp_path, capsys, prompts):
    annotations = coco_set.write(tmp_path, coco_set.content())
    answers = coco_set.perfect(coco_instances.read_truth(annotations), prompts)
    assert len(answers) == 6  # the crowd is not asked for
    command = ("coco", annotations, "--prompts", prompts, "--predictions")
    tables, _ = run(*command, save(tmp_path, answers.values()), tmp_path / "out")
    boxes, masks = column(tables["Figures"], "boxes"), column(tables["Figures"], "masks")
    assert [boxes["AP"], *(masks[name] for name in ("AP", "PQ", "mIoU"))] == pytest.approx([1] * 4)
    number, one = next(iter(answers.items()))
    for extra in (
        {},
        {"region_masks": []},
        {"region_masks": [None]},
        {"region_masks": [encode(np.ones((3, 3), bool))]},
    ):
        file = save(tmp_path, {**answers, number: replace(one, extra=extra)}.values())
        assert f"{file}, line 1: extra must hold 'region_masks'" in refused(capsys, *command, file)


@pytest.mark.parametrize("prompts", ["names", "boxes"])
def test_what_was_not_asked_for_is_not_missed(tmp_path, prompts):
    annotations = coco_set.write(tmp_path, coco_set.content())
    answers = coco_set.perfect(coco_instances.read_truth(annotations), prompts)
    file = save(tmp_path, answers.values())
    command = ("coco", annotations, "--prompts", prompts, "--predictions", file, "--limit", 1)
    tables, _ = run(*command, tmp_path / "out")
    figures = column(tables["Figures"], "masks")
    assert [figures["AP"], figures["PQ"]] == pytest.approx([1, 1])
    assert column(tables["Panoptic quality by class"], "right") == {"person": 2 if prompts == "names" else 1}


def test_regions_stand_for_their_instances(tmp_path):
    truth = coco_instances.read_truth(coco_set.write(tmp_path, coco_set.content()))
    for prompts in ("boxes", "clicks"):
        for question in coco_instances.asked(truth, prompts):
            mask, region = bitmap(question.target), question.region
            if prompts == "boxes":
                corners = (region.x0, region.y0, region.x1, region.y1)
                assert corners == tuple(box_of(mask))
            else:
                assert mask[region.y, region.x]


def test_coco_without_masks(tmp_path):
    annotations = coco_set.write(tmp_path, coco_set.content())
    truth = coco_instances.read_truth(annotations)
    answers = [
        replace(one, phrases=tuple(replace(phrase, masks=None) for phrase in one.phrases))
        for one in coco_set.perfect(truth, "names").values()
    ]
    tables, _ = run("coco", annotations, "--predictions", save(tmp_path, answers), tmp_path / "out")
    assert column(tables["Figures"], "boxes")["AP"] == pytest.approx(1)
    assert column(tables["Figures"], "masks")["AP"] is None
    assert list(tables) == ["Figures"]


def test_flickr(tmp_path):
    items = flickr.read_items(write_flickr(tmp_path), "test")
    answers = []
    for item in items:
        phrases = [
            (named.text, [(box.tolist(), 0.5, encode(np.ones(item.size, bool))) for box in boxes])
            for named, boxes in zip(item.phrases, item.targets, strict=True)
        ]
        answers.append(coco_set.prediction(item, item.size, phrases))
    tables, settings = run("flickr", tmp_path, "--predictions", save(tmp_path, answers), tmp_path / "out")
    recall = column(tables["Recall over all phrases"], "R@1 %")
    # the two men of "Two men" are two boxes, each half of the box around them: 29 of 59 columns
    assert recall == {"any-box": 100, "merged-box": pytest.approx(200 / 3)}
    assert column(tables["By type, merged-box"], "R@10 %") == {"clothing": 100, "other": 100, "people": 0}
    assert column(tables["By type, any-box"], "phrases") == {"clothing": 1, "other": 2, "people": 1}
    assert settings["split"] == "test"


def test_captions(tmp_path):
    files = write_captions(tmp_path)
    answers = []
    for truth in captions.read_truth(*files):
        phrases = [
            (label, [([0, 0, 6, 4], 0.5, code)])
            for label, code in zip(truth.labels, truth.masks, strict=True)
        ]
        answers.append(coco_set.prediction(truth, (4, 6), phrases))
    tables, settings = run("captions", *files, "--predictions", save(tmp_path, answers), tmp_path / "out")
    values = column(tables["Scores"], "value")
    assert values["AP50 %"] == values["mIoU %"] == values["recall %"] == 100
    assert (
        "nltk" in settings["METEOR"]
        and "CIDEr-D" in settings["CIDEr"]
        and "stems" in settings["text similarity"]
    )


def test_questions_are_worded_as_in_training(tmp_path):
    pictures = Pictures.below(tmp_path)
    splits = refer.read_samples(write_refer(tmp_path), "umd")
    asked = referring_report.questions_of(splits, pictures, free=False)
    assert asked[3].text == "Please detect the object according to the text sofa under it (referring)."
    assert {question.answer for question in asked} == {"<seg> ."}
    assert {q.answer for q in referring_report.questions_of(splits, pictures, free=True)} == {None}
    (tmp_path / "f").mkdir()
    items = flickr.read_items(write_flickr(tmp_path / "f"), "test")
    first = flickr_report.questions_of(items, pictures)[0]
    assert first.answer == "<g_s> Two men <g_e> <seg> with <g_s> a hat <g_e> <seg> in a park ."
    assert first.text.startswith("Present a compact description") and first.text.endswith(
        "\n(with grounding)"
    )
    (tmp_path / "g").mkdir()
    truths = captions.read_truth(*write_captions(tmp_path / "g"))
    assert [q.answer for q in caption_report.questions_of(truths, pictures)] == [None, None]


def test_object_queries_beside_their_time(tmp_path):
    splits = refer.read_samples(write_refer(tmp_path), "umd")
    (right, wrong) = (referred(tmp_path, change) for change in (lambda rows: rows, lambda rows: []))
    questions = referring_report.questions_of(splits, Pictures.below(tmp_path), free=False)
    runs = {
        (number, seconds): referring_report.by_split(splits, list(zip(questions, answers, strict=True)))
        for number, seconds, answers in ((50, 0.5, wrong), (300, 2.0, right))
    }
    assert referring_report.queries_table(runs).rows == (
        *(("50", split, 0, 0, 0, 0.5) for split in ("testA", "val")),
        *(("300", split, 100, 100, 100, 2.0) for split in ("testA", "val")),
    )
