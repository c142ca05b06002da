"""A server on a port of its own, for tests that talk to it as clients do."""

import base64
import contextlib
import io
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import PIL.Image
import uvicorn
from fastapi import FastAPI

from tests.infer.model import picture


def started(server: uvicorn.Server) -> tuple[threading.Thread, int]:
    """Run a server on a thread until it listens; the values are the thread and its port."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    return thread, server.servers[0].sockets[0].getsockname()[1]


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a thread; the value is its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread, port = started(server)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def command(*options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`lgjax serve` with the untrained model as a process of its own; the value is it and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    line = [sys.executable, "-m", "lgjax", "serve", "--checkpoint", "debug", "--port", port, *options]
    server = subprocess.Popen(line)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1800):
            time.sleep(0.1)
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"{address}/healthz").json()["status"] == "ok"
                break
            assert server.poll() is None
        yield server, address
    finally:
        server.kill()
        server.wait()


def saved(form: str, seed: int = 0) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture(seed)).save(file, form)
    return file.getvalue()


def png(seed: int = 0) -> bytes:
    return saved("PNG", seed)


def choose(address: str, path: str, reader: str, **more) -> httpx.Response:
    """Ask the page to take a file of the server as its picture, as a browser does after uploading it."""
    parts = httpx.get(f"{address}/config").json()["dependencies"]
    take = next(
        d["id"] for d in parts if d["inputs"] and [name for _, name in d["targets"]][:1] == ["upload"]
    )
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
    body = {"fn_index": take, "session_hash": reader, "data": [None, file]}
    return httpx.post(f"{address}/gradio_api/queue/join", json=body)


def choose_picture(address: str, path: str, reader: str, **more) -> str:
    """What the page tells the reader of that."""
    assert choose(address, path, reader, **more).status_code == 200
    return httpx.get(f"{address}/gradio_api/queue/data?session_hash={reader}", timeout=60).text


def uploaded(address: str, data: bytes, name: str = "photo.png") -> str:
    """Upload a file to the page; its path on the server."""
    return httpx.post(f"{address}/gradio_api/upload", files={"files": (name, data, "image/png")}).json()[0]


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def ask(text: str, seed: int = 0, url: str | None = None, **more) -> dict:
    """A user's message with a picture."""
    image = {"type": "image_url", "image_url": {"url": url or data_url(png(seed))}}
    return {"role": "user", "content": [{"type": "text", "text": text}, image], **more}


def post(address: str, *messages: dict, timeout: float = 120, **body) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json={"messages": messages, **body}, timeout=timeout)
