"""The page: a picture, regions tapped on it, a conversation in colours, and what the model found."""

from __future__ import annotations

import abc
import dataclasses
import html
import importlib.resources
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
from gradio.utils import get_upload_folder

from lgjax import draw
from lgjax.data.sources.scenes import Scenes
from lgjax.infer.load import TINY
from lgjax.infer.request import Model, Options
from lgjax.serve.addresses import NothingFetched
from lgjax.serve.limits import Limits
from lgjax.serve.page import KINDS, Answering, Page, Pointed, Session, forget, knows, messages_of, pieces_of
from lgjax.serve.queue import Busy, Stopping, Turn
from lgjax.serve.schema import LOWEST_THRESHOLD, ScribbleRegion

HINT = (
    "Tap a thing, drag a box around it (or tap two corners), or scribble over it; "
    "then write % in the question where you mean it, not as its first word."
)
_STYLE = "img { cursor: crosshair; }"


def _path(self: gr.Image, payload: Any) -> str | None:
    return payload and payload.path


# An image whose file nobody opens before `decode_picture`, which has limits. It is made past gradio's
# metaclass, which would write a stub beside this file.
_Upload: Any = abc.ABCMeta.__new__(
    type(gr.Image), "Upload", (gr.Image,), {"preprocess": _path, "is_template": True, "__module__": __name__}
)


def _warn(error: Exception, shown: tuple) -> tuple:
    """Say what is wrong, and show what was there before."""
    gr.Warning(html.escape(str(error)))
    return shown


def examples(drawn: bool, folder: Path) -> list[str]:
    """Pictures of the kind that the model knows: photographs, or drawn ones, some made in `folder`."""
    assets = Path(str(importlib.resources.files("lgjax") / "assets"))
    if not drawn:
        return [
            str(assets / "cat.jpg"),
            *map(str, sorted((assets / "backgrounds" / "held_out").glob("*"))[:3]),
        ]
    scenes = Scenes(split="combinations")
    made = [folder / f"scene_{i}.png" for i in range(3)]
    for i, path in enumerate(made):
        scenes.scene(i).image.save(path)
    return [str(assets / "scene.png"), *map(str, made)]


