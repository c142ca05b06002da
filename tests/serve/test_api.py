"""The HTTP API as clients meet it: the answers of the library, and one clear fault for everything else."""

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import re
import socket
import struct
import threading
import time
import zlib

import httpx
import numpy as np
import openai
import PIL.Image
import pytest

from lgjax.data import masks
from lgjax.infer import run as run_module
from lgjax.infer.regions import Again, Box, Click, Mask, Scribble
from lgjax.infer.request import Options
from lgjax.serve.api import create_app
from lgjax.serve.limits import PHRASE_BOXES, Limits
from tests.infer.model import GROUNDED, chat, model, picture
from tests.serve.server import ask, data_url, png, post, running, saved

LIMITS = Limits(
    upload_bytes=200_000, pixels=50_000, turns=3, regions=4, prompt_tokens=420, max_tokens=64, batch=4
)


@pytest.fixture(scope="module")
def app():
    return create_app(model(), "debug", limits=LIMITS)


@pytest.fixture(scope="module")
def address(app):
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120, max_retries=0)


def close(found: dict, want: dict) -> None:
    """Answers as JSON that are equal but for the last digits, which the size of a batch may change."""
    assert (found["text"], len(found["phrases"])) == (want["text"], len(want["phrases"]))
    for one, other in zip(found["phrases"], want["phrases"], strict=True):
        assert (one["text"], list(one["span"])) == (other["text"], list(other["span"]))
        np.testing.assert_allclose(one["boxes"], other["boxes"], atol=0.05)
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)
        for a, b in zip(one["masks"], other["masks"], strict=True):
            assert (masks.decode(a, (120, 90)) != masks.decode(b, (120, 90))).mean() < 1e-3


def as_answer(message: dict) -> dict:
    return {"text": message["content"], **{key: message[key] for key in ("phrases", "region_mask")}}


def test_the_official_client_gets_the_answer_of_the_library(client):
    region = {"type": "click", "x": 30, "y": 40}
    reply = client.chat.completions.create(
        model="debug",
        messages=[ask("Is % here?", regions=[region])],
        extra_body={"answer": GROUNDED, "threshold": None},
    )
    want = chat().ask(picture(0), "Is % here?", Click(30, 40), answer=GROUNDED, threshold=None)
    message = reply.choices[0].message
    assert message.content == want.text and reply.choices[0].finish_reason == "stop"
    close(as_answer(message.model_dump()), want.to_json())
    assert message.model_extra["region_mask"] == want.to_json()["region_mask"]
    assert reply.usage.completion_tokens == want.num_tokens and reply.usage.prompt_tokens > 16


def test_the_official_client_hears_the_answer_as_it_comes(client):
    stream = client.chat.completions.create(
        model="debug",
        messages=[ask("What is it?")],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"answer": GROUNDED, "threshold": 0.1},
    )
    want = chat().ask(picture(0), "What is it?", answer=GROUNDED, threshold=0.1).to_json()
    text, early, chunks = "", [], list(stream)
    for chunk in chunks[:-2]:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for phrase in delta.model_extra.get("phrases") or []:
            early.append((phrase["index"], phrase["text"], len(text)))
    assert text == want["text"]
    assert [found[:2] for found in early] == [(0, "A man"), (1, "two brown horses")]
    assert early[0][2] < len(text)  # found before the end
    last = chunks[-2].choices[0]
    assert last.finish_reason == "stop"
    close({"text": text, "phrases": last.delta.model_extra["phrases"]}, want)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 10


def test_generated_answers_are_those_of_the_library(client):
    for options in ({"max_tokens": 9}, {"max_tokens": 9, "temperature": 1.0, "seed": 7, "top_p": 0.9}):
        reply = client.chat.completions.create(model="debug", messages=[ask("What is it?")], **options)
        want = chat().ask(picture(0), "What is it?", **options)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (want.text, "length")
        assert reply.model_extra["seed"] == options.get("seed", 0)


def test_regions_of_all_kinds_over_several_turns(address):
    mask = np.zeros((90, 120), bool)
    mask[20:40, 30:60] = True
    first = [
        {"type": "scribble", "points": [[1, 1], [9, 9]], "reading": "box"},
        {"type": "mask", **masks.encode(mask)},
    ]
    second = [{"type": "again", "number": 2}, {"type": "box", "x0": 1, "y0": 2, "x1": 50, "y1": 60}]
    reply = post(
        address,
        ask("Is % left of % ?", regions=first),
        {"role": "assistant", "content": "It is, by 5 % of it."},
        {"role": "user", "content": "And is % left of % ?", "regions": second},
        answer=GROUNDED,
        threshold=None,
    ).json()
    talk = chat().start(picture(0))
    shown = [Scribble(((1, 1), (9, 9)), "box"), Mask(mask)]
    talk.ask("Is % left of % ?", shown, answer="It is, by 5 % of it.")
    again = [Again(2), Box(1, 2, 50, 60)]
    want = talk.ask("And is % left of % ?", again, answer=GROUNDED, threshold=None)
    close(as_answer(reply["choices"][0]["message"]), want.to_json())


