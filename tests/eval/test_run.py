"""From the options of a command to predictions and reports, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest

from lgjax.cli import main
from lgjax.eval import run
from lgjax.eval.questions import Question
from lgjax.eval.running import Running
from lgjax.eval.sweep import by_queries
from tests.eval.told import Told
from tests.infer.model import picture


@pytest.fixture
def told(monkeypatch) -> Told:
    """The chat that every checkpoint loads as."""
    chat = Told()
    monkeypatch.setattr(run, "_load", lambda *arguments: chat)
    return chat


@pytest.fixture
def asked(tmp_path) -> list[Question]:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(picture(0)).save(path)
    return [Question(id=f"q{i}", image="a.png", path=path, text=f"What is {i}?") for i in range(40)]


def test_made_and_read_again(told, asked, tmp_path):
    made = run.predictions_for(
        Running(checkpoint="debug", out=tmp_path / "out", limit=5), asked, max_tokens=7
    )
    assert made is not None and [question.id for question, _ in made] == [f"q{i}" for i in range(5)]
    settings = made[0][1].settings
    assert settings["checkpoint"] == "debug" and settings["max_tokens"] == 7 and settings["threshold"] == 0.2
    again = run.predictions_for(Running(predictions=tmp_path / "out" / run.PREDICTIONS), asked[:5])
    assert again is not None and [p.text for _, p in again] == [p.text for _, p in made]
    fewer = run.predictions_for(Running(predictions=tmp_path / "out" / run.PREDICTIONS, limit=2), asked[:5])
    assert fewer is not None and len(fewer) == 2
    with pytest.raises(ValueError, match="35 of 40 questions have no prediction"):
        run.predictions_for(Running(predictions=tmp_path / "out" / run.PREDICTIONS), asked)


def test_processes_wait_for_each_other(told, asked, tmp_path):
    parts = [Running(checkpoint="debug", out=tmp_path / "out", process=f"{i}/2") for i in range(2)]
    assert run.predictions_for(parts[0], asked) is None
    found = run.predictions_for(parts[1], asked)
    assert found is not None and len(found) == 40 and len(told.asked) == 40


@pytest.mark.parametrize(
    ("running", "message"),
    [
        (Running(), "either a checkpoint"),
        (Running(checkpoint="a", predictions=Path("b")), "either a checkpoint"),
        (Running(checkpoint="debug"), "needs --out"),
        (Running(checkpoint="debug", out=Path("x"), limit=0), "--limit 0"),
        (Running(checkpoint="debug", out=Path("x"), process="2/2"), "--process 2/2"),
        (Running(checkpoint="debug", out=Path("x"), process="a"), "--process a"),
        (Running(checkpoint="debug", out=Path("x"), threshold=1.5), "threshold 1.5"),
        (Running(checkpoint="debug", out=Path("x"), queries=0), "queries 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(told, asked, running, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run.predictions_for(running, asked)
    assert not told.asked and not Path("x").exists()


def test_a_sweep_times_every_number_of_queries(told, asked, tmp_path):
    running = Running(checkpoint="debug", out=tmp_path / "out", limit=3)
    swept = by_queries(running, asked, (50, 300), "told", max_tokens=7)
    assert swept is not None and [one.queries for one in swept] == [50, 300]
    assert all(one.seconds > 0 and len(one.pairs) == 3 for one in swept)
    assert [one.pairs[0][1].settings["queries"] for one in swept] == [50, 300]
    assert by_queries(running, asked, (), "told") == []
    with pytest.raises(ValueError, match="no checkpoint"):
        by_queries(Running(predictions=tmp_path), asked, (50,), "told")


def test_the_command_for_scenes(told, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["eval", "scenes", "--count", "3", "--size", "64"]
    main([*arguments, "--checkpoint", "debug", "--out", str(out), "--sweep-queries", "50", "100"])
    assert "mask IoU" in capsys.readouterr().out
    made = json.loads((out / "scores.json").read_text())
    assert [row["queries"] for row in made["tables"].pop("Object queries")] == ["50", "100"]
    main([*arguments, "--predictions", str(out / "predictions"), "--out", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "scores.json").read_text()) == made
    main([*arguments, "--checkpoint", "debug"])  # without a folder nothing is left behind
    with pytest.raises(SystemExit):
        main([*arguments, "--seed", "9", "--predictions", str(out / "predictions")])
    error = capsys.readouterr().err
    assert "line 1: question 'combinations-1-00000-description' is none of those asked" in error


def test_the_command_for_records(told, asked, tmp_path, capsys):
    run.predictions_for(Running(checkpoint="debug", out=tmp_path / "out"), asked)
    main(["eval", "records", str(tmp_path / "out/predictions"), str(tmp_path / "r.jsonl")])
    assert "wrote 40 records" in capsys.readouterr().out
    lines = (tmp_path / "r.jsonl").read_text().strip().split("\n")
    (answer,) = told.ask_batch([asked[3].path], [asked[3].text])
    assert json.loads(lines[3]) == answer.record("q3")._asdict()
