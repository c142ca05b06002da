"""The page: a picture, regions tapped on it, a conversation in colours, and what the model found."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import json
import queue
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import numpy as np
import PIL.Image

from lgjax import draw
from lgjax.data import masks
from lgjax.infer.answer import Phrase
from lgjax.infer.regions import Box, Click, Region, Scribble
from lgjax.infer.request import Model, Options
from lgjax.infer.stream import Done, Event, Found, Words
from lgjax.serve.limits import Limits
from lgjax.serve.picture import decode_picture
from lgjax.serve.queue import Busy, Desk, Question, Stopping, Ticket, Turn
from lgjax.serve.schema import LOWEST_THRESHOLD

KINDS = ("click", "box: two corners", "scribble: several points")
HINT = "Tap a thing, then write % in the question where you mean it, not as its first word."
_WAIT = 0.5  # seconds between two looks whether the reader is still there


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A question and its answer as JSON."""

    turn: Turn
    answer: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """What the page knows of one reader.

    picture: bytes of the file; regions: for the next question; unfinished: the next tap belongs to the last
    of these; folder: for files to download.
    """

    picture: bytes = b""
    regions: tuple[Region, ...] = ()
    unfinished: bool = False
    turns: tuple[Asked, ...] = ()
    folder: str = ""


class Page:
    """What happens on the page. Every method takes a session and returns the next one, or what is shown."""

    def __init__(self, desk: Desk, limits: Limits) -> None:
        self._desk = desk
        self._limits = limits

    def take(self, path: str | None) -> Session:
        """Begin a conversation about another picture.

        Raises:
            ValueError: no picture that the limits let in.
        """
        if path is None:
            return Session()
        data = Path(path).read_bytes()
        decode_picture(data, self._limits)
        return Session(data, folder=tempfile.mkdtemp(prefix="lgjax-page-"))

    def tap(self, session: Session, kind: str, x: float, y: float) -> Session:
        """Add a click, a corner of a box, or a point of a scribble."""
        regions, point = session.regions, (x, y)
        if kind == KINDS[0]:
            return dataclasses.replace(session, regions=(*regions, Click(x, y)), unfinished=False)
        last = regions[-1] if session.unfinished else None
        if not isinstance(last, Scribble):
            reading = "box" if kind == KINDS[1] else "click"
            return dataclasses.replace(
                session, regions=(*regions, Scribble((point,), reading)), unfinished=True
            )
        if last.reading == "box":
            box = Box(*last.points[0], x, y)
            return dataclasses.replace(session, regions=(*regions[:-1], box), unfinished=False)
        longer = dataclasses.replace(last, points=(*last.points, point))
        return dataclasses.replace(session, regions=(*regions[:-1], longer))

    def ask(self, session: Session, turn: Turn, options: Options) -> Iterator[tuple[Session, Asked]]:
        """Ask the next question; the answer so far is the last of each pair, with its phrases so far.

        Raises:
            ValueError: the question makes no sense.
            Busy, Stopping: the server takes none.
        """
        earlier = tuple((asked.turn, asked.answer["text"]) for asked in session.turns)
        told: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        ticket = Ticket(Question(session.picture, earlier, turn, options, True), told.put)
        if len(earlier) >= self._limits.turns:
            raise ValueError(f"{len(earlier)} questions are the most of a conversation; clear it")
        self._desk.submit(ticket)
        text, phrases = "", []
        try:
            while True:
                try:
                    event = told.get(timeout=_WAIT)
                except queue.Empty:
                    yield session, Asked(turn, {"text": text, "phrases": phrases})
                    continue
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Done):
                    asked = Asked(turn, event.answer.to_json())
                    yield (
                        dataclasses.replace(
                            session, regions=(), unfinished=False, turns=(*session.turns, asked)
                        ),
                        asked,
                    )
                    return
                if isinstance(event, Words):
                    text += event.text
                elif isinstance(event, Found):
                    phrases = [*phrases, event.phrase.to_json()]
                yield session, Asked(turn, {"text": text, "phrases": phrases})
        finally:
            self._desk.leave(ticket)

    def preview(self, session: Session) -> PIL.Image.Image | None:
        """The picture with the regions of the next question."""
        if not session.picture:
            return None
        return draw.draw_prompts(self._decoded(session), [_outline(region) for region in session.regions])

    def found(self, session: Session, asked: Asked | None, chosen: int | None) -> PIL.Image.Image | None:
        """The picture with what was found: of all phrases, or of the chosen one."""
        if not session.picture:
            return None
        image = self._decoded(session)
        if asked is None:
            return image
        phrases = [
            phrase if chosen in (None, i) else _nothing(phrase)
            for i, phrase in enumerate(_phrases(asked, image.size))
        ]
        code = asked.answer.get("region_mask")
        region = None if code is None else np.asarray(masks.decode(code, image.size))
        return draw.draw_phrases(image, phrases, region)

    def files(self, session: Session) -> tuple[str | None, str | None]:
        """Paths of answer.json and answer.png of the last answer."""
        if not session.turns:
            return None, None
        asked, folder = session.turns[-1], Path(session.folder)
        (folder / "answer.json").write_text(json.dumps(asked.answer, indent=1) + "\n", encoding="utf-8")
        image = self._decoded(session)
        drawn = draw.overlay(image, asked.answer["text"], _phrases(asked, image.size))
        drawn.save(folder / "answer.png")
        return str(folder / "answer.json"), str(folder / "answer.png")

    def _decoded(self, session: Session) -> PIL.Image.Image:
        return decode_picture(session.picture, self._limits)


