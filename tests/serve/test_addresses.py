"""Requests that name addresses stop before the page; others pass as they are."""

import json
from pathlib import Path

import fastapi
import pytest
from fastapi.testclient import TestClient

from lgjax.serve.addresses import NothingFetched

ADDRESSES = ["http://10.0.0.1/x", "HtTpS://a/x", "ftp://a/x", "http%3A%2F%2Fa/x", "http%253A%252F%252Fa/x"]
OUTSIDE = ["/etc/passwd", "/tmp/gradio/../x.png", "photo.png", "/tmp/gradio2/x.png", "/tmp/gradio/\0"]


@pytest.fixture
def client():
    """An application that tells what reaches it."""
    inner, app = fastapi.FastAPI(), fastapi.FastAPI()

    @inner.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])
    async def echo(request: fastapi.Request) -> fastapi.Response:
        return fastapi.Response(await request.body())

    app.mount("/", NothingFetched(inner, Path("/tmp/gradio")))
    return TestClient(app)


@pytest.mark.parametrize("url", ADDRESSES)
def test_addresses_are_refused_wherever_a_file_may_be_named(client, url):
    for path in (f"/gradio_api/file={url}", f"/gradio_api/file/{url}"):
        reply = client.get(path)
        assert reply.status_code == 403 and "nothing is fetched" in reply.text
    for body in ({"data": [None, {"path": url}]}, [{"a": [{"path": f" {url}", "meta": {}}]}]):
        for code in ("utf-8", "utf-16"):
            reply = client.post("/gradio_api/queue/join", content=json.dumps(body).encode(code))
            assert reply.status_code == 400 and "nothing is fetched" in reply.text


@pytest.mark.parametrize("path", OUTSIDE)
def test_files_that_were_not_uploaded_are_refused(client, path):
    assert client.post("/gradio_api/queue/join", json={"data": [{"path": path}]}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {"data": ["what is http://a/x ?", {"path": "/tmp/gradio/ab/photo.png", "url": "http://a/file=/tmp"}]},
        {"path": None},
        "http://a/x",
    ],
)
def test_words_and_uploaded_files_pass(client, body):
    assert client.get("/gradio_api/file=/tmp/gradio/ab/http.png").status_code == 200
    sent = json.dumps(body).encode()
    assert client.post("/gradio_api/queue/join", content=sent).content == sent
    assert client.post("/login", content=b"username=lgjax&password=http://").content[:9] == b"username="


def test_a_body_nested_too_deeply_is_refused(client):
    assert client.post("/gradio_api/run/x", content=b"[" * 100_000).status_code == 400
