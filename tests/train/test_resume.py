"""A run that was stopped, killed or damaged goes on as if nothing had happened: the same bits."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lgjax.parallel.mesh import make_mesh
from lgjax.train.checkpoint import Checkpoints, digest
from lgjax.train.config import MeshConfig, Rates, TrainConfig
from lgjax.train.finish import write_model
from lgjax.train.loop import Stopped, _signals, train
from lgjax.train.report import Report
from lgjax.train.start import abstract_state, load_tokenizer, placed, start_frozen, start_state
from tests.train.micro import micro
from tests.train.words import words

ROOT = Path(__file__).parents[2]
STEPS = 10
CONFIG = words(steps=STEPS, save_every=2, keep=3)
FILE = ROOT / "tests" / "train" / "words.py"
OPTIONS = ["--steps", str(STEPS), "--save-every", "2", "--keep", "3"]


def command(folder: Path, *more: str) -> list[str]:
    run = [sys.executable, "-m", "lgjax", "train", "--config", str(FILE), "--out", str(folder)]
    return [*run, *OPTIONS, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *more), env=environment(), capture_output=True, text=True, cwd=ROOT)


def go_on(folder: Path, config: TrainConfig = CONFIG) -> str:
    """Resume in this process; returns what was printed."""
    console = Console(record=True, width=300, file=open(os.devnull, "w"))  # noqa: SIM115
    train(config, folder, resume=True, console=console)
    return console.export_text()


def last_state(folder: Path) -> list[np.ndarray]:
    """Every array of the newest checkpoint."""
    mesh = make_mesh()
    frozen = start_frozen(CONFIG, mesh)
    checkpoints = Checkpoints(folder, CONFIG)
    wanted = placed(abstract_state(CONFIG), CONFIG, mesh)
    state = checkpoints.restore(wanted, frozen, int(digest(frozen)), print)
    checkpoints.close()
    assert state is not None and int(state.step) == STEPS
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.step, state.trained, state.optimizer))]


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run that never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, folder, console=Console(quiet=True))
    yield folder


def assert_same(folder: Path, whole: Path) -> None:
    for mine, other in zip(last_state(folder), last_state(whole), strict=True):
        assert mine.dtype == other.dtype and np.array_equal(mine, other)
    assert losses(folder) == losses(whole)
    assert [step for step, _ in losses(folder)] == list(range(1, STEPS + 1))


def copied(whole: Path, tmp_path: Path, upto: int) -> Path:
    """The run as it was when `upto` was its newest checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "model")
    for path in (folder / "checkpoints").iterdir():
        if path.is_dir() and path.name.isdigit() and int(path.name) > upto:
            shutil.rmtree(path)
    return folder


def wait_for_line(process: subprocess.Popen[str], start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"no line '{start}'")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves(whole: Path, tmp_path: Path, sign: signal.Signals):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    wait_for_line(process, "step 3/")
    process.send_signal(sign)
    printed, _ = process.communicate(timeout=120)
    if process.returncode == 0:  # it had ended before the signal came
        pytest.skip("the machine was too fast")
    assert process.returncode == 143, printed
    assert "--resume goes on" in printed and "Traceback" not in printed
    stopped = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert 3 <= stopped < STEPS and not (folder / "model").exists()
    assert f"going on after step {stopped}" in go_on(folder)
    assert_same(folder, whole)


def test_a_run_that_is_killed_while_it_saves(whole: Path, tmp_path: Path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=ROOT
    )
    checkpoints, end = folder / "checkpoints", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
        if "2" in names and any("tmp" in name for name in names):
            break
        time.sleep(0.001)
    process.kill()
    process.wait()
    left = [path.name for path in checkpoints.iterdir()]
    assert "2" in left
    go_on(folder)
    assert_same(folder, whole)
    assert all("tmp" not in path.name for path in checkpoints.iterdir()), left


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "flipped", "deleted"])
def test_a_damaged_checkpoint_is_put_aside(whole: Path, tmp_path: Path, damage: Any):
    folder = copied(whole, tmp_path, 8)
    data = [path for path in (folder / "checkpoints" / "8" / "trained").rglob("d/*") if path.is_file()]
    damage(max(data, key=lambda path: path.stat().st_size))
    printed = go_on(folder)
    assert "checkpoint of step 8 is damaged" in printed and "going on after step 6" in printed
    assert (folder / "damaged" / "8").is_dir()
    assert_same(folder, whole)


def test_without_a_readable_checkpoint_nothing_is_begun_anew(whole: Path, tmp_path: Path):
    folder = copied(whole, tmp_path, 8)
    for path in (folder / "checkpoints").glob("*/trained"):
        shutil.rmtree(path)
    with pytest.raises(ValueError, match="none of the 2 checkpoints"):
        go_on(folder)
    assert not (folder / "damaged").exists()  # nothing is moved before something could be read


