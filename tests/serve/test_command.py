"""`lgjax serve` as a process: it starts, answers, and ends without losing an answer."""

import concurrent.futures
import importlib.util
import signal
import time

import httpx
import pytest

from lgjax.cli import main
from tests.serve.server import ask, choose_picture, command, png, post, uploaded


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


def upload(address: str, reader: str) -> None:
    """Show the page a picture."""
    assert '"success":true' in choose_picture(address, uploaded(address, png()), reader).replace(" ", "")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_files_of_the_page_go_with_the_conversation_and_with_the_server(stop, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with command("--limits.page-minutes", "1") as (server, address):
        upload(address, "first")
        assert len(list(tmp_path.glob("lgjax-page-*/*"))) == 1
        for _ in range(90 if stop == signal.SIGTERM else 0):
            time.sleep(1)
            if not list(tmp_path.glob("lgjax-page-*/*")):
                break
        else:
            assert stop == signal.SIGINT, "the conversation is over, and its folder is still there"
        upload(address, "second")
        assert list(tmp_path.glob("lgjax-page-*/*")) and list(tmp_path.rglob("photo.png"))
        server.send_signal(stop)
        server.wait(60)
    assert not list(tmp_path.glob("lgjax-page-*")) and not list(tmp_path.rglob("photo.png"))


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
