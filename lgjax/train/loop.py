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
from lgjax.train.checkpoint import FOLDER, Checkpoints, digest, read_config
from lgjax.train.config import TrainConfig, to_json
from lgjax.train.finish import MODEL, write_model
from lgjax.train.flops import forward_flops, peak_flops_of_all, step_flops
from lgjax.train.groups import group_of, join, whole
from lgjax.train.objective import Rows, Shape, families, normalisers
from lgjax.train.report import Report
from lgjax.train.start import abstract_state, load_tokenizer, placed, start_frozen, start_state
from lgjax.train.step import TrainState, check_mesh, make_objective, make_step, on_mesh, row_sharding

STOPPED = 143  # exit status of a run that was asked to stop, as of a process ended by SIGTERM
# what may differ between a run and its continuation without changing what is learnt
_FREE = ("mesh", "log_every", "save_every", "keep", "measure_every", "measure_batches", "draw_every")
_FREE += ("draw_count", "bad_steps", "remat", "model_dtype")


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
    _check_folder(config, folder, resume)
    tokenizer, mixture = load_tokenizer(config), config.data.mixture()
    held_out = config.data.held_out_mixture() if config.measure_every else None
    samples_of = samples.choose(_records(config), config.draw_count) if config.draw_every else []
    first = jax.process_index() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(to_json(config))
    with contextlib.closing(Checkpoints(folder, config)) as checkpoints, _signals() as asked:
        state, frozen_digest = _begin(config, mesh, checkpoints, resume, console)
        start = int(state.step)
        if start:
            console.print(f"going on after step {start}")
        data = _batches(config, mixture, tokenizer, mesh, start)
        measure = _measure(config, held_out, tokenizer, mesh) if held_out is not None else None
        step = jax.jit(make_step(config, mesh), donate_argnums=0)
        key = jax.random.key(config.seed)
        report = Report(
            folder,
            total_steps=config.steps,
            start=start,
            every=config.log_every,
            flops=step_operations(config),
            peak=peak_flops_of_all(list(mesh.devices.flat)),
            write=first,
            console=console,
        )
        with contextlib.closing(data), report, on_mesh(mesh):
            before: dict[str, Any] = {}
            last = time.perf_counter()
            for number in range(start + 1, config.steps + 1):
                waited = time.perf_counter()
                batch = next(data)
                waited = time.perf_counter() - waited
                state, metrics = step(state, Rows(batch.language, batch.grounding), key)
                # looking at the step before keeps one step queued, and no more
                _check_finite(before, config.bad_steps, number - 1)
                before = metrics
                stop = bool(asked) or checkpoints.preempted(number)
                ends = number == config.steps
                saves = ends or (config.save_every > 0 and number % config.save_every == 0)
                aside, loss = time.perf_counter(), None
                if measure is not None and (saves or number % config.measure_every == 0):
                    measured = measure(state, key)
                    loss = measured["held_out/loss"]
                    metrics = {**metrics, **measured}
                if samples_of and number % config.draw_every == 0 and jax.process_count() == 1:
                    params = whole(state.trained, state.frozen)
                    answers = samples.answer(config.model, params, tokenizer, samples_of)
                    samples.draw(samples_of, answers, folder / "samples", number)
                now = time.perf_counter()
                last += now - aside
                shown = {name: value for name, value in metrics.items() if name not in ("tokens", "images")}
                report.add(
                    number,
                    shown,
                    seconds=now - last,
                    waited=waited,
                    tokens=metrics["tokens"],
                    images=metrics["images"],
                )
                last = now
                if stop or saves:
                    _check_finite(before, config.bad_steps, number)
                    checkpoints.save(state, frozen_digest, loss)
                if stop and not ends:
                    checkpoints.wait()
                    raise Stopped(f"stopped after step {number}; --resume goes on")
        checkpoints.wait()
        _say_faults(data, console)
    if jax.process_count() == 1:
        write_model(config, state, tokenizer, folder / MODEL)
        console.print(f"wrote {folder / MODEL}")
    elif first:
        console.print(f"`lgjax checkpoint {folder} MODEL` writes the finished model on one machine")
    return state


def _check_folder(config: TrainConfig, folder: Path, resume: bool) -> None:
    steps = sorted(int(p.name) for p in (folder / FOLDER).glob("*") if p.name.isdigit())
    if steps and not resume:
        raise FileExistsError(
            f"{folder} holds a run (checkpoint of step {steps[-1]}); --resume goes on with it, or choose "
            "another --out"
        )
    for step in reversed(steps):
        try:
            earlier = read_config(folder, step)
        except (ValueError, FileNotFoundError):
            continue  # a damaged checkpoint is dealt with when it is read
        if name := _difference(earlier, config):
            raise ValueError(f"{folder} was begun with another {name}; leave it as it was to resume")
        return


