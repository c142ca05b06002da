"""What a reader of the page can make the server open: uploaded pictures within the limits, and nothing else."""

import importlib.util
import re

import httpx
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
    told = choose_picture(address, "/etc/passwd", "x")
    assert re.search(r'"success":\s*false', told) and "root:" not in told
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
