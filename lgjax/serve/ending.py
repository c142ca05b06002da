"""How the server ends: everybody who waits is answered, and nobody holds it up after that."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import uvicorn

from lgjax.serve.queue import Desk


class Server(uvicorn.Server):
    """Ends when `desk` has answered every question that it took.

    Connections that are open then, such as one whose request never comes to its end, are cut when
    `timeout_graceful_shutdown` of `config` is over; pages, which have one open all the time, by `end_pages`.
    """

    def __init__(self, config: uvicorn.Config, desk: Desk, end_pages: Callable[[], None]) -> None:
        super().__init__(config)
        self._desk = desk
        self._end_pages = end_pages

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the desk, however long it takes, then for the connections."""
        closing = threading.Thread(target=self._desk.close, daemon=True)
        closing.start()
        while closing.is_alive() and not self.force_exit:
            await asyncio.sleep(0.1)
        self._end_pages()
        await super().shutdown(sockets)
