"""A training run from its configuration to a finished model.

RUN/config.json       what was asked for
RUN/log.jsonl, RUN/tensorboard/  losses and speeds
RUN/checkpoints/      to go on from; RUN/damaged/ what could not be read
RUN/samples/          answers drawn as training went
RUN/model/            the finished model, as `lgjax convert` writes one
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from lgjax.data.pipeline import Counted, Mixture, batches, to_device
from lgjax.infer.load import use_compilation_cache
from lgjax.parallel.mesh import make_mesh
from lgjax.text.tokenizer import Tokenizer
from lgjax.train import samples
from lgjax.train.checkpoint import Checkpoints, digest, kept_steps, only_run_in, read_config
from lgjax.train.config import TrainConfig, to_json
from lgjax.train.finish import MODEL, write_model
from lgjax.train.flops import peak_flops_of_all
from lgjax.train.groups import apart, join
from lgjax.train.objective import Rows
from lgjax.train.report import Report
from lgjax.train.start import abstract_state, load_tokenizer, placed, start_frozen, start_state
from lgjax.train.step import (
    TrainState,
    check_mesh,
    compile_step,
    make_measure,
    on_mesh,
    own_part,
    row_sharding,
    step_operations,
)

STOPPED = 143  # exit status of a run that was asked to stop, as of a process ended by SIGTERM
# what may differ between a run and its continuation without changing what is learnt
_FREE = (
    *("name", "mesh", "remat", "attention", "model_dtype", "bad_steps", "keep"),
    *("log_every", "save_every", "measure_every", "measure_batches", "draw_every", "draw_count"),
    *("data.workers", "data.held_out"),
)


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


def train(
    config: TrainConfig, folder: Path, *, resume: bool = False, console: Console | None = None
) -> TrainState:
    """Train, or go on with the run in `folder`, and write the finished model to `folder/model`.

    The same configuration, seed and mesh give the same numbers, however often the run is stopped and resumed;
    on another mesh they differ by rounding alone.

    Raises:
        FileExistsError: the folder holds a run and `resume` is False.
        FileNotFoundError, ValueError, OSError: what the configuration names cannot be used.
        RuntimeError: too many samples could not be made, or too many steps in a row were not finite.
        Stopped: SIGTERM or Ctrl-C came; the state is saved.
    """
    console = console or Console()
    use_compilation_cache()
    mesh = make_mesh(*config.mesh.sizes(jax.device_count()))
    check_mesh(config, mesh)
    first = jax.process_index() == 0
    goes_on = _check_folder(config, folder, resume, console)
    tokenizer, mixture = load_tokenizer(config), config.data.mixture()
    asides = [*_measure(config, tokenizer, mesh), *_draw(config, tokenizer, folder, console)]
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(only_run_in(folder))
            _write_whole(folder / "config.json", to_json(config))
        asked = stack.enter_context(_signals())
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder, config)))
        state, frozen_digest = _begin(config, mesh, checkpoints if goes_on else None, console)
        start = int(state.step)
        step = compile_step(config, mesh, state)
        data = stack.enter_context(contextlib.closing(_batches(config, mixture, tokenizer, mesh, start)))
        report = stack.enter_context(
            Report(
                folder,
                total_steps=config.steps,
                start=start,
                every=config.log_every,
                flops=step_operations(config, abstract_state(config).trained),
                peak=peak_flops_of_all(list(mesh.devices.flat)),
                write=first,
                console=console,
            )
        )
        with on_mesh(mesh):
            key, before, last = jax.random.key(config.seed), {}, time.perf_counter()
            shown: dict[str, Any]
            for number in range(start + 1, config.steps + 1):
                waited = time.perf_counter()
                batch = _next(data, asked)
                waited = time.perf_counter() - waited
                if batch is not None:
                    state, metrics = step(state, Rows(batch.language, batch.grounding), key)
                    # looking at the step before keeps one step queued, and no more
                    _check_finite(before, config.bad_steps, number - 1)
                    before, shown = metrics, {**metrics}
                    stops = bool(asked) or checkpoints.preempted(number)
                else:
                    stops, shown = True, {}
                ends = number == config.steps and batch is not None
                saves = stops or ends or (config.save_every > 0 and number % config.save_every == 0)
                due = [aside for aside in asides if not stops and aside.due(number, saves)]
                if due or saves:
                    jax.block_until_ready(state)
                now = time.perf_counter()
                for aside in due:
                    shown |= aside.run(state, key, number)
                if saves:
                    _check_finite(before, config.bad_steps, number)
                    # what made the numbers bad may be in the state: it must not push out older checkpoints
                    if stops or ends or not int(before["bad_steps"]):
                        checkpoints.save(state, frozen_digest, shown.get("held_out/loss"))
                if shown:
                    tokens, images = shown.pop("tokens"), shown.pop("images")
                    spent = {"seconds": now - last, "waited": waited}
                    report.add(number, shown, **spent, tokens=tokens, images=images)
                last = now if not (due or saves) else time.perf_counter()
                if stops and not ends:
                    checkpoints.wait()
                    raise Stopped(f"stopped after step {int(state.step)}; --resume goes on")
        checkpoints.wait()
        _say_faults(data, console)
        if jax.process_count() == 1:
            write_model(config, state.trained, state.frozen, tokenizer, folder / MODEL, overwrite=True)
            console.print(f"wrote {folder / MODEL}")
        elif first:
            console.print(f"`lgjax checkpoint {folder} MODEL` writes the finished model on one machine")
    return state


@dataclasses.dataclass(frozen=True)
class Aside:
    """What a run does beside its steps: `run(state, key, step)` every so many steps; gives metrics.

    with_saves: also whenever a checkpoint is written.
    """

    every: int
    with_saves: bool
    run: Callable[[TrainState, jax.Array, int], dict[str, float]]

    def due(self, number: int, saves: bool) -> bool:
        """Whether it is time."""
        return number % self.every == 0 or (self.with_saves and saves)


def _check_folder(config: TrainConfig, folder: Path, resume: bool, console: Console) -> bool:
    """Whether there is a checkpoint to go on from."""
    steps = kept_steps(folder)
    if resume and not (folder / "config.json").is_file() and not steps:
        raise FileNotFoundError(f"{folder} holds no training run to resume; leave out --resume to begin one")
    if steps and not resume:
        raise FileExistsError(
            f"{folder} holds a run (checkpoint of step {steps[-1]}); --resume goes on with it, or choose "
            "another --out"
        )
    if resume and not steps:
        console.print(f"{folder} holds no checkpoint yet; beginning with step 1")
    model = folder / MODEL
    if model.exists() and not (model / "lgjax.json").is_file():
        raise FileExistsError(f"{model} exists and is no lgjax checkpoint; move it away")
    for step in reversed(steps):
        try:
            earlier = read_config(folder, step)
        except (ValueError, FileNotFoundError):
            continue  # a damaged checkpoint is dealt with when it is read
        if found := _difference(dataclasses.asdict(earlier), dataclasses.asdict(config)):
            name, old, new = found
            raise ValueError(
                f"the run in {folder} has {name} = {old}, now it is {new}; resume it as it was begun "
                "(without --config, its own configuration is taken)"
            )
        break
    return bool(steps)


def _difference(one: dict[str, Any], other: dict[str, Any], where: str = "") -> tuple[str, Any, Any] | None:
    """Name and values of the first field in which two runs differ, other than those that change no result."""
    for name, value in one.items():
        full = f"{where}{name}"
        if full in _FREE or value == other[name]:
            continue
        if isinstance(value, dict) and isinstance(other[name], dict):
            if found := _difference(value, other[name], f"{full}."):
                return found
        else:
            return full, value, other[name]
    return None


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a killed process leaves the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    os.replace(new, path)


def _begin(
    config: TrainConfig, mesh: Mesh, checkpoints: Checkpoints | None, console: Console
) -> tuple[TrainState, int]:
    if checkpoints is None:
        state = start_state(config, mesh)
        return state, int(digest(state.frozen))
    frozen = start_frozen(config, mesh)
    wanted, number = placed(abstract_state(config), config, mesh), int(digest(frozen))
    state = checkpoints.restore(wanted, frozen, number, lambda line: console.print(line, style="yellow"))
    console.print(f"going on after step {int(state.step)}")
    return state, number


def _batches(config: TrainConfig, mixture: Mixture, tokenizer: Tokenizer, mesh: Mesh, start: int) -> Counted:
    host, hosts = own_part(mesh, mixture.groups)
    made = batches(
        mixture,
        config.data.batch(config.model),
        tokenizer,
        seed=config.seed,
        start=start,
        host=host,
        hosts=hosts,
        workers=config.data.workers,
    )
    return Counted(to_device(made, row_sharding(mesh)))


def _next(data: Counted, asked: list[int]) -> Any:
    """The next batch; None where Ctrl-C has also ended the worker processes."""
    try:
        return next(data)
    except RuntimeError:
        if asked:
            return None
        raise


def _measure(config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> list[Aside]:
    """Mean losses of the same held-out batches each time."""
    if not config.measure_every:
        return []
    mixture = config.data.held_out_mixture()
    losses = jax.jit(make_measure(config, mesh))

    def run(state: TrainState, key: jax.Array, number: int) -> dict[str, float]:
        found = []
        with contextlib.closing(_batches(config, mixture, tokenizer, mesh, 0)) as data:
            for _ in range(config.measure_batches):
                batch = next(data)
                found.append(losses(state.trained, state.frozen, Rows(batch.language, batch.grounding), key))
        found = jax.device_get(found)
        return {f"held_out/{name}": float(np.mean([one[name] for one in found])) for name in found[0]}

    return [Aside(config.measure_every, True, run)]


def _draw(config: TrainConfig, tokenizer: Tokenizer, folder: Path, console: Console) -> list[Aside]:
    """Answers to the same questions each time, drawn."""
    if not config.draw_every:
        return []
    data = config.data
    streams = data.held_out or data.grounded or data.text
    chosen = []
    if jax.process_count() == 1 and data.template == "v1":
        chosen = samples.choose(streams[0].records(), config.draw_count, data.wording)
    if not chosen:
        why = "several processes" if jax.process_count() > 1 else "no question without a visual prompt"
        console.print(f"no answers will be drawn: {why}", style="yellow")
        return []

    def run(state: TrainState, key: jax.Array, number: int) -> dict[str, float]:
        params = apart(join(state.trained, state.frozen, np.float32))
        try:
            samples.draw(
                chosen, samples.answer(config.model, params, tokenizer, chosen), folder / "samples", number
            )
        except (ValueError, OSError) as error:  # a picture that cannot be written must not end the run
            console.print(f"answers of step {number} were not drawn: {error}", style="yellow")
        return {}

    return [Aside(config.draw_every, False, run)]


def _check_finite(metrics: dict[str, Any], most: int, step: int) -> None:
    if metrics and int(metrics["bad_steps"]) >= most:
        wrong = [name for name, value in metrics.items() if not np.isfinite(np.asarray(value)).all()]
        raise RuntimeError(
            f"{most} steps in a row up to step {step} gave numbers that are not finite (last: "
            f"{', '.join(wrong[:4])}); nothing was learnt from them. Lower --optim.lr, set "
            "--optim.clip-norm 1, or look at the data; earlier checkpoints are untouched"
        )


def _say_faults(data: Counted, console: Console) -> None:
    if data.faults:
        reason, times = data.faults.most_common(1)[0]
        console.print(
            f"{data.faults.total()} of {data.rows} samples could not be made, most often ({times} times): "
            f"{reason}"
        )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or Ctrl-C comes; a second one ends the run without saving.

    Several processes must stop after the same step, so there jax's own service hears SIGTERM.
    """
    asked: list[int] = []
    if jax.process_count() > 1:
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
