"""Teach the language model of the small model to list what it sees, before it sees anything.

python launch/tiny_lists.py runs/tiny/text_start runs/tiny/lists

Pictures are imagined: a grid whose cells are rows of the input table with noise, as the image tokens of the
tower are. The rows are short and every word of them is a decision (what is there that was not named yet?), so
minutes of them teach what hours of whole chats do not. Questions (is there such a thing?) and noise come when
lists are known: from the start, they slow lists down.
"""

import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32

from lgjax.convert import meta, store
from lgjax.data.batch import NOTHING
from lgjax.data.drawings import classes
from lgjax.losses.words import sphere
from lgjax.models.llama import Llama
from lgjax.text.tokenizer import Tokenizer
from lgjax.train.config import OptimConfig, Rates
from lgjax.train.optimizer import make_optimizer

SEED = 5
STEPS = 800
LISTS = 400  # steps of lists alone, without noise
ROWS = 96
SIDE = 6  # cells of a picture
THINGS = 6  # at most
QUESTIONS = 5  # about one picture
LENGTH = 3 * THINGS  # of a list: an article, a name, and what is behind it
ASKED = 1 / 3  # share of the rows with questions, beside lists, once there are any
NOISE = (0.3, 1.3)  # of things, beside words of length 1: always, and at most in the end
BACKGROUND = 0.4  # of that noise is where no thing is
GAP = (4, 24)  # positions between a picture and what is said of it
LOG_EVERY = 20
STRIDES = (1, 1, 1, 2, 4)  # from word to word: names of a chat have tokens around them
OPTIM = OptimConfig(method="muon", lr=3e-3, b2=0.98, clip_norm=1.0, rates=Rates(head=1, llama=1))


class Words(NamedTuple):
    """Token ids: what a row is made of."""

    names: Int32[np.ndarray, " classes"]
    article: int
    comma: int
    stop: int
    asks: int
    yes: int
    no: int


class Imagined(NamedTuple):
    """Rows to learn from: words of the cells, tokens behind them, which of them are learnt, positions."""

    cells: Int32[np.ndarray, "b s"]
    tokens: Int32[np.ndarray, "b t"]
    learnt: Bool[np.ndarray, "b t"]
    positions: Int32[np.ndarray, "b n"]


def imagined(words: Words, rng: np.random.Generator, *, chats: bool) -> Imagined:
    """Rows of pictures with a list of their things, the largest first.

    chats: some have questions instead, and words are as far from each other as those of a chat.
    """
    cells = np.full((ROWS, SIDE, SIDE), NOTHING, np.int32)
    tokens, learnt = np.zeros((ROWS, LENGTH), np.int32), np.zeros((ROWS, LENGTH), bool)
    for row, grid in enumerate(cells):
        known = rng.permutation(words.names)
        for name in known[: rng.integers(1, THINGS, endpoint=True)]:
            high, wide = rng.integers(1, 4, size=2)
            top, left = rng.integers(0, (SIDE - high + 1, SIDE - wide + 1))
            grid[top : top + high, left : left + wide] = name
        seen, areas = np.unique(grid[grid != NOTHING], return_counts=True)
        if chats and rng.random() < ASKED:
            present = rng.random(QUESTIONS) < 0.5
            about = np.where(present, rng.choice(seen, QUESTIONS), known[-QUESTIONS:])
            text = np.stack(
                [np.full(QUESTIONS, words.asks), about, np.where(present, words.yes, words.no)], 1
            )
            known_tokens = np.tile([False, False, True], QUESTIONS)
        else:
            named = seen[np.argsort(-areas, kind="stable")]
            behind = np.full(len(named), words.comma)
            behind[-1] = words.stop
            text = np.stack([np.full(len(named), words.article), named, behind], 1)
            known_tokens = np.ones(text.size, bool)
        tokens[row, : text.size], learnt[row, : text.size] = text.ravel(), known_tokens
    strides = rng.choice(STRIDES, size=(ROWS, LENGTH)) if chats else np.ones((ROWS, LENGTH), int)
    text = np.cumsum(strides, 1) - 1 + (rng.integers(*GAP, size=(ROWS, 1)) if chats else 0)
    picture = np.broadcast_to(np.arange(SIDE * SIDE), (ROWS, SIDE * SIDE))
    positions = np.concatenate([picture, SIDE * SIDE + text], 1)
    return Imagined(cells.reshape(ROWS, -1), tokens, learnt, positions.astype(np.int32))


