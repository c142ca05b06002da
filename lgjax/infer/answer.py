"""What the model said: text, and for every grounded phrase its place in the text, boxes and masks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float32

from lgjax import draw
from lgjax.config import History
from lgjax.data import masks
from lgjax.text import markup
from lgjax.text.tokenizer import IMAGE_PLACEHOLDER


@dataclasses.dataclass(frozen=True, eq=False)
class Phrase:
    """A phrase of the answer; `text` stands at characters `span` of the answer's text.

    boxes: float32 [n, 4], (x0, y0, x1, y1) in pixels of the picture, clipped to it; scores: float32 [n] in
    [0, 1]; masks: bool [n, height, width]. Best first; n is 0 where nothing was found.
    """

    text: str
    span: tuple[int, int]
    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]

    def to_json(self) -> dict[str, Any]:
        """Plain dict {"text", "span", "boxes", "scores", "masks": [{"size", "counts"}]}."""
        return {
            "text": self.text,
            "span": list(self.span),
            "boxes": [[round(float(v), 2) for v in box] for box in self.boxes],
            "scores": [round(float(score), 6) for score in self.scores],
            "masks": [masks.encode(mask) for mask in self.masks],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """An answer about a picture.

    text: without grounding tokens; phrases: one for each `<seg>`; region_masks: bool [n, height, width],
    what the model took each click or box for, None without regions; tagged_text: with grounding tokens;
    canvas_boxes: for each `<seg>` float32 [m, 4], (x0, y0, x1, y1) in [0, 1] of the padded square in the
    order of the original, one row of zeros where nothing was found; finished: False when the token limit cut
    the answer; num_tokens: generated ids with the end token; history: how later prompts repeat the answer
    (see `ModelConfig`).
    """

    text: str
    phrases: tuple[Phrase, ...]
    image: PIL.Image.Image
    region_masks: Bool[np.ndarray, "r h w"] | None
    tagged_text: str
    canvas_boxes: tuple[Float32[np.ndarray, "_ 4"], ...]
    finished: bool
    num_tokens: int
    history: History = "demo"

    @property
    def region_mask(self) -> Bool[np.ndarray, "h w"] | None:
        """The union of all region masks."""
        return None if self.region_masks is None else np.asarray(self.region_masks.any(0))

    @property
    def remembered(self) -> str:
        """The answer as later prompts repeat it, white space included; `history` says how.

        Source: spec/language_model.md 7.4, 13.5.
        """
        if self.history == "training":
            return self.tagged_text.replace(IMAGE_PLACEHOLDER, "")
        nothing = [np.zeros((len(boxes), 1, 1), bool) for boxes in self.canvas_boxes]
        text, _, _ = markup.filter_empty_box_masks(self.tagged_text, self.canvas_boxes, nothing)
        return markup.demo_history(markup.demo_html(text)).replace(IMAGE_PLACEHOLDER, "")

    def to_json(self) -> dict[str, Any]:
        """Plain dict of text, phrases and region mask; masks are COCO run-length codes.

        {"text", "remembered", "phrases": [{"text", "span", "boxes", "scores", "masks": [{"size",
        "counts"}]}], "region_mask"}
        """
        return {
            "text": self.text,
            "remembered": self.remembered,
            "phrases": [phrase.to_json() for phrase in self.phrases],
            "region_mask": None if self.region_mask is None else masks.encode(self.region_mask),
        }

    def draw(self) -> PIL.Image.Image:
        """The picture with coloured masks and boxes, and the text below in the same colours."""
        return draw.overlay(self.image, self.text, self.phrases, self.region_mask)

    def record(self, question_id: int | str) -> markup.Record:
        """The line that the original's evaluator would write. Source: spec/language_model.md 13.2-13.4."""
        text, groups = markup.filter_empty_boxes(self.tagged_text, self.canvas_boxes)
        groups = markup.unresize_boxes(groups, *self.image.size)
        return markup.format_record(text, groups, question_id)