def _warn(error: Exception, shown: tuple) -> tuple:
    """Say what is wrong, and show what was there before."""
    gr.Warning(html.escape(str(error)))
    return shown


def _forget(session: Session) -> None:
    if session.folder:
        shutil.rmtree(session.folder, ignore_errors=True)


def _outline(region: Region) -> list[tuple[float, float]]:
    if isinstance(region, Click):
        return [(region.x, region.y)]
    if isinstance(region, Box):
        x0, y0, x1, y1 = region.x0, region.y0, region.x1, region.y1
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    assert isinstance(region, Scribble), "the page makes no other regions"
    return list(region.points)


def _phrases(asked: Asked, size: tuple[int, int]) -> list[Phrase]:
    phrases = []
    for found in asked.answer["phrases"]:
        shown = [np.asarray(masks.decode(code, size)) for code in found["masks"]]
        phrases.append(
            Phrase(
                found["text"],
                tuple(found["span"]),
                np.asarray(found["boxes"], np.float32).reshape(-1, 4),
                np.asarray(found["scores"], np.float32),
                np.stack(shown) if shown else np.zeros((0, *size[::-1]), bool),
            )
        )
    return phrases


def _nothing(phrase: Phrase) -> Phrase:
    """The phrase as if nothing was found for it."""
    return dataclasses.replace(
        phrase, boxes=phrase.boxes[:0], scores=phrase.scores[:0], masks=phrase.masks[:0]
    )


def _spoken(asked: Asked) -> list[Phrase]:
    """The phrases without their masks: enough for the colours of the text."""
    plain = [{**phrase, "masks": []} for phrase in asked.answer["phrases"]]
    return _phrases(Asked(asked.turn, {"phrases": plain}), (1, 1))


def _messages(turns: Sequence[Asked]) -> list[dict[str, str]]:
    """The conversation for the chat window, answers in the colours of their phrases."""
    messages = []
    for asked in turns:
        answer = draw.coloured_html(asked.answer["text"], _spoken(asked))
        messages.append({"role": "user", "content": draw.coloured_html(asked.turn.text, [])})
        messages.append({"role": "assistant", "content": answer or "…"})
    return messages


def _pieces(asked: Asked | None) -> list[tuple[str, str | None]]:
    """The answer in pieces, each phrase labelled with its number."""
    if asked is None:
        return []
    return [
        (piece, None if index is None else str(index + 1))
        for piece, index in draw.split_by_phrase(asked.answer["text"], _spoken(asked))
    ]


