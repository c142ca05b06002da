"""Whatever happens to a file of the newest checkpoint, what is read was written so, or is the one before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lgjax.train.checkpoint import FOLDER, Checkpoints, digest, kept_steps, read_config
from lgjax.train.loop import _check_folder
from lgjax.train.step import TrainState, init_state
from tests.train.words import words

CONFIG = words(keep=3)
# readers of a damaged file leave coroutines behind that complain
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step: int) -> TrainState:
    """A few arrays under names of the model, others for each step."""
    rng = np.random.default_rng(step)
    shapes = {"llama/norm/scale": (64,), "projector/kernel": (32, 64), "llama/embed_tokens": (803, 64)}
    trained = {path: jnp.asarray(rng.standard_normal(shape), jnp.float32) for path, shape in shapes.items()}
    state = init_state(CONFIG, trained, {})
    optimizer = jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), state.optimizer)
    return state._replace(step=jnp.asarray(step, jnp.int32), optimizer=optimizer)


def arrays(state: TrainState) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.step, state.trained, state.optimizer))]


def abstract() -> TrainState:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), state_of(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("written") / "run"
    checkpoints = Checkpoints(folder, CONFIG)
    for step in (1, 2):
        checkpoints.save(state_of(step), 7)
    checkpoints.close()
    return folder


def restore(folder: Path) -> tuple[TrainState, list[str]]:
    """What a resumed run would begin with, and the lines that it would print."""
    said: list[str] = []
    assert _check_folder(CONFIG, folder, True, Console(quiet=True))
    checkpoints = Checkpoints(folder, CONFIG)
    try:
        return checkpoints.restore(abstract(), {}, 7, said.append), said
    finally:
        checkpoints.close()


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(share: float, bit: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        if content:
            content[int(share * (len(content) - 1))] ^= 1 << bit
        file.write_bytes(content)

    return damage


DAMAGES = {
    "halved": halve,
    "empty": empty,
    "deleted": Path.unlink,
    **{
        f"bit {bit} at {share}": flip(share, bit)
        for share, bit in ((0, 0), (0.3, 2), (0.5, 6), (0.9, 1), (1, 4))
    },
}
FAST = ("halved", "bit 6 at 0.5")


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in DAMAGES]
)
def test_any_damage_to_any_file_is_seen_or_harmless(damage, written, tmp_path):
    files = sorted(
        path.relative_to(written) for path in (written / FOLDER / "2").rglob("*") if path.is_file()
    )
    assert len(files) > 10
    fallen = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder)
        DAMAGES[damage](folder / file)
        state, said = restore(folder)
        step = int(state.step)
        for got, want in zip(arrays(state), arrays(state_of(step)), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=str(file))
        if step == 1:
            fallen += 1
            assert_put_aside(folder, said)
        else:
            assert step == 2 and not said, file
    assert fallen >= 3


def assert_put_aside(folder: Path, said: list[str]) -> None:
    """Nothing of step 2 stays beside checkpoints to come, and one line says why."""
    assert kept_steps(folder) == [1] and (folder / "damaged" / "2").is_dir()
    assert len(said) == 1 and "step 2 is damaged" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("field", ["step", "batch", "seed", "trained", "optimizer", "frozen", "config"])
def test_other_notes_are_damage_and_not_another_run(field, written, tmp_path):
    """As readable as before, but another number stands there."""
    folder = tmp_path / "run"
    shutil.copytree(written, folder)
    file = folder / FOLDER / "2" / "notes" / "metadata"
    notes = json.loads(file.read_text())
    if field == "config":
        notes["config"]["steps"] += 1
    else:
        notes[field] ^= 1
    file.write_text(json.dumps(notes))
    with pytest.raises(ValueError, match="damaged"):
        read_config(folder, 2)
    state, said = restore(folder)
    assert int(state.step) == 1 and "its notes are not those that were written" in said[0]
    assert_put_aside(folder, said)


def test_what_is_frozen_must_be_what_it_was(written):
    """That is no damage: nothing is put aside, and an older checkpoint is not taken."""
    checkpoints = Checkpoints(written, CONFIG)
    with pytest.raises(
        ValueError, match=r"frozen parameters are not those .* start checkpoints have changed"
    ):
        checkpoints.restore(abstract(), {}, 8, print)
    assert checkpoints.steps() == [1, 2] and not (written / "damaged").exists()
    checkpoints.close()


@pytest.mark.parametrize("place", [(0, 0), (400, 31), (802, 63)])
def test_a_digest_sees_every_bit_and_every_exchange(place):
    table = np.random.default_rng(0).standard_normal((803, 64)).astype(np.float32)
    want = int(digest({"a": table, "b": table[:5]}))
    assert want == int(digest({"a": jnp.asarray(table), "b": table[:5].copy()}))
    bits = table.view(np.uint32)
    for bit in range(32):
        other = bits.copy()
        other[place] ^= np.uint32(1 << bit)
        assert int(digest({"a": other.view(np.float32), "b": table[:5]})) != want
    swapped = table.copy()
    swapped[place], swapped[7, 7] = table[7, 7], table[place]
    assert int(digest({"a": swapped, "b": table[:5]})) != want
    assert int(digest({"a": table[::-1], "b": table[:5]})) != want
