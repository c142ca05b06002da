"""Checkpoints of a run: written beside the training, whole or not at all, and held to digests when read.

    RUN/checkpoints/STEP/trained    what learns (Orbax)
    RUN/checkpoints/STEP/optimizer  step and state of the optimiser
    RUN/checkpoints/STEP/notes      position in the data, seed, digests, configuration (JSON)

What is frozen is not stored: it comes from where the run started, which must stay as it is until the run has
ended. Source: spec/training_and_data.md 14.6.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from lgjax.train.config import TrainConfig, from_text, to_json
from lgjax.train.groups import Flat
from lgjax.train.step import TrainState

FOLDER, DAMAGED = "checkpoints", "damaged"
_LOSS, _SEAL = "loss", "checksum"
_MACHINE = ("RESOURCE_EXHAUSTED", "out of memory", "No space left")  # faults of the machine, not of a file


@dataclasses.dataclass(frozen=True)
class Notes:
    """What stands beside the arrays of a checkpoint.

    batch: number of the next batch of data, from which the data go on exactly; seed: of data and random
    numbers; trained, optimizer, frozen: digests of the stored arrays and of what is not stored.
    """

    step: int
    batch: int
    seed: int
    trained: int
    optimizer: int
    frozen: int
    config: dict[str, Any]

    def sealed(self) -> dict[str, Any]:
        """What is written: the fields, and a checksum of them."""
        fields = dataclasses.asdict(self)
        return {**fields, _SEAL: _checksum(fields)}

    @classmethod
    def opened(cls, written: dict[str, Any]) -> Notes:
        """Undo `sealed`.

        Raises:
            ValueError: these are not the notes that were written.
        """
        fields = {name: value for name, value in written.items() if name != _SEAL}
        if written.get(_SEAL) != _checksum(fields):
            raise ValueError("its notes are not those that were written")
        return cls(**fields)


def _checksum(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


@jax.jit
def digest(tree: Any) -> UInt32[Array, ""]:
    """A number that changes with the bits of arrays and with their places, the same for any sharding."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        array = jnp.asarray(leaf)
        if array.dtype == jnp.bool_:
            array = array.astype(jnp.uint8)
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros((), jnp.uint32)
        for axis, size in enumerate(bits.shape):
            shape = tuple(size if other == axis else 1 for other in range(bits.ndim))
            place = place * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32).reshape(shape)
        # odd factors, and the square, so that no single bit and no exchange of two values goes unseen
        mixed = (bits ^ (bits >> 15)) * (2 * place + 1) + bits * bits
        total = total * jnp.uint32(31) + mixed.sum(dtype=jnp.uint32) + jnp.uint32(1)
    return total


def _progress(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "optimizer": state.optimizer}


def kept_steps(folder: str | Path) -> list[int]:
    """Steps of which a run folder holds checkpoints, in order."""
    found = (Path(folder) / FOLDER).glob("*")
    return sorted(int(path.name) for path in found if path.name.isdigit() and path.is_dir())


