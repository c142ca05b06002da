"""The HTTP API's JSON: OpenAI's chat completions with extra fields for regions and grounded phrases."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Discriminator, Field, FiniteFloat, Tag

from lgjax.data import masks
from lgjax.data.images import ImageSize
from lgjax.infer.answer import Answer
from lgjax.infer.regions import Again, Box, Click, Mask, Reading, Region, Scribble, as_trained
from lgjax.infer.request import Options
from lgjax.serve.fields import MESSAGE_IDLE, MESSAGE_IGNORED, REQUEST_IDLE, REQUEST_IGNORED, Strict
from lgjax.serve.limits import MASK_PIXELS, POINTS, STOP_CHARACTERS, Limits, TooLarge
from lgjax.serve.picture import check_picture, read_data_url
from lgjax.serve.queue import Question, Turn

LOWEST_THRESHOLD = 0.1
_TEXT = 20_000


class ClickRegion(Strict):
    """A clicked pixel of the picture."""

    type: Literal["click"]
    x: FiniteFloat
    y: FiniteFloat

    def region(self) -> Region:
        """As the model takes it."""
        return Click(self.x, self.y)


class BoxRegion(Strict):
    """A box by two opposite corner pixels."""

    type: Literal["box"]
    x0: FiniteFloat
    y0: FiniteFloat
    x1: FiniteFloat
    y1: FiniteFloat

    def region(self) -> Region:
        """As the model takes it."""
        return Box(self.x0, self.y0, self.x1, self.y1)


class ScribbleRegion(Strict):
    """Points [x, y] over one thing, or several clicks on it, read as a click or a box."""

    type: Literal["scribble"]
    points: Annotated[list[tuple[FiniteFloat, FiniteFloat]], Field(min_length=1, max_length=POINTS)]
    reading: Reading = "click"

    def region(self) -> Region:
        """As the model takes it."""
        return Scribble(tuple(self.points), self.reading)


class MaskRegion(Strict):
    """A mask of the picture as a compressed COCO run-length code, read as a box or a click."""

    type: Literal["mask"]
    size: Annotated[list[int], Field(min_length=2, max_length=2, description="height, width")]
    counts: str
    reading: Reading = "box"

    def region(self) -> Region:
        """As the model takes it; its size is compared with the picture's before it is decoded."""
        height, width = self.size
        code = {"size": self.size, "counts": self.counts}
        return Mask(np.asarray(masks.decode(code, (width, height))), self.reading)


class AgainRegion(Strict):
    """A region of an earlier question; these are numbered from 1 as they came."""

    type: Literal["again"]
    number: int

    def region(self) -> Region:
        """As the model takes it."""
        return Again(self.number)


AnyRegion = Annotated[
    ClickRegion | BoxRegion | ScribbleRegion | MaskRegion | AgainRegion, Field(discriminator="type")
]


class ImageUrl(Strict):
    """The picture as a data URL: data:image/png;base64,... (or jpeg, webp). Nothing is fetched."""

    ignored = frozenset({"detail"})
    url: str


class ImagePart(Strict):
    """The picture of the conversation; it stands in the first message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    """Words of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=_TEXT)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Field(max_length=_TEXT), Tag("text")] | Annotated[list[Part], Tag("parts")],
    # a fault names what was meant, not every kind that it is not
    Discriminator(lambda given: "parts" if isinstance(given, list) else "text"),
]


class Message(Strict):
    """A question of the user, or an earlier answer of the assistant.

    `regions` (extra field, of the user's messages): one for each % of the question, in order. `remembered`
    (extra field, of the assistant's messages): sent back as it came with the answer, it goes into the prompt
    instead of `content`: as the model has seen answers, with their spaces or grounding tokens.
    """

    ignored = MESSAGE_IGNORED
    idle = MESSAGE_IDLE
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    regions: list[AnyRegion] = Field(default_factory=list)
    remembered: Annotated[str, Field(max_length=_TEXT)] | None = None

    @property
    def text(self) -> str:
        """The words of the message."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def pictures(self) -> list[str]:
        """The URLs of the message's pictures."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class StreamOptions(Strict):
    """Options of a streamed answer."""

    ignored = frozenset({"include_obfuscation"})
    include_usage: bool = False


