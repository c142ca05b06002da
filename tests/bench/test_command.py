"""`lgjax bench` from end to end with the smallest sizes, and what it says when something is missing."""

import importlib.util
import json
import os
import signal

import jax
import jsonschema
import pytest

from lgjax.bench import run, vision
from lgjax.bench.cases import CASES, OURS, TORCH, Setting, sizes_of
from lgjax.bench.machine import Ceilings
from lgjax.bench.weights import parameters
from lgjax.bench.worker import Job
from lgjax.cli import main
from lgjax.models import kernels
from tests.bench.test_report import SCHEMA

SETTING = Setting(model="debug", dtype="float32", cores=1)
TOP = Ceilings(cores=1, platform="cpu", copy=1e10, read=1e10, float32={"jax": 1e11}, bfloat16={"jax": 1e11})
KNOWN = {case.name: case for case in CASES}


def fault(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_case_beside_torch(tmp_path, capsys):
    pytest.importorskip("torch")
    file = tmp_path / "found.json"
    options = ["--model", "debug", "--cores", "1", "--runs", "2", "--against", "torch", "--json", str(file)]
    main(["bench", "decode", *options])
    printed = capsys.readouterr()
    found = json.loads(file.read_text())
    jsonschema.validate(found, SCHEMA)
    (decode,) = found["cases"]
    assert decode["error"] is None and decode["outputs_differ_by"] == 0  # the same ids
    ours, theirs = decode["sides"]["lgjax"], decode["sides"]["torch"]
    pairs = sorted(a / b for a, b in zip(ours["seconds"], theirs["seconds"], strict=True))
    assert [decode["ratio"][name] for name in ("least", "median", "most")] == pytest.approx(
        [pairs[0], sum(pairs) / 2, pairs[1]]
    )
    assert ours["compile_seconds"] > 0 and found["ceilings"]["used_cores"]["cores"] == 1
    assert "| decode |" in printed.out and "torch [1]" in printed.out
    assert printed.err.strip().endswith("measuring decode")
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_visual_prompts_find_the_same_as_in_torch():
    pytest.importorskip("torch")
    found = run.measure(KNOWN["prompt"], SETTING, TOP, runs=1, against=True)
    assert found.error is None and found.apart is not None and found.apart < 1e-4
    assert len(found.sides[TORCH].facts["output"]) > 300  # numbers of embeddings, and areas of masks


def test_kernels_stored_by_outputs_reach_torch_as_they_are(monkeypatch):
    """As the large ones of the released sizes are."""
    torch_side = pytest.importorskip("lgjax.bench.torch_side", reason="PyTorch is an extra")
    monkeypatch.setattr(kernels, "LARGE", 1)
    sizes, outputs = sizes_of("debug"), []
    assert "Transposed" in str(jax.tree.structure(parameters(sizes.config, "prompt")))
    for side in (vision, torch_side):
        work = side.prompt(sizes)
        work.seconds()
        outputs.append(work.facts().output)
    assert outputs[0] == pytest.approx(outputs[1], abs=1e-4)


def test_an_interruption_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    def measured(case, setting, top, *, runs, against):
        if case.name == "clip":
            raise KeyboardInterrupt
        return run.Result(case=case, sides={}, error="lgjax: no memory")

    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(run, "measure_machine", lambda setting: TOP)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "prompt", "clip", "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr().out
    assert ended.value.code == 130 and "- prompt failed" in printed
    assert "- clip was not measured: the run was interrupted" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert [case["case"] for case in found["cases"]] == ["prompt"] and found["missing"] == ["clip"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_without_torch_there_is_one_line(capsys, monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else plain(name))
    assert fault(capsys, "--against", "torch") == (
        'lgjax: --against torch needs PyTorch: pip install "lgjax[convert]"\n'
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runs", "0"], "--runs 0"),
        (["--dtype", "int4", "--against", "torch"], "--dtype int4: PyTorch has no weights like these"),
        (["--cores", "4096"], "--cores 4096: this process may use 1 to"),
        (["--json", "nowhere/found.json"], "there is no folder 'nowhere'"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(capsys, arguments, told):
    line = fault(capsys, *arguments)
    assert told in line and line.count("\n") == 1


def test_a_failed_case_does_not_end_the_run(tmp_path, capsys, monkeypatch):
    def measured(case, setting, top, *, runs, against):
        if case.name == "prompt":
            return run.Result(case=case, sides={}, error="lgjax: no memory")
        facts = {
            "what": "",
            "flops": None,
            "num_bytes": None,
            "computes": "float32",
            "handled": {},
            "compiles": True,
        }
        side = run.Side(seconds=(1.0,), first_seconds=2.0, peak_memory_bytes=1, facts=facts)
        return run.Result(case=case, sides={OURS: side})

    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(run, "measure_machine", lambda setting: TOP)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "prompt", "clip", "--json", str(tmp_path / "found.json")])
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert "prompt failed: lgjax: no memory" in printed.err and "| clip |" in printed.out
    found = json.loads((tmp_path / "found.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["failed"] == ["prompt"] and [case["case"] for case in found["cases"]] == ["prompt", "clip"]


def test_faults_of_a_process_are_told_in_a_line():
    pytest.importorskip("torch")
    with (
        run.working(Job(case="chat", side=TORCH, setting=SETTING)) as worker,
        pytest.raises(run.Failure, match="torch: there is nothing of PyTorch to compare chat with"),
    ):
        worker.hear()
    with run.working(Job(case="clip", side=OURS, setting=SETTING)) as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(
            run.Failure, match="lgjax: its process was killed, most likely for want of memory"
        ):
            worker.hear()


def test_lgjax_is_measured_alone_where_the_rival_fails(monkeypatch):
    facts = {
        "what": "",
        "output": [],
        "flops": 1e9,
        "num_bytes": None,
        "computes": "float32",
        "handled": {},
        "compiles": True,
    }
    side = run.Side(seconds=(1.0,), first_seconds=2.0, peak_memory_bytes=1, facts=facts)

    def in_turn(case, sides, setting, runs):
        if TORCH in sides:
            raise run.Failure(TORCH, "no such model")
        return {OURS: side}

    monkeypatch.setattr(run, "_in_turn", in_turn)
    found = run.measure(KNOWN["clip"], SETTING, TOP, runs=1, against=True)
    assert found.error == "torch: no such model" and found.sides == {OURS: side} and found.share == 0.01


@pytest.mark.parametrize("apart", [0.0, 0.01])
def test_outputs_that_differ_are_a_failure(monkeypatch, apart):
    def in_turn(case, sides, setting, runs):
        facts = {
            "what": "",
            "flops": None,
            "num_bytes": 1e9,
            "computes": "float32",
            "handled": {},
            "compiles": True,
        }
        return {
            name: run.Side(
                seconds=(1.0, 3.0),
                first_seconds=2.0,
                peak_memory_bytes=1,
                facts=facts | {"output": [1.0, 2.0 + 2 * apart * (name == OURS)]},
            )
            for name in sides
        }

    monkeypatch.setattr(run, "_in_turn", in_turn)
    found = run.measure(KNOWN["prefill"], SETTING, TOP, runs=2, against=True)
    assert found.apart == pytest.approx(apart)
    assert (found.error is None) == (apart == 0)
    assert found.ratio is not None and found.ratio.median == 1 and found.best == (0.1, "memory")
