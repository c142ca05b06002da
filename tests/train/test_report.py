"""Reports against numbers worked out by hand; TensorBoard files against a reader of their format."""

import json
import math
import struct
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lgjax.train.report import Report, progress_line

SPEED = {"seconds": 0.5, "waited": 0.1, "tokens": 100, "images": 4}


@pytest.fixture
def console(tmp_path: Path):
    with (tmp_path / "printed.txt").open("w+") as file:
        yield Console(file=file, width=110)


def printed(console: Console) -> list[str]:
    console.file.flush()
    return Path(console.file.name).read_text().splitlines()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def events(folder: Path) -> list[list[Event]]:
    """The events of each file, oldest file first: records of a length, its checksum, data and a checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at, records = path.read_bytes(), 0, []
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            records.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
        found.append(records)
    return found


def scalars(records: list[Event]) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in records for value in event.summary.value}


def test_a_line_holds_the_means_since_the_last_one(tmp_path: Path, console: Console):
    with Report(tmp_path, total_steps=5, every=2, flops=30.0, peak=100.0, console=console) as report:
        assert report.add(1, {"loss": jnp.float32(1), "skipped": 0}, **SPEED) is None
        second = {"seconds": 1.5, "waited": 0.3, "tokens": np.int64(500), "images": jnp.int32(8)}
        row = report.add(
            2, {"loss": jnp.float32(4), "skipped": jnp.array(True), "grad_norm": jnp.bfloat16(7)}, **second
        )
        report.add(3, {"loss": 10}, **SPEED)
        report.add(4, {"loss": 20}, **SPEED)
        report.add(5, {"loss": 30}, **SPEED)  # the last step always has a line
    first = {
        "step": 2,
        "loss": 2.5,
        "skipped": 0.5,
        "grad_norm": 7.0,
        "speed/step_seconds": 1.0,
        "speed/data_share": 0.2,
        "speed/tokens_per_second": 300.0,
        "speed/images_per_second": 6.0,
        "speed/utilisation": 0.3,
        "speed/seconds_left": 3.0,
    }
    assert rows(tmp_path)[0] == row == pytest.approx(first)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(2, 2.5), (4, 15), (5, 30)]
    assert rows(tmp_path)[2]["speed/seconds_left"] == 0
    assert [line.split("  ")[0] for line in printed(console)] == ["step 2/5", "step 4/5", "step 5/5"]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path, console: Console):
    with Report(tmp_path, total_steps=9, console=console) as report:
        row = report.add(1, {"loss": jnp.nan, "grad_norm": jnp.inf}, **SPEED)
    assert math.isnan(row["loss"]) and row["grad_norm"] == math.inf
    assert rows(tmp_path)[0]["loss"] is None and rows(tmp_path)[0]["grad_norm"] is None
    assert "loss nan" in printed(console)[0]


@hypothesis.given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12))
@hypothesis.settings(max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_means_are_taken_in_double_precision(tmp_path_factory, values: list[float]):
    folder, quiet = tmp_path_factory.mktemp("run"), Console(quiet=True)
    with Report(folder, total_steps=len(values), every=len(values), console=quiet) as report:
        for step, value in enumerate(values, 1):
            report.add(step, {"loss": jnp.float32(value)}, **SPEED)
    assert rows(folder)[0]["loss"] == pytest.approx(math.fsum(values) / len(values), rel=1e-12, abs=1e-9)


def test_steps_without_a_line_do_not_wait_for_the_device(tmp_path: Path, console: Console):
    @jax.jit
    def slow(x):
        return jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y @ x), x).sum() * 0 + 2

    x = jnp.ones((512, 512))
    slow(x).block_until_ready()
    with Report(tmp_path, total_steps=9, every=2, console=console) as report:
        loss = slow(x)
        report.add(1, {"loss": loss}, **SPEED)
        assert not loss.is_ready()
        report.add(2, {"loss": 4}, **SPEED)
        assert loss.is_ready()
    assert rows(tmp_path)[0]["loss"] == 3


def test_tensorboard_holds_the_same(tmp_path: Path, console: Console):
    with Report(tmp_path, total_steps=4, every=2, console=console) as report:
        for step in range(1, 5):
            report.add(step, {"loss": float(step), "loss/giou": 0.25}, **SPEED)
    (records,) = events(tmp_path)
    wanted = {
        (name, row["step"]): value for row in rows(tmp_path) for name, value in row.items() if name != "step"
    }
    assert scalars(records) == pytest.approx(wanted, rel=1e-6)
    assert wanted["loss", 4] == 3.5


def run(folder: Path, start: int, stop: int, offset: float) -> None:
    with Report(folder, total_steps=100, start=start, console=Console(quiet=True)) as report:
        for step in range(start + 1, stop + 1):
            report.add(step, {"loss": offset + step}, **SPEED)


@pytest.mark.parametrize(
    "tail", ["", '{"step": 6, "lo', '{"step": 6', "\0\0\0", "{", '{"step": 4, "loss": 1}']
)
def test_a_run_that_goes_on_drops_what_came_after(tmp_path: Path, tail: str):
    run(tmp_path, 0, 5, 0.0)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(tail)
    run(tmp_path, 3, 6, 100.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 104),
        (5, 105),
        (6, 106),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "tensorboard"}
    first, second = events(tmp_path)
    assert scalars(first)["loss", 5] == 5 and scalars(second)["loss", 5] == 105
    # what TensorBoard reads as "forget this step and all later ones"
    (again,) = [event.step for event in second if event.session_log.status == SessionLog.START]
    assert again == 4


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 4}')
    run(tmp_path, 2, 3, 0.0)
    assert [row["loss"] for row in rows(tmp_path)] == [3, 4, 3]


def test_a_new_run_starts_with_an_empty_log(tmp_path: Path):
    run(tmp_path, 0, 3, 0.0)
    run(tmp_path, 0, 1, 9.0)
    assert [row["loss"] for row in rows(tmp_path)] == [10]


@pytest.mark.parametrize("line", ["nonsense", '{"loss": 1}', "[1]", '{"step": null}'])
def test_damage_before_the_last_line_is_told(tmp_path: Path, line: str):
    before = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    (tmp_path / "log.jsonl").write_text(before)
    with pytest.raises(ValueError, match=r"log\.jsonl line 2 is no report of a step; mend it or move"):
        Report(tmp_path, total_steps=9, start=2, console=Console(quiet=True))
    assert (tmp_path / "log.jsonl").read_text() == before


def test_the_old_log_stays_whole_when_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch):
    run(tmp_path, 0, 3, 0.0)
    before = (tmp_path / "log.jsonl").read_text()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        run(tmp_path, 1, 2, 0.0)
    assert (tmp_path / "log.jsonl").read_text() == before


def test_other_processes_write_nothing(tmp_path: Path, console: Console, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    folder = tmp_path / "run"
    with Report(folder, total_steps=2, write=False, console=console) as report:
        assert report.add(1, {"loss": 1.0}, **SPEED) is None
    assert not folder.exists() and not printed(console)


def test_missing_tensorboardx_is_told_before_anything_is_touched(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'^[^\n]*tensorboardX[^\n]*pip install "lgjax\[train\]"$'):
        Report(tmp_path / "run", total_steps=2)
    assert not (tmp_path / "run").exists()


def test_every_is_checked(tmp_path: Path):
    with pytest.raises(ValueError, match="a report every 0 steps is not possible"):
        Report(tmp_path, total_steps=2, every=0)


def test_lines_are_on_disk_before_the_end_and_close_may_come_twice(tmp_path: Path, console: Console):
    report = Report(tmp_path, total_steps=3, console=console)
    report.add(1, {"loss": 1.0}, **SPEED)
    assert rows(tmp_path)[0]["loss"] == 1
    report.close()
    report.close()
    assert report.add(2, {"loss": 1.0}, **SPEED) is None


ROW = {
    "step": 120,
    "loss": 2.3141,
    "loss/mask_dice": 0.03,
    "loss/mask_bce": 0.05,
    "loss/giou": 0.04,
    "loss/bbox": 0.1,
    "loss/mask_cls": 0.21,
    "loss/language": 1.92,
    "rate/llama": 1e-5,
    "grad_norm": 1.5,
    "skipped": 0.0,
    "speed/step_seconds": 0.41,
    "speed/data_share": 0.02,
    "speed/tokens_per_second": 1911.0,
    "speed/images_per_second": 39.02,
    "speed/utilisation": 0.12,
    "speed/seconds_left": 252.3,
}


def test_the_line_of_text():
    assert progress_line(ROW, 3000) == (
        "step 120/3000  loss 2.314 (language 1.92 cls 0.21 box 0.10 giou 0.04 mask 0.05 dice 0.03)  "
        "0.41 s/step (data 2 %)  1.9k tok/s  39 img/s  12 % of peak  4:12 left"
    )


def test_the_line_of_text_leaves_out_what_is_absent():
    row = {name: value for name, value in ROW.items() if name.startswith("speed") or name in ("step", "loss")}
    del row["speed/utilisation"]
    text = "step 120/3000  loss 2.314  0.41 s/step (data 2 %)  1.9k tok/s  39 img/s  4:12 left"
    assert progress_line(row, 3000) == text
    row |= {"loss/language": 2.0, "loss/prompt_bbox": 0.2, "loss/prompt_iou_score": 0.114, "skipped": 0.25}
    changed = "loss 2.314 (language 2.00, prompts box 0.20 iou 0.11)  skipped 25 %"
    assert progress_line(row, 3000) == text.replace("loss 2.314", changed)


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("step_seconds", 12.34, "  12.34 s/step"),
        ("step_seconds", 0.0123, "  0.012 s/step"),
        ("step_seconds", 345.6, "  346 s/step"),
        ("data_share", 0.0, "(data 0 %)"),
        ("data_share", 0.004, "(data 0.4 %)"),
        ("data_share", 0.999, "(data 100 %)"),
        ("tokens_per_second", 0.0, "  0 tok/s"),
        ("tokens_per_second", 3.25, "  3.2 tok/s"),
        ("tokens_per_second", 9.97, "  10 tok/s"),
        ("tokens_per_second", 999.7, "  1.0k tok/s"),
        ("tokens_per_second", 123456.0, "  123k tok/s"),
        ("tokens_per_second", 2.3e6, "  2.3M tok/s"),
        ("seconds_left", 59.6, "  1:00 left"),
        ("seconds_left", 0.0, "  0:00 left"),
        ("seconds_left", 100_000.0, "  27:46:40 left"),
    ],
)
def test_numbers_of_the_line_of_text(name: str, value: float, text: str):
    assert text in progress_line({**ROW, f"speed/{name}": value}, 3000)


def test_files_get_one_line_and_terminals_wrap_it_between_words(tmp_path: Path):
    def printed_by(terminal: bool) -> list[str]:
        file = tmp_path / f"{terminal}.txt"
        with file.open("w") as out:
            console = Console(file=out, width=110, force_terminal=terminal, no_color=True)
            losses = {name: value for name, value in ROW.items() if name.startswith("loss")}
            with Report(tmp_path / str(terminal), total_steps=9, console=console) as report:
                report.add(1, losses, **SPEED)
        return file.read_text().splitlines()

    (whole,) = printed_by(False)
    wrapped = printed_by(True)
    assert len(whole) > 110 and len(wrapped) == 2 and max(map(len, wrapped)) <= 110
    assert " ".join(wrapped).split() == whole.split()
