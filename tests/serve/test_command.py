"""`lgjax serve` as a process: it starts, answers, and ends without losing an answer."""

import concurrent.futures
import signal
import time

import httpx
import pytest

from lgjax.cli import main
from tests.serve.server import ask, command, post


@pytest.mark.slow
def test_sigterm_ends_the_server_when_every_answer_is_out():
    with command("--limits.batch", "1") as (server, address):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(post, address, ask("What?"), max_tokens=60, stream=bool(i % 2), timeout=300)
                for i in range(4)
            ]
            while httpx.get(f"{address}/healthz").json()["waiting"] < 3:
                time.sleep(0.05)
            server.send_signal(signal.SIGTERM)
            replies = [reply.result() for reply in asked]
        assert [reply.status_code for reply in replies] == [200] * 4
        assert all("[DONE]" in reply.text for reply in replies[1::2])
        assert server.wait(60) in (0, 143, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--checkpoint", "nowhere"], "no checkpoint folder 'nowhere'"),
        (["--checkpoint", "debug", "--limits.batch", "0"], "limit batch 0 must be at least 1"),
        (["--checkpoint", "debug", "--token-file", "/dev/null"], "is empty"),
        (["--checkpoint", "debug", "--token-file", "nowhere"], "nowhere"),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments, part, capsys):
    with pytest.raises(SystemExit):
        main(["serve", *arguments])
    line = capsys.readouterr().err
    assert part in line and line.count("\n") == 1
