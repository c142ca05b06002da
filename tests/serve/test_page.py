"""The page in a browser, on a desk and on a phone: upload, tap, ask, hear the answer, select a phrase."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest

from lgjax import draw
from lgjax.data import masks
from tests.infer.model import GROUNDED
from tests.serve.server import ask, command, png, post

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright"),
]
SHOTS = os.environ.get("LGJAX_SCREENSHOTS")


@pytest.fixture(scope="module")
def address():
    """A process of its own: gradio must see generators, which the checks of the tests' process wrap."""
    with command("--limits.max-tokens", "256") as (_, address):
        yield address


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request, address):
    from playwright.sync_api import sync_playwright

    width, height = request.param
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_text("answers in words").wait_for()
        yield page
        browser.close()


def shot(page, name: str) -> None:
    if SHOTS:
        width = page.viewport_size["width"]
        page.screenshot(path=str(Path(SHOTS) / f"{name}_{width}.png"), full_page=True)


def picture_at(page, selector: str) -> np.ndarray:
    source = page.locator(f"{selector} img").first.get_attribute("src")
    data = page.request.get(source).body()
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def asked(page) -> None:
    """Wait for the end of an answer: the question is taken out of its field."""
    page.wait_for_function("() => document.querySelector('#question textarea').value === ''")


def tap(page, x: float, y: float) -> None:
    """Tap a place of the picture, in parts of its sides; wait until the next picture is there."""
    image = page.locator("#picture img").first
    before = image.get_attribute("src")
    box = image.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.wait_for_function("before => document.querySelector('#picture img')?.src !== before", arg=before)


