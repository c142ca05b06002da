"""Checkpoints of a run: written beside the training, whole or not at all, and held to a digest when read.

    RUN/checkpoints/STEP/state   step, what learns, the optimiser's state (Orbax)
    RUN/checkpoints/STEP/notes   position in the data, seed, digests, configuration (JSON)

What is frozen is not stored: it comes from where the run started. Source: spec/training_and_data.md 14.6.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from lgjax.train.config import TrainConfig, from_text, to_json
from lgjax.train.step import TrainState

FOLDER, DAMAGED = "checkpoints", "damaged"
_LOSS = "loss"


@dataclasses.dataclass(frozen=True)
class Notes:
    """What stands beside the arrays of a checkpoint.

    batch: number of the next batch of data, from which the data goes on exactly; seed: of data and random
    numbers; state, frozen: digests of the stored arrays and of what is not stored.
    """

    step: int
    batch: int
    seed: int
    state: int
    frozen: int
    config: dict[str, Any]


@jax.jit
def digest(tree: Any) -> UInt32[Array, ""]:
    """A number that changes with any bit of the arrays, the same for any sharding (sums of integers)."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        array = jnp.asarray(leaf)
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        total = total * jnp.uint32(31) + (bits * (2 * bits + 1)).sum(dtype=jnp.uint32) + jnp.uint32(number)
    return total


def _stored(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trained": state.trained, "optimizer": state.optimizer}


class Checkpoints:
    """The checkpoints of a run folder: the last `keep`, and the one with the smallest held-out loss."""

    def __init__(self, folder: str | Path, config: TrainConfig) -> None:
        self.folder = Path(folder).absolute() / FOLDER
        self._config = config
        kept: list[Any] = [ocp.checkpoint_managers.LatestN(config.keep)]
        if config.measure_every:
            kept.append(
                ocp.checkpoint_managers.BestN(
                    get_metric_fn=_loss_of, reverse=True, n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=_loss_of if config.measure_every else None,
                best_mode="min",
                cleanup_tmp_directories=True,
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(kept),
            ),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """Step with the smallest held-out loss; the last one where none was measured."""
        return self._manager.best_step() or self._manager.latest_step()

    def save(self, state: TrainState, frozen_digest: int, loss: float | None = None) -> None:
        """Begin to write a checkpoint; training goes on meanwhile. `loss` is that of held-out data.

        Raises:
            OSError, ValueError: an earlier one could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        stored = _stored(state)
        notes = Notes(
            step=step,
            batch=step,
            seed=self._config.seed,
            state=int(digest(stored)),
            frozen=frozen_digest,
            config=json.loads(to_json(self._config)),
        )
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(stored), notes=ocp.args.JsonSave(dataclasses.asdict(notes))
            ),
            metrics=None if loss is None else {_LOSS: loss},
            force=True,
        )

    def restore(
        self, abstract: TrainState, frozen: Any, frozen_digest: int, say: Callable[[str], None]
    ) -> TrainState | None:
        """The newest state that can be read, or None without checkpoints; a damaged one is moved aside.

        abstract: shapes with shardings of the state to make. `say` gets a line for each damaged checkpoint.

        Raises:
            ValueError: none can be read, or what is frozen is not what the run had.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.read(step, abstract, frozen, frozen_digest)
            except OtherStart:
                raise
            # whatever a damaged file makes the reader raise, an older checkpoint may be whole
            except Exception as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                kept = self._put_aside(step)
                say(f"checkpoint of step {step} is damaged ({reason[0][:200]}); moved to {kept}")
        if steps:
            raise ValueError(f"none of the {len(steps)} checkpoints in {self.folder} can be read")
        return None

    def read(self, step: int, abstract: TrainState, frozen: Any, frozen_digest: int) -> TrainState:
        """The state of one step; whatever is wrong with it raises."""
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_stored(abstract)), notes=ocp.args.JsonRestore()
            ),
        )
        notes = Notes(**found["notes"])
        if notes.frozen != frozen_digest:
            raise OtherStart(
                f"the frozen parameters are not those that the run in {self.folder.parent} had; "
                "its start checkpoints have changed"
            )
        stored = found["state"]
        if int(digest(stored)) != notes.state or int(stored["step"]) != step:
            raise ValueError("its arrays are not those that were written")
        return TrainState(stored["step"], stored["trained"], stored["optimizer"], frozen)

    def _put_aside(self, step: int) -> Path:
        target = self.folder.parent / DAMAGED / str(step)
        if jax.process_index() == 0:
            number = 0
            while target.exists():
                number += 1
                target = target.with_name(f"{step}-{number}")
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        self._manager.reload()
        return target

    def preempted(self, step: int) -> bool:
        """Whether the system asked any of several processes to stop; all of them get the same answer."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of threads."""
        self._manager.close()


class OtherStart(ValueError):
    """The frozen parameters are not those that the run had."""


def _loss_of(metrics: dict[str, float]) -> float:
    return metrics[_LOSS]


def read_config(folder: str | Path, step: int) -> TrainConfig:
    """The configuration that a checkpoint was written with.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged.
    """
    path = Path(folder) / FOLDER / str(step) / "notes" / "metadata"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint of step {step} in {folder}")
    try:
        return from_text(json.dumps(json.loads(path.read_text())["config"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r})") from error
