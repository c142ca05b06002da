"""What happens on the page, apart from how it looks: a reader's session, and what each step makes of it."""

from __future__ import annotations

import dataclasses
import json
import queue
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool

from lgjax import draw
from lgjax.data import masks
from lgjax.data.images import ImageSize
from lgjax.infer.answer import Phrase
from lgjax.infer.regions import Box, Click, Region, Scribble
from lgjax.infer.request import Model, Options
from lgjax.infer.stream import Done, Event, Words
from lgjax.serve.limits import Limits
from lgjax.serve.picture import decode_picture
from lgjax.serve.queue import Desk, Question, Ticket, Turn

KINDS = ("click", "box", "scribble")
_WAIT = 0.5  # seconds between two looks whether the reader is still there


class Answering(Exception):
    """A conversation's question is asked while another one of it is being answered."""

    def __init__(self) -> None:
        super().__init__("an answer is on its way; wait for its end, or clear the conversation")


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """A question and its answer as JSON."""

    turn: Turn
    answer: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pointed:
    """Regions for the next question; `unfinished`: the next stroke belongs to the last of them."""

    regions: tuple[Region, ...] = ()
    unfinished: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """A reader's conversation.

    picture: the bytes of its file; turns: what was asked; folder: of downloads; place: which of the turns is
    looked at.
    """

    picture: bytes = b""
    turns: tuple[Asked, ...] = ()
    folder: str = ""
    place: int = -1

    @property
    def seen(self) -> Asked | None:
        """The answer that is looked at."""
        return self.turns[self.place] if self.turns else None

    def with_turns(self, turns: tuple[Asked, ...]) -> Session:
        """The conversation with these turns, of which the last is looked at."""
        return dataclasses.replace(self, turns=turns, place=-1)

    def look_at(self, place: int) -> Session:
        """The conversation with another answer looked at, if it has so many."""
        return dataclasses.replace(self, place=place) if 0 <= place < len(self.turns) else self


class Page:
    """What happens on the page. Every method takes a session and returns the next one, or what is shown.

    Files to download lie in `folder`, in one of its own for each conversation.
    """

    def __init__(self, desk: Desk, limits: Limits, folder: Path) -> None:
        self._desk = desk
        self._limits = limits
        self._folder = folder
        self._coming: dict[str, list[Asked]] = {}  # by folder: the answers on their way, as far as they are

    def take(self, path: str | None) -> Session:
        """Begin a conversation about another picture.

        Raises:
            ValueError: no picture that the limits let in.
        """
        if path is None:
            return Session()
        if not Path(path).is_file():
            raise ValueError("the picture is no longer there; upload it again")
        data = Path(path).read_bytes()
        decode_picture(data, self._limits)
        return Session(data, folder=tempfile.mkdtemp(dir=self._folder))

    def point(self, pointed: Pointed, kind: str, stroke: Sequence[tuple[float, float]]) -> Pointed:
        """Add a stroke, which is one point where the reader tapped: a click, a box or a corner, a scribble.

        A box is dragged from corner to corner, or its corners are tapped one after the other.
        """
        regions, points = pointed.regions, tuple(stroke)
        if kind == "click":
            return Pointed((*regions, Click(*points[0])))
        reading = "box" if kind == "box" else "click"
        last = regions[-1] if pointed.unfinished else None
        if isinstance(last, Scribble) and last.reading == reading:
            regions = regions[:-1]
            if kind == "scribble" or len(points) == 1:
                points = (*last.points, *points)
        if kind == "box" and len(points) > 1:
            return Pointed((*regions, Box(*points[0], *points[-1])))
        return Pointed((*regions, Scribble(points, reading)), unfinished=True)

    def ask(self, session: Session, turn: Turn, options: Options) -> Iterator[tuple[Session, Asked]]:
        """Ask the next question; the answer so far is the last of each pair, with its phrases so far.

        Raises:
            Answering: another question of the conversation is being answered.
            ValueError: the question makes no sense.
            Busy, Stopping: the server takes none.
        """
        earlier = tuple((asked.turn, asked.answer["remembered"]) for asked in session.turns)
        self._limits.check_conversation(
            [len(part.regions) for part in (*[past for past, _ in earlier], turn)]
        )
        told: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        ticket = Ticket(Question(session.picture, earlier, turn, options, True), told.put)
        coming = [Asked(turn, {"text": "", "phrases": []})]
        if self._coming.setdefault(session.folder, coming) is not coming:  # setdefault lets one thread in
            raise Answering
        try:
            self._desk.submit(ticket)
            event = None
            while not isinstance(event, Done):
                yield session, coming[0]
                try:
                    event = told.get(timeout=_WAIT)
                except queue.Empty:
                    continue
                if isinstance(event, Exception):
                    raise event
                coming[0] = _longer(coming[0], event)
            # another question is let in when the page has come back for more, so has this answer
            yield session.with_turns((*session.turns, coming[0])), coming[0]
        finally:
            self._desk.leave(ticket)
            del self._coming[session.folder]

    def last(self, session: Session) -> Asked | None:
        """The answer that the reader sees: the one on its way, or the one of the conversation."""
        coming = self._coming.get(session.folder)
        return coming[0] if coming else session.seen

    def preview(self, session: Session, pointed: Pointed) -> PIL.Image.Image | None:
        """The picture with the regions of the next question."""
        if not session.picture:
            return None
        return draw.draw_prompts(self._decoded(session), [_outline(region) for region in pointed.regions])

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
        return draw.draw_phrases(image, phrases, _region(asked, image.size))

    def files(self, session: Session) -> tuple[str | None, str | None]:
        """Paths of answer.json and answer.png of the answer that is looked at."""
        asked, folder = session.seen, Path(session.folder)
        if asked is None:
            return None, None
        (folder / "answer.json").write_text(json.dumps(asked.answer, indent=1) + "\n", encoding="utf-8")
        image = self._decoded(session)
        phrases, region = _phrases(asked, image.size), _region(asked, image.size)
        drawn = draw.overlay(image, asked.answer["text"], phrases, region)
        drawn.save(folder / "answer.png")
        return str(folder / "answer.json"), str(folder / "answer.png")

    def _decoded(self, session: Session) -> PIL.Image.Image:
        return decode_picture(session.picture, self._limits)


