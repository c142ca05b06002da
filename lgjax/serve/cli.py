"""`lgjax serve`: the page and the HTTP API of one model."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lgjax.serve.limits import Limits

_GRACE = 30  # seconds for answers to reach their readers once all are given


def serve(
    *,
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")] = "tiny",
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    limits: Limits = Limits(),  # noqa: B008
) -> None:
    """Show a page to ask about pictures, and answer OpenAI's chat completions at /v1 (described at /docs).

    SIGTERM ends the server when every question that it took is answered.

    Args:
        checkpoint: Folder made by `lgjax convert`; "tiny" comes with the package and knows drawn things, not
            photographs, "debug" is untrained.
        host: Address to listen at; 0.0.0.0 for all of the machine's.
        port: Port to listen at.
        token_file: File with a bearer token that requests must bring; on the page it is the password of the
            user lgjax.
        dtype: Numbers of the language model; auto takes float32 where it fits into memory.
        limits: Bounds of what clients may ask.
    """
    limits.check()
    token = None
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError(f"the token file '{token_file}' is empty")
    try:
        import uvicorn

        from lgjax.serve.api import create_app
        from lgjax.serve.app import mount
        from lgjax.serve.ending import Server
    except ModuleNotFoundError as error:
        raise ValueError(f'serving needs {error.name}: pip install "lgjax[serve]"') from error
    from lgjax.infer.chat import GroundedChat
    from lgjax.infer.load import DEBUG, TINY

    model, name = GroundedChat.load(checkpoint, dtype=dtype).model, Path(checkpoint).resolve().name
    app = create_app(model, name, limits=limits, token=token)
    # more connections than the queue and the pages need are refused by the server itself
    most = 4 * limits.waiting + 64
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        limit_concurrency=most,
        log_level="warning",
        timeout_graceful_shutdown=_GRACE,
    )
    # uvicorn raises the signal once more at its end, which would kill the process with the folder still there
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    packaged = checkpoint in (TINY, DEBUG) and not Path(checkpoint).exists()
    with tempfile.TemporaryDirectory(prefix="lgjax-page-") as folder:
        end_pages = mount(app, model, name, limits, Path(folder), token, packaged)
        print(f"{name} answers at http://{host}:{port} (/docs describes the API)", flush=True)
        Server(config, app.state.desk, end_pages).run()
