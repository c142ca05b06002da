"""Ask about pictures: one question, a batch of them, or a conversation that keeps what it has computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32

from lgjax.config import IMAGE_TOKEN, History
from lgjax.data import images
from lgjax.draw import draw_marks
from lgjax.infer import engine, generate
from lgjax.infer.answer import Answer
from lgjax.infer.load import load_model
from lgjax.infer.regions import Again, Box, Mask, Region, Shown, as_trained, prompt_of
from lgjax.infer.request import Model, Options, Request, View
from lgjax.infer.run import Batch, Progress, run
from lgjax.infer.stream import Done, Event
from lgjax.models.llama import Cache
from lgjax.models.splice import plan_row
from lgjax.text.conversation import GROUNDING_SUFFIX, chat_prompt, tagged_marks
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER

Regions = Region | Sequence[Region] | None
HOW_TO_MARK = (
    'write % with a space on both sides, as in "What is the object % doing?", and not as the first word'
)


class GroundedChat:
    """A model to talk to about pictures; `GroundedChat.load(folder)` makes one."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    def load(
        cls, source: str | Path, *, dtype: str = "auto", mesh: jax.sharding.Mesh | None = None
    ) -> GroundedChat:
        """Load a folder made by `lgjax convert`, "tiny" (comes with the package and knows drawn things), or
        "debug" (untrained).

        dtype: of language model and vision tower, "float32", "bfloat16" or "auto": bfloat16 on accelerators
        and, on CPUs, float32 where it fits into half of the free memory; matrices that `lgjax convert
        --quantize` has packed stay so. A mesh shards the parameters.
        Grounding and visual prompts always compute in float32.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: a damaged or partial one: files, token ids or outputs other than recorded.
        """
        return cls(load_model(source, dtype=dtype, mesh=mesh))

    def start(
        self, image: images.ImageSource, *, history: History | None = None, broadcast: bool = False
    ) -> Conversation:
        """Begin a conversation about a picture (path, PIL image or uint8 RGB array).

        history: how prompts are written; "demo" as in the released demo, earlier answers without grounding
        tokens; "training" as in training, with them, and with a space behind each mark of a question with
        regions; None: as the checkpoint's `ModelConfig.history` says. broadcast: as the released demo does,
        put the region of the newest question in the place of every % of the whole conversation, also of those
        that meant another region or a percentage. Source: spec/visual_prompts.md 6, quirk 15.
        """
        return Conversation(self.model, View(self.model, image), history, broadcast)

    @staticmethod
    def mark(
        image: images.ImageSource, masks: Sequence[Mask | Bool[np.ndarray, "h w"]], **style: Any
    ) -> PIL.Image.Image:
        """Draw numbered marks on things; the question then says <1>, <2>, ... in plain text.

        The answer names marks in the same way, so ask with `ground=False`, as such chats are trained.
        `style`: see `lgjax.draw.draw_marks`.

        Raises:
            ValueError: a mask of another size than the picture, or without pixels.
        """
        picture = images.load_image(image)
        shown = [mask.pixels if isinstance(mask, Mask) else mask for mask in masks]
        size = picture.size
        if wrong := [mask.shape for mask in shown if mask.shape != size[::-1]]:
            height, width = wrong[0]
            raise ValueError(
                f"a mask to mark is {width} x {height} pixels, but the picture {size[0]} x {size[1]}"
            )
        return draw_marks(picture, np.stack(shown) if shown else np.zeros((0, *size[::-1]), bool), **style)

    def ask(self, image: images.ImageSource, text: str, region: Regions = None, **options: Any) -> Answer:
        """Ask one question about a picture; `options` are the fields of `Options`.

        A region is a `Click`, `Box`, `Scribble` or `Mask` in pixels; the question says % where it is meant,
        with a space on both sides and not as the first word: once for each of several regions, in their
        order. A single region stands for every such % of its question.

        Raises:
            FileNotFoundError: no such picture.
            ValueError: an unreadable picture, a region outside it, or marks that do not match the regions.
        """
        return self.start(image).ask(text, region, **options)

    def stream(
        self, image: images.ImageSource, text: str, region: Regions = None, **options: Any
    ) -> Iterator[Event]:
        """Ask one question and hear the answer as it comes; see `Conversation.stream` and `ask`."""
        return self.start(image).stream(text, region, **options)

    def ask_batch(
        self,
        pictures: Sequence[images.ImageSource],
        texts: Sequence[str],
        regions: Sequence[Regions] | None = None,
        *,
        answers: Sequence[str | None] | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> list[Answer]:
        """Ask one question about each picture, `batch_size` at a time; the answers are those of `ask`.

        answers: for each row a text to ground instead of a generated one, or None. On a mesh with several
        copies of the model (its axis "data") each takes its part of the rows.

        Raises:
            ValueError: the lists differ in length; or as `ask`, with the number of the row.
        """
        regions = [None] * len(texts) if regions is None else regions
        forced = [options.pop("answer", None)] * len(texts) if answers is None else answers
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be at least 1")
        if not len(pictures) == len(texts) == len(regions) == len(forced):
            counts = f"{len(pictures)} pictures, {len(texts)} texts, {len(regions)} regions"
            raise ValueError(f"{counts} and {len(forced)} answers: give one of each for every row")
        chosen, found = Options(**options), []
        for first in range(0, len(texts), batch_size):
            requests = []
            for row in range(first, min(first + batch_size, len(texts))):
                try:
                    own = dataclasses.replace(chosen, answer=forced[row])
                    requests.append(self.start(pictures[row]).request(texts[row], regions[row], own)[0])
                except (ValueError, OSError) as error:
                    raise ValueError(f"row {row}: {error}") from error
            # a row that stands in for none fills the last device's part
            filled = [*requests, *[requests[-1]] * (-len(requests) % self.model.copies)]
            found += run(self.model, filled).answers[: len(requests)]
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """A finished question as later prompts repeat it.

    slots: for each visual-prompt mark of the prompts up to and including this question, the number of its
    object feature, or -1 for an ordinary percent sign; objects: the features of this question's regions;
    shown: those of its regions that were new.
    """

    question: str
    answer: str
    slots: tuple[int, ...]
    objects: Float32[np.ndarray, "n d"]
    shown: tuple[Shown, ...]


class Conversation:
    """Questions about one picture. Image features and the key-value cache are kept between them.

    Each prompt is computed from where it first differs from what the cache holds, so the numbers are those of
    the whole prompt computed anew.
    """

    def __init__(
        self, model: Model, view: View, history: History | None = None, broadcast: bool = False
    ) -> None:
        self._model = model
        self._view = view
        self._history: History = history or model.config.history
        self._broadcast = broadcast
        self._turns: list[Turn] = []
        self._cache: Cache | None = None
        self._held = np.zeros((0, 3), np.int32)  # (token, patch, object) of every position in the cache

    def check(self, region: Region) -> None:
        """Raise ValueError when `region` lies outside the picture or was never shown."""
        size = self._view.image.size
        prompt_of(as_trained(self._shown(region), size), size)

    def _shown(self, region: Region) -> Shown:
        """The region itself, or the earlier one that it names."""
        if not isinstance(region, Again):
            return region
        known = [shown for turn in self._turns for shown in turn.shown]
        if not 1 <= region.number <= len(known):
            raise ValueError(f"there is no region {region.number}; {len(known)} were shown so far")
        return known[region.number - 1]

    def recall(self, text: str, region: Regions, answer: str, **options: Any) -> None:
        """Put a question that was asked elsewhere and its answer at the end of the conversation.

        answer: `Answer.remembered`, or any plain text (which a checkpoint whose `history` is "training" has
        not seen there).

        Raises:
            ValueError: see `GroundedChat.ask`.
        """
        _, turn = self.request(text, region, Options(**options))
        self._turns.append(dataclasses.replace(turn, answer=answer.replace(IMAGE_PLACEHOLDER, "")))

    def undo(self) -> None:
        """Take back the last question and its answer.

        Raises:
            ValueError: nothing was asked yet.
        """
        if not self._turns:
            raise ValueError("there is no question to take back")
        self._turns.pop()
        # the number of a forgotten region may go to another one, so nothing that points at it may stay held
        kept = sum(len(turn.objects) for turn in self._turns)
        forgotten = np.flatnonzero(self._held[:, 2] >= kept)
        if len(forgotten):
            self._held = self._held[: forgotten[0]]

    def ask(
        self,
        text: str,
        region: Regions = None,
        *,
        progress: Progress = lambda what: None,
        **options: Any,
    ) -> Answer:
        """Ask the next question; see `GroundedChat.ask`. A fault leaves the conversation as it was.

        `progress` is called with what is being done: "reading", "answering", "grounding".
        """
        *_, last = self._events(text, region, Options(**options), None, progress)
        assert isinstance(last, Done)
        return last.answer

    def stream(self, text: str, region: Regions = None, *, chunk: int = 4, **options: Any) -> Iterator[Event]:
        """Ask the next question and hear the answer as it comes: `Words`, `Found`, and at the end `Done`.

        `chunk` ids are decoded before each look at them. The answer of `Done` is that of `ask`. An iterator
        that is not read to its end leaves the conversation as it was.
        """
        return self._events(text, region, Options(**options), chunk, lambda what: None)

    def _events(
        self, text: str, region: Regions, options: Options, chunk: int | None, progress: Progress
    ) -> Iterator[Event]:
        request, turn = self.request(text, region, options)
        content = np.stack([request.plan.tokens, request.plan.patches, request.plan.objects], 1)
        same = min(len(self._held), len(content) - 1)
        differs = np.flatnonzero((self._held[:same] != content[:same]).any(1))
        request = dataclasses.replace(request, start=int(differs[0]) if len(differs) else same)
        # the cache is used up by the run, also by one that fails
        cache, self._cache, self._held = self._cache, None, self._held[:0]
        batch = Batch(self._model, [request], cache if request.start else None, progress)
        for _, event in batch.events(chunk):
            if isinstance(event, Done):
                fed = np.full((max(len(batch.ids[0]) - 1, 0), 3), -1, np.int32)
                fed[:, 0] = batch.ids[0][: len(fed)]
                self._cache, self._held = batch.cache, np.concatenate([content, fed])
                self._turns.append(dataclasses.replace(turn, answer=event.answer.remembered))
            yield event

    def request(self, text: str, region: Regions, options: Options) -> tuple[Request, Turn]:
        """Plan the prompt of the next question and read its regions; the conversation does not change.

        Raises:
            ValueError: see `GroundedChat.ask`.
        """
        tokenizer, config = self._model.tokenizer, self._model.config
        question = text.strip()
        if not question:
            raise ValueError("the question is empty")
        if IMAGE_PLACEHOLDER in question:
            raise ValueError(
                f"leave {IMAGE_PLACEHOLDER} out of the question; the picture is put in front of it"
            )
        if options.ground and not question.endswith(GROUNDING_SUFFIX):
            question = f"{question} {GROUNDING_SUFFIX}"
        regions = [] if region is None else [region] if isinstance(region, Region) else list(region)
        if regions and self._history == "training":
            question = tagged_marks(question)
        asked = [(turn.question, turn.answer) for turn in self._turns]
        ids = self._tokenise(asked, question)
        # marks of earlier questions and answers come first; an answer's are ordinary percent signs
        earlier = self._turns[-1].slots if self._turns else ()
        before = len(self._marks(self._tokenise(asked, "x"))) if asked else 0
        earlier += (-1,) * (before - len(earlier))
        marks = self._marks(ids)
        if wrong := [part for part in regions if not isinstance(part, Region)]:
            raise ValueError(
                f"a region is a Click, Box, Scribble, Mask or Again, not {type(wrong[0]).__name__}"
            )
        known = [turn.objects for turn in self._turns]
        first = sum(map(len, known))
        if self._broadcast:
            slots = _broadcast(len(marks), len(regions), first)
        else:
            slots = earlier + _assign(len(marks) - before, len(regions), first)
        objects, masks = self._read([self._shown(part) for part in regions])

        plan = plan_row(ids, config.clip.num_patches)
        numbers = plan.objects.copy()
        tokens = plan.tokens.copy()
        image = int(np.flatnonzero(plan.patches >= 0)[-1])
        spots = np.flatnonzero((plan.tokens == tokenizer.percent_id) & (np.arange(len(tokens)) > image))
        for spot, slot in zip(spots, slots, strict=True):
            if slot >= 0:
                numbers[spot], tokens[spot] = slot, -1
        forced: tuple[int, ...] = ()
        if options.answer is not None:
            forced = (*tokenizer.encode(options.answer)[1:], tokenizer.eos_id)
            options = dataclasses.replace(options, max_tokens=len(forced))
        request = Request(
            self._view,
            plan._replace(objects=numbers, tokens=tokens),
            np.concatenate([*known, objects]),
            options,
            self._history,
            masks,
            forced=forced,
        )
        shown = tuple(part for part in regions if not isinstance(part, Again))
        return request, Turn(question, "", slots, objects, shown)

    def _tokenise(self, asked: Sequence[tuple[str, str]], question: str) -> list[int]:
        return self._model.tokenizer.encode_prompt(chat_prompt(asked, question, history=self._history))

    def _marks(self, ids: Sequence[int]) -> list[int]:
        """Places of the marks: percent signs of their own after the picture."""
        image = max(i for i, token in enumerate(ids) if token == IMAGE_TOKEN)
        percent = self._model.tokenizer.percent_id
        return [i for i, token in enumerate(ids) if token == percent and i > image]

    def _read(
        self, regions: Sequence[Shown]
    ) -> tuple[Float32[np.ndarray, "n d"], Bool[np.ndarray, "n h w"] | None]:
        """Object feature and mask on the canvas of each region."""
        width = self._model.config.llama.hidden_size
        if not regions:
            return np.zeros((0, width), np.float32), None
        size = self._view.image.size
        room = generate.bucket(len(regions), 4)
        prompts, is_box = np.full((1, room, 4), 0.5, np.float32), np.zeros((1, room), np.int32)
        for i, region in enumerate(regions):
            prompt = as_trained(region, size)
            prompts[0, i], is_box[0, i] = prompt_of(prompt, size), isinstance(prompt, Box)
        real = (np.arange(room) < len(regions))[None]
        features, model = self._view.prompt_features, self._model
        objects, masks = engine.read_prompts(model.config, model.params, features, prompts, is_box, real)
        return np.asarray(objects[0, : len(regions)], np.float32), np.asarray(masks[0, : len(regions)])


def _assign(marks: int, regions: int, first: int) -> tuple[int, ...]:
    """Number of the object feature of each mark of a question; features are numbered from `first`."""
    if regions == 0:
        return (-1,) * marks
    if marks == 0:
        raise ValueError(f"a region was given but the question does not say where it is meant; {HOW_TO_MARK}")
    if regions == 1:
        return (first,) * marks
    if marks != regions:
        raise ValueError(
            f"{regions} regions, but {marks} marks in the question; {HOW_TO_MARK}, once for each region"
        )
    return tuple(range(first, first + regions))


def _broadcast(marks: int, regions: int, first: int) -> tuple[int, ...]:
    """The released demo's rule: one region for every mark, also where there is none. Quirk 15."""
    if regions > 1:
        raise ValueError(f"{regions} regions, but with broadcast one region stands for every %")
    return (first if regions else -1,) * marks