class ChatRequest(Strict):
    """A question about a picture.

    Fields of OpenAI's that change no answer, as `user`, may be given; those that would, as `tools`, and
    misspelt ones are refused.

    Extra fields: `ground` asks for phrases with boxes and masks; `threshold` keeps what is found with a
    probability above it (null: the best of each phrase alone); `answer` is a text with
    <g_s> phrase <g_e> <seg> to ground instead of a generated one. Unlike OpenAI's, `temperature` is 0 by
    default; without a `seed` one is drawn at random, and the answer says which.
    """

    ignored = REQUEST_IGNORED
    idle = REQUEST_IDLE
    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    ground: bool = True
    threshold: Annotated[float, Field(ge=LOWEST_THRESHOLD, lt=1)] | None = 0.2
    answer: Annotated[str, Field(max_length=_TEXT)] | None = None

    def question(self, limits: Limits) -> Question:
        """Check what the schema cannot say, and make the question of it.

        Raises:
            TooLarge: over a limit.
            ValueError: messages that make no conversation about one picture.
        """
        tokens = self.max_completion_tokens or self.max_tokens or min(256, limits.max_tokens)
        if tokens > limits.max_tokens:
            raise TooLarge(f"max_tokens {tokens} is more than {limits.max_tokens}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if (longest := max(map(len, stop), default=0)) > STOP_CHARACTERS:
            raise TooLarge(f"a stop text has {longest} characters, more than {STOP_CHARACTERS}")
        picture, turns = self._conversation(limits)
        options = Options(
            ground=self.ground,
            threshold=self.threshold,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbelow(2**32) if self.seed is None and self.temperature else self.seed or 0,
            max_tokens=tokens,
            stop=stop,
            answer=self.answer,
        )
        answers = [message.remembered or message.text for message in self.messages[1::2]]
        earlier = tuple(zip(turns[:-1], answers, strict=True))
        return Question(picture, earlier, turns[-1], options, self.stream)

    def _conversation(self, limits: Limits) -> tuple[bytes, list[Turn]]:
        """The picture, and what the user asked."""
        for i, message in enumerate(self.messages):
            if message.role in ("system", "developer"):
                raise ValueError(f"message {i}: the model was trained with a system message of its own")
            if message.role != ("user", "assistant")[i % 2]:
                raise ValueError(f"message {i}: user and assistant take turns, the user first")
            if message.pictures and i > 0:
                raise ValueError(f"message {i}: a conversation has one picture, in its first message")
            if message.regions and message.role != "user":
                raise ValueError(f"message {i}: regions belong to the user's messages")
        asked = self.messages[::2]
        if len(self.messages) % 2 == 0:
            raise ValueError("the last message must be the user's")
        limits.check_conversation([len(message.regions) for message in asked])
        pictures = self.messages[0].pictures
        if len(pictures) != 1:
            raise ValueError(f"the first message has {len(pictures)} pictures; one is needed")
        data = read_data_url("".join(pictures[0].split()))  # base64 may stand in lines
        size = check_picture(data, limits)
        self._check_regions(size)
        return data, [
            # what is large becomes the click or box that it is read as at once, one after the other
            Turn(message.text, tuple(_small(part.region(), size) for part in message.regions))
            for message in asked
        ]

    def _check_regions(self, size: ImageSize) -> None:
        """Refuse masks of another size than the picture's, and what would take long to read."""
        regions = [part for message in self.messages for part in message.regions]
        points = sum(len(part.points) for part in regions if isinstance(part, ScribbleRegion))
        if points > POINTS:
            raise TooLarge(f"the scribbles have {points} points together, more than {POINTS}")
        shapes = [part.size for part in regions if isinstance(part, MaskRegion)]
        if wrong := [shape for shape in shapes if shape != [size[1], size[0]]]:
            raise ValueError(
                f"a mask has size {wrong[0]}, but the picture {[size[1], size[0]]} (height, width)"
            )
        if (pixels := len(shapes) * size[0] * size[1]) > MASK_PIXELS:
            raise TooLarge(
                f"{len(shapes)} masks have {pixels} pixels together, more than {MASK_PIXELS}; "
                "say 'again' for one that was shown, or send a smaller picture"
            )


def _small(region: Region, size: ImageSize) -> Region:
    return region if isinstance(region, Again) else as_trained(region, size)


class Code(BaseModel):
    """A mask of the picture as a compressed COCO run-length code; `size` is height, width."""

    size: list[int]
    counts: str


class PhraseOut(BaseModel):
    """A grounded phrase: it stands at characters `span` of the text; the best finding is first.

    `boxes` are x0, y0, x1, y1 in pixels of the picture.
    """

    text: str
    span: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]
    scores: list[float]
    masks: list[Code]


class NumberedPhrase(PhraseOut):
    """A phrase of a streamed answer, at place `index` of its phrases; a later one replaces an earlier one."""

    index: int


class MessageOut(BaseModel):
    """The answer; `remembered`, `phrases` and `region_mask` are extra fields.

    The whole message, or its `content` and `remembered`, belongs into the messages of the next question.
    """

    role: Literal["assistant"] = "assistant"
    content: str
    remembered: str
    phrases: list[PhraseOut]
    region_mask: Code | None


class Choice(BaseModel):
    """The one answer."""

    index: int = 0
    message: MessageOut
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    """Tokens; those of the prompt include the picture's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """An answer; `seed` (extra field) is what it was drawn with, given or not, to draw it again."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    seed: int
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """A piece of a streamed answer: words, or `phrases` (extra field).

    A phrase comes as soon as it was found. The last piece holds `remembered`, all phrases and `region_mask`
    as they are in an answer that is not streamed.
    """

    role: Literal["assistant"] | None = None
    content: str | None = None
    remembered: str | None = None
    phrases: list[NumberedPhrase] | None = None
    region_mask: Code | None = None


class ChunkChoice(BaseModel):
    """A piece of the one answer."""

    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None


class Chunk(BaseModel):
    """What a `data:` line of a stream holds, but the last one, which is [DONE]."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    seed: int
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Fault(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class FaultResponse(BaseModel):
    """A refused request."""

    error: Fault


def usage(answer: Answer, prompt_tokens: int) -> Usage:
    """Tokens of a question and its answer."""
    total = prompt_tokens + answer.num_tokens
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=answer.num_tokens, total_tokens=total)


def finish_reason(answer: Answer) -> Literal["stop", "length"]:
    """Why the answer ended."""
    return "stop" if answer.finished else "length"


def message_of(answer: Answer) -> MessageOut:
    """The answer with its phrases."""
    found: dict[str, Any] = answer.to_json()
    return MessageOut(content=found.pop("text"), **found)
