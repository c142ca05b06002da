"""Pictures in, arrays out: loading, the two views the networks see, and boxes and masks back to the picture.

An image size is (width, height) in pixels, as PIL gives it. The grounding and visual-prompt networks see a
square canvas with the picture in its top left corner; coordinates "of the canvas" are divided by the longer
side of the picture, so both axes share one scale.
Source: spec/language_model.md 2.1, spec/visual_prompts.md 1, spec/grounding_model.md 6.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
from jaxtyping import Bool, Float, Float32, Shaped, UInt8

ImageSize = tuple[int, int]
Number = int | float
ImageSource = str | Path | bytes | PIL.Image.Image | np.ndarray

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CANVAS_GREY = 128
CLICK_SIDE = 0.006
MAX_RATIO = 100


def load_image(source: ImageSource) -> PIL.Image.Image:
    """Return a picture as RGB with its EXIF rotation applied.

    `source` is a path, the bytes of a file, a PIL image or a uint8 array [height, width, 3] in RGB.
    Transparency is dropped, not blended, as in the original; 16-bit grey is scaled to 8 bits.
    Source: spec/training_and_data.md 7.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, a damaged or truncated one, or an array of another type or shape.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(
                "image array must be uint8 [height, width, 3] with at least one pixel, "
                f"found {source.dtype} {list(source.shape)}"
            )
        return PIL.Image.fromarray(source)
    if isinstance(source, PIL.Image.Image):
        return _to_rgb(source, "image")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "image", len(source))
    path = _existing(source)
    return _decode(path, f"'{path}'", path.stat().st_size)


def image_size(path: Path) -> ImageSize:
    """Return the (width, height) of a picture with its EXIF rotation applied; its pixels are not decoded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or its head is damaged.
    """
    with _open(_existing(path), f"'{path}'", path.stat().st_size) as image:
        return shown_size(image, f"'{path}'")


def shown_size(image: PIL.Image.Image, name: str = "image") -> ImageSize:
    """Return the (width, height) of an opened picture with its EXIF rotation applied; nothing is decoded.

    Raises:
        ValueError: its head is damaged.
    """
    try:
        turned = image.getexif().get(PIL.ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{name} is damaged or truncated: {error}") from error
    return (image.height, image.width) if turned else image.size


def _existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.is_file():
        kind = "a folder, not a picture" if path.is_dir() else "not there"
        raise FileNotFoundError(f"image file '{path}' is {kind}")
    return path


def _decode(file: Path | io.BytesIO, name: str, num_bytes: int) -> PIL.Image.Image:
    with _open(file, name, num_bytes) as image:
        return _to_rgb(image, name)


def _open(file: Path | io.BytesIO, name: str, num_bytes: int) -> PIL.Image.Image:
    try:
        return PIL.Image.open(file)
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} ({num_bytes} bytes) is not a picture that PIL can read") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged or truncated: {error}") from error
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}") from error


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels (size {image.width} x {image.height})")
    try:
        image = PIL.ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{name} is damaged or truncated: {error}") from error
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"{name} has 32-bit pixels (mode {image.mode}); convert it to 8 bits first")
    return image.convert("RGB")


def check_shape(size: ImageSize) -> None:
    """Refuse a picture of which a square crop shows next to nothing; scaling it would take gigabytes.

    Raises:
        ValueError: one side is more than a hundred times the other.
    """
    if max(size) > MAX_RATIO * min(size):
        raise ValueError(f"picture is {size[0]} x {size[1]}: one side is over {MAX_RATIO} times the other")


