"""The queue by itself: places, batches, faults and the end, with what is told to whom."""

import io
import queue
import threading

import PIL.Image
import pytest

from lgjax.infer.request import Options
from lgjax.infer.run import Batch
from lgjax.infer.stream import Done, Words
from lgjax.serve.limits import Limits, TooLarge
from lgjax.serve.metrics import Metrics
from lgjax.serve.queue import Busy, Desk, Question, Stopping, Ticket, Turn
from tests.infer.model import GROUNDED, model
from tests.serve.server import png


class Client:
    """Asks one question and keeps what it is told."""

    def __init__(self, answer: str = GROUNDED, *, live: bool = True, picture: bytes | None = None) -> None:
        options = Options(answer=answer, threshold=None)
        asked = Question(picture or png(), (), Turn("What is it?"), options, live)
        self.told: queue.SimpleQueue = queue.SimpleQueue()
        self.ticket = Ticket(asked, self.told.put)

    def answer(self) -> str:
        """The text of the finished answer, or of the fault."""
        words = ""
        while True:
            event = self.told.get(timeout=120)
            if isinstance(event, Exception):
                return str(event)
            if isinstance(event, Words):
                words += event.text
            if isinstance(event, Done):
                assert words == event.answer.text and self.told.empty()
                return words


class Held(Desk):
    """A desk that answers only after `free` is set."""

    def __init__(self, limits: Limits) -> None:
        self.free = threading.Event()
        self.batches: list[int] = []
        super().__init__(model(), limits, Metrics())
        self.start()

    def _gather(self):
        self.free.wait(60)
        return super()._gather()

    def _answer(self, planned):
        self.batches.append(len(planned))
        super()._answer(planned)


def test_places_are_bounded_and_given_back():
    desk = Held(Limits(waiting=2, batch=2))
    clients = [Client(f"answer {i}.", live=bool(i % 2)) for i in range(4)]
    desk.submit(clients[0].ticket)
    desk.submit(clients[1].ticket)
    with pytest.raises(Busy, match=r"busy; try again in \d+ s"):
        desk.submit(clients[2].ticket)
    desk.leave(clients[0].ticket)
    desk.submit(clients[2].ticket)
    desk.free.set()
    assert [client.answer() for client in clients[1:3]] == ["answer 1.", "answer 2."]
    assert clients[0].told.empty() and desk.batches == [2]
    desk.close()


def test_closing_answers_everybody_who_waits_and_nobody_else():
    desk = Held(Limits(waiting=9, batch=2))
    clients = [Client(f"answer {i}.") for i in range(5)]
    for client in clients:
        desk.submit(client.ticket)
    end = threading.Thread(target=desk.close)
    end.start()
    while not desk.closing:
        pass
    with pytest.raises(Stopping, match="stopping"):
        desk.submit(Client().ticket)
    desk.free.set()
    end.join(120)
    assert not end.is_alive() and desk.batches == [2, 2, 1]
    assert [client.answer() for client in clients] == [f"answer {i}." for i in range(5)]


def test_faults_touch_only_their_own_question(monkeypatch):
    """Of a picture that cannot be read, and of a client that cannot be told."""
    desk = Held(Limits(batch=4))
    good, broken, deaf = Client(), Client(picture=b"no picture"), Client("other.")

    def cannot(event):
        raise ConnectionError

    deaf.ticket.tell = cannot
    for client in (good, broken, deaf):
        desk.submit(client.ticket)
    desk.free.set()
    assert good.answer() == "A man rides two brown horses, slowly."
    assert "no PNG" in broken.answer() and desk.batches == [2]
    assert desk._seconds > 0

    class Broken(Batch):
        def events(self, chunk=None, reader=lambda row: "live"):
            for n, found in enumerate(super().events(chunk, reader)):
                yield found
                if n == 1 and len(self._rows) > 1:
                    raise RuntimeError("out of memory")

    monkeypatch.setattr("lgjax.serve.queue.Batch", Broken)
    desk.free.clear()
    clients = [Client(), Client("a third.")]
    for client in clients:
        desk.submit(client.ticket)
    desk.free.set()
    assert [client.answer() for client in clients] == ["A man rides two brown horses, slowly.", "a third."]
    desk.close()


def test_an_event_that_cannot_be_told_becomes_a_fault():
    """A client that waits for its answer hears of it, instead of waiting for ever."""
    desk = Held(Limits())
    client, hear = Client(), queue.SimpleQueue()

    def tell(event):
        if isinstance(event, Done):
            raise TypeError("no JSON")
        hear.put(event)

    client.ticket.tell = tell
    desk.submit(client.ticket)
    desk.free.set()
    events = [hear.get(timeout=120)]
    while not isinstance(events[-1], Exception):
        events.append(hear.get(timeout=120))
    assert str(events[-1]) == "no JSON"
    desk.close()
    assert hear.empty()


def test_phrases_of_a_given_answer_are_bounded_by_the_size_of_the_picture():
    file = io.BytesIO()
    PIL.Image.new("RGB", (4000, 4000)).save(file, "PNG")
    desk = Desk(model(), Limits(), Metrics())
    with pytest.raises(TooLarge, match=r"5 phrases in a picture of 4000 x 4000 pixels .* at most 4"):
        desk._plan(Client("a <seg>" * 5, picture=file.getvalue()).ticket.question)


def test_nobody_reads_the_question_of_a_client_that_has_gone(monkeypatch):
    desk = Held(Limits(batch=2))
    gone, here = Client("answer 1."), Client("answer 2.")
    planned = []
    plan = desk._plan
    monkeypatch.setattr(desk, "_plan", lambda question: planned.append(question) or plan(question))
    for client in (gone, here):
        desk.submit(client.ticket)
    gone.ticket.left = True  # as of one that leaves when its batch was gathered
    desk.free.set()
    assert here.answer() == "answer 2." and planned == [here.ticket.question]
    desk.close()


def test_features_of_pictures_are_kept_for_the_next_question():
    desk = Desk(model(), Limits(pictures=2), Metrics())
    first = desk._view(png(0))
    assert desk._view(png(0)) is first
    desk._view(png(1))
    assert desk._view(png(0)) is first  # used again, so the other one goes first
    desk._view(png(2))
    assert desk._view(png(0)) is first and len(desk._views) == 2