class Checkpoints:
    """The checkpoints of a run folder: the last `keep`, and the one with the smallest held-out loss.

    `read_only` leaves everything as it is, also what a run is just writing.
    """

    def __init__(self, folder: str | Path, config: TrainConfig, *, read_only: bool = False) -> None:
        self.folder = Path(folder).absolute() / FOLDER
        self._config = config
        policies = ocp.checkpoint_managers
        kept: list[Any] = [policies.LatestN(config.keep)]
        if config.measure_every:
            best: dict[str, Any] = dict(
                get_metric_fn=_loss_of, reverse=True, n=1, keep_checkpoints_without_metrics=False
            )
            kept.append(policies.BestN(**best))
        handlers = {
            "trained": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "notes": ocp.JsonCheckpointHandler(),
        }
        options = ocp.CheckpointManagerOptions(
            best_fn=_loss_of if config.measure_every else None,
            best_mode="min",
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            preservation_policy=None if read_only else policies.AnyPreservationPolicy(kept),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """Step with the smallest held-out loss, None where none was measured."""
        return self._manager.best_step() if self._config.measure_every else None

    def save(self, state: TrainState, frozen_digest: int, loss: float | None = None) -> None:
        """Begin to write a checkpoint; training goes on meanwhile. `loss` is that of held-out data.

        Raises:
            OSError, ValueError: an earlier one could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        notes = Notes(
            step=step,
            batch=step,
            seed=self._config.seed,
            trained=int(digest(state.trained)),
            optimizer=int(digest(_progress(state))),
            frozen=frozen_digest,
            config=json.loads(to_json(self._config)),
        )
        self._manager.save(
            step,
            args=ocp.args.Composite(
                trained=ocp.args.StandardSave(state.trained),
                optimizer=ocp.args.StandardSave(_progress(state)),
                notes=ocp.args.JsonSave(notes.sealed()),
            ),
            metrics=None if loss is None or not np.isfinite(loss) else {_LOSS: loss},
            force=True,
        )

    def restore(
        self, abstract: TrainState, frozen: Flat, frozen_digest: int, say: Callable[[str], None]
    ) -> TrainState:
        """The newest state that can be read; damaged newer ones are then moved aside.

        abstract: shapes with shardings of the state to make. `say` gets a line for each damaged checkpoint.
        Several processes take the newest that all of them can read.

        Raises:
            ValueError: none can be read, or what is frozen is not what the run had.
            MemoryError, PermissionError, ...: faults of the machine, which say nothing of a checkpoint.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            state = None
            try:
                state = self.read(step, abstract, frozen, frozen_digest)
            except (OtherStart, MemoryError, PermissionError):
                raise
            # whatever a damaged file makes the reader raise, an older checkpoint may be whole
            except Exception as error:
                if any(mark in str(error) for mark in _MACHINE):
                    raise
                reason = str(error).strip().splitlines() or [type(error).__name__]
                damaged[step] = reason[0][:200]
            if _all_agree(state is not None) and state is not None:
                for number, reason in damaged.items():
                    kept = self._put_aside(number)
                    say(f"checkpoint of step {number} is damaged ({reason}); moved to {kept}")
                return state
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise ValueError(f"none of the {len(damaged)} checkpoints in {self.folder} can be read ({reasons})")

    def read(self, step: int, abstract: TrainState, frozen: Flat, frozen_digest: int) -> TrainState:
        """The state of one step; whatever is wrong with it raises."""
        arguments = ocp.args.Composite(
            trained=ocp.args.StandardRestore(abstract.trained),
            optimizer=ocp.args.StandardRestore(_progress(abstract)),
            notes=ocp.args.JsonRestore(),
        )
        found = self._manager.restore(step, args=arguments)
        notes, progress = Notes.opened(found["notes"]), found["optimizer"]
        self._check_start(notes, frozen_digest)
        same = int(digest(found["trained"])), int(digest(progress)), int(progress["step"])
        if same != (notes.trained, notes.optimizer, step):
            raise ValueError("its arrays are not those that were written")
        return TrainState(progress["step"], found["trained"], progress["optimizer"], frozen)

    def read_trained(self, step: int, abstract: Flat, frozen_digest: int) -> Flat:
        """What was learnt up to a step, without the optimiser's state; whatever is wrong with it raises."""
        arguments = ocp.args.Composite(
            trained=ocp.args.StandardRestore(abstract), notes=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=arguments)
        notes = Notes.opened(found["notes"])
        self._check_start(notes, frozen_digest)
        if int(digest(found["trained"])) != notes.trained:
            raise ValueError(f"the checkpoint of step {step} in {self.folder} is damaged")
        return found["trained"]

    def _check_start(self, notes: Notes, frozen_digest: int) -> None:
        if notes.frozen != frozen_digest:
            raise OtherStart(
                f"the frozen parameters are not those that the run in {self.folder.parent} had; "
                "its start checkpoints have changed"
            )

    def _put_aside(self, step: int) -> Path:
        target = self.folder.parent / DAMAGED / str(step)
        if jax.process_index() == 0:
            number = 0
            while target.exists():
                number += 1
                target = target.with_name(f"{step}-{number}")
            target.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(target)
        _all_agree(True)
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


def _all_agree(fine: bool) -> bool:
    """Whether it is so on every process."""
    if jax.process_count() == 1:
        return fine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


class OtherStart(ValueError):
    """The frozen parameters are not those that the run had."""


def _loss_of(metrics: dict[str, float]) -> float:
    return metrics[_LOSS]


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no second run writes into it.

    Raises:
        ValueError: another process of this machine trains there.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process trains in {folder}; wait for it or choose another --out"
            ) from None
        yield


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
        return from_text(json.dumps(Notes.opened(json.loads(path.read_text())).config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r})") from error
