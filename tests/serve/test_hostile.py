"""What comes from outside may be anything: the described API, pictures and JSON, all bent and broken."""

import json

import pydantic
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from lgjax.serve.api import create_app
from lgjax.serve.limits import Limits
from lgjax.serve.picture import check_picture, decode_picture
from lgjax.serve.schema import ChatRequest
from tests.infer.model import model
from tests.serve.server import ask, data_url, png
from tests.serve.test_api import CLICK, saved

LIMITS = Limits(max_tokens=4, pixels=50_000, gather_seconds=0.0)
FILES = [png(0), saved("JPEG"), saved("WEBP"), saved("GIF"), saved("BMP")]


@st.composite
def files(draw) -> bytes:
    """A picture file with bytes changed, cut out and put in."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.integers(1, len(data)))]) if draw(st.booleans()) else bytes(data)


@settings(max_examples=400)
@given(files() | st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_a_fault_of_one_line(data):
    try:
        size = check_picture(data, LIMITS)
        picture = decode_picture(data, LIMITS)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert picture.mode == "RGB" and picture.size == size and size[0] * size[1] <= LIMITS.pixels


TEXT = st.sampled_from(["What?", "% ?", "is % ?", "", "<image>", "a\x00b", "\ud800", "</s>", "x" * 30_000])
NUMBER = st.integers() | st.floats() | st.none() | st.booleans()
ANYTHING = st.recursive(NUMBER | TEXT, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
REGION = st.fixed_dictionaries(
    {"type": st.sampled_from(["click", "box", "scribble", "mask", "again", "x"])},
    optional={
        name: ANYTHING
        for name in ("x", "y", "x0", "y0", "x1", "y1", "points", "size", "counts", "number", "reading")
    },
)
URL = st.sampled_from([data_url(png(0)), data_url(b"x"), "http://x/", "data:image/png;base64,?"])
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"])},
    optional={"text": TEXT, "image_url": st.fixed_dictionaries({"url": URL}) | ANYTHING},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT | st.lists(PART, max_size=3)},
    optional={"regions": st.lists(REGION, max_size=2) | ANYTHING},
)
GOOD = st.builds(lambda text, regions: ask(text, regions=regions), TEXT, st.lists(st.just(CLICK), max_size=2))
BODY = st.fixed_dictionaries(
    {"messages": st.lists(GOOD | MESSAGE, max_size=3) | ANYTHING},
    optional={
        name: ANYTHING
        for name in (
            "model",
            "stream",
            "max_tokens",
            "temperature",
            "top_p",
            "seed",
            "stop",
            "n",
            "threshold",
        )
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(BODY)
def test_any_json_is_a_question_or_a_fault(body):
    try:
        question = ChatRequest.model_validate_json(json.dumps(body)).question(LIMITS)
    except pydantic.ValidationError:
        return
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert 1 <= question.options.max_tokens <= LIMITS.max_tokens


api = schemathesis.openapi.from_asgi("/openapi.json", create_app(model(), "debug", limits=LIMITS))


@api.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_its_own_description(case):
    # what fits the description may still make no sense: that is the 400 of the description
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
