"""Composed scenes: endless pictures of drawn things, with exact masks and only true sentences about them.

A scene is a pure function of (seed, split, number). Source: none; these data are lgjax's own.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32

from lgjax.data import drawings
from lgjax.data.drawings import ThingClass, classes, drawing, paint
from lgjax.data.masks import box_of

Split = Literal["train", "combinations", "styles"]
Background = Literal["plain", "gradient", "texture", "photo"]
MOST_OF_A_CLASS = 4
_PAIR_SHARE = 10  # one of so many pairs of classes is held out
_STYLE_SHARE = 12  # one of so many classes has a style held out
_MIN_VISIBLE = 0.7
_MIN_PIXELS = 0.003  # of the picture
_MIN_CONTRAST = 28
_ATTEMPTS = 24
_MOST_TRIES = 1000
MIN_SIZE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes look.

    size: side of the square picture in pixels; max_things: 1 to that many; styles: of the drawings, also
    folders of PNGs named like the classes; backgrounds: kinds to draw from; photos: folder of pictures for
    "photo", None for those of the package.

    Raises:
        ValueError: a number that is too small, or no styles or backgrounds.
    """

    size: int = 128
    max_things: int = 6
    styles: tuple[str, ...] = drawings.STYLES
    backgrounds: tuple[Background, ...] = ("plain", "gradient", "texture", "photo")
    photos: str | None = None

    def __post_init__(self) -> None:
        if self.size < MIN_SIZE or self.max_things < 1 or not self.styles or not self.backgrounds:
            raise ValueError(
                f"scenes of {self.size} pixels (at least {MIN_SIZE}), 1 to {self.max_things} things, "
                f"{len(self.styles)} styles and {len(self.backgrounds)} backgrounds cannot be composed"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """A thing in a scene: its visible mask, and where the whole of it lies.

    colour: the word for it, None where no one word fits; length: longest side of the whole drawing in
    pixels; box: (x0, y0, x1, y1) of what is visible, in pixels.
    """

    kind: ThingClass
    style: str
    colour: str | None
    length: float
    mask: Bool[np.ndarray, "h w"]
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, in [0, 1] of the picture."""
        height, width = self.mask.shape
        return (self.box[0] + self.box[2]) / 2 / width, (self.box[1] + self.box[3]) / 2 / height


class Scene(NamedTuple):
    """A picture and the things in it."""

    image: PIL.Image.Image
    things: tuple[Thing, ...]


def held_out_pair(a: ThingClass, b: ThingClass) -> bool:
    """Whether the two classes never meet in the split "train"."""
    return zlib.crc32("|".join(sorted((a.slug, b.slug))).encode()) % _PAIR_SHARE == 0


def held_out_style(kind: ThingClass) -> str | None:
    """The style in which a class is never seen in the split "train", None for most classes."""
    code = zlib.crc32(f"style|{kind.slug}".encode())
    if code % _STYLE_SHARE:
        return None
    return drawings.STYLES[code // _STYLE_SHARE % len(drawings.STYLES)]


def compose(rng: np.random.Generator, config: SceneConfig, split: Split = "train") -> Scene:
    """Draw a scene of a split: which things, how they look, where they are.

    Scenes of "train" hold no pair of classes and no style that is held out; each of "combinations" holds
    such a pair, each of "styles" such a style.

    Raises:
        ValueError: "styles" without both styles of the package.
        RuntimeError: nothing stands out from the backgrounds.
    """
    if split == "styles" and not set(drawings.STYLES) <= set(config.styles):
        raise ValueError(f"the split 'styles' needs the styles {', '.join(drawings.STYLES)}")
    for _ in range(_MOST_TRIES):
        scene = _try(rng, config, split)
        if scene is not None:
            return scene
    raise RuntimeError(f"no scene of split '{split}' in {_MOST_TRIES} tries; try other backgrounds or styles")


class _Plan(NamedTuple):
    kind: ThingClass
    style: str
    colour: str | None
    length: float


def _try(rng: np.random.Generator, config: SceneConfig, split: Split) -> Scene | None:
    """A scene, or None where things found no place and the split no longer holds."""
    plans = _plan(rng, config, split)
    picture = _background(rng, config, split)
    crowded = rng.random() < 0.3
    owner = np.full(picture.shape[:2], -1)
    areas: list[int] = []
    placed: list[_Plan] = []
    for plan in plans:
        art = _art(plan, rng)
        if area := _place(picture, owner, art, areas, crowded, rng):
            areas.append(area)
            placed.append(plan)
    if not placed or not _holds(placed, split):
        return None
    masks = [owner == i for i in range(len(placed))]
    things = tuple(
        Thing(plan.kind, plan.style, plan.colour, plan.length, mask, _box(mask))
        for plan, mask in zip(placed, masks, strict=True)
    )
    return Scene(PIL.Image.fromarray(picture.round().clip(0, 255).astype(np.uint8)), things)


def _box(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box_of(mask).tolist()
    return x0, y0, x1, y1


def _holds(plans: Sequence[_Plan], split: Split) -> bool:
    kinds = list({plan.kind.slug: plan.kind for plan in plans}.values())
    pairs = any(held_out_pair(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    odd = any(plan.style == held_out_style(plan.kind) for plan in plans)
    return (pairs, odd) == (split == "combinations", split == "styles")


def _plan(rng: np.random.Generator, config: SceneConfig, split: Split) -> list[_Plan]:
    """Which things: some classes, one to four of each."""
    total = int(rng.integers(1, config.max_things, endpoint=True))
    counts: list[int] = []
    while (left := total - sum(counts)) > 0:
        several = left > 1 and rng.random() < 0.4
        counts.append(int(rng.integers(2, min(left, MOST_OF_A_CLASS), endpoint=True)) if several else 1)
    if split == "combinations" and len(counts) == 1:
        counts.append(1)
    kinds = _choose_kinds(len(counts), rng, split)
    plans = []
    for number, (kind, count) in enumerate(zip(kinds, counts, strict=False)):
        plans += _instances(kind, count, sum(counts), rng, config, split == "styles" and number == 0)
    return [plans[i] for i in rng.permutation(len(plans))]


def _choose_kinds(count: int, rng: np.random.Generator, split: Split) -> list[ThingClass]:
    order = [classes()[i] for i in rng.permutation(len(classes()))]
    if split == "styles":
        order.sort(key=lambda kind: held_out_style(kind) is None)  # stable: still in drawn order
        order = [order[0], *(kind for kind in order[1:] if held_out_style(kind) is None)]
    chosen: list[ThingClass] = []
    for kind in order:
        if len(chosen) == count:
            break
        if any(kind.group == other.group for other in chosen):
            continue
        out = [held_out_pair(kind, other) for other in chosen]
        wanted = split == "combinations" and len(chosen) == 1
        if any(out) == wanted or (split == "combinations" and len(chosen) > 1):
            chosen.append(kind)
    return chosen


def _instances(
    kind: ThingClass, count: int, total: int, rng: np.random.Generator, config: SceneConfig, odd: bool
) -> list[_Plan]:
    """Things of one class; `odd` ones in their held-out style. Two may differ clearly in size or paint."""
    low, high = ((0.3, 0.55), (0.24, 0.42), (0.17, 0.3))[min(total // 2, 2)]
    lengths = rng.uniform(low, high, count)
    if count == 2 and rng.random() < 0.4:
        lengths = np.asarray([rng.uniform(0.32, 0.42), rng.uniform(0.15, 0.19)])
    paints = [drawings.PAINTS[i] for i in rng.permutation(len(drawings.PAINTS))]
    if rng.random() < 0.5:
        paints = paints[:1] * len(paints)
    out = []
    for number in range(count):
        style = config.styles[int(rng.integers(len(config.styles)))]
        if (away := held_out_style(kind)) is not None and (style == away) != odd:
            others = [s for s in config.styles if s != away]
            style = away if odd else others[0] if others else style
        painted = kind.painted.get(style, False)
        colour = paints[number % len(paints)] if painted else kind.colours.get(style)
        out.append(_Plan(kind, style, colour, float(lengths[number]) * config.size))
    return out


def _art(plan: _Plan, rng: np.random.Generator) -> Float32[np.ndarray, "h w 4"]:
    """The drawing of a thing, painted, flipped, scaled and turned."""
    image = drawing(plan.kind.slug, plan.style)
    own = plan.kind.colours.get(plan.style)
    if plan.kind.painted.get(plan.style, False) and own and plan.colour:
        image = paint(image, own, plan.colour)
    if rng.random() < 0.5:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    scale = plan.length / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, PIL.Image.Resampling.BICUBIC)
    if rng.random() < 0.7:
        angle = float(rng.uniform(-20, 20))
        image = image.rotate(angle, PIL.Image.Resampling.BICUBIC, expand=True)
    return np.asarray(image.convert("RGBA"), np.float32)


def _place(
    picture: np.ndarray,
    owner: np.ndarray,
    art: Float32[np.ndarray, "h w 4"],
    areas: Sequence[int],
    crowded: bool,
    rng: np.random.Generator,
) -> int:
    """Paste a thing on top where it hides no other too much, in place; returns its pixels, 0 for no place."""
    height, width = owner.shape
    solid = art[..., 3] > 127
    side_y, side_x = solid.shape
    area = int(solid.sum())
    if area < _MIN_PIXELS * height * width or side_y > height or side_x > width:
        return 0
    for attempt in range(_ATTEMPTS):
        y, x = int(rng.integers(height - side_y + 1)), int(rng.integers(width - side_x + 1))
        window = (slice(y, y + side_y), slice(x, x + side_x))
        hidden = owner[window][solid]
        hidden = hidden[hidden >= 0]
        if len(hidden):
            if not crowded and attempt < _ATTEMPTS - 4:
                continue
            covered = np.bincount(hidden, minlength=len(areas))
            left = np.asarray([(owner == i).sum() for i in range(len(areas))]) - covered
            if (left < _MIN_VISIBLE * np.asarray(areas)).any():
                continue
        colours, alpha = art[..., :3], art[..., 3:] / 255
        if np.abs(colours - picture[window])[solid].mean() < _MIN_CONTRAST:
            continue
        picture[window] = picture[window] * (1 - alpha) + colours * alpha
        owner[window] = np.where(solid, len(areas), owner[window])
        return area
    return 0


def _background(rng: np.random.Generator, config: SceneConfig, split: Split) -> Float32[np.ndarray, "h w 3"]:
    size = config.size
    kind = config.backgrounds[int(rng.integers(len(config.backgrounds)))]
    first, second = rng.uniform(40, 255, (2, 3)).astype(np.float32)
    if kind == "photo":
        images = drawings.photos(config.photos or ("train" if split == "train" else "held_out"))
        image = images[int(rng.integers(len(images)))]
        side = int(min(image.size) * rng.uniform(0.6, 1))
        x, y = (int(rng.integers(full - side + 1)) for full in image.size)
        image = image.resize((size, size), PIL.Image.Resampling.BICUBIC, (x, y, x + side, y + side))
        pixels = np.asarray(image, np.float32).copy()
        return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels
    pixels = np.broadcast_to(first, (size, size, 3)).copy()
    across, down = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    angle = rng.uniform(0, 2 * np.pi)
    along = (across * np.cos(angle) + down * np.sin(angle)).astype(np.float32)
    if kind == "gradient":
        part = (along - along.min()) / (along.max() - along.min())
        pixels += part[..., None] * (second - first)
    elif kind == "texture":
        pattern = int(rng.integers(4))
        period = rng.uniform(0.06, 0.2)
        if pattern == 0:
            part = np.sin(2 * np.pi * along / period) > 0
        elif pattern == 1:
            part = (np.floor(across / period) + np.floor(down / period)) % 2
        elif pattern == 2:
            part = np.hypot(across % period - period / 2, down % period - period / 2) < period / 4
        else:
            coarse = PIL.Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8))
            part = np.asarray(coarse.resize((size, size), PIL.Image.Resampling.BICUBIC), np.float32) / 255
        near = first + 0.35 * (second - first)  # faint, so that things stand out
        pixels += part.astype(np.float32)[..., None] * (near - first)
        pixels += rng.normal(0, 4, pixels.shape).astype(np.float32)
    return pixels
