"""`lgjax annotate` from end to end: what is printed, training batches, ground truth of an evaluation."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax.cli import main
from lgjax.data.batch import BatchConfig
from lgjax.data.pipeline import Counted, Mixture, Stream, batches
from lgjax.data.read import Dataset
from lgjax.data.sources import gvc
from tests.annotate.sample import CAPTIONS, CHECKED, INSTANCES, draw_pictures, write_chats
from tests.annotate.test_run import annotate
from tests.data.records import TOKENIZER
from tests.llm.endpoint import serve


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("annotate") / "pictures")


@pytest.fixture(scope="module")
def captioned(pictures) -> Path:
    out = pictures.parent / "captioned"
    main(["annotate", "run", *files(captions=CAPTIONS, images=pictures, to=out)])
    return out


@pytest.fixture(scope="module")
def chatted(pictures) -> Path:
    """A run over conversations with everything that can be asked for."""
    out, chats = pictures.parent / "chatted", write_chats(pictures.parent / "chats.json")
    main(["annotate", "run", *files(chats=chats, images=pictures, to=out), "--questions", "--marks"])
    return out


def files(**paths: Path) -> list[str]:
    paths = {"instances": INSTANCES, **paths}
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def test_check_against_links_checked_by_hand(captioned, tmp_path, capsys):
    main(
        [
            "annotate",
            "check",
            str(captioned),
            str(CHECKED),
            "--sheet",
            str(tmp_path / "s.png"),
            "--count",
            "2",
        ]
    )
    printed = capsys.readouterr().out
    assert re.search(r"rejected chats: \d+ x no phrase is grounded", printed)
    precision, recall = (
        float(re.search(rf"{name} (\d\.\d+)", printed)[1]) for name in ("precision", "recall")
    )
    assert precision >= 0.98 and recall >= 0.74
    assert "of 269 phrases that name a category of COCO are tied to instances" in printed
    with PIL.Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 600


def test_a_run_agrees_with_itself_and_differs_nowhere(captioned, tmp_path, capsys):
    main(["annotate", "check", str(captioned), str(captioned)])
    assert "F1 1.000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["annotate", "check", str(captioned), str(captioned), "--sheet", str(tmp_path / "s.png")])
    assert capsys.readouterr().err == "lgjax: there is nothing to show: no conversation differs\n"


def test_two_annotators_are_compared(captioned, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")

    def answer(body: dict) -> str:
        return re.sub(r"\(((?:the|a) toilet)\) \[\d+\.toilet\]", r"\1", annotate(body))

    out = tmp_path / "asked"
    options = files(captions=CAPTIONS, images=pictures, to=out)
    options += ["--annotator", "endpoint", "--model", "m", "--price-in", "1000", "--price-out", "1000"]
    with serve(answer) as endpoint:
        main(["annotate", "run", *options, "--url", endpoint.url, "--dry-run"])
        assert "at most 195 answers" in capsys.readouterr().out and not endpoint.asked and not out.exists()
        with pytest.raises(SystemExit):
            main(["annotate", "run", *options, "--url", endpoint.url, "--budget-tokens", "5000"])
        fault = capsys.readouterr().err.split("\n")[-2]
        assert re.match(r"lgjax: the budget of 5,000 \(tokens\) is spent: \d+ answers", fault)
        main(["annotate", "run", *options, "--url", endpoint.url])
        printed = capsys.readouterr().out
        assert set(endpoint.answered.values()) == {1}
    assert "the whole run so far: 195 answers, 1,950 + 975 tokens, 2.92 of money" in printed
    main(["annotate", "check", str(out), str(captioned), "--sheet", str(tmp_path / "s.html"), "--count", "3"])
    assert re.search(r"precision (1\.000|0\.9\d+).*\n.*recall 0\.9\d", capsys.readouterr().out)
    assert (tmp_path / "s.html").read_text().count("(other)") >= 3


def test_batch_files_from_the_command(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["annotate", "run", *files(captions=CAPTIONS, to=out), "--annotator", "batch", "--model", "m"]
    main(command)
    printed = capsys.readouterr().out
    assert re.search(r"0 of 195 conversations .*\nwrote .*requests-\w+\.jsonl: upload it", printed)
    main(command)
    printed = capsys.readouterr().out
    assert "upload" not in printed and f"put result files into {out / 'batch'}" in printed
    with pytest.raises(SystemExit):
        main([*command, "--write", "detail"])
    assert "was begun with other writer" in capsys.readouterr().err


def test_marked_chat_and_regions_are_built(chatted, tmp_path):
    for name, source in (("lg_visual_prompt", chatted), ("lg_instruct", chatted / "marked")):
        file = ["--file", "chat.json"] if name == "lg_instruct" else []
        main(["data", "build", name, "--from", str(source), "--to", str(tmp_path / name), *file])
    regions = Dataset(tmp_path / "lg_visual_prompt")
    assert [len(record.regions) for record in regions] == [3, 1]
    marked = Dataset(tmp_path / "lg_instruct")
    assert (
        marked[0].turns[1].text
        == "The dogs <1> <2> look up at the camera. They stand next to the toilet <3>."
    )
    assert marked[0].size == (640, 480)


def test_a_batch_of_stage_2_is_made_of_it(captioned, chatted, tmp_path):
    main(
        ["data", "build", "lg_gvc", "--from", str(captioned), "--to", str(tmp_path / "gvc"), "--workers", "1"]
    )
    main(
        [
            "data",
            "build",
            "lg_instruct",
            "--from",
            str(chatted / "marked"),
            "--to",
            str(tmp_path / "text"),
            "--file",
            "chat.json",
        ]
    )
    built = Dataset(tmp_path / "gvc")
    report = json.loads((captioned / "report.json").read_text())
    assert len(built) == report["grounded chats"] > 130
    linked = sum(len(phrase.objects) for record in built for phrase in record.phrases)
    assert linked == report["instances of phrases"] > 350
    config = BatchConfig(
        length=200, phrases=6, objects=40, clip_side=28, num_patches=4, canvas=128, mask_side=64
    )
    mixture = Mixture(
        grounded=(Stream(built),), grounded_rows=4, text=(Stream(Dataset(tmp_path / "text")),), text_rows=2
    )
    data = Counted(batches(mixture, config, TOKENIZER, seed=0))
    batch = next(data)
    data.close()
    assert not data.faults and batch.language.lm_weight.all()
    assert batch.grounding.seg_mask.any(1).all() and batch.grounding.object_mask.any(1).all()
    assert np.isfinite(batch.grounding.boxes).all()


def test_it_is_ground_truth_of_grounding_bench(captioned, tmp_path):
    """Its own boxes, given as answers, are all right; what no phrase names is missing."""
    questions, predictions = [], []
    boxes, named, entities = 0, 0, 0
    for number, record in enumerate(gvc.read(captioned)["train"]):
        question, answer = record.turns
        base = {"question_id": number, "image": Path(record.image).name}
        questions.append({**base, "text": question.text, "category": "detail"})
        phrases, seen = [], set()
        for phrase in record.phrases:
            single = [record.objects[i] for i in phrase.objects if not record.objects[i].crowd]
            found = {"boxes": [list(thing.box) for thing in single], "scores": [1.0] * len(single)}
            text = answer.text[slice(*phrase.span)]
            phrases.append({"text": text, "span": list(phrase.span), **found, "masks": None})
            boxes += len(single)
            seen |= {thing.id for thing in single}
        named += len(seen)
        entities += sum(not thing.crowd for thing in record.objects)
        size = {"size": list(record.size[::-1]), "text": answer.text, "phrases": phrases}
        predictions.append({**base, **size, "settings": {"model": "annotations"}, "extra": {}})
    for name, lines in (("questions", questions), ("predictions", predictions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    truth = captioned / "annotations" / "instances_train2017_gvc.json"
    paths = {"questions": tmp_path / "questions.jsonl", "predictions": tmp_path / "predictions.jsonl"}
    options = [f"--{name}={path}" for name, path in {**paths, "annotations": truth}.items()]
    main(["eval", "grounding-bench", *options, "--out", str(tmp_path / "scores")])
    tables = json.loads((tmp_path / "scores" / "scores.json").read_text())["tables"]
    counts, scores = tables["Counts"][0], tables["Scores"][0]
    assert (counts["right boxes"], counts["boxes"], counts["boxes on no entity"]) == (boxes, boxes, 0)
    assert (counts["found"], counts["entities"]) == (named, entities)
    assert scores["precision"] == 1.0 and scores["recall"] == named / entities


def test_a_caption_of_an_unknown_picture_is_told(tmp_path, capsys):
    captions = json.loads(CAPTIONS.read_text())
    captions["annotations"][3]["image_id"] = 424242
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(SystemExit):
        main(["annotate", "run", *files(captions=tmp_path / "captions.json"), "--to", str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert "image 424242, which is not among its images" in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("pieces/000000.jsonl", '{"a": 1}\n', "line 1 is no line of a run"),
        ("pieces/000000.jsonl", "5\n", "line 1 must be an object"),
        (
            "run.json",
            '{"identity": 5, "pieces": 1, "instances": "a", "images": null}',
            "no description of a run",
        ),
    ],
)
def test_a_damaged_run_is_one_line(name, text, fault, captioned, tmp_path, capsys):
    shutil.copytree(captioned, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(SystemExit):
        main(["annotate", "check", str(tmp_path / "run")])
    printed = capsys.readouterr().err
    assert fault in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (files(), "name either conversations (--chats) or captions (--captions)"),
        (files(chats=INSTANCES), "instances.json must be a list of records"),
        (files(captions=INSTANCES), "has no text 'caption'"),
        (files(chats=Path("no.json")), "no file no.json"),
        (files(instances=CAPTIONS, captions=CAPTIONS), "captions.json has no categories"),
        (
            [*files(captions=CAPTIONS), "--annotator", "batch", "--model", "m", "--url", "http://a"],
            "--url needs --annotator endpoint",
        ),
        ([*files(captions=CAPTIONS), "--shard", "3/3"], "--shard '3/3' must be I/N"),
        ([*files(captions=CAPTIONS), "--piece", "0"], "pieces of 0 chats"),
        ([*files(captions=CAPTIONS), "--marks"], "name their folder with --images"),
        ([*files(captions=CAPTIONS), "--model", "m"], "the matcher asks nobody"),
        ([*files(captions=CAPTIONS), "--annotator", "endpoint"], "name the language model with --model"),
        ([*files(captions=CAPTIONS), "--annotator", "endpoint", "--model", "m"], "set OPENAI_API_KEY"),
        (
            [*files(captions=CAPTIONS), "--annotator", "endpoint", "--model", "m", "--concurrency", "0"],
            "concurrency 0 must be above 0",
        ),
    ],
)
def test_every_fault_is_one_line_and_leaves_nothing(options, fault, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["annotate", "run", *options, "--to", str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert stop.value.code and fault in printed and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