def test_upload_tap_ask_select_and_go_on(page, address, tmp_path):
    (tmp_path / "photo.png").write_bytes(png(0))
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "photo.png"))
    page.locator("#picture img").first.wait_for()
    page.locator("#found img").first.wait_for()
    tap(page, 0.25, 0.5)
    page.get_by_label("box: two corners").check()
    tap(page, 0.5, 0.5)
    tap(page, 0.9, 0.9)
    shot(page, "regions")
    page.locator("#how button").first.click()
    page.locator("#given textarea").fill(GROUNDED)
    page.get_by_label("Only the best box").check()
    page.locator("#question textarea").fill("Is % left of % ?")
    page.evaluate(
        """() => { window.seen = new Set();
        new MutationObserver(() => { const t = document.querySelector('#talk .bot');
        if (t) window.seen.add(t.innerText.trim()); })
        .observe(document.querySelector('#talk'), {childList: true, subtree: true, characterData: true}); }"""
    )
    page.locator("#ask").click()
    page.locator("#talk").get_by_text("two brown horses").wait_for()
    asked(page)
    seen = sorted(page.evaluate("() => [...window.seen]"), key=len)
    whole = "A man rides two brown horses, slowly."
    assert len([text for text in seen if text and len(text) < len(whole) and whole.startswith(text)]) >= 2
    shot(page, "answer")

    # what the page shows of a phrase is what the API finds
    regions = [
        {"type": "click", "x": 30, "y": 45},
        {"type": "box", "x0": 60, "y0": 45, "x1": 108, "y1": 81},
    ]
    reply = post(address, ask("Is % left of % ?", regions=regions), answer=GROUNDED, threshold=None).json()[
        "choices"
    ][0]["message"]
    whole_picture = picture_at(page, "#found")
    before = page.locator("#found img").first.get_attribute("src")
    page.locator("#answer").get_by_text("two brown horses").first.click()
    page.wait_for_function("before => document.querySelector('#found img').src !== before", arg=before)
    drawn = picture_at(page, "#found")
    assert (drawn != whole_picture).any()
    scale = drawn.shape[1] // 120
    small = drawn[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    mask = masks.decode(reply["phrases"][1]["masks"][0], (120, 90))
    inner = mask & ~masks.decode(reply["region_mask"], (120, 90))
    plain = np.asarray(PIL.Image.open(io.BytesIO(png(0)))).astype(int)
    blended = 0.55 * plain + 0.45 * np.asarray(draw.phrase_colour(1))
    outline = (np.abs(small - np.asarray(draw.phrase_colour(1))) <= 1).all(-1)
    labels = (np.abs(small - blended) > 2).any(-1) & ~outline
    assert mask.any() and labels[inner].mean() < 0.35
    outside = ~mask & ~masks.decode(reply["region_mask"], (120, 90))
    assert (np.abs(small - plain)[outside] > 2).any(-1).mean() < 0.5
    shot(page, "phrase")

    # files
    with page.expect_download() as loaded:
        page.locator("#json").click()
    found = json.loads(Path(loaded.value.path()).read_text())
    assert [phrase["text"] for phrase in found["phrases"]] == ["A man", "two brown horses"]
    assert found["phrases"][1]["masks"] == reply["phrases"][1]["masks"]
    with page.expect_download() as loaded:
        page.locator("#png").click()
    assert PIL.Image.open(loaded.value.path()).width >= 480

    # a second turn, again, undone, all forgotten
    page.locator("#given textarea").fill("<g_s> A dog <g_e> <seg> .")
    page.locator("#question textarea").fill("And now?")
    page.locator("#ask").click()
    asked(page)
    page.locator("#talk").get_by_text("A dog").wait_for()
    page.locator("#given textarea").fill("<g_s> A cat <g_e> <seg> .")
    page.locator("#again").click()
    page.locator("#talk").get_by_text("A cat").wait_for()
    asked(page)
    assert page.locator("#talk").get_by_text("A dog").count() == 0
    page.wait_for_timeout(2000)
    page.locator("#undo").click()
    page.locator("#talk").get_by_text("A cat").wait_for(state="detached")
    assert page.locator("#talk").get_by_text("two brown horses").count() >= 1
    page.locator("#clear").click()
    page.locator("#talk").get_by_text("two brown horses").wait_for(state="detached")
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_faults_are_shown_and_examples_work(page, tmp_path):
    page.locator("#question textarea").fill("What?")
    page.locator("#ask").click()
    page.get_by_text("upload a picture first").first.wait_for()
    page.locator(".gallery-item").first.click()
    page.locator("#found img").first.wait_for()
    page.locator("#question textarea").fill("<image> again?")
    page.locator("#ask").click()
    page.get_by_text("leave <image> out").first.wait_for()
    shot(page, "fault")


def test_an_answer_on_its_way_does_not_come_back_after_clear(page, address):
    page.locator(".gallery-item").first.click()
    page.locator("#found img").first.wait_for()
    page.locator("#question textarea").fill("What is it?")
    page.locator("#ask").click()
    page.locator("#talk .user").first.wait_for()
    page.locator("#clear").click()
    page.locator("#talk .user").first.wait_for(state="detached")
    page.wait_for_timeout(4000)
    assert page.locator("#talk").get_by_text("What is it?").count() == 0
    page.locator("#again").click()  # there is nothing to answer again
    page.locator("#how button").first.click()
    page.locator("#given textarea").fill("<g_s> A cat <g_e> <seg> .")
    page.locator("#question textarea").fill("And now?")
    page.locator("#ask").click()
    page.locator("#talk").get_by_text("A cat").wait_for()
    asked(page)
    assert page.locator("#talk").get_by_text("What is it?").count() == 0


def test_files_of_the_machine_stay_unread(address):
    """No path that a reader of the page sends is opened, unless it is a file that was uploaded."""
    config = httpx.get(f"{address}/config").json()
    number = next(d["id"] for d in config["dependencies"] if d["targets"] and d["targets"][0][1] == "upload")
    body = {
        "fn_index": number,
        "session_hash": "x",
        "data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}],
    }
    joined = httpx.post(f"{address}/gradio_api/queue/join", json=body)
    told = httpx.get(f"{address}/gradio_api/queue/data?session_hash=x", timeout=30).text
    assert joined.status_code == 200 and re.search(r'"success":\s*false', told) and "root:" not in told
    for path in ("/etc/passwd", "../../etc/passwd", "%2Fetc%2Fpasswd"):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)


def test_an_open_page_does_not_hold_up_the_end():
    from playwright.sync_api import sync_playwright

    with command() as (server, address), sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("answers in words").wait_for()
        page.wait_for_timeout(1000)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, 143, -signal.SIGTERM)
        browser.close()
