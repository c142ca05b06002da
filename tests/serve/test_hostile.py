"""What comes from outside may be anything: the described API, pictures and JSON, all bent and broken."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from lgjax.serve.api import create_app
from tests.infer.model import model
from tests.serve.hostile import FILES, LIMITS, picture_or_fault, question_or_fault
from tests.serve.server import ask, data_url, png
from tests.serve.test_api import CLICK


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
    picture_or_fault(data)


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
    question_or_fault(json.dumps(body))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("what", ["picture", "json"])
def test_fuzzing_finds_nothing_else(what, tmp_path):
    line = [sys.executable, "-m", "tests.serve.fuzz", what, str(tmp_path), "-max_total_time=30"]
    fuzzed = subprocess.run(line, capture_output=True, text=True, errors="replace", timeout=600)
    assert fuzzed.returncode == 0 and not list(tmp_path.glob("fault_*")), fuzzed.stderr[-3000:]
    assert int(re.findall(r"Done (\d+) runs", fuzzed.stderr)[0]) > 1000


api = schemathesis.openapi.from_asgi("/openapi.json", create_app(model(), "debug", limits=LIMITS))


@api.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_its_own_description(case):
    # what fits the description may still make no sense: that is the 400 of the description
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
