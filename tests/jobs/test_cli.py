"""`lgjax plan` as a user meets it, and the aot tests: compilation for a TPU that is not here."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lgjax.cli import main
from lgjax.train.config import load_config

ROOT = Path(__file__).parents[2]
WORDS = ["--config", "tests/train/words.py", "--data.groups", "4", "--mesh.fsdp", "4"]


@pytest.fixture(autouse=True)
def own_environment():
    """The command changes the environment of its process, which here is that of all tests."""
    before = os.environ.copy()
    yield
    os.environ.clear()
    os.environ.update(before)


def fails(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "v5e:4x4"], "give the file of the run: --config"),
        (["--config", "none.py"], "no configuration file none.py"),
        ([*WORDS, "--search", "--tries", "0"], "--tries 0"),
        ([*WORDS, "--search", "--job", "decode"], "--search is for a step of training"),
        ([*WORDS, "--gpu", "h100"], "'h100' are no GPUs that can be planned for"),
        ([*WORDS, "--gpu", "h99x8"], "'h99x8' are no GPUs"),
        ([*WORDS, "--stepz", "3"], "--stepz"),
    ],
)
def test_a_fault_is_a_line(arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert said in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("missing", "option", "extra"),
    [
        ("libtpu", ["--target", "v5e:4x4"], "lgjax[tpu]"),
        ("jax_cuda12_plugin", ["--gpu", "h100x8"], "lgjax[cuda]"),
    ],
)
def test_a_compiler_that_is_not_installed_is_named(missing, option, extra, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest)
    )
    said = fails(capsys, *WORDS, *option)
    assert extra in said and said.count("\n") == 1


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "--target" in text and "--slices" in text and "--search" in text


needs_compiler = [
    pytest.mark.aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason='no TPU compiler here: pip install "lgjax[tpu]"'
    ),
]


def plan(*arguments: str, status: int = 0) -> Any:
    """In a process of its own: the compiler reads its settings as it is loaded."""
    command = [sys.executable, "-m", "lgjax", "plan", "--fast", "--json", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


class TestAheadOfTime:
    """Compiled with little effort, by the command."""

    pytestmark = needs_compiler

    @pytest.mark.slow
    def test_language_at_real_widths(self):
        """Stage 2 on four chips, two layers of 32: what is gathered are the weights, three times."""
        layers, width, mlp, vocab = 2, 4096, 11008, 32003
        found = plan(
            *("--config", "configs/stage2.py", "--target", "v5e:2x2", "--loss.parts", "language"),
            *("--model.llama.num-layers", str(layers), "--model.clip.num-layers", "2", "--accumulate", "1"),
            *("--data.groups", "4", "--data.grounded-rows", "1", "--data.text-rows", "1"),
        )
        assert found["fits"] and found["peak_gib"] < 15.75 and found["involuntary"] == 0
        weights = layers * (4 * width**2 + 3 * width * mlp)
        learns = 4 * (weights + vocab * width) / 4 / 2**30  # float32, a quarter on each chip
        # the grounding model and the projector learn too
        assert learns < found["parts_gib"]["parameters that learn"] < 1.2 * learns
        sent = sum(one["sent"] for one in found["collectives"].values())
        # forward, recomputed forward and backward in bfloat16, and gradients: 3/4 of each comes from others
        assert 3 * 2 * weights * 3 / 4 < sent < 16 * 2 * (weights + 2 * vocab * width) * 3 / 4
        assert found["per_second"]["images"] == pytest.approx(8 / found["seconds"]["best"])

    def test_two_slices_send_gradients_alone_between_them(self):
        found = plan(
            *("--config", "tests/train/words.py", "--target", "v5e:2x2", "--slices", "2"),
            *("--data.groups", "8", "--mesh.fsdp", "0"),
        )
        assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1} and found["fits"]
        across = sum(one["across"] for one in found["collectives"].values())
        # a quarter of the gradients on each of four chips, to the other of two slices and back
        gradients = found["parts_gib"]["parameters that learn"] * 2**30
        assert (
            gradients * 0.9
            < across
            < gradients * 1.5
            < sum(one["sent"] for one in found["collectives"].values())
        )

    def test_the_kernel_of_attention_holds_no_scores(self):
        """One layer or more of 2 rows and 4 heads, each query with each key, forward and back."""
        options = ("--config", "tests/train/words.py", "--target", "v5e:2x2", "--data.groups", "4")
        options += ("--mesh.fsdp", "4", "--data.length", "2048")
        found, plain = (plan(*options, "--attention", kernel) for kernel in ("auto", "plain"))
        scores = 2 * 4 * 2048**2 * 4 / 2**30
        assert found["temporaries_gib"] + scores < plain["temporaries_gib"]

    @pytest.mark.parametrize(
        ("stage", "target"),
        [
            pytest.param("stage1", "v5e:2x2", marks=pytest.mark.slow),  # its losses are those of stage 2
            ("stage2", "v5p:2x2x1"),
            ("stage3", "v6e:2x2"),
        ],
    )
    def test_each_stage_for_a_slice(self, stage, target):
        """The smallest model; what learns, and by which losses, is as in the stage."""
        config = load_config(ROOT / "configs" / f"{stage}.py", "paper")
        rates = dataclasses.asdict(config.optim.rates).items()
        found = plan(
            *("--config", "tests/train/micro.py", "--target", target, "--data.groups", "4"),
            *("--mesh.fsdp", "4", "--remat", "--scan-layers"),
            *("--loss.parts", *config.loss.parts),
            *(word for name, rate in rates for word in (f"--optim.rates.{name}", str(rate))),
        )
        assert found["fits"] and found["involuntary"] == 0
        # rows stay where they are: weights come together, and all that leaves a device are sums
        sent = {kind: one["sent"] for kind, one in found["collectives"].items()}
        assert sent["all-gather"] > 0 and sent.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}

    def test_a_mesh_that_leaves_devices_out_is_refused(self, capsys, monkeypatch):
        monkeypatch.chdir(ROOT)
        assert "1 of the 4 devices" in fails(capsys, *WORDS[:2], "--target", "v5e:2x2")

    def test_losses_of_held_out_rows(self):
        found = plan(*WORDS, "--job", "eval", "--target", "v5e:2x2")
        assert found["fits"] and "state of the optimiser" not in found["parts_gib"]

    def test_what_is_too_large_is_refused_with_advice(self):
        """The same stage with all layers on one chip: 100 GiB of state."""
        found = plan(
            *("--config", "configs/stage2.py", "--target", "v5e:1x1", "--loss.parts", "language"),
            *("--data.groups", "1", "--data.grounded-rows", "1", "--data.text-rows", "1"),
            status=3,
        )
        assert not found["fits"] and found["suggestion"] and found["seconds"] is None
        assert found["arguments_gib"] > 60

    @pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:3x3", "v5e:2x2x2"])
    def test_an_unknown_slice_is_a_line(self, name, capsys, monkeypatch):
        monkeypatch.chdir(ROOT)
        said = fails(capsys, *WORDS, "--target", name)
        assert said.startswith(f"lgjax: target '{name}'") and said.count("\n") == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("job", ["prefill", "decode", "ground"])
    def test_programs_of_answering(self, job):
        """Heads on four chips, which know their share of the parameters alone."""
        found = plan(
            *("--config", "configs/stage3.py", "--job", job, "--target", "v5e:2x2"),
            *("--mesh.fsdp", "1", "--mesh.tensor", "4", "--batch", "2", "--length", "512"),
            *("--model.llama.num-layers", "2", "--model.grounding.image-size", "256"),
        )
        assert found["fits"] and found["seconds"]["best"] > 0 and found["involuntary"] == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_stages_of_little_depth(self, stage):
        """Every loss, real widths, few layers, a canvas of 256 pixels: two minutes of one core each."""
        part = "prompt" if stage == 3 else "grounding"
        found = plan(
            *("--config", f"configs/stage{stage}.py", "--target", "v5e:2x2", "--accumulate", "1"),
            *("--data.groups", "4", "--data.grounded-rows", "1"),
            *("--data.text-rows", "0" if stage == 3 else "1", "--data.mask-side", "64"),
            *("--data.objects", "8", "--loss.queries", "50"),
            *("--model.llama.num-layers", "2", "--model.clip.num-layers", "2"),
            *(f"--model.{part}.image-size", "256", f"--model.{part}.swin.depths", "1", "1", "1", "1"),
            *(f"--model.{part}.transformer.encoder-layers", "1"),
            *(f"--model.{part}.transformer.decoder-layers", "1"),
        )
        assert found["fits"] and found["involuntary"] == 0 and "all-gather" in found["collectives"]

    @pytest.mark.slow
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_stages_of_full_size(self, stage):
        """The paper's batch on sixteen chips, as in the README's table; ten minutes of one core each."""
        found = plan("--config", f"configs/stage{stage}.py", "--target", "v5e:4x4", "--accumulate", "2")
        assert found["fits"] and found["involuntary"] == 0