@pytest.mark.parametrize("history", ["demo", "training"])
def test_a_conversation_goes_on_as_that_of_the_library(history, client, app, monkeypatch):
    """With the same prompt, to the last space around the phrases of earlier answers, streamed or not."""
    prompts, planned = [], app.state.desk._plan
    config = dataclasses.replace(model().config, history=history)
    monkeypatch.setattr(app.state.desk, "_model", dataclasses.replace(model(), config=config))

    def plan(question):
        request = planned(question)
        prompts.append(request.plan.tokens)
        return request

    monkeypatch.setattr(app.state.desk, "_plan", plan)
    talk, first = chat().start(picture(0), history=history), ask("What is it?")
    talk.ask("What is it?", answer=GROUNDED, threshold=None)
    want = talk.request("What is % ?", Click(5, 6), Options())[0].plan.tokens
    region = {"type": "click", "x": 5, "y": 6}
    body = {"model": "debug", "extra_body": {"answer": GROUNDED, "threshold": None}}
    whole = client.chat.completions.create(messages=[first], **body).choices[0].message
    chunks = list(client.chat.completions.create(messages=[first], stream=True, **body))
    pieces = [chunk.choices[0].delta for chunk in chunks]
    text = "".join(piece.content or "" for piece in pieces)
    remembered = pieces[-1].model_extra["remembered"]
    assert text == whole.content != remembered
    for earlier in (whole, {"role": "assistant", "content": text, "remembered": remembered}):
        messages = [first, earlier, {"role": "user", "content": "What is % ?", "regions": [region]}]
        client.chat.completions.create(model="debug", messages=messages, max_tokens=2)
        np.testing.assert_array_equal(prompts[-1], want)


def test_a_phrase_of_many_things_has_few_boxes(client, app, monkeypatch):
    """Its number multiplies probabilities, but memory for masks has a bound."""
    grounding = dataclasses.replace(model().config.grounding, merge_iou=0.9)
    config = dataclasses.replace(model().config, grounding=grounding)
    monkeypatch.setattr(app.state.desk, "_model", dataclasses.replace(model(), config=config))
    body = {"answer": "<g_s> 20 horses <g_e> <seg>", "threshold": 0.1}
    reply = client.chat.completions.create(model="debug", messages=[ask("What?")], extra_body=body)
    (phrase,) = reply.choices[0].message.model_extra["phrases"]
    assert len(phrase["boxes"]) == len(phrase["masks"]) == PHRASE_BOXES
    assert max(phrase["scores"]) <= 1


def test_a_photograph_that_is_turned_has_the_size_that_is_seen(address):
    file, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(picture(0)).save(file, "JPEG", exif=exif)
    mask = {"type": "mask", **masks.encode(np.ones((120, 90), bool))}
    message = ask("What is % ?", url=data_url(file.getvalue(), "jpeg"), regions=[mask])
    assert post(address, message, max_tokens=2).status_code == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG whose head promises more pixels than anybody has memory for."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", b"") + part(b"IEND", b"")