def _difference(one: TrainConfig, other: TrainConfig) -> str | None:
    """Name of the first field in which two runs differ, other than those that change no result."""
    a, b = dataclasses.asdict(one), dataclasses.asdict(other)
    for side in (a, b):
        side["data"].pop("workers")
    return next((name for name in a if name not in _FREE and a[name] != b[name]), None)


def _begin(
    config: TrainConfig, mesh: Mesh, checkpoints: Checkpoints, resume: bool, console: Console
) -> tuple[TrainState, int]:
    if resume and checkpoints.steps():
        frozen = start_frozen(config, mesh)
        wanted, number = placed(abstract_state(config), config, mesh), int(digest(frozen))
        state = checkpoints.restore(wanted, frozen, number, lambda line: console.print(line, style="yellow"))
        if state is not None:
            return state, number
    state = start_state(config, mesh)
    return state, int(digest(state.frozen))


def _batches(config: TrainConfig, mixture: Mixture, tokenizer: Tokenizer, mesh: Mesh, start: int) -> Counted:
    made = batches(
        mixture,
        config.data.batch(config.model),
        tokenizer,
        seed=config.seed,
        start=start,
        host=jax.process_index(),
        hosts=jax.process_count(),
        workers=config.data.workers,
    )
    return Counted(to_device(made, row_sharding(mesh)))


def _measure(
    config: TrainConfig, mixture: Mixture, tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[TrainState, jax.Array], dict[str, float]]:
    """Mean losses of the same held-out batches each time."""
    shape = Shape(mixture.grounded_rows, mixture.text_rows)
    objective = dataclasses.replace(make_objective(config, mesh), shape=shape)

    @jax.jit
    def losses(trained: Any, frozen: Any, rows: Rows, key: jax.Array) -> dict[str, jax.Array]:
        counts = normalisers(rows, config.loss, objective.shape)
        found = objective(join(trained, frozen, objective.dtype), rows, counts, key, train=False)
        return {"loss": sum(found.values()), **families(found)}  # pyright: ignore[reportReturnType]

    def run(state: TrainState, key: jax.Array) -> dict[str, float]:
        data = _batches(config, mixture, tokenizer, mesh, 0)
        found = []
        with contextlib.closing(data):
            for _ in range(config.measure_batches):
                batch = next(data)
                found.append(losses(state.trained, state.frozen, Rows(batch.language, batch.grounding), key))
        found = jax.device_get(found)
        return {f"held_out/{name}": float(np.mean([one[name] for one in found])) for name in found[0]}

    return run


def _check_finite(metrics: dict[str, Any], most: int, step: int) -> None:
    if metrics and int(metrics["bad_steps"]) >= most:
        wrong = [name for name, value in metrics.items() if not np.isfinite(np.asarray(value)).all()]
        raise RuntimeError(
            f"{most} steps in a row up to step {step} gave numbers that are not finite (last: "
            f"{', '.join(wrong[:4])}); nothing was learnt from them. Lower --optim.lr, set "
            "--optim.clip-norm 1, or look at the data; earlier checkpoints are untouched"
        )


def _records(config: TrainConfig) -> Any:
    streams = config.data.held_out or config.data.grounded or config.data.text
    return streams[0].records()


def _say_faults(data: Counted, console: Console) -> None:
    if data.faults:
        reason, times = data.faults.most_common(1)[0]
        console.print(
            f"{data.faults.total()} of {data.rows} samples could not be made, most often ({times} times): "
            f"{reason}"
        )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or Ctrl-C comes; a second one ends the process at once.

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


def step_operations(config: TrainConfig) -> float:
    """Model operations of a step, see `flops.step_flops`."""
    data, parts = config.data, config.loss.parts
    grounded = data.groups * data.grounded_rows
    forward = forward_flops(
        config.model,
        rows=data.groups * (data.grounded_rows + data.text_rows),
        length=data.length,
        grounded_rows=grounded,
        phrases=data.phrases if "grounding" in parts else 0,
        objects=data.objects,
        prompts=data.objects if "prompting" in parts else 0,
        queries=config.loss.queries,
    )
    trained = {group_of(path).removesuffix("_slow") for path in abstract_state(config).trained}
    return step_flops(forward, trained)
