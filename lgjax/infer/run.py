"""A batch of requests from prompt to answers: prefill, decode, and one grounding call for all phrases."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from lgjax.data import images
from lgjax.infer import engine, generate
from lgjax.infer.answer import Answer, Phrase
from lgjax.infer.request import Model, Options, Request, features_of, tokens_of
from lgjax.infer.select import select_queries
from lgjax.models.llama import Cache, Llama, init_cache
from lgjax.models.splice import BatchPlan, RowPlan, plan_batch, splice
from lgjax.text import markup
from lgjax.text.tokenizer import Tokenizer

Progress = Callable[[str], None]
_END_TAG = "</s>"


class Result(NamedTuple):
    """Answers of a batch, the ids of each row, and the cache: every position but the last id of a row."""

    answers: list[Answer]
    ids: list[np.ndarray]
    cache: Cache


class Grounded(NamedTuple):
    """What was found for a phrase, in query order: boxes (x0, y0, x1, y1) in [0, 1] of the canvas, masks at a
    quarter of its side."""

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    masks: Bool[np.ndarray, "n h w"]


def run(
    model: Model,
    requests: Sequence[Request],
    cache: Cache | None = None,
    progress: Progress = lambda what: None,
) -> Result:
    """Answer a batch. `cache` holds the first `start` positions of each request; it is used up.

    The answers do not depend on the other rows. All rows take `queries` from the first request's options.
    """
    progress("reading")
    hidden, cache = _prefill(model, requests, cache)
    progress("answering")
    out = _decode(model, requests, hidden, cache)
    ids, states = [], []
    parts = (out.counts, out.stopped, out.ids, out.seg_states)
    counts, stopped, all_ids, all_states = (np.asarray(part) for part in parts)
    ended = []
    for row, request in enumerate(requests):
        kept, by_text = kept_ids(all_ids[row, : counts[row]], request.options, model.tokenizer)
        ids.append(kept)
        ended.append(bool(stopped[row]) or by_text)
        states.append(all_states[row, : int((kept == model.tokenizer.seg_id).sum())])
    if any(len(found) for found in states):
        progress("grounding")
    grounded = ground(model, requests, states)
    answers = []
    for row, request in enumerate(requests):
        answers.append(build_answer(request, ids[row], grounded[row], ended[row], model.tokenizer))
    return Result(answers, ids, out.cache)


def _prefill(
    model: Model, requests: Sequence[Request], cache: Cache | None
) -> tuple[Float[Array, "b d"], Cache]:
    room = max(len(request.plan.tokens) for request in requests)
    room = generate.coarse_bucket(room + generate.bucket(max(r.options.max_tokens for r in requests)))
    held = cache
    if held is None:
        held = model.share_out(init_cache(model.config.llama, len(requests), room, model.cache_dtype))
    if (missing := room - generate.cache_length(held)) > 0:
        held = jax.tree.map(lambda part: jnp.pad(part, ((0, 0), (0, 0), (0, missing), (0, 0))), held)
    suffixes = [_suffix(request.plan, request.start) for request in requests]
    length = generate.coarse_bucket(max(len(suffix.tokens) for suffix in suffixes))
    plan = plan_batch(suffixes, length)
    lengths = np.asarray(plan.lengths)
    tokens = tokens_of(model, [request.view for request in requests])
    width = model.config.llama.hidden_size
    most = generate.bucket(max(len(request.objects) for request in requests), 4)
    objects = np.zeros((len(requests), most, width), np.float32)
    for row, request in enumerate(requests):
        objects[row, : len(request.objects)] = request.objects
    plan, objects = model.share_out((plan, objects))
    embeds = embed(model.llama, model.params["llama"], plan, tokens, objects)
    starts = np.asarray([request.start for request in requests], np.int32)
    return generate.prefill(model.llama, model.params["llama"], embeds, lengths, held, starts)


def _suffix(plan: RowPlan, start: int) -> RowPlan:
    """The plan from position `start` on; the row still stands for its picture."""
    names = ("tokens", "patches", "objects", "labels", "mask")
    return plan._replace(**{name: getattr(plan, name)[start:] for name in names})


@functools.partial(jax.jit, static_argnums=0)
def embed(
    llama: Llama,
    params: dict,
    plan: BatchPlan,
    tokens: Float[Array, "b n d"],
    objects: Float[Array, "b m d"],
) -> Float[Array, "b t d"]:
    """Input embeddings of planned prompts. Source: spec/language_model.md 9.2, 9.3."""

    def lookup(ids: jax.Array) -> Any:
        return llama.apply({"params": params}, ids, method="embed")

    return splice(lookup, plan, tokens, objects)


def _decode(
    model: Model, requests: Sequence[Request], hidden: jax.Array, cache: Cache
) -> generate.Generation:
    options = [request.options for request in requests]
    room = generate.bucket(max(option.max_tokens for option in options))
    tokenizer = model.tokenizer
    # as many places for states as tokens: no <seg> can be lost
    sizes = generate.DecodeSizes(
        max_new_tokens=room,
        max_segs=room,
        seg_id=tokenizer.seg_id,
        stop_ids=(tokenizer.eos_id,),
        seg_state=model.config.seg_state,
    )
    forced = None
    if any(request.forced for request in requests):
        forced = np.full((len(requests), room), -1, np.int32)
        for row, request in enumerate(requests):
            forced[row, : len(request.forced)] = request.forced
    sampling = None
    if any(option.temperature >= generate.GREEDY_BELOW for option in options):
        sampling = generate.Sampling(
            key=jax.random.key(0),
            seeds=np.asarray([option.seed for option in options], np.uint32),
            temperature=np.asarray([option.temperature for option in options], np.float32),
            top_p=np.asarray([option.top_p for option in options], np.float32),
        )
    positions = np.asarray([len(request.plan.tokens) for request in requests], np.int32)
    limits = np.asarray([option.max_tokens for option in options], np.int32)
    params = model.params["llama"]
    return generate.decode(model.llama, params, sizes, hidden, cache, positions, limits, sampling, forced)


def kept_ids(
    ids: Int32[np.ndarray, " n"], options: Options, tokenizer: Tokenizer
) -> tuple[Int32[np.ndarray, " m"], bool]:
    """Ids up to where the text ends the answer, behind a spelled-out end tag or before a stop, if it does."""
    end = tokenizer.stop_length(ids)
    ids = ids if end is None else ids[:end]
    text = tokenizer.decode(ids)
    begins = [text.index(stop) for stop in options.stops if stop in text]
    if not begins:
        return ids, end is not None
    before = text[: min(begins)]
    # from the end: the text of a part may hold half a character, which is no begin of the whole text
    fits = (n for n in range(len(ids), -1, -1) if before.startswith(tokenizer.decode(ids[:n])))
    return ids[: next(fits)], True


def ground(
    model: Model, requests: Sequence[Request], states: Sequence[Float32[np.ndarray, "_ d"]]
) -> list[list[Grounded]]:
    """Boxes and masks for the `<seg>` states of each row, all rows in one call."""
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
    probabilities, boxes, embedding = np.asarray(out[0]), np.asarray(out[1]), out[2]
    chosen = [
        select_queries(probabilities[row][:, : len(found)], request.options.threshold, request.options.keep)
        for row, (request, found) in enumerate(zip(requests, states, strict=True))
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
                probabilities[row][queries, phrase],
                masks[row][[used[row].index(int(query)) for query in queries]],
            )
            for phrase, queries in enumerate(row_queries)
        ]
        for row, row_queries in enumerate(chosen)
    ]


def build_answer(
    request: Request,
    ids: Int32[np.ndarray, " n"],
    grounded: Sequence[Grounded],
    finished: bool,
    tokenizer: Tokenizer,
) -> Answer:
    """Join ids and what was found for their phrases; boxes and masks move from the canvas to the picture."""
    size = request.view.image.size
    parsed = markup.parse_ids(ids, tokenizer)
    phrases = []
    for span, found in zip(parsed.phrases, grounded, strict=True):
        best = np.argsort(-found.scores, kind="stable")
        boxes = images.canvas_to_pixels(found.boxes[best], size).clip(0, [*size, *size]).astype(np.float32)
        masks = images.restore_mask(found.masks[best], size)
        phrases.append(Phrase(span.text, (span.start, span.end), boxes, found.scores[best], masks))
    nothing = np.zeros((1, 4), np.float32)
    return Answer(
        # the end tag spelled with ordinary pieces ends an answer too, but is no part of it
        text=parsed.text.removesuffix(_END_TAG).rstrip(),
        phrases=tuple(phrases),
        image=request.view.image,
        region_masks=request.region_masks,
        tagged_text=tokenizer.decode(ids).removesuffix(_END_TAG).rstrip(),
        canvas_boxes=tuple(found.boxes if len(found.boxes) else nothing for found in grounded),
        finished=finished,
        num_tokens=len(ids),
    )
