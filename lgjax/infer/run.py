"""A batch of requests from prompt to answers: prefill, decode in chunks, ground phrases as they come."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from lgjax.infer import generate
from lgjax.infer.answer import Answer
from lgjax.infer.grounded import Grounded, build_answer, build_phrases, ground
from lgjax.infer.request import Model, Request, tokens_of
from lgjax.infer.stream import Done, Event, Found, Words, kept_ids, settled_ids, settled_text
from lgjax.models.llama import Cache, Llama, init_cache
from lgjax.models.splice import BatchPlan, RowPlan, plan_batch, splice
from lgjax.text import markup

Progress = Callable[[str], None]
Reader = Literal["live", "end", "gone"]  # who waits for a row: for every event, for its answer, nobody


class Result(NamedTuple):
    """Answers of a batch, the ids of each row, and the cache: every position but the last id of a row."""

    answers: list[Answer]
    ids: list[Int32[np.ndarray, " n"]]
    cache: Cache


def run(
    model: Model,
    requests: Sequence[Request],
    cache: Cache | None = None,
    progress: Progress = lambda what: None,
) -> Result:
    """Answer a batch. `cache` holds the first `start` positions of each request; it is used up.

    The answers do not depend on the other rows. All rows take `queries` from the first request's options.
    """
    batch = Batch(model, requests, cache, progress)
    done = {row: event.answer for row, event in batch.events() if isinstance(event, Done)}
    return Result([done[row] for row in range(len(requests))], batch.ids, batch.cache)


@dataclasses.dataclass(eq=False)
class _Row:
    """How far a row has come, and what its reader was told.

    ids: up to where the text ends the answer; settled: those of them that a stop text cannot take back;
    found: phrases that were told; ended: by a stop id or a text; closed: nothing more will come.
    """

    ids: Int32[np.ndarray, " n"]
    settled: Int32[np.ndarray, " m"]
    sent: str = ""
    grounded: Sequence[Grounded] = ()
    found: int = 0
    ended: bool = False
    closed: bool = False


class Batch:
    """A batch on its way: `events` tells what comes; afterwards `ids` and `cache` are those of `Result`."""

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        cache: Cache | None = None,
        progress: Progress = lambda what: None,
    ) -> None:
        self._model = model
        self._requests = requests
        self._progress = progress
        nothing = np.zeros(0, np.int32)
        self._rows = [_Row(nothing, nothing) for _ in requests]
        progress("reading")
        hidden, cache = _prefill(model, requests, cache)
        progress("answering")
        self._limits = np.asarray([request.options.max_tokens for request in requests], np.int32)
        positions = np.asarray([len(request.plan.tokens) for request in requests], np.int32)
        sizes, sampling, forced = self._choices = _choices(model, requests)
        params, llama = model.params["llama"], model.llama
        self._state = generate.begin(
            llama, params, sizes, hidden, cache, positions, self._limits, sampling, forced
        )

    @property
    def ids(self) -> list[Int32[np.ndarray, " n"]]:
        """The ids of each row so far."""
        return [row.ids for row in self._rows]

    @property
    def cache(self) -> Cache:
        """The cache after the last event."""
        return self._state.cache

    def events(
        self, chunk: int | None = None, reader: Callable[[int], Reader] = lambda row: "live"
    ) -> Iterator[tuple[int, Event]]:
        """Decode, `chunk` ids at a time (None: all at once), and yield (row, event) as they come.

        `reader` is asked after every chunk who waits for a row: a row that nobody waits for ends without an
        answer, and one whose reader wants the answer alone is grounded once, at its end.
        """
        sizes, sampling, forced = self._choices
        model, steps = self._model, chunk or sizes.max_new_tokens
        while any(not row.closed for row in self._rows):
            params = model.params["llama"]
            self._state = generate.advance(
                model.llama, params, sizes, self._state, self._limits, steps, sampling, forced
            )
            yield from self._told([reader(i) for i in range(len(self._rows))])

    def _told(self, readers: Sequence[Reader]) -> Iterator[tuple[int, Event]]:
        """What the newest chunk brought each reader: words first, then what takes longer to find."""
        known = self._read_ids()
        told = []
        for i in known:
            row = self._rows[i]
            row.closed |= readers[i] == "gone"
            if row.closed:
                self._limits[i] = 1  # holds up nobody
            if readers[i] != "gone" and (row.closed or readers[i] == "live"):
                told.append(i)
                yield from ((i, words) for words in self._words(row))
        due = [i for i in told if known[i] > len(self._rows[i].grounded)]
        if due:
            self._progress("grounding")
            states = np.array(self._state.seg_states)
            # rows that end together are grounded in one call, others share the program of one row
            at_once = len(told) == len(self._rows) and all(row.closed for row in self._rows)
            for group in [told] if at_once else [[i] for i in due]:
                requests = [self._requests[i] for i in group]
                spans = [self._phrases(self._rows[i], known[i]) for i in group]
                texts = [[span.text for span in row] for row in spans]
                found = ground(self._model, requests, [states[i, : known[i]] for i in group], texts)
                for i, grounded in zip(group, found, strict=True):
                    self._rows[i].grounded = grounded
        for i in told:
            yield from ((i, event) for event in self._findings(self._rows[i], self._requests[i]))

    def _read_ids(self) -> dict[int, int]:
        """Take the new ids of open rows; return how many `<seg>` states each of these rows has."""
        tokenizer, state, known = self._model.tokenizer, self._state, {}
        parts = (state.counts, state.stopped, state.seg_counts, state.owed, state.ids)
        counts, stopped, seg_counts, owed, all_ids = (np.array(part) for part in parts)
        for i, (row, request) in enumerate(zip(self._rows, self._requests, strict=True)):
            if row.closed:
                continue
            stops = request.options.stops
            row.ids, by_text = kept_ids(all_ids[i, : counts[i]], stops, tokenizer)
            row.ended = bool(stopped[i]) or by_text
            over = row.ended or bool(counts[i] >= self._limits[i])
            row.settled = row.ids if over else settled_ids(row.ids, stops, tokenizer)
            segs = int((row.settled == tokenizer.seg_id).sum())
            known[i] = min(segs, int(seg_counts[i]) - int(owed[i]))
            row.closed = over and known[i] == segs
            if over:
                self._limits[i] = counts[i]
        return known

    def _words(self, row: _Row) -> Iterator[Words]:
        text = settled_text(row.settled, self._model.tokenizer, whole=row.closed)
        if len(text) > len(row.sent):
            yield Words(text[len(row.sent) :])
            row.sent = text

    def _findings(self, row: _Row, request: Request) -> Iterator[Found | Done]:
        spans = self._phrases(row, len(row.grounded))
        fresh = slice(row.found, len(row.grounded))
        for phrase in build_phrases(request, spans[fresh], row.grounded[fresh]):
            yield Found(row.found, phrase)
            row.found += 1
        if row.closed:
            yield Done(build_answer(request, row.ids, row.grounded, row.ended, self._model.tokenizer))

    def _phrases(self, row: _Row, count: int) -> Sequence[markup.PhraseSpan]:
        return markup.parse_ids(row.settled, self._model.tokenizer).phrases[:count]


def _prefill(
    model: Model, requests: Sequence[Request], cache: Cache | None
) -> tuple[Float[Array, "b d"], Cache]:
    room = max(len(request.plan.tokens) for request in requests)
    room = generate.coarse_bucket(room + generate.coarse_bucket(max(r.options.max_tokens for r in requests)))
    held = cache
    if held is None:
        stacked = model.llama.scan_layers
        held = init_cache(model.config.llama, len(requests), room, model.cache_dtype, scan_layers=stacked)
        held = model.share_out(held)
    if (missing := room - generate.cache_length(held)) > 0:
        wider = [(0, missing), (0, 0)]
        held = jax.tree.map(lambda part: jnp.pad(part, [(0, 0)] * (part.ndim - 2) + wider), held)
    suffixes = [_suffix(request.plan, request.start) for request in requests]
    # what a further question adds is short: worth a few more programs where 64 positions take seconds
    length = generate.coarse_bucket(max(len(suffix.tokens) for suffix in suffixes), least=16)
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


def _choices(
    model: Model, requests: Sequence[Request]
) -> tuple[generate.DecodeSizes, generate.Sampling, Int32[np.ndarray, "b n"]]:
    """How ids are chosen; greedy, drawn and forced answers have the same shapes and share a program."""
    options = [request.options for request in requests]
    room = generate.coarse_bucket(max(option.max_tokens for option in options))
    # as many places for states as tokens: no <seg> can be lost
    sizes = generate.DecodeSizes(
        max_new_tokens=room,
        max_segs=room,
        seg_id=model.tokenizer.seg_id,
        stop_ids=(model.tokenizer.eos_id,),
        seg_state=model.config.seg_state,
    )
    sampling = generate.Sampling(
        key=jax.random.key(0),
        seeds=np.asarray([option.seed for option in options], np.uint32),
        temperature=np.asarray([option.temperature for option in options], np.float32),
        top_p=np.asarray([option.top_p for option in options], np.float32),
    )
    forced = np.full((len(requests), room), -1, np.int32)
    for row, request in enumerate(requests):
        forced[row, : len(request.forced)] = request.forced
    return sizes, sampling, forced
