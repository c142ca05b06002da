"""Pictures that come from outside: data URLs, and files that are nothing but pictures."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import re
from collections.abc import Iterator

import PIL.Image

from lgjax.data.images import ImageSize, check_shape, load_image, shown_size
from lgjax.serve.limits import Limits, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)
_HOW = "send the picture itself as data:image/png;base64,... (or jpeg, webp)"


def read_data_url(url: str) -> bytes:
    """Take the bytes of a picture out of a data URL; nothing is ever fetched.

    Raises:
        ValueError: another kind of URL, or base64 that cannot be decoded.
    """
    head = _DATA_URL.match(url)
    if head is None:
        raise ValueError(f"image_url '{url[:40]}' is no picture in a data URL; nothing is fetched: {_HOW}")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"the base64 of image_url cannot be decoded: {error}") from error


def check_picture(data: bytes, limits: Limits) -> ImageSize:
    """Return (width, height) of a picture file, turned as it is shown, before its pixels are decoded.

    Raises:
        TooLarge: more pixels than `limits` lets in.
        ValueError: no picture, of another format, damaged, or a hundred times as long as wide.
    """
    with _opened(data) as image:
        width, height = image.size
        if width * height > limits.pixels:
            raise TooLarge(
                f"the picture has {width} x {height} pixels, more than {limits.pixels}; make it smaller"
            )
        check_shape(image.size)
        return shown_size(image)


def decode_picture(data: bytes, limits: Limits) -> PIL.Image.Image:
    """Decode a picture file to RGB.

    Raises:
        TooLarge, ValueError: see `check_picture`.
    """
    check_picture(data, limits)
    with _opened(data) as image:
        return load_image(image)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[PIL.Image.Image]:
    """The picture in the bytes of a file; what Pillow raises at hostile ones is of many kinds."""
    try:
        # no other format is tried: some of Pillow's readers start other programs
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except PIL.Image.DecompressionBombError as error:
        raise TooLarge(f"the picture is too large: {error}") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{len(data)} bytes are no PNG, JPEG or WEBP picture; {_HOW}") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the picture is damaged or truncated: {error}") from error
