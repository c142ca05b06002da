"""The command `lgjax plan`: compile a job for machines that are not here, and say what it takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import tyro

HELP = """Compile a job for a TPU slice or GPU node that is not here: does it fit, what travels, how fast.

  lgjax plan --config configs/stage2.py --target v5e:4x4
  lgjax plan --config configs/stage2.py --target v5e:4x4 --slices 2 --json
  lgjax plan --config configs/stage2.py --target v5p:2x2x4 --search
  lgjax plan --config configs/stage3.py --job decode --batch 16 --target v5e:2x2 --mesh.fsdp 1 --mesh.tensor 4
  lgjax plan --config configs/stage2.py --help      every field of the configuration and its value
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is planned, and for which machines; everything else is in the configuration.

    Args:
        config: Python file with get_config(), as of `lgjax train`.
        preset: "paper", or "as_code" where the released code does other things than the paper says.
        target: TPU slice: v5e:4x4, v6e:2x4, v5p:2x2x4, v4:2x2x4, tpu7x:2x2x1, ...
        slices: How many of these slices work together.
        gpu: GPUs instead of a TPU: h100x8, h100x16, ...
        job: A step of training; the losses of held-out rows (eval); or a program of answering: read a prompt
            (512 positions of it at most), write a token, ground phrases.
        batch: Questions at once, of a job of answering.
        length: Positions of the cache, of a job of answering.
        search: Try several meshes and batch sizes of a step of training, and print the best.
        tries: How many a search compiles at most; it sets the mesh and the rows of a group by itself.
        fast: Let the compiler make little effort: a third of the time, and figures that differ a little.
        json: Print JSON.
    """

    config: Path | None = None
    preset: Literal["paper", "as_code"] = "paper"
    target: str = "v5e:4x4"
    slices: int = 1
    gpu: str | None = None
    job: Literal["train", "eval", "prefill", "decode", "ground"] = "train"
    batch: int = 8
    length: int = 2048
    search: bool = False
    tries: int = 6
    fast: bool = False
    json: bool = False


def main(arguments: list[str]) -> None:
    """Run `lgjax plan` with these arguments.

    Raises:
        ValueError, OSError, ImportError: what is wrong with the configuration or the target.
        SystemExit: a wrong option, or status 3 where the job does not fit.
    """
    wants_help = [flag for flag in ("--help", "-h") if flag in arguments]
    rest = [argument for argument in arguments if argument not in ("--help", "-h")]
    options, changes = tyro.cli(Options, prog="lgjax plan", args=rest, return_unknown_args=True)
    if options.config is None:
        if not wants_help and arguments:
            raise ValueError("give the file of the run: --config configs/stage2.py")
        tyro.cli(Options, prog="lgjax plan", description=HELP, args=["--help"])
        return
    if options.search and options.job != "train":
        raise ValueError("--search is for a step of training; leave out --job")
    if options.tries < 1:
        raise ValueError(f"--tries {options.tries} must be at least 1")
    from lgjax.parallel import topology

    topology.compile_only(options.fast)
    from lgjax.train.config import TrainConfig, load_config

    config: TrainConfig = tyro.cli(
        TrainConfig,
        prog="lgjax plan --config FILE",
        description=HELP,
        default=load_config(options.config, options.preset),
        args=[*changes, *wants_help],
        config=(tyro.conf.AvoidSubcommands,),
    )
    target = topology.gpu(options.gpu) if options.gpu else topology.tpu(options.target, options.slices)
    if options.search:
        _search(config, target, options)
        return
    from lgjax.jobs import show

    plan, changed = _plan(config, target, options)
    if options.json:
        print(json.dumps({**plan.as_json(), "options": changed}, indent=1))
    else:
        show.show(plan, changed)
    if not plan.fits:
        raise SystemExit(3)


def _plan(config: Any, target: Any, options: Options) -> tuple[Any, str]:
    """The plan, and how the configuration was changed to suit the target."""
    from lgjax.jobs.search import described
    from lgjax.jobs.serve import serve_job
    from lgjax.jobs.train import eval_job, shared_out, train_job
    from lgjax.parallel.mesh import make_mesh
    from lgjax.parallel.plan import make_plan

    mesh = config.mesh
    if target.slices > 1 and (mesh.data, mesh.fsdp) == (1, 0):  # weights stay within a slice
        mesh = dataclasses.replace(mesh, data=target.slices)
    laid = make_mesh(*mesh.sizes(len(target.devices)), devices=target.devices)
    if laid.size != len(target.devices):
        raise ValueError(
            f"the mesh {dict(laid.shape)} is for {laid.size} of the {len(target.devices)} devices of "
            f"{target.name}, of which all must take part; --mesh.fsdp 0 takes all that are left"
        )
    if options.job not in ("train", "eval"):
        job = serve_job(options.job, config.model, laid, batch=options.batch, length=options.length)
        return make_plan(job, target, laid), ""
    suited = shared_out(dataclasses.replace(config, mesh=mesh), laid.shape["data"] * laid.shape["fsdp"])
    job = (train_job if options.job == "train" else eval_job)(suited, laid)
    return make_plan(job, target, laid), "" if suited == config else described(suited)


def _search(config: Any, target: Any, options: Options) -> None:
    from rich.console import Console

    from lgjax.jobs import search, show

    console = Console(stderr=True)
    found = search.search(config, target, options.tries, lambda line: console.print(line, highlight=False))
    if options.json:
        rows = [{**one.plan.as_json(), "options": search.described(one.config)} for one in found]
        print(json.dumps(rows, indent=1))
    else:
        show.show_search(found)
    if not any(one.plan.fits for one in found):
        raise SystemExit(3)
