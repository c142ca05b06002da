"""What a reader of the page can make the server open: uploaded pictures within the limits, nothing else."""

import importlib.util
import io
import json
import re
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest

from tests.serve.server import choose, choose_picture, command, png, uploaded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio"),
]
ADDRESSES = [
    "http://100.64.0.1:9/x.png",
    "HTTPS://example.com/x.png",
    "ftp://example.com/x.png",
    "http%3A%2F%2F100.64.0.1:9/x.png",
]


@pytest.fixture(scope="module")
def server():
    """A process and its address."""
    with command() as served:
        yield served


def test_files_of_the_machine_stay_unread(server):
    """No path that a reader of the page sends is opened, unless it is a file that was uploaded."""
    _, address = server
    assert choose(address, "/etc/passwd", "x").status_code == 400
    for path in ("/etc/passwd", "../../etc/passwd", "%2Fetc%2Fpasswd"):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("url", ADDRESSES)
def test_nothing_is_fetched(server, url):
    """No address is looked up, whichever way it comes."""
    _, address = server
    for place in ("file=", "file/", "proxy="):
        for method in ("GET", "HEAD"):
            reply = httpx.request(method, f"{address}/gradio_api/{place}{url}")
            assert reply.status_code == 403
            assert method == "HEAD" or "nothing is fetched" in reply.text
    reply = choose(address, url, "y")
    assert reply.status_code == 400 and "nothing is fetched" in reply.text
    body = {"data": [[{"content": {"path": url}}]], "session_hash": "z", "fn_index": 0}
    assert httpx.post(f"{address}/gradio_api/run/predict", json=body).status_code == 400


def test_words_and_uploads_may_hold_addresses(server):
    """What a reader writes is no file; the address by which the browser shows an upload is not read."""
    _, address = server
    path = uploaded(address, png())
    told = choose_picture(address, path, "own", url=f"{address}/gradio_api/file={path}")
    assert '"success":true' in told.replace(" ", "")
    assert httpx.get(f"{address}/gradio_api/file={path}").content == png()
    body = {"data": ["what is http://example.com ?"], "session_hash": "w", "fn_index": 10**6}
    assert "nothing is fetched" not in httpx.post(f"{address}/gradio_api/queue/join", json=body).text


def grey(width: int, height: int, form: str = "PNG") -> bytes:
    """The bytes of a grey picture file; noise, where it is small."""
    pixels = np.zeros((height, width), np.uint8)
    if pixels.size < 10**6:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def warnings(told: str) -> list[str]:
    """The lines that a reader sees."""
    events = [json.loads(line[5:]) for line in told.split("\n") if line.startswith("data:")]
    return [event["log"] for event in events if event["msg"] == "log"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"no picture at all", "17 bytes are no PNG, JPEG or WEBP picture"),
        (grey(50, 40, "TIFF"), "are no PNG, JPEG or WEBP picture"),
        (grey(200, 200)[:9000], "is damaged or truncated"),
        (grey(4001, 4000), "4001 x 4000 pixels, more than 16000000"),
    ],
    ids=["text", "TIFF", "truncated", "large"],
)
def test_a_file_that_is_no_picture_gets_one_line(server, data, line):
    _, address = server
    (said,) = warnings(choose_picture(address, uploaded(address, data), "faults"))
    assert line in said


def test_pictures_over_the_limit_are_not_decoded(server):
    """A file of few bytes with many grey pixels costs neither memory nor time."""
    process, address = server

    def peak() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) // 1024

    path = uploaded(address, grey(13000, 13000))
    before = peak()
    (said,) = warnings(choose_picture(address, path, "bomb"))
    assert "13000 x 13000 pixels, more than 16000000" in said
    assert peak() - before < 100


def test_a_grey_picture_is_taken(server):
    _, address = server
    told = choose_picture(address, uploaded(address, grey(50, 40)), "grey")
    assert '"success":true' in told.replace(" ", "") and not warnings(told)