def clip_crop(image: PIL.Image.Image, size: int = 224) -> UInt8[np.ndarray, "size size 3"]:
    """Return what CLIP sees of a picture: short side to `size` (bicubic), centre crop.

    The ends of a picture that is not square are cut off. Source: spec/language_model.md 2.1.

    Raises:
        ValueError: see `check_shape`.
    """
    width, height = image.size
    check_shape(image.size)
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    image = image.resize((size, scaled) if width <= height else (scaled, size), PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def clip_preprocess(image: PIL.Image.Image, size: int = 224) -> Float32[np.ndarray, "size size 3"]:
    """Return CLIP's view of a picture, normalised with CLIP's mean and deviation.

    Source: spec/language_model.md 2.1.
    """
    mean, std = np.array(CLIP_MEAN, np.float32), np.array(CLIP_STD, np.float32)
    return ((clip_crop(image, size) * (1 / 255)).astype(np.float32) - mean) / std


class Placement(NamedTuple):
    """A picture of `size` fills the top left `scaled` pixels (width, height) of a square of side `canvas`."""

    size: ImageSize
    scaled: ImageSize
    canvas: int


def place_on_canvas(size: ImageSize, canvas: int = 1024) -> Placement:
    """Fit a picture of `size` into a square of side `canvas`; small pictures are scaled up.

    Sides are rounded half to even and are at least one pixel. Source: spec/visual_prompts.md 1.1.
    """
    width, height = size
    scale = min(canvas / height, canvas / width)
    return Placement(size, (max(1, round(width * scale)), max(1, round(height * scale))), canvas)


def square_canvas(
    image: PIL.Image.Image, canvas: int = 1024
) -> tuple[UInt8[np.ndarray, "canvas canvas 3"], Placement]:
    """Return the grounding view: the picture resized to fit (bilinear), top left on a grey square, 0..255.

    Source: spec/visual_prompts.md 1.1, spec/grounding_model.md 2.
    """
    placement = place_on_canvas(image.size, canvas)
    width, height = placement.scaled
    pixels = np.full((canvas, canvas, 3), CANVAS_GREY, np.uint8)
    pixels[:height, :width] = np.asarray(image.resize((width, height), PIL.Image.Resampling.BILINEAR))
    return pixels, placement


def canvas_to_pixels(boxes: Float[np.ndarray, "*n 4"], size: ImageSize) -> Float[np.ndarray, "*n 4"]:
    """Turn boxes in [0, 1] of the canvas into pixels of a picture of `size`; cxcywh or xyxy, not clipped."""
    return boxes * boxes.dtype.type(max(size))


def prompt_from_click(x: Number, y: Number, size: ImageSize) -> Float32[np.ndarray, " 4"]:
    """Turn a clicked pixel into a prompt box (cx, cy, w, h) in [0, 1] of the canvas, 0.006 wide.

    Source: spec/visual_prompts.md 1.2.

    Raises:
        ValueError: the point lies outside the picture.
    """
    _check_inside(x, y, size)
    longer = max(size)
    return np.array([x / longer, y / longer, CLICK_SIDE, CLICK_SIDE], np.float32)


def prompt_from_box(
    x0: Number, y0: Number, x1: Number, y1: Number, size: ImageSize
) -> Float32[np.ndarray, " 4"]:
    """Turn two opposite corner pixels, both inside the box, into a prompt box (cx, cy, w, h) of the canvas.

    The width is the difference of the pixel indices, without the one pixel more that a count would give.
    Source: spec/visual_prompts.md 1.2.

    Raises:
        ValueError: a corner lies outside the picture.
    """
    _check_inside(x0, y0, size)
    _check_inside(x1, y1, size)
    x0, x1, y0, y1 = (v / max(size) for v in (min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)))
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], np.float32)


def _check_inside(x: Number, y: Number, size: ImageSize) -> None:
    width, height = size
    if not (math.isfinite(x) and math.isfinite(y) and 0 <= x < width and 0 <= y < height):
        raise ValueError(f"point ({x}, {y}) lies outside the picture ({width} x {height} pixels)")


def restore_mask(
    mask_logits: Shaped[np.ndarray, "*n h w"], size: ImageSize
) -> Bool[np.ndarray, "*n height width"]:
    """Turn masks or mask logits of the canvas, at any resolution, into masks of a picture of `size`.

    Logits are cut at 0 first; then each pixel of a square of the longer side takes the cell
    floor(index * (cells / side)), reckoned in float32 as PyTorch's "nearest" does, and the padding is cut
    off. Source: spec/grounding_model.md 6, spec/visual_prompts.md 5.
    """
    width, height = size
    cells_y, cells_x = mask_logits.shape[-2:]
    rows, columns = _nearest(cells_y, max(size))[:height], _nearest(cells_x, max(size))[:width]
    return (mask_logits > 0)[..., rows[:, None], columns]


def _nearest(cells: int, side: int) -> np.ndarray:
    index = np.arange(side, dtype=np.float32) * (np.float32(cells) / np.float32(side))
    return np.minimum(index.astype(np.int64), cells - 1)
