"""`lgjax data` from end to end: build, verify, show, bench, and training batches of what was built."""

import io
import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lgjax.cli import main
from lgjax.data.batch import BatchConfig
from lgjax.data.bench import Planned
from lgjax.data.pipeline import Counted, Mixture, Stream, batches
from lgjax.data.read import Dataset
from lgjax.data.schema import to_json
from lgjax.data.sources import coco
from lgjax.data.sources.scenes import Scenes
from tests.data.records import TOKENIZER
from tests.data.sources import examples


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "built"
    main(
        ["data", "build", "lg_scenes", "--to", str(folder), "--count", "40", "--seed", "4", "--workers", "2"]
    )
    return folder


def test_scenes_are_read_as_they_were_composed(built):
    for split, count in (("train", 40), ("combinations", 4), ("styles", 4)):
        found, want = Dataset(built, split), Scenes(split=split, seed=4, count=count)
        assert len(found) == count
        for a, b in zip(found, want, strict=True):
            assert to_json(a) == to_json(b)
            pixels = np.asarray(PIL.Image.open(io.BytesIO(a.image)).convert("RGB"))
            assert np.array_equal(pixels, np.asarray(b.image))


def test_batches_of_a_built_dataset(built):
    config = BatchConfig(
        length=300, phrases=6, objects=6, clip_side=28, num_patches=4, canvas=128, mask_side=64
    )
    mixture = Mixture(grounded=(Stream(Dataset(built)),), grounded_rows=4)

    def first(workers: int):
        data = Counted(batches(mixture, config, TOKENIZER, seed=1, workers=workers))
        batch = next(data)
        data.close()
        assert not data.faults
        return batch

    batch = first(0)
    assert batch.grounding.object_mask.any(1).all() and batch.language.lm_weight.all()
    assert np.array_equal(first(1).grounding.masks, batch.grounding.masks)


@pytest.mark.parametrize("name", ["sheet.html", "sheet.png"])
def test_show(built, name, tmp_path, capsys):
    main(["data", "show", str(built), "--out", str(tmp_path / name), "--count", "5", "--seed", "0"])
    assert capsys.readouterr().out == f"wrote {tmp_path / name}\n"
    assert (tmp_path / name).stat().st_size > 20_000


def test_show_before_building(tmp_path):
    examples.write_coco(tmp_path / "coco")
    out = tmp_path / "sheet.html"
    main(["data", "show", "lg_coco", "--from", str(tmp_path / "coco"), "--out", str(out)])
    record = next(iter(coco.read(tmp_path / "coco").values()))[0]
    assert record.expressions[0].texts[0] in out.read_text()
    main(["data", "show", "lg_scenes", "--split", "styles", "--marked", "--out", str(out), "--count", "4"])
    assert "styles-0-" in out.read_text()


def test_bench_says_where_the_time_goes(built, capsys):
    sizes = ["--canvas", "128", "--mask-side", "64", "--length", "400", "--seconds", "0.1"]
    main(["data", "bench", "--grounded", f"{built}=2", "--grounded-rows", "2", *sizes])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines]
    assert len(lines) >= 8 and abs(sum(shares) - 100) < 1
    assert "batches of 2 grounded and 0 text rows" in out


@pytest.mark.parametrize(
    ("seconds", "hosts", "said"),
    [
        (10.0, 4, r"4 hosts must make up to 1\.6 rows a second, this one makes 4\.0: enough, 2\.5 times"),
        # 64 rows in 2 s are 32 a second: eight times what one makes
        (2.0, 4, r"up to 8\.0 rows a second, .*: too slow: steps take 4\.00 s; 8 such hosts"),
        (1.9, 8, r"too slow: steps take 2\.00 s; 9 such hosts, or more --workers, keep up"),
    ],
)
def test_the_input_against_the_step_of_a_plan(seconds, hosts, said, tmp_path):
    file = tmp_path / "plan.json"
    plan = {"handled": {"images": 64.0}, "seconds": {"best": seconds, "worst": 2 * seconds}}
    file.write_text(json.dumps(plan))
    line = Planned.read(file).against(4.0, hosts)
    assert re.search(said, line) and f"64 rows takes {seconds:.2f} to {2 * seconds:.2f} s" in line


def test_a_plan_of_something_else(tmp_path):
    file = tmp_path / "plan.json"
    for text, said in (
        ("[]", "is no plan of a step"),
        ('{"handled": {"tokens": 8.0}, "seconds": {"best": 1, "worst": 2}}', "is no plan of a step"),
        ('{"handled": {"images": 8.0}, "seconds": null}', "a step that does not fit"),
        ("{", "truncated or no JSON"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            Planned.read(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--plan", "none.json"], "no file none.json"),
        (["bench", "--hosts", "0"], "--hosts 0: there must be at least one"),
        (["show", "nothing", "--out", "a.html"], "'nothing' is no folder and none of lg_flickr"),
        (["show", "lg_scenes", "--split", "test", "--out", "a.html"], "no split 'test'; it has train"),
        (["show", "lg_scenes", "--out", "a.pdf"], "must end in .html or .png"),
        (["show", "lg_coco", "--out", "a.html"], "lg_coco is made of files"),
        (["bench", "--grounded", "nowhere"], "nowhere is no built dataset"),
        (["bench", "--grounded", "nowhere=x"], "weight 'x' is no number"),
        (["bench", "--mask-side", "100"], "multiple of 8"),
    ],
)
def test_faults_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["data", *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 1 and message in error and error.count("\n") == 1
