"""What several processes of a run do when one fails, dies or falls silent, and how the run goes on."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lgjax.train.checkpoint import kept_steps
from tests.distributed.test_train_processes import (
    CHANGES,
    ROOT,
    STEPS,
    assert_close,
    free_port,
    losses,
    processes,
    read_log,
    said,
)
from tests.train.quick import FLAGS


def test_what_one_process_cannot_read_the_first_one_says(tmp_path):
    """Process 0 has all it needs, and would wait for the other in its first collective."""
    out, absent = tmp_path / "run", tmp_path / "absent"
    with processes("words", out, own={1: [f"--data.text.0.folder={absent}"]}) as running:
        assert [process.wait(300) for process in running] == [1, 1], said(out) + said(out, 1)
    for number in range(2):
        assert f"lgjax: process 1: {absent}" in said(out, number)
        assert "--resume goes on" in said(out, number)
        assert "Traceback" not in said(out, number)
    assert not kept_steps(out)


def wait_for(text: str, out: Path, running: list[subprocess.Popen[str]]) -> None:
    while text not in said(out) and running[0].poll() is None:
        time.sleep(0.1)
    assert running[0].poll() is None, said(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "number", "words"),
    [
        (signal.SIGKILL, 1, "another process of this run has died|process 1 has not been heard of for 30 s"),
        (signal.SIGKILL, 0, "leader task was preempted/died|another process of this run has died"),
        (signal.SIGSTOP, 1, "process 1 has not been heard of for 30 s"),
    ],
    ids=str,
)
def test_where_one_dies_the_others_end_and_say_so(how, number, words, tmp_path):
    out = tmp_path / "run"
    with processes("words", out, "--steps=100000", "--silence=30") as running:
        wait_for("step 3/", out, running)
        running[number].send_signal(how)
        began = time.monotonic()
        assert running[1 - number].wait(120) != 0
        assert time.monotonic() - began < 90
    assert any(one in said(out, 1 - number) for one in words.split("|")), said(out, 1 - number)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 4])
def test_on_other_hosts_a_run_goes_on_with_the_same_samples(hosts, tmp_path):
    """Two processes take ten steps; what the last six read and lost is what other processes do after four."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    more = ["--save-every=4", "--keep=3", "--mesh.data=4", "--mesh.tensor=1"]
    with processes("words", whole, *more) as running:
        assert [process.wait(600) for process in running] == [0, 0], said(whole) + said(whole, 1)
    shutil.copytree(whole, out)
    for step in (8, STEPS):
        shutil.rmtree(out / "checkpoints" / str(step))
    with processes("words", out, *more, "--resume", count=hosts) as running:
        assert [process.wait(600) for process in running] == [0] * hosts, said(out)
    assert "going on after step 4" in said(out)

    def samples(folder: Path, count: int) -> list[list[int]]:
        notes = [json.loads(folder.with_name(f"{folder.name}-{n}.json").read_text()) for n in range(count)]
        return [sorted(itertools.chain(*parts)) for parts in zip(*(n["samples"] for n in notes), strict=True)]

    before, after = samples(whole, 2), samples(out, hosts)
    assert len(before) == STEPS and after == before[4:]
    assert_close(losses(read_log(out)), losses(read_log(whole)))


@pytest.mark.slow
def test_four_processes_of_which_one_dies_ten_times_learn_what_they_would_have(tmp_path):
    """The launcher brings them back each time; what is learnt is that of an undisturbed run, bit for bit."""
    kills, steps = int(os.environ.get("LGJAX_KILLS", "10")), 200
    options = [
        *("--config", "tests/train/words.py", *CHANGES, f"--steps={steps}", "--save-every=5", "--keep=2"),
        *("--silence", "30"),
    ]
    environment = {
        **os.environ,
        **{"LGJAX": "python -m lgjax", "LGJAX_RESTARTS": str(4 * kills), "LGJAX_PAUSE": "5"},
        **{"XLA_FLAGS": FLAGS},
    }

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = ["launch/local.sh", "4", "2", "--out", str(out), *options]
        return subprocess.Popen(command, cwd=ROOT, env={**environment, "LGJAX_PORT": str(free_port())})

    whole, out = tmp_path / "whole", tmp_path / "run"
    assert start(whole).wait(1200) == 0, said_by(whole)
    chooser, running = random.Random(0), start(out)
    for kill in range(kills):
        goal = (kill + 1) * steps // (kills + 2)
        deadline = time.monotonic() + 600
        while newest(out) < goal:
            assert running.poll() is None and time.monotonic() < deadline, said_by(out)
            time.sleep(0.2)
        victims = subprocess.run(
            ["pgrep", "-f", f"lgjax train.*{out} .*--process {chooser.randrange(4)}( |$)"],
            capture_output=True,
            text=True,
        ).stdout.split()
        os.kill(int(victims[-1]), signal.SIGKILL)
    assert running.wait(1200) == 0, said_by(out)
    notes = [
        json.loads((run / "checkpoints" / str(steps) / "notes" / "metadata").read_text())
        for run in (whole, out)
    ]
    assert [notes[1][name] for name in ("trained", "optimizer", "batch")] == [
        notes[0][name] for name in ("trained", "optimizer", "batch")
    ]
    assert losses(read_log(out)) == losses(read_log(whole))
    restarts = (out.with_name("run-0.txt")).read_text(errors="replace").count("going on after step")
    assert restarts >= kills * 0.8


def newest(out: Path) -> int:
    """The last step that the log of a run tells of."""
    log = out / "log.jsonl"
    lines = log.read_text().split("\n") if log.exists() else []
    return json.loads(lines[-2])["step"] if len(lines) > 1 else 0


def said_by(out: Path) -> str:
    files = sorted(out.parent.glob(f"{out.name}-*.txt"))
    return "\n".join(file.read_text(errors="replace")[-3000:] for file in files)