USER = {"role": "user"}
TALK = [ask("a?"), {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}]
CLICK = {"type": "click", "x": 1, "y": 1}
MASK = {"type": "mask", "size": [90, 120], "counts": "11"}
FAULTS = [
    ([ask("a?", url="https://example.org/a.png")], {}, 400, "nothing is fetched"),
    ([ask("a?", url="file:///etc/passwd")], {}, 400, "nothing is fetched"),
    ([ask("a?", url="/etc/passwd")], {}, 400, "nothing is fetched"),
    ([ask("a?", url="data:image/png;base64,!!!")], {}, 400, "base64"),
    ([ask("a?", url=data_url(b"no picture"))], {}, 400, "10 bytes are no PNG, JPEG or WEBP"),
    ([ask("a?", url=data_url(saved("GIF")))], {}, 400, "no PNG, JPEG or WEBP"),
    ([ask("a?", url=data_url(png()[:300]))], {}, 400, "damaged or truncated"),
    ([ask("a?", url=data_url(bomb(60_000, 60_000)))], {}, 413, "too large"),
    ([ask("a?", url=data_url(bomb(400, 200)))], {}, 413, "400 x 200 pixels, more than 50000"),
    ([ask("a?", url=data_url(bomb(2000, 10)))], {}, 400, "one side is over 100 times"),
    ([ask("a?", url=data_url(b"x" * 200_000))], {}, 413, "more than 200000 bytes"),
    (TALK + TALK[1:] * 2, {}, 413, "4 questions, more than 3"),
    ([ask("% " * 5, regions=[CLICK] * 5)], {}, 413, "5 regions, more than 4"),
    ([ask("word " * 400)], {}, 413, "tokens with its picture, more than 420"),
    ([ask("a?")], {"max_tokens": 65}, 413, "max_tokens 65 is more than 64"),
    ([ask("word " * 2000)], {}, 413, "the conversation has more than 420 tokens"),
    ([ask("a?")], {"answer": "<seg>" * 33}, 413, "more than 32 phrases"),
    ([ask("a?")], {"answer": "<g_s>" * 64}, 413, "the answer has 65 tokens, more than 64"),
    ([ask("a?")], {"answer": "word " * 210}, 413, "the given answer has more than 64 tokens"),
    ([ask("a?")], {"model": "gpt-4"}, 404, "there is no model 'gpt-4'; this server has 'debug'"),
    ([ask("a?")], {"temperature": -1}, 422, "temperature: "),
    ([ask("a?")], {"threshold": 0.01}, 422, "threshold: "),
    ([ask("a?")], {"n": 2}, 422, "n: "),
    ([ask("a?")], {"treshold": 0.5}, 422, "treshold: there is no such field"),
    ([ask("is % ?")], {"regions": [CLICK]}, 422, "regions: there is no such field"),
    ([ask("is % ?", region=[CLICK])], {}, 422, "messages.0.region: there is no such field"),
    ([ask("is % ?", regions=[{**CLICK, "z": 1}])], {}, 422, "z: there is no such field"),
    ([ask("a?")], {"tools": [{"type": "function"}]}, 422, "does not support 'tools'"),
    ([ask("a?")], {"logprobs": True}, 422, "does not support 'logprobs'"),
    ([ask("a?")], {"response_format": {"type": "json_object"}}, 422, "does not support 'response_format'"),
    ([ask("a?")], {"x" * 90_000: 1}, 422, "xxx"),
    ([ask("a?")], {"model": "y\n" * 40_000}, 404, "this server has 'debug'"),
    ([{**USER, "content": None}], {}, 422, "messages.0.content.text: Input should be a valid string"),
    ([ask("a?")], {"stop": ""}, 400, "empty text"),
    ([ask("a?")], {"stop": "x" * 257}, 413, "a stop text has 257 characters, more than 256"),
    ([ask("a?")], {"stop": ["a", "x" * 99_000]}, 413, "a stop text has 99000 characters, more than 256"),
    ([ask("  ")], {}, 400, "the question is empty"),
    ([ask("<image>?")], {}, 400, "leave <image> out"),
    ([ask("a?", regions=[CLICK])], {}, 400, "does not say where it is meant"),
    ([ask("is % ?", regions=[{**CLICK, "x": 500}])], {}, 400, "outside the picture"),
    ([ask("is % ?", regions=[{**CLICK, "type": "circle"}])], {}, 422, "'click', 'box'"),
    (
        [ask("is % ?", regions=[{"type": "mask", "size": [9, 9], "counts": "`"}])],
        {},
        400,
        "mask has size [9, 9]",
    ),
    ([ask("is % ?", regions=[MASK])], {}, 400, "no COCO"),
    ([ask("is % ?", regions=[{"type": "again", "number": 1}])], {}, 400, "there is no region 1"),
    ([{"role": "user", "content": "a?"}], {}, 400, "0 pictures; one is needed"),
    ([TALK[0], TALK[1]], {}, 400, "the last message must be the user's"),
    ([TALK[0], TALK[0], TALK[0]], {}, 400, "take turns"),
    ([TALK[0], TALK[1], TALK[0]], {}, 400, "one picture, in its first message"),
    ([{"role": "system", "content": "Be kind."}], {}, 400, "a system message of its own"),
    ([], {}, 422, "messages: "),
]


@pytest.mark.parametrize(("messages", "body", "status", "part"), FAULTS)
def test_every_fault_has_its_message(address, messages, body, status, part):
    reply = post(address, *messages, **body)
    error = reply.json()["error"]
    assert (reply.status_code, part in error["message"]) == (status, True), error
    assert "\n" not in error["message"] and len(error["message"]) < 400
    if status != 422:
        streamed = post(address, *messages, **body, stream=True)
        assert (streamed.status_code, streamed.json()) == (reply.status_code, reply.json())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nul", b'{"messages": NaN}'])