def build(page: Page, limits: Limits, about: str, offered: list[str], best_only: bool) -> gr.Blocks:
    """Lay out the page and join its parts to what happens.

    about: what the model is; offered: paths of examples; best_only: whether a phrase has its best box alone
    until the reader wants otherwise.
    """
    pointer = (importlib.resources.files("lgjax.serve") / "pointer.js").read_text(encoding="utf-8")
    colours = {
        str(i + 1): "#{:02x}{:02x}{:02x}".format(*draw.phrase_colour(i)) for i in range(limits.max_tokens)
    }
    with gr.Blocks(
        title="lgjax", analytics_enabled=False, delete_cache=(600, 60 * limits.page_minutes)
    ) as blocks:
        state = gr.State(Session(), time_to_live=60 * limits.page_minutes, delete_callback=forget)
        # apart from the conversation, which a stroke at the end of an answer would set back
        pointed = gr.State(Pointed(), time_to_live=60 * limits.page_minutes)
        gr.Markdown(f"## lgjax\n{about}")
        with gr.Row():
            with gr.Column(min_width=320):
                with gr.HTML(html_template="@children", css_template=_STYLE, js_on_load=pointer) as board:
                    picture = _Upload(type="filepath", label="Picture", sources=["upload"], elem_id="picture")
                kind = gr.Radio(KINDS, value=KINDS[0], label=HINT, elem_id="kind")
                with gr.Row():
                    finish = gr.Button("Next region", size="sm", min_width=90)
                    remove = gr.Button("Remove region", size="sm", min_width=90)
                gallery = gr.Examples(
                    [[path] for path in offered], [picture], label="Examples", examples_per_page=4
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
                    label="Point at a phrase to see what it names (tap an answer above to have it here)",
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
                    best = gr.Checkbox(best_only, label="Only the best box of each phrase")
                    heat = gr.Slider(0, 2, 0, label="Temperature (0: always the likeliest word)")
                    given = gr.Textbox(
                        label="Ground this text instead of an answer",
                        placeholder="<g_s> A cat <g_e> <seg> lies on <g_s> a sofa <g_e> <seg> .",
                        elem_id="given",
                    )
                    length = gr.Slider(
                        1, limits.max_tokens, min(256, limits.max_tokens), step=1, label="Most tokens"
                    )

        talking = [state, talk, answer, found, as_json, as_png]

        def show(session: Session) -> tuple:
            texts = (messages_of(session.turns), pieces_of(session.seen))
            return (session, *texts, page.found(session, session.seen, None), *page.files(session))

        def take(session: Session, path: str | None) -> tuple:
            forget(session)
            try:
                return *show(page.take(path)), Pointed()
            except ValueError as error:
                return _warn(error, (*show(Session()), Pointed()))

        def draw_stroke(session: Session, pointed: Pointed, how: str, event: gr.EventData) -> tuple:
            stroke = ScribbleRegion(type="scribble", points=event.points).points
            pointed = page.point(pointed, how, stroke)
            return pointed, page.preview(session, pointed)

        def end_region(pointed: Pointed) -> Pointed:
            return dataclasses.replace(pointed, unfinished=False)

        def drop_region(session: Session, pointed: Pointed) -> tuple:
            pointed = Pointed(pointed.regions[:-1])
            return pointed, page.preview(session, pointed)

        def stream(session: Session, turn: Turn, options: tuple, before: Session) -> Iterator[tuple]:
            """The values of `talking` as the answer comes."""
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
                        yield show(later)
                        continue
                    count = len(asked.answer["phrases"])
                    # a picture is sent only when there is something new on it
                    image = page.found(session, asked, None) if count != drawn else gr.skip()
                    drawn = count
                    messages = messages_of([*session.turns, asked])
                    yield gr.skip(), messages, pieces_of(asked), image, gr.skip(), gr.skip()
            except Answering as error:
                yield _warn(error, (gr.skip(),) * len(talking))
            except (ValueError, Busy, Stopping) as error:
                yield _warn(error, show(before))

        def ask(session: Session, question: str, pointed: Pointed, *options: Any) -> Iterator[tuple]:
            for values in stream(session, Turn(question or "", pointed.regions), options, session):
                done = isinstance(values[0], Session) and values[0] is not session
                rest = ("", Pointed(), page.preview(session, Pointed())) if done else (gr.skip(),) * 3
                yield *values, *rest

        def regenerate(session: Session, *options: Any) -> Iterator[tuple]:
            if session.turns:
                earlier = session.with_turns(session.turns[:-1])
                yield from stream(earlier, session.turns[-1].turn, options, session)

        def undo(session: Session, messages: list) -> tuple:
            # the last question that is seen, which may be one on its way
            return show(session.with_turns(session.turns[: max(len(messages) // 2, 1) - 1]))

        def look_back(session: Session, event: gr.SelectData) -> tuple:
            index = event.index[0] if isinstance(event.index, list | tuple) else event.index
            return show(session.look_at(index // 2))  # messages are a question and its answer by turns

        def forget_all(session: Session) -> tuple:
            session = session.with_turns(())
            return *show(session), Pointed(), page.preview(session, Pointed())

        def choose(session: Session, event: gr.SelectData) -> Any:
            label = event.value[1] if isinstance(event.value, list | tuple) else None
            return gr.skip() if label is None else page.found(session, page.last(session), int(label) - 1)

        def all_phrases(session: Session) -> Any:
            return page.found(session, page.last(session), None)

        how = [threshold, best, heat, length, given]
        pointing = [pointed, picture]
        asking: list[dict[str, Any]] = [
            gr.on(
                [send.click, text.submit],
                ask,
                [state, text, pointed, *how],
                [*talking, text, *pointing],
                api_visibility="private",
            ),
            again.click(regenerate, [state, *how], talking, api_visibility="private"),
        ]
        # an answer on its way would bring back the conversation in which it was asked
        gr.on(
            [picture.upload, picture.clear, gallery.dataset.click, back.click, clear.click, talk.clear],
            None,
            cancels=asking,
        )
        taking, taken = [state, picture], [*talking, pointed]
        gr.on([picture.upload, picture.clear], take, taking, taken, api_visibility="private")
        gallery.load_input_event.then(take, taking, taken, api_visibility="private")
        board.input(draw_stroke, [state, pointed, kind], pointing, api_visibility="private")
        finish.click(end_region, pointed, pointed, api_visibility="private")
        remove.click(drop_region, [state, pointed], pointing, api_visibility="private")
        back.click(undo, [state, talk], talking, api_visibility="private")
        gr.on([clear.click, talk.clear], forget_all, state, [*talking, *pointing], api_visibility="private")
        talk.select(look_back, state, talking, api_visibility="private")
        # a phrase that the pointer came to while an earlier one was drawn is drawn next
        answer.select(choose, state, found, trigger_mode="always_last", api_visibility="private")
        whole.click(all_phrases, state, found, api_visibility="private")
    blocks.queue(max_size=4 * limits.waiting, default_concurrency_limit=limits.waiting)
    return blocks


def mount(
    app: fastapi.FastAPI,
    model: Model,
    name: str,
    limits: Limits,
    folder: Path,
    token: str | None = None,
    packaged: bool = False,
) -> Callable[[], None]:
    """Put the page at the root of `app`, which was made by `create_app`; a token is its password.

    Readers' files to download lie in `folder` until their conversation is over. `packaged`: the model is the
    package's own of that name.

    What is returned ends the lines to open pages, on which a server that stops would wait for ever.
    """
    drawn = packaged and name == TINY  # its default is that of the example of `lgjax chat`
    page = Page(app.state.desk, limits, folder)
    blocks = build(page, limits, knows(model, name, packaged), examples(drawn, folder), drawn)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=None if token is None else ("lgjax", token),
        max_file_size=limits.upload_bytes,
        show_error=False,  # of faults that nobody foresaw; the log has them
        ssr_mode=False,
        footer_links=[],
        run_history=False,
    )
    mounted: Any = app.routes[-1]
    pages = mounted.app
    mounted.app = NothingFetched(pages, Path(get_upload_folder()))
    return lambda: pages.stop_event.set()
