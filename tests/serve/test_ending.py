"""The server ends when its answers are out, whoever else is still connected."""

import concurrent.futures
import socket
import threading
import time

import uvicorn

from lgjax.serve.api import create_app
from lgjax.serve.ending import Server
from tests.infer.model import model
from tests.serve.server import ask, post, started

HALF = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"messages"'
)


def test_a_request_that_never_ends_does_not_hold_up_the_end():
    """An answer that takes longer than the second which connections have at the end comes out whole."""
    app, ended = create_app(model(), "debug"), []
    config = uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = Server(config, app.state.desk, lambda: ended.append(app.state.desk.closing))
    thread, port = started(server)
    answering, go_on, answer = threading.Event(), threading.Event(), app.state.desk._answer

    def slow(planned) -> None:
        answering.set()
        assert go_on.wait(60)
        answer(planned)

    app.state.desk._answer = slow
    with (
        socket.create_connection(("127.0.0.1", port)) as half,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        half.sendall(HALF)
        reply = pool.submit(post, f"http://127.0.0.1:{port}", ask("What?"), max_tokens=2)
        assert answering.wait(60)
        server.should_exit = True
        time.sleep(2)
        assert thread.is_alive() and not ended
        go_on.set()
        assert reply.result().status_code == 200
        thread.join(20)
        assert not thread.is_alive() and ended == [True]
