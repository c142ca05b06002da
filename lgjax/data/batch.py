"""From records to one static batch: text, pictures, phrases, objects and visual prompts as padded arrays.

A batch has two parts. `Language` has a row for every sample; `Grounding` has one for those samples that the
grounding and visual-prompt models see. Rows stand group by group (a group belongs to one device): first its
grounded samples, then those that are text for the language model alone, so that cutting out the grounded
rows moves nothing between devices. Source: spec/training_and_data.md 6, 7, 8, 14.2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32

from lgjax.config import IGNORE_LABEL, ModelConfig, SegState
from lgjax.data import masks, prompts
from lgjax.data.images import ImageSize, Placement, clip_crop, square_canvas
from lgjax.data.marks import picture_of
from lgjax.data.rounds import Round, Wording, render, rounds_of
from lgjax.data.schema import KINDS, Object, Record
from lgjax.models.splice import BatchPlan, plan_batch, plan_row
from lgjax.text.conversation import VISUAL_PROMPT_MARK, VISUAL_PROMPT_TAG, training_ids
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER, Tokenizer

CUTS = ("rounds", "tokens", "phrases", "objects")
REGION_TOKEN = -201  # stands for a visual prompt among token ids, where " %" may also be a word
FAULT_BYTES = 240
NOTHING = 0  # the word (<unk>) of image tokens that show no object
_SHOWN, _CLEAR_PATCH = 0.25, 0.05  # share of an image token from which an object is seen, up to which none is
Layout = Literal["v1", "plain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Static sizes of a batch and how samples are made.

    length: positions of a row, image slots included; phrases, objects: most of one sample; clip_side,
    num_patches: CLIP's picture and its image tokens; canvas: side of the grounding view; mask_side: side of
    the masks, a multiple of 8 that need not be the canvas; seg_state: which hidden state stands for a phrase
    (released training: "at"); wording: see `rounds_of`; template: "plain" (stage 0) learns the first answer
    and a newline right behind the picture, without any words around them; words: note what objects and image
    tokens are called; name_weight: what a label counts that begins the name of an object of the record, where
    others count 1.
    """

    length: int = 1536
    phrases: int = 48
    objects: int = 100
    clip_side: int = 224
    num_patches: int = 256
    canvas: int = 1024
    mask_side: int = 512
    seg_state: SegState = "at"
    wording: Wording = "released"
    template: Layout = "v1"
    words: bool = False
    name_weight: float = 1.0

    @classmethod
    def of(cls, model: ModelConfig, **changes) -> BatchConfig:
        """The sizes that a model asks for; `changes` are fields of this class.

        Raises:
            ValueError: grounding and visual-prompt model see canvases of different sides.
        """
        sides = {part.image_size for part in (model.grounding, model.prompt) if part is not None}
        if len(sides) > 1:
            raise ValueError(
                f"grounding and visual-prompt model need one canvas, found sides {sorted(sides)}"
            )
        # without such a model the canvas has but to hold the masks
        canvas = sides.pop() if sides else changes.get("mask_side", cls.canvas)
        fixed = {"clip_side": model.clip.image_size, "num_patches": model.clip.num_patches, "canvas": canvas}
        return cls(**{**fixed, "mask_side": min(cls.mask_side, canvas), **changes})

    def __post_init__(self) -> None:
        if self.mask_side % 8:
            raise ValueError(f"mask_side {self.mask_side} must be a multiple of 8, to be packed into bytes")
        if not 0 < self.name_weight < math.inf:
            raise ValueError(f"name_weight {self.name_weight} must be above 0 and finite")
        if self.length <= self.num_patches + 2:
            raise ValueError(
                f"length {self.length} leaves no room for text beside {self.num_patches} image slots"
            )


class Language(NamedTuple):
    """What the language model sees of b samples.

    clip_images: CLIP's crop, 0..255, zeros without a picture; plan: positions, their labels and mask;
    lm_weight: 1, or 0 for a sample that is not learnt; kind: index into `schema.KINDS`; stream: number of the
    stream of its mixture, grounded ones first; sample_id: the same for a sample whatever batch it is in, to
    derive random numbers from; label_weights: what each label counts beside the others, None where all count
    alike.
    """

    clip_images: UInt8[np.ndarray, "b s s 3"]
    plan: BatchPlan
    lm_weight: Float32[np.ndarray, " b"]
    kind: Int32[np.ndarray, " b"]
    stream: Int32[np.ndarray, " b"]
    sample_id: UInt32[np.ndarray, " b"]
    label_weights: Float32[np.ndarray, "b n"] | None = None


