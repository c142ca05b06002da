"""Two processes of `lgjax train` with four devices each give the losses of one device, and stop together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lgjax.train.config import MeshConfig
from lgjax.train.loop import STOPPED, train
from lgjax.train.report import LOG
from tests.train.micro import micro
from tests.train.quick import FLAGS
from tests.train.words import words

ROOT = Path(__file__).parents[2]
STEPS, GROUPS = 10, 8
CHANGES = [f"--data.groups={GROUPS}", f"--steps={STEPS}", "--mesh.data=2", "--mesh.fsdp=2", "--mesh.tensor=2"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def processes(
    name: str, out: Path, *options: str, count: int = 2, own: dict[int, list[str]] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a run of `tests/train/{name}.py` on eight devices; each leaves `out.name-N.json` beside
    `out`. `own`: options of one process alone."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count} {FLAGS}"}
    running = []
    for number in range(count):
        note = out.with_name(f"{out.name}-{number}.json")
        command = [sys.executable, "-m", "tests.distributed.worker", str(note), "train"]
        command += [f"--config=tests/train/{name}.py", f"--out={out}", f"--coordinator={address}"]
        command += [f"--processes={count}", f"--process={number}", *CHANGES, *options]
        command += (own or {}).get(number, [])
        log = out.with_name(f"{out.name}-{number}.txt").open("w")
        running.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        )
        log.close()
    try:
        yield running
    finally:
        for process in running:
            process.kill()


def said(out: Path, number: int = 0) -> str:
    return out.with_name(f"{out.name}-{number}.txt").read_text(errors="replace")


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def losses(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name.startswith(("loss", "last"))} for row in rows]


def assert_close(got: list[dict[str, float]], want: list[dict[str, float]]) -> None:
    assert len(got) == len(want) == STEPS
    for step, (one, other) in enumerate(zip(got, want, strict=True), 1):
        assert one.keys() == other.keys() and "loss" in one
        for name, value in other.items():
            assert abs(one[name] - value) <= 1e-5 * abs(value), (
                f"step {step}: {name} is {one[name]}, not {value}"
            )


@pytest.mark.parametrize(
    ("name", "make"), [("words", words), pytest.param("micro", micro, marks=pytest.mark.slow)]
)
def test_two_processes_give_the_losses_of_one_device(name, make, tmp_path):
    """Each reads its own half of every batch, and no other sample."""
    out, alone = tmp_path / "both", tmp_path / "alone"
    with processes(name, out) as running:
        config = make(data={"groups": GROUPS}, steps=STEPS)
        train(dataclasses.replace(config, mesh=MeshConfig()), alone, console=Console(quiet=True))
        assert [process.wait(600) for process in running] == [0, 0], said(out) + said(out, 1)
    assert_close(losses(read_log(out)), losses(read_log(alone)))
    notes = [json.loads(out.with_name(f"both-{number}.json").read_text()) for number in range(2)]
    per_group = config.data.grounded_rows + config.data.text_rows
    assert [note["rows"] for note in notes] == [STEPS * GROUPS * per_group // 2] * 2
    for first, second in zip(*(note["samples"] for note in notes), strict=True):
        assert len(first) == len(second) == GROUPS * per_group // 2 and not set(first) & set(second)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_process_stops_both_after_the_same_step(asked, tmp_path):
    out, whole = tmp_path / "stopped", tmp_path / "whole"
    more = f"--steps={10 * STEPS}"
    with processes("words", out, more) as running:
        while "step 3/" not in said(out) and running[0].poll() is None:
            time.sleep(0.1)
        running[asked].send_signal(signal.SIGTERM)
        assert [process.wait(600) for process in running] == [STOPPED] * 2, said(out) + said(out, 1)
    (step,) = (int(folder.name) for folder in (out / "checkpoints").iterdir())
    assert 3 <= step < 10 * STEPS
    assert all(f"stopped after step {step}" in said(out, number) for number in range(2))
    with processes("words", out, more, "--resume") as running:
        assert [process.wait(600) for process in running] == [0, 0], said(out) + said(out, 1)
    assert f"going on after step {step}" in said(out)
    with processes("words", whole, more) as running:
        assert [process.wait(600) for process in running] == [0, 0], said(whole) + said(whole, 1)
    one, other = losses(read_log(out)), losses(read_log(whole))
    assert len(one) == 10 * STEPS and one == other
    folders = [folder / "checkpoints" / str(10 * STEPS) for folder in (out, whole)]
    digests = [json.loads((folder / "notes" / "metadata").read_text())["state"] for folder in folders]
    assert digests[0] == digests[1] and np.isfinite(one[-1]["loss"])


@pytest.mark.slow
def test_both_take_the_newest_checkpoint_that_both_can_read(tmp_path):
    """A file that one process alone reads is damaged."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    more = ["--save-every=4", "--keep=3"]
    with processes("words", whole, *more) as running:
        assert [process.wait(600) for process in running] == [0, 0], said(whole) + said(whole, 1)
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / str(STEPS))
    data = [file for file in (out / "checkpoints" / "8" / "trained").glob("ocdbt.process_1/d/*")]
    largest = max(data, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with processes("words", out, *more, "--resume") as running:
        assert [process.wait(600) for process in running] == [0, 0], said(out) + said(out, 1)
    assert "checkpoint of step 8 is damaged" in said(out) and "going on after step 4" in said(out)
    assert (out / "damaged" / "8").is_dir()
    assert losses(read_log(out)) == losses(read_log(whole))