def test_bodies_that_are_no_json_are_refused(address, content):
    reply = httpx.post(
        f"{address}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert reply.status_code in (400, 422) and reply.json()["error"]["message"]


def test_a_body_without_its_type_is_refused(address):
    reply = httpx.post(f"{address}/v1/chat/completions", content=b'{"messages": []}')
    assert reply.status_code == 422 and "'Content-Type: application/json'" in reply.json()["error"]["message"]


def test_every_path_of_the_api_answers_in_the_shape_of_openai(address):
    for method, path, status, part in [
        ("GET", "chat/completions", 405, "/v1/chat/completions is for POST, not GET"),
        ("DELETE", "models/debug", 405, "is for GET, not DELETE"),
        ("POST", "embeddings", 404, "there is no /v1/embeddings"),
        ("GET", "models/other", 404, "there is no model 'other'; this server has 'debug'"),
    ]:
        reply = httpx.request(method, f"{address}/v1/{path}")
        assert (reply.status_code, part in reply.json()["error"]["message"]) == (status, True), reply.text
    with openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client:
        assert client.models.retrieve("debug").owned_by == "lgjax"


def test_a_body_that_never_says_its_length_is_bounded(address):
    def endless():
        for _ in range(40):
            yield b" " * 10_000

    reply = httpx.post(f"{address}/v1/chat/completions", content=endless(), timeout=30)
    assert reply.status_code == 413 and "more than 200000 bytes" in reply.json()["error"]["message"]


def test_half_sent_requests_take_places_for_a_while_only(monkeypatch):
    app = create_app(model(), "debug", limits=Limits(waiting=1, batch=1))
    half = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
    with running(app) as address, contextlib.ExitStack() as stack:
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        monkeypatch.setattr("lgjax.serve.api._UPLOAD_SECONDS", 5)
        lines = [stack.enter_context(socket.create_connection(place)) for _ in range(3)]
        for line in lines:
            line.sendall(half)
            line.settimeout(30)
        for _ in range(50):  # until the server has seen all three
            refused = post(address, ask("  "))
            if refused.status_code != 400:
                break
            time.sleep(0.1)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert "busy; try again in 1 s" in refused.json()["error"]["message"]
        assert httpx.get(f"{address}/healthz").status_code == 200
        for line in lines:
            assert b" 408 " in line.recv(1000)
        assert post(address, ask("  ")).status_code == 400


def test_a_bearer_token_is_asked_for_where_there_is_one():
    with running(create_app(model(), "debug", token="söcret")) as address:
        for path in ("/metrics", "/v1/models"):
            reply = httpx.get(address + path)
            assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert "send the header" in reply.json()["error"]["message"]
            headers = {"authorization": "Bearer söcret".encode()}
            assert httpx.get(address + path, headers=headers).status_code == 200
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="other", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="wrong or no token"):
            wrong.chat.completions.create(model="debug", messages=[ask("What?")])
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_health_models_metrics_and_description(address):
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok", "model": "debug", "waiting": 0}
    assert openai.OpenAI(base_url=f"{address}/v1", api_key="x").models.list().data[0].id == "debug"
    before = counted(address)
    post(address, ask("What is it?"), max_tokens=3)
    post(address, ask("  "))
    after = counted(address)
    assert after['lgjax_requests_total{status="200"}'] >= before['lgjax_requests_total{status="200"}'] + 1
    assert after['lgjax_requests_total{status="400"}'] > before.get('lgjax_requests_total{status="400"}', 0)
    assert after["lgjax_tokens_total"] - before["lgjax_tokens_total"] == 3
    assert after["lgjax_answer_seconds_count"] - before["lgjax_answer_seconds_count"] == 1
    assert httpx.get(f"{address}/docs").status_code == 200
    described = httpx.get(f"{address}/openapi.json").json()
    parts = described["components"]["schemas"]
    assert "regions" in parts["Message"]["properties"]
    said = described["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert said["text/event-stream"]["schema"] == {"$ref": "#/components/schemas/Chunk"}
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(described)):
        assert name in parts


