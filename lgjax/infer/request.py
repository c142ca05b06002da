"""What a question is made of before any network runs on it: options, a picture, a planned prompt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, UInt8

from lgjax.config import History, ModelConfig
from lgjax.data import images
from lgjax.infer import engine
from lgjax.models.llama import Llama
from lgjax.models.pixel_encoder import PixelFeatures
from lgjax.models.splice import RowPlan
from lgjax.text.tokenizer import Tokenizer

MOST_TOKENS = 4096  # of one answer; the original stops at 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to answer.

    ground: add "(with grounding)" to the question when it is missing; threshold: a query answers for a phrase
    above this probability (of a checkpoint with `merge_iou`: that it is one of the things), None keeps the
    best one alone; keep: at most so many of the best; queries: object queries, 1 to 900, None for the model's
    own number; temperature 0 is greedy, otherwise ids are drawn from the nucleus of mass `top_p` with `seed`;
    max_tokens: most new tokens; stop: a text, or several, that end the answer where they begin; answer: a
    text with grounding tokens to ground instead of a generated one.

    Raises:
        ValueError: a value out of its range.
    """

    ground: bool = True
    threshold: float | int | None = 0.2
    keep: int | None = None
    queries: int | None = None
    temperature: float | int = 0.0
    top_p: float | int = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop: str | tuple[str, ...] = ()
    answer: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """All stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    def __post_init__(self) -> None:
        wrong = None
        if self.threshold is not None and not 0 <= self.threshold < 1:
            wrong = f"threshold {self.threshold} must be None or within [0, 1)"
        elif self.keep is not None and self.keep < 1:
            wrong = f"keep {self.keep} must be at least 1"
        elif self.queries is not None and not 1 <= self.queries <= 900:
            wrong = f"queries {self.queries} must be 1 to 900"
        elif not 0 <= self.temperature < float("inf"):
            wrong = f"temperature {self.temperature} must be 0 or more"
        elif not 0 < self.top_p <= 1:
            wrong = f"top_p {self.top_p} must be within (0, 1]"
        elif not 1 <= self.max_tokens <= MOST_TOKENS:
            wrong = f"max_tokens {self.max_tokens} must be 1 to {MOST_TOKENS}"
        elif not 0 <= self.seed < 2**32:
            wrong = f"seed {self.seed} must be 0 to 4294967295"
        elif "" in self.stops:
            wrong = f"stop {self.stop!r} holds an empty text, which would end every answer at once"
        if wrong:
            raise ValueError(wrong)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint: configuration, parameters, tokenizer, the types to compute in, and the mesh over
    which the parameters lie (None: one device)."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    dtype: Any
    cache_dtype: Any
    mesh: jax.sharding.Mesh | None = None

    @property
    def llama(self) -> Llama:
        """The language model as a module."""
        return Llama(self.config.llama, self.dtype, scan_layers="layers" in self.params["llama"])

    @property
    def copies(self) -> int:
        """Copies of the parameters on the mesh; a batch of a multiple of them is shared out between them."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    def shares_out(self, rows: int) -> bool:
        """Whether so many rows are shared out between the copies."""
        return self.copies > 1 and rows % self.copies == 0

    def share_out(self, arrays: Any) -> Any:
        """Lay the rows of arrays over the copies, where they can be shared out evenly."""
        if self.mesh is None or not self.shares_out(len(jax.tree.leaves(arrays)[0])):
            return arrays
        return jax.device_put(arrays, NamedSharding(self.mesh, PartitionSpec("data")))


class View:
    """A picture and what the networks made of it, computed when first needed and kept."""

    def __init__(self, model: Model, source: images.ImageSource) -> None:
        self._model = model
        self.image: PIL.Image.Image = images.load_image(source)

    @functools.cached_property
    def tokens(self) -> jax.Array:
        """Image tokens of the language model, [1, n, d]."""
        model = self._model
        return engine.encode_clip(model.config, model.params, self.pixels(model.config.clip.image_size))

    @functools.cached_property
    def features(self) -> PixelFeatures:
        """Features of the grounding model.

        Raises:
            ValueError: the checkpoint has no grounding model.
        """
        model = self._model
        if model.config.grounding is None:
            raise ValueError("this checkpoint has no grounding model, so phrases cannot get boxes and masks")
        canvas = self.canvas(model.config.grounding.image_size)
        return engine.encode_grounding(model.config, model.params, canvas)

    @functools.cached_property
    def prompt_features(self) -> PixelFeatures:
        """Features of the visual-prompt model.

        Raises:
            ValueError: the checkpoint has no visual-prompt model.
        """
        model = self._model
        if model.config.prompt is None:
            raise ValueError("this checkpoint has no visual-prompt model, so it cannot read clicks and boxes")
        canvas = self.canvas(model.config.prompt.image_size)
        return engine.encode_prompting(model.config, model.params, canvas)

    def pixels(self, side: int) -> Float32[np.ndarray, "1 side side 3"]:
        """What CLIP sees."""
        return images.clip_preprocess(self.image, side)[None]

    def canvas(self, side: int) -> UInt8[np.ndarray, "1 side side 3"]:
        """What the grounding and the visual-prompt model see."""
        return images.square_canvas(self.image, side)[0][None]


def tokens_of(model: Model, views: Sequence[View]) -> Float[Array, "b n d"]:
    """Image tokens of several pictures; where the rows are shared out each device makes its own."""
    if not model.shares_out(len(views)):
        return jnp.concatenate([view.tokens for view in views])
    pixels = np.concatenate([view.pixels(model.config.clip.image_size) for view in views])
    return engine.encode_clip(model.config, model.params, model.share_out(pixels))


def features_of(model: Model, views: Sequence[View]) -> PixelFeatures:
    """Features of the grounding model, as `tokens_of`.

    Raises:
        ValueError: see `View.features`.
    """
    if model.config.grounding is None or not model.shares_out(len(views)):
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *[view.features for view in views])
    canvas = np.concatenate([view.canvas(model.config.grounding.image_size) for view in views])
    return engine.encode_grounding(model.config, model.params, model.share_out(canvas))


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One row of a batch: a planned prompt about a view.

    plan: where each position comes from; objects: features that the plan's object numbers point at; start:
    positions that the cache already holds; region_masks: what each region of this question covers on the
    square canvas; forced: ids to take instead of choosing them; history: how later prompts repeat the answer.
    """

    view: View
    plan: RowPlan
    objects: Float32[np.ndarray, "n d"]
    options: Options
    history: History
    region_masks: Bool[np.ndarray, "r h w"] | None = None
    start: int = 0
    forced: tuple[int, ...] = ()
