"""The queue: questions of many clients are gathered into batches and answered by one thread."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence

from lgjax.infer.chat import Conversation
from lgjax.infer.regions import Region
from lgjax.infer.request import Model, Options, Request, View
from lgjax.infer.run import Batch, Reader
from lgjax.infer.stream import Done, Event, Found, Words
from lgjax.serve.limits import PHRASE_BOXES, PHRASE_PIXELS, Limits, TooLarge, reading
from lgjax.serve.metrics import Metrics
from lgjax.serve.picture import decode_picture

CHUNK = 4  # ids between two looks at who is still there
MOST_PHRASES = 32  # of a given answer
_LONGEST_TOKEN = 16  # characters of the tokenizer's longest piece


class Busy(Exception):
    """The queue is full; `seconds` is when to try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {seconds} s")
        self.seconds = seconds


class Stopping(Exception):
    """The server finishes what it has and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; ask another one")


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its regions."""

    text: str
    regions: tuple[Region, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """What a client asks.

    picture: the bytes of a file; earlier: questions so far, and answers as they are remembered; live: whether
    events are wanted as they come, or the answer alone.
    """

    picture: bytes
    earlier: tuple[tuple[Turn, str], ...]
    turn: Turn
    options: Options
    live: bool


@dataclasses.dataclass(eq=False)
class Ticket:
    """A question and whom to tell: `tell` is called by the queue's thread with events, or once with a fault.

    The queue keeps here what it knows: when the question came, whether anybody still listens, the tokens of
    its prompt, and how many characters and phrases were told.
    """

    question: Question
    tell: Callable[[Event | Exception], None]
    since: float = 0.0
    left: bool = False
    prompt_tokens: int = 0
    heard: int = 0
    found: int = 0


class Desk:
    """Takes questions, and answers them in batches on a thread of its own from `start` to `close`."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics) -> None:
        self._model = model
        self._limits = limits
        self._metrics = metrics
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds = 1.0  # of a batch, about
        self._views: collections.OrderedDict[bytes, View] = collections.OrderedDict()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return len(self._waiting)

    @property
    def closing(self) -> bool:
        """Whether nothing new is taken."""
        return self._closing

    def submit(self, ticket: Ticket) -> None:
        """Put a question into the queue.

        Told are `Words`, `Found` and at the end `Done`, or a fault: BadQuestion and TooLarge are the
        question's own.

        Raises:
            Busy: the queue is full.
            Stopping: the server is about to end.
        """
        with self._changed:
            if self._closing:
                raise Stopping
            if len(self._waiting) >= self._limits.waiting:
                batches = 1 + len(self._waiting) / self._limits.batch
                raise Busy(max(1, math.ceil(batches * self._seconds)))
            ticket.since = time.monotonic()
            self._waiting.append(ticket)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify_all()

    def leave(self, ticket: Ticket) -> None:
        """The client has gone: its place, or its row of the batch, is free."""
        with self._changed:
            ticket.left = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._metrics.waiting.set(len(self._waiting))

    def start(self) -> None:
        """Begin to answer."""
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="lgjax-desk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take nothing new, answer everybody who waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            tickets = self._gather()
            if not tickets and self._closing:
                return
            start = time.monotonic()
            planned = [
                (ticket, request)
                for ticket in tickets
                if not ticket.left and (request := self._planned(ticket))
            ]
            if planned:
                self._answer(planned)
                self._seconds += 0.2 * (time.monotonic() - start - self._seconds)

    def _gather(self) -> list[Ticket]:
        """Wait for a question, then a moment for others to share its batch."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            end = time.monotonic() + self._limits.gather_seconds
            while len(self._waiting) < self._limits.batch and not self._closing:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            count = min(len(self._waiting), self._limits.batch)
            tickets = [self._waiting.popleft() for _ in range(count)]
            self._metrics.waiting.set(len(self._waiting))
            return tickets

    def _planned(self, ticket: Ticket) -> Request | None:
        """Read picture and regions; a fault is told to the one who asked and touches nobody else."""
        try:
            request = self._plan(ticket.question)
            ticket.prompt_tokens = len(request.plan.tokens)
            return request
        except Exception as error:
            self._tell(ticket, error)
            return None

    def _plan(self, question: Question) -> Request:
        with reading():
            request = self._read(question)
        _ = request.view.tokens  # computed here, where a fault touches nobody else
        return request

    def _read(self, question: Question) -> Request:
        options, most = question.options, self._limits.prompt_tokens
        said = [
            question.turn.text,
            *[part for turn, answer in question.earlier for part in (turn.text, answer)],
        ]
        if sum(map(len, said)) > _LONGEST_TOKEN * most:  # seen before it costs anybody time
            raise TooLarge(f"the conversation has more than {most} tokens")
        self._check_given(options.answer or "")
        view = self._view(question.picture)
        width, height = view.image.size
        if (phrases := (options.answer or "").count("<seg>")) * width * height > PHRASE_PIXELS:
            raise TooLarge(
                f"{phrases} phrases in a picture of {width} x {height} pixels are too many: give an answer "
                f"with at most {PHRASE_PIXELS // (width * height)}, or send a smaller picture"
            )
        conversation = Conversation(self._model, view)
        for turn, answer in question.earlier:
            conversation.recall(turn.text, turn.regions, answer, ground=options.ground)
        options = dataclasses.replace(options, keep=PHRASE_BOXES)
        request, _ = conversation.request(question.turn.text, question.turn.regions, options)
        if (tokens := request.options.max_tokens) > self._limits.max_tokens:  # those of a given answer
            raise TooLarge(f"the answer has {tokens} tokens, more than {self._limits.max_tokens}")
        tokens = len(request.plan.tokens)
        if tokens > most:
            raise TooLarge(f"the conversation has {tokens} tokens with its picture, more than {most}")
        return request

    def _check_given(self, answer: str) -> None:
        """Refuse a text to ground that is over a limit, before it is read."""
        if answer.count("<seg>") > MOST_PHRASES:
            raise TooLarge(f"the given answer has more than {MOST_PHRASES} phrases")
        if len(answer) > _LONGEST_TOKEN * self._limits.max_tokens:
            raise TooLarge(f"the given answer has more than {self._limits.max_tokens} tokens")

    def _view(self, picture: bytes) -> View:
        key = hashlib.sha256(picture).digest()
        if key not in self._views:
            self._views[key] = View(self._model, decode_picture(picture, self._limits))
        self._views.move_to_end(key)
        while len(self._views) > self._limits.pictures:
            self._views.popitem(last=False)
        return self._views[key]

    def _answer(self, planned: Sequence[tuple[Ticket, Request]]) -> None:
        """Answer a batch; should it fail, each question on its own."""
        tickets = [ticket for ticket, _ in planned]
        requests = [request for _, request in planned]
        self._metrics.batches.observe(len(planned))
        # one program for 1, 2, 4, 8, ... rows; the others end at once
        idle = dataclasses.replace(requests[0].options, max_tokens=1)
        filler = dataclasses.replace(requests[0], options=idle, forced=())
        rows = 1 << (len(requests) - 1).bit_length()

        def reader(row: int) -> Reader:
            if row >= len(tickets) or tickets[row].left:
                return "gone"
            return "live" if tickets[row].question.live else "end"

        said = [0] * rows
        try:
            batch = Batch(self._model, [*requests, *[filler] * (rows - len(requests))])
            for row, event in batch.events(CHUNK, reader):
                said[row] = self._pass_on(tickets[row], event, said[row])
        except Exception as error:
            for ticket, request in planned:
                if len(planned) > 1:
                    if not ticket.left:
                        self._answer([(ticket, request)])
                else:
                    self._tell(ticket, error)

    def _pass_on(self, ticket: Ticket, event: Event, said: int) -> int:
        """Tell what was not told yet, for a question may be answered again; return the characters so far."""
        if isinstance(event, Words):
            fresh = event.text[max(ticket.heard - said, 0) :]
            said += len(event.text)
            ticket.heard = max(ticket.heard, said)
            if fresh:
                self._tell(ticket, Words(fresh))
        elif isinstance(event, Found):
            if event.number >= ticket.found:
                ticket.found = event.number + 1
                self._tell(ticket, event)
        else:
            self._metrics.tokens.inc(event.answer.num_tokens)
            self._metrics.seconds.observe(time.monotonic() - ticket.since)
            self._tell(ticket, event)
        return said

    def _tell(self, ticket: Ticket, event: Event | Exception) -> None:
        if ticket.left:
            return
        try:
            ticket.tell(event)
        except Exception as error:  # nobody hears it any more, or the event cannot be told: then the fault is
            ticket.left = True
            with contextlib.suppress(Exception):
                ticket.tell(error)
        if isinstance(event, Done | Exception):
            ticket.left = True