def forget(session: Session) -> None:
    """Remove the files of a conversation that is over."""
    if session.folder:
        shutil.rmtree(session.folder, ignore_errors=True)


def _longer(asked: Asked, event: Event) -> Asked:
    """The answer so far with what was just told of it."""
    text, phrases = asked.answer["text"], asked.answer["phrases"]
    if isinstance(event, Done):
        return Asked(asked.turn, event.answer.to_json())
    if isinstance(event, Words):
        return Asked(asked.turn, {"text": text + event.text, "phrases": phrases})
    return Asked(asked.turn, {"text": text, "phrases": [*phrases, event.phrase.to_json()]})


def _outline(region: Region) -> list[tuple[float, float]]:
    if isinstance(region, Click):
        return [(region.x, region.y)]
    if isinstance(region, Box):
        x0, y0, x1, y1 = region.x0, region.y0, region.x1, region.y1
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    assert isinstance(region, Scribble), "the page makes no other regions"
    return list(region.points)


def _phrases(asked: Asked, size: ImageSize) -> list[Phrase]:
    """The phrases of an answer, with masks of a picture of `size`."""
    phrases = []
    for found in asked.answer["phrases"]:
        shown = [np.asarray(masks.decode(code, size)) for code in found["masks"]]
        phrases.append(_phrase(found, np.stack(shown) if shown else np.zeros((0, *size[::-1]), bool)))
    return phrases


def _region(asked: Asked, size: ImageSize) -> Bool[np.ndarray, "h w"] | None:
    """The pixels of the question's regions in a picture of `size`, where the answer has them."""
    code = asked.answer.get("region_mask")
    return None if code is None else np.asarray(masks.decode(code, size))


def _spoken(asked: Asked) -> list[Phrase]:
    """The phrases without what their masks show: enough for the colours of the text."""
    found = asked.answer["phrases"]
    return [_phrase(phrase, np.zeros((len(phrase["boxes"]), 1, 1), bool)) for phrase in found]


def _phrase(found: dict[str, Any], shown: Bool[np.ndarray, "n h w"]) -> Phrase:
    boxes = np.asarray(found["boxes"], np.float32).reshape(-1, 4)
    scores = np.asarray(found["scores"], np.float32)
    return Phrase(found["text"], tuple(found["span"]), boxes, scores, shown)


def _nothing(phrase: Phrase) -> Phrase:
    """The phrase as if nothing was found for it."""
    return dataclasses.replace(
        phrase, boxes=phrase.boxes[:0], scores=phrase.scores[:0], masks=phrase.masks[:0]
    )


def messages_of(turns: Sequence[Asked]) -> list[dict[str, str]]:
    """The conversation for the chat window, answers in the colours of their phrases."""
    out = []
    for asked in turns:
        answer = draw.coloured_html(asked.answer["text"], _spoken(asked))
        out.append({"role": "user", "content": draw.coloured_html(asked.turn.text, [])})
        out.append({"role": "assistant", "content": answer or "…"})
    return out


def pieces_of(asked: Asked | None) -> list[tuple[str, str | None]]:
    """The answer in pieces, each phrase of which something was found labelled with its number."""
    if asked is None:
        return []
    spoken = _spoken(asked)
    return [
        (piece, str(index + 1) if index is not None and len(spoken[index].boxes) else None)
        for piece, index in draw.split_by_phrase(asked.answer["text"], spoken)
    ]


def knows(model: Model, name: str, packaged: bool) -> str:
    """Say which model answers, and what it can do; `packaged`: it is the package's own of that name."""
    config = model.config
    can = ["answers in words"]
    can += ["finds boxes and masks of phrases"] if config.grounding is not None else []
    can += ["reads clicks, boxes and scribbles"] if config.prompt is not None else []
    notes = {
        "debug": " It is tiny and untrained: its answers are nonsense.",
        "tiny": " It knows drawn things, not photographs, and often errs; `--checkpoint` names another.",
    }
    size = f"{config.llama.num_layers} layers of width {config.llama.hidden_size}"
    return f"**{name}** ({size}) {', '.join(can)}.{notes.get(name, '') if packaged else ''}"