def _noisy(
    table: Float[Array, "v d"], cells: Int[Array, "b s"], noise: Float[Array, ""], key: jax.Array
) -> Float[Array, "b s d"]:
    """Image tokens that mean the words of cells, with up to `noise` in things, some pictures clearer."""
    noise_key, level_key = jax.random.split(key)
    level = jax.random.uniform(level_key, (len(cells), 1), minval=NOISE[0], maxval=noise)
    level = jnp.where(cells == NOTHING, BACKGROUND * level, level)[..., None]
    rows = sphere(table[cells])
    return sphere(rows + level * jax.random.normal(noise_key, rows.shape))


def main(source: Path, target: Path) -> None:
    about, files = meta.read(source), {f.name: f.read_bytes() for f in (source / store.TOKENIZER).iterdir()}
    words = _words(Tokenizer.load(source / store.TOKENIZER))
    arrays = store.read_arrays(source, list(store.stored_leaves(source)))
    params = {path: jnp.asarray(a, jnp.float32) for path, a in arrays.items() if path.startswith("llama/")}
    table = params.pop("llama/embed_tokens")
    llama = Llama(about.config.llama)
    optimizer = make_optimizer(OPTIM, STEPS, params)

    def loss_of(params, rows: Imagined, noise: Float[Array, ""], key: jax.Array):
        embeds = jnp.concatenate([_noisy(table, rows.cells, noise, key), table[rows.tokens]], 1)
        learnt = store.nested({path.removeprefix("llama/"): leaf for path, leaf in params.items()})
        variables = {"params": learnt | {"embed_tokens": table}}
        states, _ = llama.apply(variables, embeds, rows.positions)
        logits = llama.apply(variables, states[:, SIDE * SIDE - 1 : -1], method="logits")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows.tokens)
        return (losses * rows.learnt).sum() / rows.learnt.sum(), logits.argmax(-1) == rows.tokens

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, rows: Imagined, noise: Float[Array, ""], key: jax.Array):
        (loss, right), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, rows, noise, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, right

    rng, key, state = np.random.default_rng(SEED), jax.random.key(SEED), optimizer.init(params)
    for number in range(STEPS):
        harder = max(number - LISTS, 0) / (STEPS - LISTS)
        rows = imagined(words, rng, chats=number >= LISTS)
        noise = np.float32(NOISE[0] + harder * (NOISE[1] - NOISE[0]))
        params, state, loss, right = step(params, state, rows, noise, jax.random.fold_in(key, number))
        if (number + 1) % LOG_EVERY == 0:
            shares = _report(words, rows, np.asarray(right))
            print(f"step {number + 1}/{STEPS}  loss {loss:.3f}  {shares}", flush=True)
    learnt = store.nested(arrays | params)
    store.save(target, about.config, learnt, tokenizer=files, tokens=about.tokens)


def _words(tokenizer: Tokenizer) -> Words:
    """The words of rows; of a name the first token, which is what image tokens stand for, too."""

    def token(text: str) -> int:
        return tokenizer.encode(text)[1]  # behind <s>

    names = np.unique([token(kind.name) for kind in classes()]).astype(np.int32)
    return Words(names, *map(token, ("a", ",", ".", "there", "Yes", "No")))


def _report(words: Words, rows: Imagined, right: Bool[np.ndarray, "b t"]) -> str:
    """The share of right answers, and of right names by how many were named before; "-" of none."""
    lists = rows.tokens[:, 0] == words.article
    answers = right[~lists][:, 2 : 3 * QUESTIONS : 3]
    names = [right[lists & rows.learnt[:, at], at] for at in range(1, LENGTH, 3)]
    found, *named = (f"{part.mean():.2f}" if part.size else "-" for part in (answers, *names))
    return f"answers {found}  names {' '.join(named)}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
