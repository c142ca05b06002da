"""The set of 1000 pictures: what is taken from COCO's files, and faulty lists."""

from __future__ import annotations

import json

import pytest

from lgjax.cli import main
from lgjax.eval import bench_set
from lgjax.eval.bench_answers import Pictures
from lgjax.eval.question_file import read_questions
from tests.eval import bench_files as files

IDS = [image["id"] for image in files.COCO["images"]]


def part(tmp_path, name: str, ids) -> str:
    content = {
        "images": [
            dict(image, file_name=f"COCO_val2014_{image['file_name']}")
            for image in files.COCO["images"]
            if image["id"] in ids
        ],
        "annotations": [a for a in files.COCO["annotations"] if a["image_id"] in ids],
        "categories": files.COCO["categories"],
    }
    (tmp_path / name).write_text(json.dumps(content))
    return str(tmp_path / name)


def test_a_set_of_several_files(tmp_path, capsys):
    wanted = [IDS[4], IDS[0], IDS[2]]
    (tmp_path / "ids.txt").write_text("".join(f"{number}\n" for number in wanted))
    sources = ["--instances", part(tmp_path, "a.json", IDS[:3]), "--instances", part(tmp_path, "b.json", IDS)]
    out = tmp_path / "set"
    main(["eval", "grounding-bench-set", "--ids", str(tmp_path / "ids.txt"), *sources, "--out", str(out)])
    questions = read_questions(out / "questions.jsonl")
    assert [q.image for q in questions] == [f"{number:012d}.jpg" for number in wanted]
    assert {q.category for q in questions} == {"detail"} and [q.id for q in questions] == [0, 1, 2]
    pictures, known = Pictures.read(out / "annotations.json"), Pictures.read(files.INSTANCES)
    total = 0
    for question in questions:
        found = pictures.entities(question.image, "here")
        assert found == known.entities(question.image, "here")
        total += len(found[1])
    assert f"3 pictures with {total} entities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("544\nx\n", "line 2: expected the id of a picture of COCO, found 'x'"),
        ("544\n\n60623\n", "line 2 is blank"),
        ("544\n000544\n", "line 2: id 544 stands in .*line 1"),
        ("544\n1\n2\n", r"line 2: picture 1 is in none of .*2 of 3 are missing"),
        ("", "holds no ids"),
    ],
)
def test_faulty_lists(text, message, tmp_path):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        bench_set.build(tmp_path / "ids.txt", [files.INSTANCES], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_files_with_other_categories_are_refused(tmp_path):
    (tmp_path / "ids.txt").write_text("544\n")
    (tmp_path / "b.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(ValueError, match="other categories"):
        bench_set.build(tmp_path / "ids.txt", [files.INSTANCES, tmp_path / "b.json"], tmp_path / "set")
