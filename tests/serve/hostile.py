"""What must hold of anything that comes from outside: it is taken, or it is a fault of one line."""

from __future__ import annotations

import pydantic

from lgjax.serve.limits import Limits
from lgjax.serve.picture import check_picture, decode_picture
from lgjax.serve.schema import ChatRequest
from tests.serve.server import png, saved

LIMITS = Limits(max_tokens=4, pixels=50_000, gather_seconds=0.0)
FILES = [png(0), saved("JPEG"), saved("WEBP"), saved("GIF"), saved("BMP")]


def picture_or_fault(data: bytes) -> None:
    """Read the bytes of a file."""
    try:
        size = check_picture(data, LIMITS)
        picture = decode_picture(data, LIMITS)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert picture.mode == "RGB" and picture.size == size and size[0] * size[1] <= LIMITS.pixels


def question_or_fault(body: str | bytes) -> None:
    """Read the body of a request."""
    try:
        question = ChatRequest.model_validate_json(body).question(LIMITS)
    except pydantic.ValidationError:
        return
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert 1 <= question.options.max_tokens <= LIMITS.max_tokens
