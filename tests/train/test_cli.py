"""`lgjax train` as a user meets it: what a dry run says, changes of fields, and one line for every fault."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path

import pytest

from lgjax.cli import main
from lgjax.convert.manifest import manifest
from lgjax.train.config import TrainConfig, from_text, load_config, to_json
from tests import synthetic
from tests.train.micro import micro_model
from tests.train.test_groups import RATES, group_by_key

CONFIGS = Path(__file__).parents[2] / "configs"
LANGUAGE = """
import dataclasses
from lgjax.train.config import Rates
from tests.train.micro import micro, micro_model

def get_config():
    model = dataclasses.replace(micro_model(), grounding=None, prompt=None)
    return micro(model=model, loss={"parts": ("language",)}, optim={"rates": Rates(llama=1)})
"""


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def language(tmp_path) -> str:
    (tmp_path / "language.py").write_text(LANGUAGE)
    return str(tmp_path / "language.py")


MICRO = str(Path(__file__).parent / "micro.py")
# a mesh of more devices than are here, so that nothing is compiled
ELSEWHERE = ["--dry-run", "--mesh.fsdp", "16", "--data.groups", "32"]


def tables(text: str) -> dict[str, list[str]]:
    """First cell of each row of the printed tables -> the other cells."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


def printed(capsys, *arguments: str) -> dict[str, list[str]]:
    main(["train", *arguments])
    return tables(capsys.readouterr().out)


def number(text: str) -> int:
    return int(text.replace(",", ""))


def size_in_bytes(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"MiB": 2**20, "GiB": 2**30}[unit]


@functools.cache
def sizes_of_micro() -> dict[str, int]:
    """Numbers of each group, by the original's names."""
    sizes: dict[str, int] = {}
    for key, entry in manifest(micro_model()).items():
        if entry.path:
            group = group_by_key(key)
            sizes[group] = sizes.get(group, 0) + math.prod(entry.shape)
    return sizes


TABLES_FROZEN = ["--optim.rates.llama", "0", "--optim.rates.embed", "0", "--optim.rates.head", "0"]
LORA_NUMBERS = 2 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))  # layers, rank, matrices of a layer


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ([], {}),
        (
            [*TABLES_FROZEN, "--optim.rates.new-tokens", "1"],
            {"embed": 0, "head": 0, "llama": 0, "new_tokens": 384},
        ),
        ([*TABLES_FROZEN, "--frozen", "int8", "--scan-layers"], {"embed": 0, "head": 0, "llama": 0}),
        (["--optim.lora", "2"], {"llama": LORA_NUMBERS}),
    ],
    ids=["all", "new rows", "int8", "low rank"],
)
def test_dry_run_counts_the_numbers_of_each_group(changes, trained, capsys):
    """`trained`: where that is not all of a group."""
    found = printed(capsys, "--config", MICRO, *ELSEWHERE, *changes)
    sizes = sizes_of_micro()
    wanted = {**sizes, "clip": 0, **trained}
    for group, count in wanted.items():
        assert number(found[group][0]) == count, group
        assert found[group][2] == ("-" if not count else "0.0001" if "slow" in group else "0.001")
    both = [sum(number(found[group][column]) for group in wanted) for column in (0, 1)]
    assert [number(cell) for cell in found["all"][:2]] == both
    # whatever is frozen or stands in for frozen rows, all numbers of the model are there once
    assert sum(both) == sum(sizes.values()) + (LORA_NUMBERS if "--optim.lora" in changes else 0)


def test_dry_run_says_what_a_batch_holds(capsys, tmp_path):
    streams = ["--data.grounded.0.weight", "3", "--data.grounded-rows", "3", "--data.text.0.count", "5"]
    found = printed(capsys, "--config", MICRO, *ELSEWHERE, *streams)
    scenes = "composed scenes: description, questions, referring, prompts"
    assert found["grounded: 96"] == [scenes, "24", "100%"]
    assert found["text: 32"] == ["composed scenes: marks", "5", "100%"]
    (tmp_path / "two.py").write_text(
        "from tests.train.micro import micro\n"
        "from lgjax.train.config import DataStream\n"
        "def get_config():\n"
        "    streams = DataStream(sorts=('description',)), DataStream(sorts=('prompts',), weight=3)\n"
        "    return micro(data={'grounded': streams, 'groups': 32})\n"
    )
    found = printed(capsys, "--config", str(tmp_path / "two.py"), "--dry-run", "--mesh.fsdp", "16")
    assert found["grounded: 8"] == ["composed scenes: description", "endless", "25%"]
    assert found["grounded: 24"] == ["composed scenes: prompts", "endless", "75%"]


