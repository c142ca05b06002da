"""Keeps addresses and files of the machine from the page: gradio would fetch, or copy, what they name."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOW = "nothing is fetched from elsewhere; upload the picture itself"


class NothingFetched:
    """Refuses, before `app` sees it, a request for an address, or for a file outside of `folder`, of uploads.

    Source: the routes `file=` and `queue/join` of gradio 6, which fetch `http://` on behalf of the reader.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if ":/" in unquote(unquote(scope["path"])):  # no path of an uploaded file has these two together
                raise HTTPException(403, _HOW)
            # an upload is no JSON, and its progress is shown while it comes
            if scope["method"] == "POST" and not scope["path"].rstrip("/").endswith("/upload"):
                receive = await _read(receive, self._folder)
        await self._app(scope, receive, send)


async def _read(receive: Receive, folder: Path) -> Receive:
    """Look at the whole body, and return what gives it once more."""
    parts: list[bytes] = []
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    body = b"".join(parts)
    try:
        json.loads(body, object_hook=functools.partial(_check_file, folder))
    except RecursionError as error:
        raise HTTPException(400, "the body is nested too deeply") from error
    except ValueError:
        pass  # a form, or what gradio refuses itself
    if message["type"] == "http.request":
        message = {"type": "http.request", "body": body}
    first: list[Message] = [message]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _check_file(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Refuse an object that stands for a file, which is one with a path, unless it lies in `folder`."""
    path = found.get("path")
    if isinstance(path, str) and ("\0" in path or not Path(path).resolve().is_relative_to(folder)):
        raise HTTPException(400, _HOW)
    return found