class Grounding(NamedTuple):
    """What grounding and visual-prompt models see of g samples, p phrases and t objects each.

    images: square canvas, 0..255; seg_positions: position of each phrase in its row, seg_mask False at
    padding; boxes: (cx, cy, w, h) in [0, 1] of the canvas, object_mask False at padding, has_mask False
    where only the box is known; object_phrases: which phrases name an object; masks: bits packed along rows;
    prompts: every object as a click or a box with noise, is_box 1 or 0 (they are what `plan.objects` points
    at); object_words: the first token of each object's name, patch_words: of the object that covers an image
    token, `NOTHING` where there is none, -1 where that is not known; weight: 1 where there is a phrase to
    ground, else 0: it is that of the grounding model alone, a visual prompt is learnt wherever object_mask
    says so.
    """

    images: UInt8[np.ndarray, "g c c 3"]
    seg_positions: Int32[np.ndarray, "g p"]
    seg_mask: Bool[np.ndarray, "g p"]
    boxes: Float32[np.ndarray, "g t 4"]
    object_mask: Bool[np.ndarray, "g t"]
    has_mask: Bool[np.ndarray, "g t"]
    object_phrases: Bool[np.ndarray, "g t p"]
    masks: UInt8[np.ndarray, "g t m m8"]
    prompts: Float32[np.ndarray, "g t 4"]
    is_box: Int32[np.ndarray, "g t"]
    object_words: Int32[np.ndarray, "g t"]
    patch_words: Int32[np.ndarray, "g n"]
    weight: Float32[np.ndarray, " g"]


class Notes(NamedTuple):
    """For the host: how much of each sample was cut (`CUTS`), and why a sample could not be made (text)."""

    cuts: Int32[np.ndarray, "b 4"]
    fault: UInt8[np.ndarray, "b n"]