def test_dry_run_knows_the_bytes_of_a_state(capsys):
    """By hand, all devices together: 4 bytes a number that learns, 8 for its moments, and what is frozen."""
    changes = ["--optim.lora", "0", "--frozen", "bfloat16"]
    found = printed(capsys, "--config", MICRO, *ELSEWHERE, *changes)
    sizes = sizes_of_micro()
    learns = sum(size for group, size in sizes.items() if group != "clip")
    for row, size in (
        ("parameters that learn", 4 * learns),
        ("their gradients", 4 * learns),
        ("state of the optimiser", 8 * learns),
        ("frozen parameters", 2 * sizes["clip"]),
    ):
        assert size_in_bytes(found[row][0]) == pytest.approx(size, rel=1e-3, abs=0.006 * 2**20), row
        # what cannot be split is whole on every device
        assert (
            size / 16 <= size_in_bytes(found[row][1]) + 0.006 * 2**20 and size_in_bytes(found[row][1]) < size
        )
    rows = 64 * (28 * 28 * 3 + 128 * (4 * 4 + 1)) + 32 * (64 * 64 * 3 + 6 * 32 * 4)
    assert size_in_bytes(found["batch"][0]) == pytest.approx(rows, rel=0.1)
    assert size_in_bytes(found["batch"][1]) == pytest.approx(size_in_bytes(found["batch"][0]) / 16, rel=0.1)
    assert any("16 devices are not here" in row for row in found)


def test_dry_run_compiles_where_the_devices_are_here(language, capsys):
    found = printed(capsys, "--config", language, "--dry-run")
    whole = size_in_bytes(found["step as compiled: state, batch, activations"][1])
    rows = ("parameters that learn", "state of the optimiser", "frozen parameters", "batch")
    state = sum(size_in_bytes(found[row][1]) for row in rows)
    assert state <= whole < 30 * state


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "scenes"
    main(["data", "build", "lg_scenes", "--to", str(folder), "--count", "12", "--workers", "1"])
    return folder


def test_dry_run_of_a_stage_of_the_7b_model(scenes, tmp_path, capsys):
    """Stage 2 on 64 devices; its start is not there yet. Sizes by the original's names."""
    data = ["--data.grounded.0.folder", str(scenes), "--data.text.0.folder", str(scenes)]
    synthetic.full_size_tokenizer(tmp_path).save(tmp_path)
    options = ["--tokenizer", str(tmp_path), "--mesh.fsdp", "64", "--data.groups", "64"]
    main(["train", "--config", str(CONFIGS / "stage2.py"), "--dry-run", *data, *options])
    text = capsys.readouterr().out
    assert "start folder runs/stage1/model is not there yet" in text
    found = tables(text)
    sizes: dict[str, int] = {}
    model = load_config(CONFIGS / "stage2.py", "paper").model
    for key, entry in manifest(model).items():
        if entry.path:
            sizes[group_by_key(key)] = sizes.get(group_by_key(key), 0) + math.prod(entry.shape)
    for group, size in sizes.items():
        learns = group in RATES["stage2", "paper"]
        assert [number(cell) for cell in found[group][:2]] == ([size, 0] if learns else [0, size])
    assert found["grounding"][2] == "0.0001" and found["grounding_slow"][2] == "1e-05"
    learns = sum(size for group, size in sizes.items() if group in RATES["stage2", "paper"])
    moments = [size_in_bytes(cell) for cell in found["state of the optimiser"]]
    assert size_in_bytes(found["parameters that learn"][0]) == pytest.approx(4 * learns, rel=1e-3)
    assert moments[0] == pytest.approx(8 * learns, rel=1e-3)
    assert moments[1] == pytest.approx(8 * learns / 64, rel=0.05)
    frozen = 2 * (sizes["clip"] + sizes["head"])
    assert size_in_bytes(found["frozen parameters"][0]) == pytest.approx(frozen, rel=1e-3)
    assert found["grounded: 512"] == [f"{scenes} (train)", "12", "100%"]


def fails(capsys, *arguments: str, status: int = 1) -> str:
    """What is said on standard error."""
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == status
    printed = capsys.readouterr()
    assert status != 1 or (
        printed.err.count("\n") == 1 and printed.err.startswith("lgjax: ") and not printed.out
    )
    return printed.err


