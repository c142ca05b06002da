"""From the states of `<seg>` tokens to phrases with boxes and masks, and to the whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from lgjax.data import images
from lgjax.infer import engine, generate
from lgjax.infer.answer import Answer, Phrase
from lgjax.infer.request import Model, Request, features_of
from lgjax.infer.select import for_each_thing, merge_duplicates, select_queries
from lgjax.text import markup
from lgjax.text.counts import number_of_things
from lgjax.text.tokenizer import Tokenizer

END_TAG = "</s>"


class Grounded(NamedTuple):
    """What was found for a phrase, by query: boxes (x0, y0, x1, y1) in [0, 1] of the canvas; its masks."""

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]


def ground(
    model: Model,
    requests: Sequence[Request],
    states: Sequence[Float32[np.ndarray, "_ d"]],
    texts: Sequence[Sequence[str]],
) -> list[list[Grounded]]:
    """Boxes and masks for the `<seg>` states of each row, all rows in one call; `texts` of their phrases."""
    if not any(len(found) for found in states):
        return [[] for _ in requests]
    grounding = model.config.grounding
    if grounding is None:  # words without boxes
        nothing = Grounded(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 1, 1), bool))
        return [[nothing] * len(found) for found in states]
    room = generate.bucket(max(len(found) for found in states), 8)
    phrases = np.zeros((len(requests), room, model.config.llama.hidden_size), np.float32)
    for row, found in enumerate(states):
        phrases[row, : len(found)] = found
    mask = np.arange(room)[None] < np.asarray([len(found) for found in states])[:, None]
    features = features_of(model, [request.view for request in requests])
    queries = requests[0].options.queries or grounding.num_queries
    phrases, mask = model.share_out((phrases, mask))
    out = engine.ground(model.config, model.params, features, phrases, mask, queries)
    boxes, embedding = np.asarray(out[1]), out[2]
    scores = [row[:, : len(found)] for row, found in zip(np.asarray(out[0]), states, strict=True)]
    if grounding.merge_iou is not None:
        numbers = [[number_of_things(text) for text in row] for row in texts]
        scores = [
            for_each_thing(merge_duplicates(found, corners, grounding.merge_iou), row)
            for found, corners, row in zip(scores, boxes, numbers, strict=True)
        ]
    chosen = [
        select_queries(found, request.options.threshold, request.options.keep)
        for request, found in zip(requests, scores, strict=True)
    ]
    # masks are made for the chosen queries alone, each once
    used = [sorted({int(query) for queries in row for query in queries}) for row in chosen]
    wanted = np.zeros((len(requests), generate.bucket(max(map(len, used)), 16)), np.int32)
    for row, numbers in enumerate(used):
        wanted[row, : len(numbers)] = numbers
    masks = np.asarray(engine.masks_of(embedding, features.mask_features, wanted))
    return [
        [
            Grounded(
                boxes[row][queries],
                scores[row][queries, phrase],
                masks[row][[used[row].index(int(query)) for query in queries]],
            )
            for phrase, queries in enumerate(row_queries)
        ]
        for row, row_queries in enumerate(chosen)
    ]


def build_phrases(
    request: Request, spans: Sequence[markup.PhraseSpan], grounded: Sequence[Grounded]
) -> list[Phrase]:
    """Phrases with what was found for them; boxes and masks move from the canvas to the picture."""
    size = request.view.image.size
    phrases = []
    for span, found in zip(spans, grounded, strict=True):
        best = np.argsort(-found.scores, kind="stable")
        boxes = images.canvas_to_pixels(found.boxes[best], size).clip(0, [*size, *size]).astype(np.float32)
        masks = images.restore_mask(found.masks[best], size)
        scores = np.minimum(found.scores[best], 1)  # times a number they may pass it
        phrases.append(Phrase(span.text, (span.start, span.end), boxes, scores, masks))
    return phrases


def build_answer(
    request: Request,
    ids: Int32[np.ndarray, " n"],
    grounded: Sequence[Grounded],
    finished: bool,
    tokenizer: Tokenizer,
) -> Answer:
    """Join ids and what was found for their phrases."""
    parsed = markup.parse_ids(ids, tokenizer)
    nothing = np.zeros((1, 4), np.float32)
    regions = request.region_masks
    return Answer(
        # the end tag spelled with ordinary pieces ends an answer too, but is no part of it
        text=parsed.text.removesuffix(END_TAG).rstrip(),
        phrases=tuple(build_phrases(request, parsed.phrases, grounded)),
        image=request.view.image,
        region_masks=None if regions is None else images.restore_mask(regions, request.view.image.size),
        tagged_text=tokenizer.decode(ids).removesuffix(END_TAG).rstrip(),
        canvas_boxes=tuple(found.boxes if len(found.boxes) else nothing for found in grounded),
        finished=finished,
        num_tokens=len(ids),
        history=request.history,
    )