class Batch(NamedTuple):
    """A static batch; `grounding` is None where no sample has one."""

    language: Language
    grounding: Grounding | None
    notes: Notes


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches row by row; those without grounded rows add none."""
    grounded = [batch.grounding for batch in batches if batch.grounding is not None]

    def join(parts: Sequence) -> Any:
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    return Batch(
        join([batch.language for batch in batches]),
        join(grounded) if grounded else None,
        join([batch.notes for batch in batches]),
    )


@dataclasses.dataclass(frozen=True)
class SampleMaker:
    """Makes training samples of records; `grounded` with the arrays of the grounding models."""

    config: BatchConfig
    tokenizer: Tokenizer
    grounded: bool

    def __call__(self, record: Record, rng: np.random.Generator) -> Batch:
        """A batch of one row. All choices come from `rng`.

        Raises:
            ValueError, OSError: the record cannot be used: its picture cannot be read or has another size,
                its rounds cannot be told apart, or it has nothing to ask for.
        """
        config = self.config
        sample_id = rng.integers(2**32, dtype=np.uint32)
        rounds = rounds_of(record, rng, config.wording)
        if config.template == "plain":
            rounds = rounds[:1]
        if not self.grounded and any(one.regions for one in rounds):
            raise ValueError("a sample with visual prompts needs a grounded row")
        image = None if record.image is None else picture_of(record)
        text = encode(rounds, self.tokenizer, config, record.image is not None)
        cuts = dict.fromkeys(CUTS, 0) | {"rounds": len(rounds) - len(text.rounds), "tokens": text.cut}
        slots, grounding = np.zeros(len(text.regions), np.int32), None
        if self.grounded:
            grounding, numbers = _ground(record, text, image, config, self.tokenizer, rng, cuts)
            slots = np.asarray([numbers[i] for i in text.regions], np.int32)
        plan = _plan(text, slots, config)
        clip = np.zeros((config.clip_side, config.clip_side, 3), np.uint8)
        language = Language(
            clip_images=(clip if image is None else clip_crop(image, config.clip_side))[None],
            plan=plan,
            lm_weight=np.ones(1, np.float32),
            kind=np.asarray([KINDS.index(record.kind)], np.int32),
            stream=np.zeros(1, np.int32),
            sample_id=np.asarray([sample_id], np.uint32),
            label_weights=self._weights(plan, record.objects),
        )
        return Batch(language, grounding, notes(list(cuts.values())))

    def _weights(self, plan: BatchPlan, objects: Sequence[Object]) -> Float32[np.ndarray, "1 n"] | None:
        weight = self.config.name_weight
        if weight == 1:
            return None
        names = sorted(set(_words(objects, self.tokenizer)) - {-1})
        return np.where(np.isin(plan.labels, names), weight, 1).astype(np.float32)

    def filler(self, fault: str) -> Batch:
        """A row that nothing is learnt from, in place of a sample that could not be made."""
        config = self.config
        plan = plan_batch([plan_row([self.tokenizer.bos_id], config.num_patches)], config.length)
        language = Language(
            clip_images=np.zeros((1, config.clip_side, config.clip_side, 3), np.uint8),
            plan=plan,
            lm_weight=np.zeros(1, np.float32),
            kind=np.zeros(1, np.int32),
            stream=np.zeros(1, np.int32),
            sample_id=np.zeros(1, np.uint32),
            label_weights=self._weights(plan, ()),
        )
        grounding = _empty_grounding(config) if self.grounded else None
        return Batch(language, grounding, notes([0] * len(CUTS), fault))


def notes(cuts: Sequence[int], fault: str = "") -> Notes:
    """Notes of one row; the text of a fault is cut to what fits."""
    text = np.frombuffer(fault.encode()[:FAULT_BYTES].ljust(FAULT_BYTES, b"\0"), np.uint8)
    return Notes(np.asarray([cuts], np.int32), text[None])


class Text(NamedTuple):
    """A tokenised sample: ids with `REGION_TOKEN` at visual prompts, and their labels.

    rounds: what is left of them; regions: the object of each visual prompt left; seg_positions: where the
    <seg>s of the answers stand in the spliced row; cut: tokens that did not fit.
    """

    ids: list[int]
    labels: list[int]
    rounds: tuple[Round, ...]
    regions: tuple[int, ...]
    seg_positions: list[int]
    cut: int


def encode(rounds: tuple[Round, ...], tokenizer: Tokenizer, config: BatchConfig, has_image: bool) -> Text:
    """Tokenise rounds, leaving out the last ones until the row fits; one round alone is cut where it ends.

    Source: spec/training_and_data.md 6.1, 14.2.

    Raises:
        ValueError: the rounds cannot be told apart, or the tokens hold fewer visual prompts than the text.
    """
    slots = config.num_patches - 1 if has_image else 0
    room = config.length - slots
    if config.template == "plain":
        return _encode_plain(rounds[0], tokenizer, room, has_image)
    while True:
        prompt = render(rounds)
        marked = prompt.replace(VISUAL_PROMPT_TAG, f"{VISUAL_PROMPT_MARK} ")
        ids, labels, mismatch = training_ids(marked, tokenizer, 2**31, has_image=has_image)
        if len(ids) <= room or len(rounds) == 1:
            break
        rounds = rounds[:-1]
    if mismatch:
        raise ValueError("its rounds cannot be told apart: a text holds '</s>', '<unk>' or ' ASSISTANT: '")
    marks_at = _region_positions(prompt, ids, tokenizer)
    regions = [number for one in rounds for number in one.regions]
    if len(marks_at) != len(regions):
        raise ValueError(f"{len(regions)} regions, but {len(marks_at)} visual prompts in the tokens")
    for position in marks_at:
        ids[position] = REGION_TOKEN
        labels[position] = IGNORE_LABEL
    cut = max(0, len(ids) - room)
    ids, labels = ids[:room], labels[:room]
    segs = [i + slots if has_image else i for i, label in enumerate(labels) if label == tokenizer.seg_id]
    kept = sum(position < room for position in marks_at)
    return Text(ids, labels, rounds, tuple(regions[:kept]), segs, cut)


def _encode_plain(first: Round, tokenizer: Tokenizer, room: int, has_image: bool) -> Text:
    """The answer behind the picture. Source: spec/training_and_data.md 2.0.

    Raises:
        ValueError: an answer with phrases or visual prompts, which this template has no place for.
    """
    if not has_image or first.phrases or first.regions:
        raise ValueError("the plain template is for captions of pictures, without phrases or visual prompts")
    ids = tokenizer.encode_prompt(f"{IMAGE_PLACEHOLDER}{first.answer}\n")
    labels = [IGNORE_LABEL, IGNORE_LABEL, *ids[2:]]
    return Text(ids[:room], labels[:room], (first,), (), [], max(0, len(ids) - room))


def _region_positions(prompt: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where the visual prompts stand among the ids of `prompt`, whose "<obj>" became "% ".

    Words with " %" have the same id; which of them is a prompt is counted in the text before it.
    """
    found = [i for i, token in enumerate(ids) if token == tokenizer.percent_id]
    pieces = prompt.split(VISUAL_PROMPT_TAG)
    before, positions = "", []
    for piece in pieces[:-1]:
        before += piece + VISUAL_PROMPT_MARK
        rank = tokenizer.encode(before).count(tokenizer.percent_id)
        if not 0 < rank <= len(found):
            return []
        positions.append(found[rank - 1])
        before += " "
    return positions


