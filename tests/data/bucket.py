"""A bucket of Google Cloud Storage on loopback: files of a folder, to list and to read in parts."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

BUCKET = "things"
CHUNK = 2**14  # bytes that are on their way unasked
_OBJECT = re.compile(rf"(?:/download)?/storage/v1/b/{BUCKET}/o/(.+)")


class Bucket:
    """`root`: the folder; `sent`: bytes of each file that readers took."""

    def __init__(self, root: Path) -> None:
        self.root, self.sent = root, Counter[str]()

    def about(self, name: str) -> dict[str, Any] | None:
        path = self.root / name
        if not path.is_file():
            return None
        time = "2026-01-01T00:00:00.000Z"
        known = {"kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(path.stat().st_size)}
        return {**known, "generation": "1", "metageneration": "1", "timeCreated": time, "updated": time}

    def listing(self, prefix: str) -> dict[str, Any]:
        """Files right below a prefix, and folders as prefixes of their own."""
        folder = self.root / prefix
        inside = sorted(folder.iterdir()) if prefix.endswith("/") and folder.is_dir() else []
        items = [self.about(f"{prefix}{path.name}") for path in inside if path.is_file()]
        prefixes = [f"{prefix}{path.name}/" for path in inside if path.is_dir()]
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            if url.path == f"/storage/v1/b/{BUCKET}":
                self.tell({"kind": "storage#bucket", "name": BUCKET})
            elif url.path == f"/storage/v1/b/{BUCKET}/o":
                self.tell(bucket.listing(asked.get("prefix", "")))
            elif found := _OBJECT.fullmatch(url.path):
                name = unquote(found[1])
                if "alt" in asked:
                    self.give(name)
                else:
                    self.tell(bucket.about(name))
            else:
                self.give(unquote(url.path).removeprefix(f"/{BUCKET}/"))  # the older way to ask

        def tell(self, what: dict[str, Any] | None) -> None:
            absent = {"error": {"code": 404, "message": "there is none"}}
            self.answer(404 if what is None else 200, json.dumps(absent if what is None else what).encode())

        def give(self, name: str) -> None:
            path = bucket.root / name
            if not path.is_file():
                self.tell(None)
                return
            data = path.read_bytes()
            part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if part is None:
                self.answer(200, data, of=name)
                return
            first, last = int(part[1] or 0), min(int(part[2] or len(data)), len(data) - 1)
            if not part[1]:  # so many from the end
                first, last = max(len(data) - int(part[2]), 0), len(data) - 1
            if first > last:
                self.answer(416, b"")
                return
            self.answer(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}", of=name)

        def answer(self, status: int, data: bytes, part: str = "", of: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if part:
                self.send_header("Content-Range", part)
            self.end_headers()
            # readers ask for the rest of a file, and hang up when they have enough
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
            try:
                for start in range(0, len(data), CHUNK):
                    self.wfile.write(data[start : start + CHUNK])
                    bucket.sent[of] += len(data[start : start + CHUNK])
            except ConnectionError:
                self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Bucket]:
    """Let gs://things be the files below `root`, for readers in Python and in C++ of this process."""
    bucket = Bucket(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(bucket))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks another service first
        try:
            yield bucket
        finally:
            server.shutdown()
            server.server_close()