def test_a_fault_that_nobody_foresaw_is_told_and_counted(monkeypatch):
    """Once each: one of the server before a question is taken, one of the model, one of a stream's start."""
    app = create_app(model(), "debug", limits=LIMITS)
    with running(app) as address:
        with monkeypatch.context() as patch:
            patch.setattr(app.state.desk, "submit", lambda ticket: 1 / 0)
            replies = [post(address, ask("What?"), stream=stream) for stream in (False, True)]
        with monkeypatch.context() as patch:
            patch.setattr(app.state.desk, "_view", lambda picture: 1 / 0)
            replies += [post(address, ask("What?"), stream=stream) for stream in (False, True)]
        with monkeypatch.context() as patch:  # a ValueError, too, is no fault of the client's here
            patch.setattr("lgjax.serve.queue.Batch", lambda *inputs: int("internals"))
            replies.append(post(address, ask("What?")))
        for reply in replies:
            assert reply.status_code == 500
            assert reply.json()["error"]["message"] == "a fault of the server; its log says more"
        httpx.get(f"{address}/nowhere")
        numbers = counted(address)
        assert numbers['lgjax_requests_total{status="500"}'] == 5
        assert numbers['lgjax_requests_total{status="404"}'] == 1
        assert post(address, ask("What?"), max_tokens=2).status_code == 200


def counted(address: str) -> dict[str, float]:
    lines = httpx.get(f"{address}/metrics").text.split("\n")
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] == "l"}


def test_many_clients_share_batches_and_nobody_gets_the_answer_of_another(address, app, monkeypatch):
    """Good and bad questions at once; then a batch that fails as a whole, whose questions are asked alone."""
    monkeypatch.setattr(app.state.desk, "_limits", Limits(gather_seconds=0.5, batch=4, prompt_tokens=420))
    things = ["a cat", "the dog", "a red hat", "two men", "a big tree", "the sky"]
    texts = [f"<g_s> {thing} <g_e> <seg> and nothing else." for thing in things]

    def question(i: int) -> str:
        if i % 3 == 2:
            return post(address, ask("What is it?", url=data_url(b"broken"))).json()["error"]["message"]
        reply = post(address, ask("What is it?", seed=i), answer=texts[i], threshold=None, stream=False)
        return reply.json()["choices"][0]["message"]["content"]

    def everybody() -> None:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(question, range(6)))
        for i, answer in enumerate(answers):
            if i % 3 == 2:
                assert "no PNG" in answer
            else:
                assert answer == f"{things[i]} and nothing else."

    before = counted(address)
    everybody()
    after = counted(address)
    assert after["lgjax_batch_questions_sum"] - before["lgjax_batch_questions_sum"] == 4
    assert after["lgjax_batch_questions_count"] - before["lgjax_batch_questions_count"] < 4

    class Broken(run_module.Batch):
        def events(self, chunk=None, reader=lambda row: "live"):
            for n, found in enumerate(super().events(chunk, reader)):
                yield found
                if n == 1 and len(self._rows) > 1:
                    raise RuntimeError("out of memory")

    monkeypatch.setattr("lgjax.serve.queue.Batch", Broken)
    everybody()


def test_a_full_queue_says_when_to_try_again(monkeypatch):
    app = create_app(model(), "debug", limits=Limits(waiting=1, batch=1))
    held, free = threading.Event(), threading.Event()
    planned = app.state.desk._planned

    def slow(ticket):
        held.set()
        free.wait(30)
        return planned(ticket)

    monkeypatch.setattr(app.state.desk, "_planned", slow)
    with running(app) as address, concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(post, address, ask("a?"), max_tokens=2)
        assert held.wait(30)
        second = pool.submit(post, address, ask("b?"), max_tokens=2)
        while app.state.desk.waiting == 0:
            pass
        refused = post(address, ask("c?"), max_tokens=2)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "busy; try again in" in refused.json()["error"]["message"]
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0).chat.completions.create(
                model="debug", messages=[ask("c?")]
            )
        free.set()
        assert {first.result().status_code, second.result().status_code} == {200}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(stream, monkeypatch):
    app = create_app(model(), "debug", limits=Limits(waiting=1, batch=1))
    desk = app.state.desk
    free = threading.Event()
    planned = desk._planned

    def slow(ticket):
        free.wait(30)
        return planned(ticket)

    monkeypatch.setattr(desk, "_planned", slow)
    with running(app) as address:
        for text in ("taken at once", "waits"):
            with pytest.raises(httpx.ReadTimeout):
                post(address, ask(text), timeout=0.7, stream=stream)
        for _ in range(100):
            if desk.waiting == 0:
                break
            threading.Event().wait(0.1)
        assert desk.waiting == 0
        free.set()
        assert post(address, ask("What is it?"), max_tokens=2).status_code == 200