def _plan(text: Text, slots: Int32[np.ndarray, " r"], config: BatchConfig) -> BatchPlan:
    row = plan_row(text.ids, config.num_patches, REGION_TOKEN, num_objects=len(slots), labels=text.labels)
    objects = np.where(row.objects >= 0, np.append(slots, -1)[row.objects], -1).astype(np.int32)
    return plan_batch([row._replace(objects=objects)], config.length)


def _ground(
    record: Record,
    text: Text,
    image: PIL.Image.Image | None,
    config: BatchConfig,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    cuts: dict[str, int],
) -> tuple[Grounding, dict[int, int]]:
    """The grounding row of a sample, and the slot of each object of the record that it keeps."""
    out = _empty_grounding(config)
    phrases = [numbers for one in text.rounds for numbers in one.phrases]
    cuts["phrases"] = len(phrases) - len(text.seg_positions)
    grounded = [pair for pair in zip(text.seg_positions, phrases, strict=False) if pair[1]]
    cuts["phrases"] += max(0, len(grounded) - config.phrases)
    grounded = grounded[: config.phrases]
    kept = _choose_objects(record, grounded, text.regions, config.objects, rng, cuts)
    slot = {number: i for i, number in enumerate(kept)}
    shift = 1 if config.seg_state == "before" else 0
    for i, (position, numbers) in enumerate(grounded):
        out.seg_positions[0, i] = position - shift
        out.seg_mask[0, i] = True
        for number in numbers:
            if number in slot:
                out.object_phrases[0, slot[number], i] = True
    out.weight[0] = bool(grounded)
    if image is None:
        return out, slot
    out.images[0], placement = square_canvas(image, config.canvas)
    things = [record.objects[number] for number in kept]
    _place(out, things, placement, record.kind == "referring", config, rng)
    if config.words:
        _name(out, things, image.size, config, tokenizer)
    return out, slot


def _choose_objects(
    record: Record,
    grounded: Sequence[tuple[int, tuple[int, ...]]],
    regions: Sequence[int],
    most: int,
    rng: np.random.Generator,
    cuts: dict[str, int],
) -> list[int]:
    """Objects to learn from, in the order of the record: those named, and in a chat all others but crowds.

    When there are too many the named ones stay, the others are drawn. Source: spec/training_and_data.md
    6.3, 6.4, 14.2, quirk Q7.

    Raises:
        ValueError: more objects with visual prompts than there is room for.
    """
    if len(set(regions)) > most:
        raise ValueError(f"{len(set(regions))} objects with visual prompts, more than the {most} of a batch")
    named = sorted({*regions, *(number for _, numbers in grounded for number in numbers)})
    others = []
    if record.kind in ("chat", "region"):
        others = [i for i, thing in enumerate(record.objects) if not thing.crowd and i not in set(named)]
    cuts["objects"] = max(0, len(named) + len(others) - most)
    if cuts["objects"]:
        # a region without its object could not be written into the text
        named = [*sorted(set(regions)), *(i for i in named if i not in set(regions))][:most]
        others = [others[i] for i in rng.permutation(len(others))[: most - len(named)]]
    return sorted(named + others)


