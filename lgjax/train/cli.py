"""The command `lgjax train`: a configuration file, changes to it, and how the run is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

HELP = """Train a stage: what a configuration file says, with any of its fields changed.

  lgjax train --config configs/stage2.py --out runs/stage2 --optim.lr 3e-5 --mesh.fsdp 8
  lgjax train --config configs/stage2.py --out runs/stage2 --resume
  lgjax train --config configs/stage2.py --dry-run
  lgjax train --config configs/stage2.py --help      every field and its value
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How a run is started; everything else is in its configuration.

    Args:
        config: Python file with get_config(); with --resume it may be left out: the run has its own.
        preset: "paper", or "as_code" where the released code does other things than the paper says.
        out: Folder of the run (default: runs/NAME).
        resume: Go on with the run in that folder, from its newest checkpoint that can be read.
        dry_run: Train nothing; print what would learn, what a batch holds, and the memory it takes.
        distributed: One of several processes: find the others by the environment (TPU pods, SLURM, ...).
        coordinator: HOST:PORT of the first process, where the environment does not tell.
        processes: How many processes there are.
        process: Which of them this is, from 0.
        silence: Seconds after which one that is not heard of counts as dead, and the others end.
    """

    config: Path | None = None
    preset: Literal["paper", "as_code"] = "paper"
    out: Path | None = None
    resume: bool = False
    dry_run: bool = False
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    silence: float = 60.0


def main(arguments: list[str]) -> None:
    """Run `lgjax train` with these arguments.

    Raises:
        ValueError, OSError, RuntimeError: what is wrong with the configuration or the run.
        SystemExit: a wrong option, or status 143 where the run was asked to stop and has saved.
    """
    wants_help = [flag for flag in ("--help", "-h") if flag in arguments]
    rest = [argument for argument in arguments if argument not in ("--help", "-h")]
    launch, changes = tyro.cli(Launch, prog="lgjax train", args=rest, return_unknown_args=True)
    if launch.config is None and not launch.resume:
        if not wants_help and arguments:
            raise ValueError("give the file of the run: --config configs/stage1.py")
        tyro.cli(Launch, prog="lgjax train", description=HELP, args=["--help"])
    if not launch.coordinator and (launch.processes is not None or launch.process is not None):
        raise ValueError(
            "--processes and --process need --coordinator HOST:PORT, where the first process listens"
        )
    if launch.coordinator or launch.distributed:
        from lgjax.parallel.processes import join, together

        join(launch.coordinator, launch.processes, launch.process)
        with together(launch.silence):
            _configured(launch, changes, wants_help)
        return
    _configured(launch, changes, wants_help)


def _configured(launch: Launch, changes: list[str], wants_help: list[str]) -> None:
    """Read the configuration, and begin."""
    from lgjax.train.config import TrainConfig, load_config, read_run

    if launch.config is not None:
        default = load_config(launch.config, launch.preset)
    elif launch.out is None:
        raise ValueError("--resume without --config needs the folder of the run in --out")
    else:
        default = read_run(launch.out)
    config: TrainConfig = tyro.cli(
        TrainConfig,
        prog="lgjax train --config FILE",
        description=HELP,
        default=default,
        args=[*changes, *wants_help],
        config=(tyro.conf.AvoidSubcommands,),
    )
    _start(launch, config)


def _start(launch: Launch, config: Any) -> None:
    from rich.console import Console

    from lgjax.train import loop

    console = Console()
    if launch.dry_run:
        from lgjax.train.dry_run import dry_run

        dry_run(config, console)
        return
    folder = launch.out or Path("runs") / config.name
    try:
        loop.train(config, folder, resume=launch.resume, console=console)
    except loop.Stopped as stopped:
        console.print(str(stopped))
        raise SystemExit(loop.STOPPED) from None