def test_a_typo_in_an_option_gets_a_hint(language, capsys):
    said = fails(capsys, "--config", language, "--dry-run", "--optim.lrr", "3", status=2)
    assert "--optim.lrr" in said and "Perhaps you meant" in said and re.search(r"--optim\.lr\b", said)
    said = fails(capsys, "--config", language, "--optim.lr", "fast", status=2)
    assert "--optim.lr" in said
    said = fails(capsys, "--config", language, "--preset", "as_coded", status=2)
    assert "as_code" in said and "__main__" not in said


def test_help_lists_the_fields_of_a_configuration(language, capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--config", language, flag])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        for field in (
            "--optim.lr",
            "--data.groups",
            "--mesh.fsdp",
            "--data.grounded.0.folder",
            "--loss.queries",
        ):
            assert field in text
        assert "0.001" in text and "default" in text


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_without_a_configuration_lists_how_a_run_is_started(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--config" in text and "--resume" in text and "--dry-run" in text and "configs/stage2.py" in text


def test_faults_of_the_configuration_file(tmp_path, language, capsys):
    assert "no configuration file" in fails(capsys, "--config", str(tmp_path / "none.py"), "--dry-run")
    for name, text, message in (
        ("empty", "x = 1\n", "needs a function get_config() that returns a TrainConfig"),
        ("other", "def get_config():\n    return {'steps': 3}\n", "found {'steps': 3}"),
        ("broken", "def get_config(:\n", "SyntaxError"),
        ("raises", "def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        said = fails(capsys, "--config", str(path), "--dry-run")
        assert message in said and str(path) in said
    assert "no presets" in fails(capsys, "--config", language, "--preset", "as_code", "--dry-run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--mesh.fsdp", "3"], "data.groups 2 cannot be shared by 3 devices"),
        (["--mesh.fsdp", "0", "--mesh.data", "0"], "only one mesh axis can be 0"),
        (["--data.grounded.0.folder", "nowhere"], "nowhere is no built dataset"),
        (["--data.text.0.split", "test"], "composed scenes have no split 'test'"),
        (["--data.grounded-rows", "0"], "1 grounded streams for 0 grounded rows"),
        (["--data.length", "5"], "length 5 leaves no room for text beside 4 image slots"),
        (["--tokenizer", "nowhere"], "no tokenizer.model in nowhere"),
        (["--model.llama.vocab-size", "900"], "803 ids with the grounding tokens, the model 900 rows"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_faults_of_a_run_are_one_line(language, changes, message, capsys):
    assert message in fails(capsys, "--config", language, "--dry-run", *changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--accumulate", "3"], "data.groups 2 cannot be cut into 3 micro-batches"),
        (["--optim.rates.llama", "0"], "every rate in optim.rates is 0"),
        (
            ["--optim.rates.new-tokens", "1", "--optim.rates.embed", "1"],
            "optim.rates.new_tokens is for frozen",
        ),
        (["--loss.parts", "grounding"], "loss.parts names 'grounding', but the model has no such part"),
        (["--optim.lora", "2", "--optim.rates.llama", "0", "--optim.rates.clip", "1"], "optim.lora needs"),
        (["--optim.lr", "-1"], "optim.lr -1.0 must be 0 or more"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together(language, changes, message, capsys):
    """Like a wrong option: status 2 and where to read on."""
    assert message in fails(capsys, "--config", language, "--dry-run", *changes, status=2)


def test_a_run_without_its_start_is_one_line(language, capsys, tmp_path):
    """Not in a dry run, which says so and goes on."""
    start = ["--start", str(tmp_path / "nowhere")]
    said = fails(capsys, "--config", language, "--out", str(tmp_path / "run"), *start)
    assert "nowhere is not an lgjax checkpoint" in said and not (tmp_path / "run").exists()
    main(["train", "--config", language, *ELSEWHERE, *start])
    assert "nowhere is not there yet" in capsys.readouterr().out


def all_configs() -> list[tuple[str, str]]:
    found = []
    for path in sorted(CONFIGS.glob("*.py")):
        presets = ["paper", "as_code"] if "preset" in path.read_text() else ["paper"]
        found += [(path.name, preset) for preset in presets]
    return found


@pytest.mark.parametrize(("name", "preset"), all_configs())
def test_configurations_survive_json(name, preset):
    config = load_config(CONFIGS / name, preset)
    again = from_text(to_json(config))
    assert again == config and isinstance(again, TrainConfig)
    assert from_text(to_json(again)) == again
    changed = dataclasses.replace(config, seed=config.seed + 1)
    assert from_text(to_json(changed)) != config