def knows(model: Model, name: str) -> str:
    """Say which model answers, and what it can do."""
    config = model.config
    can = ["answers in words"]
    can += ["finds boxes and masks of phrases"] if config.grounding is not None else []
    can += ["reads clicks, boxes and scribbles"] if config.prompt is not None else []
    note = " It is tiny and untrained: its answers are nonsense." if name == "debug" else ""
    size = f"{config.llama.num_layers} layers of width {config.llama.hidden_size}"
    return f"**{name}** ({size}) {', '.join(can)}.{note}"


def examples() -> list[str]:
    """Pictures that come with the package."""
    assets = Path(str(importlib.resources.files("lgjax") / "assets"))
    return [str(assets / "cat.jpg"), *map(str, sorted((assets / "backgrounds" / "held_out").glob("*"))[:3])]


def build(page: Page, limits: Limits, about: str) -> gr.Blocks:
    """Lay out the page and join its parts to what happens."""
    colours = {str(i + 1): "#{:02x}{:02x}{:02x}".format(*draw.phrase_colour(i)) for i in range(20)}
    with gr.Blocks(
        title="lgjax", analytics_enabled=False, delete_cache=(600, 60 * limits.page_minutes)
    ) as blocks:
        state = gr.State(Session(), time_to_live=60 * limits.page_minutes, delete_callback=_forget)
        gr.Markdown(f"## lgjax\n{about}")
        with gr.Row():
            with gr.Column(min_width=320):
                picture = gr.Image(type="filepath", label="Picture", sources=["upload"], elem_id="picture")
                kind = gr.Radio(KINDS, value=KINDS[0], label=HINT, elem_id="kind")
                with gr.Row():
                    finish = gr.Button("Next region", size="sm", min_width=90)
                    remove = gr.Button("Remove region", size="sm", min_width=90)
                gallery = gr.Examples(
                    [[path] for path in examples()], [picture], label="Examples", examples_per_page=4
                )
            with gr.Column(min_width=320):
                talk = gr.Chatbot(label="Conversation", height=260, elem_id="talk", buttons=["copy"])
                text = gr.Textbox(label="Question", placeholder="Describe the scene.", elem_id="question")
                with gr.Row():
                    send = gr.Button("Ask", variant="primary", size="md", min_width=70, elem_id="ask")
                    again = gr.Button("Again", size="md", min_width=70, elem_id="again")
                    back = gr.Button("Undo", size="md", min_width=60, elem_id="undo")
                    clear = gr.Button("Clear", size="md", min_width=60, elem_id="clear")
                answer = gr.HighlightedText(
                    label="Last answer: select a phrase to see what it names",
                    color_map=colours,
                    show_inline_category=False,
                    elem_id="answer",
                )
                found = gr.Image(
                    label="Found", format="png", interactive=False, buttons=["fullscreen"], elem_id="found"
                )
                with gr.Row():
                    whole = gr.Button("All phrases", size="sm", min_width=90)
                    as_json = gr.DownloadButton("JSON", size="sm", min_width=70, elem_id="json")
                    as_png = gr.DownloadButton("PNG", size="sm", min_width=70, elem_id="png")
                with gr.Accordion("How to answer", open=False, elem_id="how"):
                    threshold = gr.Slider(LOWEST_THRESHOLD, 0.95, 0.2, label="Threshold of boxes and masks")
                    best = gr.Checkbox(False, label="Only the best box of each phrase")
                    heat = gr.Slider(0, 2, 0, label="Temperature (0: always the likeliest word)")
                    given = gr.Textbox(
                        label="Ground this text instead of an answer",
                        placeholder="<g_s> A cat <g_e> <seg> lies on <g_s> a sofa <g_e> <seg> .",
                        elem_id="given",
                    )
                    length = gr.Slider(
                        1, limits.max_tokens, min(256, limits.max_tokens), step=1, label="Most tokens"
                    )

        shown = [state, talk, answer, found, as_json, as_png]

        def show(session: Session) -> tuple:
            last = session.turns[-1] if session.turns else None
            texts = (_messages(session.turns), _pieces(last))
            return (session, *texts, page.found(session, last, None), *page.files(session))

        def take(path: str | None) -> tuple:
            try:
                return show(page.take(path))
            except ValueError as error:
                return _warn(error, show(Session()))

        def tap(session: Session, how: str, event: gr.SelectData) -> tuple:
            session = page.tap(session, how, *event.index)
            return session, page.preview(session)

        def end_region(session: Session) -> Session:
            return dataclasses.replace(session, unfinished=False)

        def drop_region(session: Session) -> tuple:
            session = dataclasses.replace(session, regions=session.regions[:-1], unfinished=False)
            return session, page.preview(session)

        def stream(session: Session, turn: Turn, options: tuple, before: Session) -> Iterator[tuple]:
            level, only_best, temperature, tokens, wanted = options
            chosen = Options(
                threshold=None if only_best else level,
                temperature=temperature,
                seed=secrets.randbelow(2**32),
                max_tokens=int(tokens),
                answer=(wanted or "").strip() or None,
            )
            drawn = -1
            try:
                if not session.picture:
                    raise ValueError("upload a picture first, or take an example")
                for later, asked in page.ask(session, turn, chosen):
                    if later is not session:
                        yield *show(later), "", page.preview(later)
                        return
                    count = len(asked.answer["phrases"])
                    # a picture is sent only when there is something new on it
                    image = page.found(session, asked, None) if count != drawn else gr.skip()
                    drawn = count
                    messages = _messages([*session.turns, asked])
                    yield session, messages, _pieces(asked), image, *[gr.skip()] * 4
            except (ValueError, Busy, Stopping) as error:
                yield _warn(error, (*show(before), gr.skip(), gr.skip()))

        def ask(session: Session, question: str, *options: Any) -> Iterator[tuple]:
            yield from stream(session, Turn(question or "", session.regions), options, session)

        def regenerate(session: Session, *options: Any) -> Iterator[tuple]:
            if session.turns:
                earlier = dataclasses.replace(session, turns=session.turns[:-1])
                yield from stream(earlier, session.turns[-1].turn, options, session)

        def undo(session: Session) -> tuple:
            return show(dataclasses.replace(session, turns=session.turns[:-1]))

        def forget_all(session: Session) -> tuple:
            session = dataclasses.replace(session, turns=(), regions=(), unfinished=False)
            return *show(session), page.preview(session)

        def choose(session: Session, event: gr.SelectData) -> Any:
            label = event.value[1] if isinstance(event.value, list | tuple) else None
            if label is None or not session.turns:
                return gr.skip()
            return page.found(session, session.turns[-1], int(label) - 1)

        def all_phrases(session: Session) -> Any:
            return page.found(session, session.turns[-1] if session.turns else None, None)

        how = [threshold, best, heat, length, given]
        gr.on([picture.upload, picture.clear], take, picture, shown, api_visibility="private")
        gallery.load_input_event.then(take, picture, shown, api_visibility="private")
        picture.select(tap, [state, kind], [state, picture], api_visibility="private")
        finish.click(end_region, state, state, api_visibility="private")
        remove.click(drop_region, state, [state, picture], api_visibility="private")
        told = [*shown, text, picture]
        gr.on([send.click, text.submit], ask, [state, text, *how], told, api_visibility="private")
        again.click(regenerate, [state, *how], told, api_visibility="private")
        back.click(undo, state, shown, api_visibility="private")
        gr.on([clear.click, talk.clear], forget_all, state, [*shown, picture], api_visibility="private")
        answer.select(choose, state, found, api_visibility="private")
        whole.click(all_phrases, state, found, api_visibility="private")
    blocks.queue(max_size=4 * limits.waiting, default_concurrency_limit=limits.waiting)
    return blocks


def mount(
    app: fastapi.FastAPI, model: Model, name: str, limits: Limits, token: str | None = None
) -> Callable[[], None]:
    """Put the page at the root of `app`, which was made by `create_app`; a token is its password.

    What is returned ends the lines to open pages, on which a server that stops would wait for ever.
    """
    blocks = build(Page(app.state.desk, limits), limits, knows(model, name))
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=None if token is None else ("lgjax", token),
        max_file_size=limits.upload_bytes,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
    )
    mounted: Any = app.routes[-1]
    return lambda: mounted.app.stop_event.set()
