"""The command line as a user meets it: answers, sessions, files, and one clear line for every fault."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax import __version__
from lgjax.cli import main
from lgjax.convert import store
from lgjax.data import masks
from tests.infer.model import GROUNDED, model, picture, tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "model"
    store.save(folder, model().config, model().params, tokenizer=tokenizer().files)
    return str(folder)


@pytest.fixture
def photo(tmp_path) -> str:
    PIL.Image.fromarray(picture(0)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"lgjax {__version__}\n"


def test_answer_with_phrases_json_and_picture(checkpoint, photo, tmp_path, capsys):
    out = tmp_path / "answer"
    question = "What is the object % doing?"
    options = ["--checkpoint", checkpoint, "--click", "30,40", "--answer", GROUNDED, "--threshold", "None"]
    main(["chat", photo, question, *options, "--out", str(out)])
    printed = capsys.readouterr().out
    assert (
        "A man rides two brown horses, slowly." in printed and "two brown horses" in printed.split("\n", 1)[1]
    )
    answer = json.loads((out / "answer.json").read_text())
    assert [phrase["text"] for phrase in answer["phrases"]] == ["A man", "two brown horses"]
    assert masks.decode(answer["region_mask"], (120, 90)).shape == (90, 120)
    with PIL.Image.open(out / "answer.png") as drawn:
        assert drawn.width >= 480 and drawn.height > 360

    main(["chat", photo, question, *options, "--json"])
    assert json.loads(capsys.readouterr().out) == answer


def test_numbers_of_the_command_reach_the_answer(checkpoint, photo, capsys):
    base = ["chat", photo, "What is it?", "--checkpoint", checkpoint, "--answer", GROUNDED, "--json"]
    main([*base, "--threshold", "0.0", "--queries", "60"])
    answer = json.loads(capsys.readouterr().out)
    assert {len(phrase["boxes"]) for phrase in answer["phrases"]} == {60}
    drawn = set()
    for seed in ("1", "1", "2"):
        arguments = ["--temperature", "1.5", "--seed", seed, "--max-tokens", "8", "--json"]
        main(["chat", photo, "What is it?", "--checkpoint", checkpoint, *arguments])
        drawn.add(json.loads(capsys.readouterr().out)["text"])
    assert len(drawn) == 2


def test_phrases_that_are_not_found_are_flagged_or_dropped(checkpoint, photo, capsys):
    base = ["chat", photo, "What is it?", "--checkpoint", checkpoint, "--answer", GROUNDED, "--json"]
    main([*base, "--threshold", "0.99", "--flag-ungrounded"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "A man [not found] rides two brown horses [not found], slowly."
    assert [answer["text"][slice(*p["span"])] for p in answer["phrases"]] == ["A man", "two brown horses"]
    main([*base, "--threshold", "0.99", "--drop-ungrounded"])
    assert json.loads(capsys.readouterr().out) == {
        "text": "",
        "remembered": "",
        "phrases": [],
        "region_mask": None,
    }
    main([*base, "--threshold", "0.0", "--drop-ungrounded"])
    assert json.loads(capsys.readouterr().out)["text"] == "A man rides two brown horses, slowly."
    for wrong in (["--flag-ungrounded", "--drop-ungrounded"], ["--threshold", "None", "--flag-ungrounded"]):
        with pytest.raises(SystemExit):
            main([*base, *wrong])
        assert capsys.readouterr().err.count("\n") == 1


def test_session(checkpoint, photo, tmp_path, capsys, monkeypatch):
    lines = iter(
        [
            "/help",
            "What is it?",
            "/click 1,1",
            "/undo",
            "/click 30,40",
            "What is % ?",
            "/box 900,2,3,4",
            "/box 1,2",
            "/nonsense",
            f"/save {tmp_path / 'kept'}",
            "/undo",
            "/save",
            "/image nowhere.png",
            f"/image {photo}",
            "/save",
            "",
            "/quit",
            "never read",
        ]
    )
    monkeypatch.setattr("rich.console.Console.input", lambda *a, **k: next(lines))
    main(["chat", photo, "--checkpoint", checkpoint, "--max-tokens", "6"])
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "/undo take back",
        "outside the picture",
        "took back",
        "no command '/nonsense'",
        "is not there",
    ):
        assert part in out, part
    assert "no answer to save" in out
    assert (tmp_path / "kept" / "answer.png").is_file()
    assert json.loads((tmp_path / "kept" / "answer.json").read_text())["region_mask"] is not None
    assert next(lines) == "never read"


def test_words_that_look_like_markup_are_shown_as_they_are(checkpoint, photo, capsys):
    text = "<g_s> [/b] <g_e> <seg> and <g_s> [red]dog <g_e> <seg>"
    main(["chat", photo, "What?", "--checkpoint", checkpoint, "--answer", text])
    assert capsys.readouterr().out.count("[red]dog") == 2


def test_every_kind_of_region_on_the_command_line(checkpoint, photo, tmp_path, capsys):
    mask = np.zeros((90, 120), bool)
    mask[20:40, 30:60] = True
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    ask = ["chat", photo, "Are % and % and % and % red?", "--checkpoint", checkpoint, "--max-tokens", "4"]
    more = ["--mask", str(tmp_path / "mask.png"), "--scribble", "1,1 9,9 8,8", "--click", "30,40"]
    main([*ask, *more, "--box", "30,20,59,39", "--json"])
    assert json.loads(capsys.readouterr().out)["region_mask"] is not None
    marked = ["--mark", str(tmp_path / "mask.png"), "--no-ground", "--out", str(tmp_path / "out")]
    main(["chat", photo, "What is <1> ?", "--checkpoint", checkpoint, "--max-tokens", "4", *marked])
    with PIL.Image.open(tmp_path / "out" / "answer.png") as drawn:
        scale = drawn.width // 120
        inside = np.asarray(drawn)[30 * scale : 31 * scale : scale, 30 * scale : 60 * scale : scale]
    assert (inside != picture(0)[30:31, 30:60]).any()


def test_regions_and_marks_in_a_session(checkpoint, photo, tmp_path, capsys, monkeypatch):
    mask = np.zeros((90, 120), bool)
    mask[20:40, 30:60] = True
    PIL.Image.fromarray(mask).save(tmp_path / "a mask.png")
    lines = iter(
        [
            "/scribble 1,1 5,5",
            f"/mask {tmp_path / 'a mask.png'}",
            "Are % and % red?",
            "/again 2",
            "And % ?",
            "/again 3",
            "/again x",
            "/mask nowhere.png",
            f"/mark '{tmp_path / 'a mask.png'}'",
            "/again 1",
            "/quit",
        ]
    )
    monkeypatch.setattr("rich.console.Console.input", lambda *a, **k: next(lines))
    main(["chat", photo, "--checkpoint", checkpoint, "--max-tokens", "4"])
    out = " ".join(capsys.readouterr().out.split())
    for part in ("no region 3; 2 were", "'x' is no number", "is not there", "drew 1 marks", "no region 1; 0"):
        assert part in out, part


def test_session_ends_with_its_input(checkpoint, photo, monkeypatch):
    def end(*arguments, **keywords):
        raise EOFError

    monkeypatch.setattr("rich.console.Console.input", end)
    main(["chat", photo, "--checkpoint", checkpoint])


def fault(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code not in (0, None)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--click", "5"], "is no click; write X,Y"),
        (["--click", "5,5"], "does not say where"),
        (["--threshold", "2"], "threshold 2"),
        (["--queries", "0"], "queries 0"),
        (["--queries", "900"], "only 340 tokens"),
        (["--max-tokens", "0"], "max_tokens 0"),
        (["--max-tokens", "1000000000"], "max_tokens 1000000000"),
        (["--box", "1,2"], "is no box"),
    ],
)
def test_faults_of_options_are_one_line(arguments, part, checkpoint, photo, capsys):
    if "900" in arguments:
        arguments = [*arguments, "--answer", GROUNDED]
    line = fault(capsys, "chat", photo, "What is it?", "--checkpoint", checkpoint, *arguments)
    assert part in line and line.count("\n") == 1 and line.startswith("lgjax: ")


def test_files_that_cannot_be_are_refused_first(checkpoint, photo, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("lgjax.terminal.load", None)  # never reached
    line = fault(capsys, "chat", photo, "a?", "--checkpoint", checkpoint, "--out", str(tmp_path / "file"))
    assert "file" in line and line.count("\n") == 1
    gone = fault(capsys, "chat", str(tmp_path / "gone.jpg"), "a?", "--checkpoint", checkpoint)
    assert "gone.jpg" in gone and gone.count("\n") == 1
    assert "--json needs a question" in fault(capsys, "chat", photo, "--checkpoint", checkpoint, "--json")


def test_nothing_said_gives_the_help(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--version" in capsys.readouterr().out


def test_damaged_checkpoints_are_one_line(checkpoint, photo, tmp_path, capsys):
    def damaged(name: str, change) -> str:
        folder = tmp_path / name
        shutil.copytree(checkpoint, folder)
        change(folder)
        return fault(capsys, "chat", photo, "a?", "--checkpoint", str(folder))

    def cut(folder: Path) -> None:
        largest = max((folder / "params").rglob("*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1000])

    def swap(folder: Path) -> None:
        file = folder / "tokenizer" / "tokenizer.model"
        data = bytearray(file.read_bytes())
        data[5000] ^= 1
        file.write_bytes(bytes(data))

    lines = {
        "were written": damaged("cut", cut),
        "is not the file that was written": damaged("swapped", swap),
        "is missing": damaged("gone", lambda folder: (folder / "params" / "_METADATA").unlink()),
    }
    for part, line in lines.items():
        assert part in line and line.count("\n") == 1, line


def test_faults_of_files_are_one_line(checkpoint, photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(Path(photo).read_bytes()[:-200])
    (tmp_path / "other").mkdir()
    cases = {
        "is not an lgjax checkpoint": ["chat", photo, "a?", "--checkpoint", str(tmp_path / "other")],
        "is not there": ["chat", "nowhere.png", "a?", "--checkpoint", checkpoint],
        "not a picture": ["chat", str(tmp_path / "text.png"), "a?", "--checkpoint", checkpoint],
        "truncated": ["chat", str(tmp_path / "cut.png"), "a?", "--checkpoint", checkpoint],
        "there is no such folder": ["inspect", str(tmp_path / "absent")],
        "no checkpoint folder": ["chat", photo, "a?", "--checkpoint", "llava_g_7b"],
    }
    for part, arguments in cases.items():
        line = fault(capsys, *arguments)
        assert part in line and line.count("\n") == 1, (part, line)


def test_a_checkpoint_whose_numbers_changed_is_refused(checkpoint, photo, tmp_path, capsys):
    changed = {**model().params, "projector": {**model().params["projector"]}}
    changed["projector"]["kernel"] = np.asarray(changed["projector"]["kernel"]) * 1.5
    folder = tmp_path / "changed"
    store.save(folder, model().config, changed, tokenizer=tokenizer().files)
    good = json.loads((Path(checkpoint) / "lgjax.json").read_text())
    bad = json.loads((folder / "lgjax.json").read_text())
    (folder / "lgjax.json").write_text(json.dumps({**bad, "fingerprint": good["fingerprint"]}))
    line = fault(capsys, "chat", photo, "a?", "--checkpoint", str(folder))
    assert "do not give the outputs that were recorded" in line and "projector" in line


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_smaller_checkpoint_answers(form, checkpoint, photo, tmp_path, capsys):
    small = str(tmp_path / form)
    main(["convert", checkpoint, small, "--quantize", form])
    main(["inspect", small])
    printed = capsys.readouterr().out
    assert f"wrote {small}: " in printed and "projector" in printed and f" {form}" in printed
    main(["chat", photo, "What is it?", "--checkpoint", small, "--answer", GROUNDED, "--json"])
    assert len(json.loads(capsys.readouterr().out)["phrases"]) == 2
    line = fault(capsys, "export", small, str(tmp_path / "out"))
    assert "an export needs full numbers" in line and line.count("\n") == 1
    line = fault(capsys, "convert", checkpoint, str(tmp_path / "out"))
    assert "is an lgjax checkpoint already" in line and line.count("\n") == 1
    assert "--quantize" in fault(capsys, "convert", checkpoint, str(tmp_path / "out"), "--quantize", "int3")


def test_a_typo_suggests_the_option(photo, capsys):
    assert "--threshold" in fault(capsys, "chat", photo, "a?", "--treshold", "0.1")
