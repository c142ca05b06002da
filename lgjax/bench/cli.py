"""The command `lgjax bench`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as jsonlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lgjax.bench.cases import CASES, OURS, Dtype, Name, Preset

if TYPE_CHECKING:
    from lgjax.bench.report import Run

LIBRARIES = ("jax", "jaxlib", "numpy", "torch", "transformers")


def bench(
    cases: Annotated[tuple[Name, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[CASE ...]")] = (),
    /,
    *,
    model: Preset = "7b-parts",
    against: Literal["torch"] | None = None,
    cores: int | None = None,
    runs: int = 5,
    dtype: Dtype = "float32",
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Measure this machine, then lgjax on it, and print a Markdown table.

    Each case runs in a process of its own, so that its peak of memory is its own. "of the ceiling" is the
    shortest time that the machine's own rate of matrix products and of reading memory allow, by the time
    that was taken. "compile" is what the first time took beyond the others; nothing is read from a cache of
    compiled programs. What a case is compared with runs in turn with it, bound to the same cores, and the
    ratio is the median of the ratios of pairs. A case that fails is told and the others go on; the exit
    status is then 1. Ctrl-C prints what was measured so far (status 130).

    Args:
        cases: Which ones (default: all): grounding, grounding-again, prompt, clip, prefill, decode,
            decode-batch, chat, first-word, first-box, second-turn, second-question, batch, matching,
            train-step, data.
        model: "7b-parts" is the released model with 4 of the 32 layers of its language model; chats (but
            for second-question) and training are those of the small model of the package. "tiny": the small
            model everywhere; "debug": a few numbers, to try the command.
        against: Do the same in PyTorch, in turn (pip install "lgjax[convert]").
        cores: Cores to use, of both sides alike (default: all that this process may use).
        runs: How often each is timed, after two times to warm up.
        dtype: Numbers of the weights of the language model in prefill, decode, decode-batch and
            second-question; "int8" and "int4" are those of `lgjax convert --quantize`.
        json: A file for all figures, written after every case.
    """
    if runs < 1:
        raise ValueError(f"--runs {runs}: there must be at least one")
    if against and dtype in ("int8", "int4"):
        raise ValueError(f"--dtype {dtype}: PyTorch has no weights like these to compare with")
    if against and importlib.util.find_spec("torch") is None:
        raise ImportError('--against torch needs PyTorch: pip install "lgjax[convert]"')
    if json is not None and not json.parent.is_dir():
        raise FileNotFoundError(f"--json {json}: there is no folder '{json.parent}'")
    if json is not None and json.is_dir():
        raise IsADirectoryError(f"--json {json}: this is a folder, name a file")
    chosen = [case for case in CASES if not cases or case.name in cases]
    from lgjax.bench import machine, report, run
    from lgjax.bench.cases import Setting, described, sizes_of

    setting = Setting(model=model, dtype=dtype, cores=_cores(cores))
    known, versions = machine.described(), _versions(against is not None)
    if known["load_at_start"] > 0.5:
        _tell(f"other programs run here (load {known['load_at_start']:.1f}): times will be too long")
    _tell("measuring the machine")
    one = run.measure_machine(Setting(model=model, dtype=dtype, cores=1))
    top = one if setting.cores == 1 else run.measure_machine(setting)
    if against and top.platform != "cpu":
        raise ValueError(
            f"--against torch compares CPUs, jax takes {top.platform} here; set JAX_PLATFORMS=cpu"
        )
    results: list[run.Result] = []
    found = report.Run(
        machine=known,
        one=one,
        top=top,
        preset=model,
        dtype=dtype,
        models=described(sizes_of(model)),
        runs=runs,
        versions=versions,
        asked=[case.name for case in chosen],
        results=results,
    )
    try:
        _keep(found, json)
        for case in chosen:
            _tell(f"measuring {case.name}")
            results.append(run.measure(case, setting, top, runs=runs, against=against is not None))
            if results[-1].error is not None:
                _tell(f"{case.name} failed: {results[-1].error}")
            _keep(found, json)
    finally:
        print(report.as_markdown(found))
    if found.failed:
        raise SystemExit(1)


def _keep(found: Run, file: Path | None) -> None:
    """Write what was found so far; a file that is there is replaced as a whole."""
    from lgjax.bench import report

    if file is None:
        return
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        unfinished.write_text(jsonlib.dumps(report.as_json(found), indent=1) + "\n", encoding="utf-8")
        unfinished.rename(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _tell(line: str) -> None:
    print(f"lgjax bench: {line}", file=sys.stderr, flush=True)


def _cores(asked: int | None) -> int:
    """How many cores to use.

    Raises:
        ValueError: fewer than one, more than there are, or a system that binds no process to some of them.
    """
    can_bind = hasattr(os, "sched_getaffinity")
    there = len(os.sched_getaffinity(0)) if can_bind else os.cpu_count() or 1
    if asked is None:
        return there
    if not 1 <= asked <= there:
        raise ValueError(f"--cores {asked}: this process may use 1 to {there}")
    if asked < there and not can_bind:
        raise ValueError("--cores: this system cannot bind a process to some of its cores; leave it out")
    return asked


def _versions(with_torch: bool) -> dict[str, str]:
    """Versions of lgjax and of what it is measured with."""
    from lgjax import __version__

    names = [name for name in LIBRARIES if with_torch or name not in ("torch", "transformers")]
    return {OURS: __version__, **{name: importlib.metadata.version(name) for name in names}}
