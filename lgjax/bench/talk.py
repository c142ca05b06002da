"""The work of whole answers: a question, a second one, a batch of them, as users ask."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import PIL.Image

from lgjax.bench.cases import Dtype, Sizes
from lgjax.bench.language import computing, named, read_bytes
from lgjax.bench.timing import Facts, Work, timed
from lgjax.bench.weights import num_bytes, parameters
from lgjax.data.scenes import SceneConfig
from lgjax.data.sources.scenes import Scenes
from lgjax.infer.answer import Answer
from lgjax.infer.chat import GroundedChat
from lgjax.infer.load import load_model
from lgjax.infer.request import Model, Options
from lgjax.infer.stream import Done, Found, Words
from lgjax.train.flops import forward_flops

FIRST, SECOND = "Describe the picture.", "What else is there?"
GIVEN = "There is <g_s> a dog <g_e> <seg> ."  # the answer that models with fresh parameters are given


def pictures(count: int) -> list[PIL.Image.Image]:
    """Composed scenes."""
    scenes = Scenes(config=SceneConfig(size=384), split="combinations")
    return [scenes.scene(number).image for number in range(count)]


def chat(sizes: Sizes) -> Work:
    """One question about a new picture: its views, features, prompt, answer, boxes and masks."""
    talker, (picture,), found = GroundedChat.load(sizes.chat), pictures(1), []

    def run() -> None:
        found[:] = [talker.ask(picture, FIRST, max_tokens=sizes.answer_tokens)]

    return Work(
        timed(run), lambda: _facts("a question about a new picture", talker, found, found[0].num_tokens)
    )


def stream(sizes: Sizes, until: type[Words | Found | Done]) -> Work:
    """One question about a new picture whose answer is streamed, up to the first of such events."""
    talker, (picture,), found = GroundedChat.load(sizes.chat), pictures(1), []

    def run() -> None:
        events = talker.stream(picture, FIRST, max_tokens=sizes.answer_tokens)
        # an answer without phrases is heard to its end
        found[:] = itertools.islice((event for event in events if isinstance(event, until)), 1)

    def facts() -> Facts:
        heard, text = {
            Words: ("its first words", lambda event: event.text),
            Found: ("its first boxes and masks", lambda event: event.phrase.text),
            Done: ("its end", lambda event: event.answer.text),
        }[until]
        return Facts(
            what=f"a question about a new picture, the answer up to {heard}",
            output=[text(event) for event in found],
        )

    return Work(timed(run), facts)


def second_turn(sizes: Sizes, *, anew: bool) -> Work:
    """The second question of a conversation, after the first, or (`anew`) where that was asked elsewhere."""
    talker, (picture,), found = GroundedChat.load(sizes.chat), pictures(1), []

    def seconds() -> float:
        # this history repeats answers to the letter, so that both ways read the same prompt
        conversation = talker.start(picture, history="training")
        answer = conversation.ask(FIRST, max_tokens=sizes.answer_tokens)
        if anew:
            conversation = talker.start(picture, history="training")
            conversation.recall(FIRST, None, answer.tagged_text)
        start = time.perf_counter()
        found[:] = [conversation.ask(SECOND, max_tokens=sizes.answer_tokens)]
        return time.perf_counter() - start

    def facts() -> Facts:
        known = _facts("the second question about a picture", talker, found, found[0].num_tokens)
        # what the first question left need not be computed or read again
        return dataclasses.replace(known, flops=None, num_bytes=None)

    return Work(seconds, facts)


def second_question(sizes: Sizes, dtype: Dtype, *, first: bool) -> Work:
    """The second question about a picture, or the first one: fresh parameters, answers that are given."""
    compute = computing(dtype)
    params = parameters(sizes.config, "clip", "projector", "grounding")
    params |= parameters(sizes.config, "llama", dtype=dtype)
    model = Model(sizes.config, params, load_model("debug").tokenizer, compute, compute)
    talker, (picture,), found = GroundedChat(model), pictures(1), []

    def seconds() -> float:
        conversation = talker.start(picture)
        if not first:
            conversation.ask(FIRST, answer=GIVEN)
        start = time.perf_counter()
        found[:] = [conversation.ask(FIRST if first else SECOND, answer=GIVEN)]
        return time.perf_counter() - start

    def facts() -> Facts:
        tokens, which = found[0].num_tokens, "first" if first else "second"
        return Facts(
            what=f"{named(sizes, dtype)}, vision whole, the {which} question, {tokens} tokens of answer",
            handled={"answers": 1, "tokens": tokens},
        )

    return Work(seconds, facts)


def batch(sizes: Sizes, *, together: bool) -> Work:
    """Questions about new pictures, in a batch or one after the other."""
    talker, shown, found = GroundedChat.load(sizes.chat), pictures(sizes.batch), []

    def run() -> None:
        most = sizes.answer_tokens
        if together:
            found[:] = talker.ask_batch(shown, [FIRST] * len(shown), batch_size=len(shown), max_tokens=most)
        else:
            found[:] = [talker.ask(picture, FIRST, max_tokens=most) for picture in shown]

    def facts() -> Facts:
        counts = [answer.num_tokens for answer in found]
        what = f"{len(shown)} questions about as many new pictures"
        return _facts(what, talker, found, max(counts) if together else sum(counts))

    return Work(timed(run), facts)


def _facts(what: str, talker: GroundedChat, found: Sequence[Answer], passes: int) -> Facts:
    """Facts of answers to questions like the first, for which the model's weights passed `passes` times."""
    model, tokens = talker.model, sum(answer.num_tokens for answer in found)
    config, params = model.config, model.params
    request = talker.start(found[0].image).request(FIRST, None, Options())[0]
    forward = forward_flops(
        config,
        rows=len(found),
        length=len(request.plan.tokens) + -(-tokens // len(found)),
        grounded_rows=len(found),
        phrases=max(len(answer.phrases) for answer in found),
        objects=max(len(answer.phrases) for answer in found),
        prompts=0,
        queries=config.grounding.num_queries if config.grounding is not None else 0,
        answering=True,
    )
    forward["head"] *= tokens / len(found)
    once = num_bytes(*(params[part] for part in forward if part in params))
    return Facts(
        what=f"{what}, {tokens} tokens of answer, greedy",
        output=[answer.tagged_text for answer in found],
        flops=sum(forward.values()),
        num_bytes=once + (passes - 1) * read_bytes(params["llama"]),
        handled={"answers": len(found), "tokens": tokens},
    )
