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
LINE = "svg[style*=fixed] polyline[points]"
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


def stroke(page, *places: tuple[float, float]) -> None:
    """Press on a place of the picture, in parts of its sides, go on to others, and let go.

    One place is a tap. Then wait until the picture with the region is there.
    """
    image = page.locator("#picture img").first
    image.scroll_into_view_if_needed()
    left, top, width, height = image.evaluate(
        """image => {
            const {left, top, width, height} = image.getBoundingClientRect();
            const most = getComputedStyle(image).objectFit === 'scale-down' ? 1 : Infinity;
            const scale = Math.min(width / image.naturalWidth, height / image.naturalHeight, most);
            const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
            return [left + (width - w) / 2, top + (height - h) / 2, w, h];
        }"""
    )
    before = image.get_attribute("src")
    page.mouse.move(left + places[0][0] * width, top + places[0][1] * height)
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(left + x * width, top + y * height, steps=4)
    if len(places) > 1:
        assert page.locator(LINE).count() == 1  # what is drawn is seen while it is drawn
    page.mouse.up()
    page.wait_for_function("before => document.querySelector('#picture img')?.src !== before", arg=before)
    assert page.locator(LINE).count() == 0


def drawn_at(page, *pixels: tuple[int, int]) -> list[bool]:
    """Whether the preview of the regions, which is compressed, shows a line at these pixels."""
    shown, plain = picture_at(page, "#picture"), np.asarray(PIL.Image.open(io.BytesIO(png(0))))
    change = np.abs(shown.astype(int) - plain).max(-1)
    return [bool(change[y - 1 : y + 2, x - 1 : x + 2].max() > 60) for x, y in pixels]


def upload(page, folder: Path) -> None:
    (folder / "photo.png").write_bytes(png(0))
    page.locator("#picture input[type=file]").set_input_files(str(folder / "photo.png"))
    page.locator("#picture img").first.wait_for()
    page.locator("#found img").first.wait_for()


def test_upload_tap_ask_select_and_go_on(page, address, tmp_path):
    upload(page, tmp_path)
    stroke(page, (0.25, 0.5))
    page.locator("#kind input[value=box]").check()
    stroke(page, (0.5, 0.5))
    stroke(page, (0.9, 0.9))
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

    # a phrase under a resting mouse is shown as one that was selected
    before = page.locator("#found img").first.get_attribute("src")
    page.locator("#answer").get_by_text("A man").first.hover()
    page.wait_for_function("before => document.querySelector('#found img').src !== before", arg=before)
    first = picture_at(page, "#found")
    before = page.locator("#found img").first.get_attribute("src")
    page.locator("#answer").get_by_text("two brown horses").first.hover()
    page.wait_for_function("before => document.querySelector('#found img').src !== before", arg=before)
    assert (first != drawn).any() and (picture_at(page, "#found") == drawn).all()

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


def test_boxes_are_dragged_and_scribbles_drawn(page, address, tmp_path):
    upload(page, tmp_path)
    page.locator("#kind input[value=box]").check()
    stroke(page, (0.9, 0.2), (0.6, 0.5), (0.5, 0.8))  # from corner to corner, whichever way
    assert drawn_at(page, (108, 45), (60, 45), (84, 18), (84, 72)) == [True] * 4  # the sides
    assert drawn_at(page, (84, 45), (35, 35)) == [False] * 2
    page.locator("#kind input[value=scribble]").check()
    stroke(page, (0.1, 0.5), (0.3, 0.5))
    stroke(page, (0.2, 0.7), (0.2, 0.9))  # a second line over the same thing
    assert drawn_at(page, (24, 45), (24, 72)) == [True] * 2
    shot(page, "strokes")
    before = page.locator("#picture img").first.get_attribute("src")
    page.get_by_text("Remove region").click()
    page.wait_for_function("before => document.querySelector('#picture img').src !== before", arg=before)
    assert drawn_at(page, (84, 72), (24, 45)) == [True, False]
    page.locator("#how button").first.click()
    page.locator("#given textarea").fill(GROUNDED)
    page.get_by_label("Only the best box").check()
    page.locator("#question textarea").fill("Is % here?")
    page.locator("#ask").click()
    asked(page)
    with page.expect_download() as loaded:
        page.locator("#json").click()
    found = json.loads(Path(loaded.value.path()).read_text())
    box = {"type": "box", "x0": 108, "y0": 18, "x1": 60, "y1": 72}
    reply = post(address, ask("Is % here?", regions=[box]), answer=GROUNDED, threshold=None).json()
    want = masks.decode(reply["choices"][0]["message"]["region_mask"], (120, 90))
    same = masks.decode(found["region_mask"], (120, 90)) == want
    assert want.any() and same.mean() > 0.9  # a stroke may end a pixel beside its place


def test_a_finger_draws_instead_of_scrolling(address, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_text("answers in words").wait_for()
        upload(page, tmp_path)
        touch = context.new_cdp_session(page)

        def drag() -> None:
            page.locator("#picture img").first.scroll_into_view_if_needed()
            box = page.locator("#picture img").first.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            for kind, dy in [("Start", 40), ("Move", 10), ("Move", -10), ("Move", -40)]:
                at = [{"x": x + dy / 2, "y": y + dy}]
                touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": at})
            touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

        page.locator("#kind input[value=box]").check()
        before = page.locator("#picture img").first.get_attribute("src")
        place = page.evaluate("() => window.scrollY")
        drag()
        page.wait_for_function("before => document.querySelector('#picture img').src !== before", arg=before)
        assert page.evaluate("() => window.scrollY") == place
        browser.close()


def answers(address: str) -> float:
    """Answers that the server finished."""
    return float(
        re.findall(r"^lgjax_answer_seconds_count (\S+)", httpx.get(f"{address}/metrics").text, re.M)[0]
    )


def test_a_second_press_is_refused_while_an_answer_is_on_its_way(page, address, tmp_path):
    """Ask, and Again in the next moment: one of them answers, the other one is told to wait."""
    upload(page, tmp_path)
    page.locator("#how button").first.click()
    page.locator("#given textarea").fill("<g_s> A dog <g_e> <seg> .")
    page.locator("#question textarea").fill("First?")
    page.locator("#ask").click()
    asked(page)
    before = answers(address)
    page.locator("#given textarea").fill("")
    page.locator("#question textarea").fill("Second?")
    page.evaluate(
        """() => { document.querySelector('#ask').click();
        setTimeout(() => document.querySelector('#again').click(), 50); }"""
    )
    page.get_by_text("an answer is on its way").first.wait_for()
    shot(page, "refused")
    while answers(address) == before:
        page.wait_for_timeout(200)
    page.wait_for_timeout(3000)
    assert answers(address) == before + 1
    page.locator("#given textarea").fill("<g_s> A cat <g_e> <seg> .")
    page.locator("#question textarea").fill("Third?")
    page.locator("#ask").click()
    asked(page)
    users = [text.strip() for text in page.locator("#talk .user").all_inner_texts()]
    # where Again was faster, the second question was the refused one
    assert [text for text in users if text] in (["First?", "Second?", "Third?"], ["First?", "Third?"])


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