def _place(
    out: Grounding,
    things: Sequence[Object],
    placement: Placement,
    tight: bool,
    config: BatchConfig,
    rng: np.random.Generator,
) -> None:
    """Write boxes, masks and prompts of objects into a row; `tight` boxes are those of the masks."""
    count = len(things)
    if not count:
        return
    bitmaps = np.zeros((count, config.mask_side, config.mask_side), bool)
    for bitmap, thing in zip(bitmaps, things, strict=True):
        if thing.mask is not None:
            bitmap[:] = masks.on_canvas(thing.mask, placement, config.mask_side)
    has_mask = np.asarray(bitmaps.any((1, 2)))  # a thing smaller than a cell has only its box
    scale = np.tile(np.asarray(placement.scaled) / placement.size, 2)
    corners = np.asarray([thing.box for thing in things], np.float64) * scale
    corners = corners.clip(0, np.tile(placement.scaled, 2))
    cell = config.canvas / config.mask_side
    for i, thing in enumerate(things):
        if tight and thing.mask is not None:
            whole = masks.on_canvas(thing.mask, placement)
            corners[i] = masks.box_of(whole) if whole.any() else corners[i]
    canvas = (config.canvas, config.canvas)
    boxes = prompts.normalise_boxes(corners, canvas)
    num_clicks = prompts.draw_num_clicks(count, rng)
    clean = boxes.copy()
    for i in range(num_clicks):
        middle = corners[i].reshape(2, 2).mean(0)
        x, y = (np.asarray(prompts.draw_click(bitmaps[i], rng)) + 0.5) * cell - 0.5 if has_mask[i] else middle
        clean[i] = prompts.click_box(float(x), float(y), canvas)
    is_box = (np.arange(count) >= num_clicks).astype(np.int32)
    row = slice(0, count)
    out.boxes[0, row] = boxes
    out.object_mask[0, row] = True
    out.has_mask[0, row] = has_mask
    out.masks[0, row] = masks.pack(bitmaps)
    out.prompts[0, row] = prompts.add_noise(clean, is_box, rng.random((count, 4)))
    out.is_box[0, row] = is_box


def _words(things: Sequence[Object], tokenizer: Tokenizer) -> list[int]:
    """The first token of each name, -1 without one."""
    return [tokenizer.encode(thing.name)[1] if thing.name else -1 for thing in things]  # behind <s>


def _name(
    out: Grounding, things: Sequence[Object], size: ImageSize, config: BatchConfig, tokenizer: Tokenizer
) -> None:
    """Write into a row what its objects and the image tokens that show them are called."""
    words = _words(things, tokenizer)
    out.object_words[0, : len(words)] = words
    side = math.isqrt(config.num_patches)
    shares = np.zeros((len(things), side, side))
    for share, thing in zip(shares, things, strict=True):
        if thing.mask is not None:
            share[:] = masks.shares(masks.decode(thing.mask, size), side)
    largest = shares.max(0, initial=0)
    shown = np.asarray([*words, -1], np.int32)[shares.argmax(0) if things else -1]
    blank = np.where(shares.sum(0) < _CLEAR_PATCH, NOTHING, -1)
    out.patch_words[0] = np.where(largest >= _SHOWN, shown, blank).reshape(-1)


def _empty_grounding(config: BatchConfig) -> Grounding:
    p, t, m = config.phrases, config.objects, config.mask_side
    grey = np.full((1, config.canvas, config.canvas, 3), 128, np.uint8)
    return Grounding(
        images=grey,
        seg_positions=np.zeros((1, p), np.int32),
        seg_mask=np.zeros((1, p), bool),
        boxes=np.zeros((1, t, 4), np.float32),
        object_mask=np.zeros((1, t), bool),
        has_mask=np.zeros((1, t), bool),
        object_phrases=np.zeros((1, t, p), bool),
        masks=np.zeros((1, t, m, m // 8), np.uint8),
        prompts=np.full((1, t, 4), 0.5, np.float32),
        is_box=np.zeros((1, t), np.int32),
        object_words=np.full((1, t), -1, np.int32),
        patch_words=np.full((1, config.num_patches), -1, np.int32),
        weight=np.zeros(1, np.float32),
    )