def test_other_workers_change_nothing_and_another_mesh_only_rounding(whole: Path, tmp_path: Path):
    folder = copied(whole, tmp_path / "a", 6)
    data = dataclasses.replace(CONFIG.data, workers=1)
    go_on(folder, dataclasses.replace(CONFIG, data=data))
    assert_same(folder, whole)
    folder = copied(whole, tmp_path / "b", 6)
    go_on(folder, dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, fsdp=1, tensor=2)))
    found, want = (np.asarray([loss for _, loss in losses(run)]) for run in (folder, whole))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_what_cannot_be_resumed_is_refused(whole: Path, tmp_path: Path):
    with pytest.raises(FileExistsError, match="--resume goes on"):
        train(CONFIG, whole, console=Console(quiet=True))
    folder = copied(whole, tmp_path, 6)
    with pytest.raises(ValueError, match=r"optim.lr = 0.001, now it is 1.0"):
        go_on(folder, dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, lr=1.0)))
    done = run(folder, "--resume", "--seed", "5")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "seed = 0, now it is 5" in done.stderr


def test_the_best_checkpoint_stays(tmp_path: Path):
    base = words()
    data = dataclasses.replace(base.data, held_out=base.data.text)
    config = dataclasses.replace(base, data=data, keep=1, measure_every=1)
    state = start_state(config, make_mesh())
    checkpoints = Checkpoints(tmp_path, config)
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0], 1):
        checkpoints.save(state._replace(step=jnp.asarray(step)), 0, loss)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4] and checkpoints.best() == 2
    checkpoints.close()


def test_held_out_losses_come_with_checkpoints(tmp_path: Path):
    base = words()
    data = dataclasses.replace(base.data, held_out=base.data.text)
    config = dataclasses.replace(base, data=data, steps=4, save_every=3, measure_every=2, measure_batches=1)
    train(config, tmp_path, console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    measured = [line["step"] for line in lines if "held_out/loss" in line]
    assert measured == [2, 3, 4]


def test_a_start_that_has_changed_is_refused(tmp_path: Path):
    """What is frozen is not in the checkpoints: it must still be what it was."""
    start, other = tmp_path / "start", tmp_path / "other"
    for folder, seed in ((start, 0), (other, 1)):
        source = words(seed=seed)
        state = start_state(source, make_mesh())
        write_model(source, state.trained, state.frozen, load_tokenizer(source), folder, overwrite=False)
    config, folder = words(start=(str(start),), steps=2, save_every=1), tmp_path / "run"
    train(config, folder, console=Console(quiet=True))
    shutil.rmtree(folder / "checkpoints" / "2")
    shutil.rmtree(start)
    other.rename(start)
    with pytest.raises(ValueError, match=r"^the frozen parameters are not .* start checkpoints have changed"):
        go_on(folder, config)
    assert not (folder / "damaged").exists() and (folder / "checkpoints" / "1").is_dir()


def test_a_second_signal_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with _signals() as asked:
        signal.raise_signal(signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


ALL = {"data": {"groups": 4}, "steps": STEPS}
LOW_RANK = {"projector": 1, "new_tokens": 1, "llama": 1, "grounding": 1, "prompt": 1}


@pytest.mark.slow  # each compiles a step of all parts
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "optim": {"lora": 2, "rates": Rates(**LOW_RANK), "clip_norm": 1.0, "weight_decay": 0.01},
            **{"frozen": "int8", "scan_layers": True, "remat": True, "accumulate": 2},
        },
        {"compute": "bfloat16", "frozen": "bfloat16", "optim": {"rates": Rates(clip=1, grounding=1)}},
    ],
    ids=["all parts", "low rank and int8", "bfloat16"],
)
def test_all_parts_go_on_with_the_same_bits(changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after the seventh step; with stochastic depth and random points."""
    config = micro(**ALL, **changes)
    straight = train(config, tmp_path / "whole", console=Console(quiet=True))
    add = Report.add

    def stop(self: Report, step: int, *rest: Any, **named: Any) -> Any:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
        return add(self, step, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Report, "add", stop)
        with pytest.raises(Stopped, match="stopped after step 7"):
            train(config, tmp_path / "run", console=Console(quiet=True))
    resumed = train(config, tmp_path / "run", resume=True, console=Console(quiet=True))
    found, want = (jax.tree.leaves((state.step, *state[1:3], state.frozen)) for state in (resumed, straight))
    for mine, other in zip(found, want, strict=True):
        assert mine.dtype == other.dtype and np.array_equal(np.asarray(mine), np.asarray(other))
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("run", "whole")]
    mine, other = ([drop_speeds(json.loads(line)) for line in one] for one in lines)
    assert mine == other and [line["step"] for line in mine] == list(range(1, STEPS + 1))
    assert len({line["loss"] for line in mine}) > STEPS - 2


def drop_speeds(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if not name.startswith("speed")}
