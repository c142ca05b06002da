"""Sheets: the page parses and shows what the records hold, the picture has the size it should."""

import base64
import dataclasses
import inspect
import io
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from lgjax.data.marks import marked
from lgjax.data.masks import encode
from lgjax.data.schema import Expression, Object, Phrase, Record, RecordError, Region, Source, Turn, check
from lgjax.data.sheet import CELL_WIDTH, _read, sheet, show
from lgjax.draw import ink_on, phrase_colour

SIZE = (600, 300)
GREY = 100


def square(x: int, y: int, side: int = 100) -> Object:
    mask = np.zeros(SIZE[::-1], bool)
    mask[y : y + side, x : x + side] = True
    return Object(box=(x, y, x + side, y + side), mask=encode(mask), name="thing")


CHAT = Record(
    id="7<b>",
    kind="chat",
    image=np.full((*SIZE[::-1], 3), GREY, np.uint8),
    size=SIZE,
    turns=(
        Turn("human", "What is <obj> & the rest?"),
        Turn("gpt", "A <i>cat</i> and a dog of nobody. "),
        Turn("human", "And\nnow?"),
        Turn("gpt", "The dog sleeps."),
    ),
    objects=(square(20, 50), square(200, 50), square(400, 50), Object(box=(5, 5, 5, 9))),
    phrases=(
        Phrase(turn=1, span=(0, 12), objects=(0,)),
        Phrase(turn=1, span=(17, 22), objects=(1,)),
        Phrase(turn=1, span=(26, 32), objects=()),
        Phrase(turn=1, span=(33, 33), objects=(0,)),
        Phrase(turn=3, span=(0, 7), objects=(1,)),
    ),
    regions=(Region(0, 2),),
)
REGION = Record(
    id="8",
    kind="region",
    image=CHAT.image,
    size=SIZE,
    objects=CHAT.objects[:2],
    expressions=(
        Expression(texts=("left thing", "thing"), objects=(0,), question="Name <obj> ."),
        Expression(texts=("right thing",), objects=(1,)),
    ),
)
TEXT = Record(id="9", kind="chat", image=None, size=None, turns=(Turn("human", "Hi"), Turn("gpt", "Ho")))


class Page(HTMLParser):
    """Balanced tags, texts, coloured pieces with their style, pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.marks, self.pictures, self.faults, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag != "script" and not {"href", "onclick"} & set(attrs)
        if tag == "img":
            kind, code = attrs["src"].split(",")
            assert kind == "data:image/jpeg;base64"
            self.pictures.append(PIL.Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB"))
        elif tag != "meta":
            self.open.append(tag)
            if tag == "mark":
                self.marks.append([attrs["style"], ""])
            if attrs.get("class") == "fault":
                self.faults.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if self.open and self.open[-1] == "mark":
            self.marks[-1][1] += data
        if self.faults and not self.faults[-1]:
            self.faults[-1] += data


def page(records, folder) -> Page:
    for record in records:
        if isinstance(record, Record):
            check(record)
    sheet(records, folder / "sheet.html")
    return Page((folder / "sheet.html").read_text(encoding="utf-8"))


def style(index: int) -> str:
    colour = phrase_colour(index)
    return "background:rgb({},{},{});color:rgb({},{},{})".format(*colour, *ink_on(colour))


def test_a_chat_as_a_page(tmp_path):
    shown = page([CHAT], tmp_path)
    # colours go by the order of the text; the same objects keep theirs; the phrase of no object is grey
    *named, nobody, bare, again = shown.marks
    assert named == [[style(0), "<obj>"], [style(1), "A <i>cat</i>"], [style(2), "a dog"]]
    assert nobody[1] == "nobody" and nobody[0] not in [style(i) for i in range(20)]
    assert bare == [style(1), "<seg>"] and again == [style(2), "The dog"]
    assert "What is <obj> & the rest?" in shown.text and "And\nnow?" in shown.text and "7<b>" in shown.text
    assert "dropped: box without area (1)" in shown.text and not shown.faults


def test_the_picture_on_the_page(tmp_path):
    (picture,) = page([CHAT], tmp_path).pictures
    pixels = np.asarray(picture, int)
    assert picture.size == SIZE
    # masks of the phrases; the object of the question has only its box
    for index, x in ((1, 70), (2, 250)):
        want = 0.85 * GREY + 0.15 * np.asarray(phrase_colour(index))
        assert abs(pixels[100, x] - want).max() < 12
    assert abs(pixels[100, 450] - GREY).max() < 12
    assert abs(pixels[100, 400] - phrase_colour(0)).max() < 80


def test_what_nothing_names_is_a_thin_grey_box(tmp_path):
    sheet(
        [dataclasses.replace(TEXT, image=CHAT.image, size=SIZE, objects=CHAT.objects[:1])], tmp_path / "a.png"
    )
    pixels = np.asarray(PIL.Image.open(tmp_path / "a.png"), int)
    # the picture stands 16 pixels from the corner, enlarged to the cell
    at = [round(v * CELL_WIDTH / SIZE[0]) + 16 for v in (70, 50)]
    column = pixels[at[1] - 20 : at[1] + 20, at[0], 0]
    assert column.max() > GREY + 30 and (column > GREY + 10).sum() <= 6


def test_expressions_of_regions_and_referring(tmp_path):
    shown = page([REGION, dataclasses.replace(REGION, kind="referring")], tmp_path)
    one = [[style(0), "<obj>"], [style(0), "left thing"], [style(0), "thing"], [style(1), "right thing"]]
    assert shown.marks == one * 2
    assert "Name <obj> ." in shown.text and "left thing / thing" in shown.text


def test_marked_records_show_the_marks(tmp_path):
    shown = page([marked(CHAT)], tmp_path)
    assert [text for _, text in shown.marks] == ["<3>", "<1>", "<2>", "<1>", "<2>"]
    assert [colours for colours, _ in shown.marks] == [style(i) for i in (2, 0, 1, 0, 1)]
    pixels = np.asarray(shown.pictures[0], int)
    want = 0.8 * GREY + 0.2 * np.asarray(phrase_colour(0))
    # the mask of the first, without a box around it
    for x in (30, 40, 20):
        assert abs(pixels[60, x] - want).max() < 20


def test_faults_are_red_lines(tmp_path):
    lost = dataclasses.replace(CHAT, image=tmp_path / "no.jpg")
    shown = page([RecordError("a.json: record 3 <x> lacks 'id'"), lost, TEXT], tmp_path)
    assert shown.faults == [
        "a.json: record 3 <x> lacks 'id'",
        f"image file '{tmp_path / 'no.jpg'}' is not there",
    ]
    assert len(shown.pictures) == 0 and "Ho" in shown.text


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 3, 2)])
def test_size_of_the_grid(tmp_path, count, columns, rows):
    record = dataclasses.replace(CHAT, turns=CHAT.turns[2:], phrases=(), regions=())
    sheet([record] * count, tmp_path / "one.PNG")
    one = PIL.Image.open(tmp_path / "one.PNG")
    one.load()
    assert one.width == columns * CELL_WIDTH + (columns + 1) * 16
    cell_height = one.height - 16
    assert cell_height % rows == 0 and cell_height // rows > CELL_WIDTH // 2 + 16 + 4 * 14


def test_errors_texts_and_tall_pictures_in_a_grid(tmp_path):
    tall = dataclasses.replace(
        TEXT,
        image=np.full((900, 30, 3), GREY, np.uint8),
        size=(30, 900),
        turns=(Turn("human", "字" * 300), TEXT.turns[1]),
    )
    sheet([RecordError("broken"), TEXT, tall, CHAT, REGION, marked(CHAT)], tmp_path / "a.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "a.png"), int)
    assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 120))[:, :CELL_WIDTH].any()


def test_show_takes_the_first_or_draws_by_seed(tmp_path, monkeypatch):
    # the type checker would look at records at random and so meet the broken one
    monkeypatch.setattr("lgjax.data.sheet._read", inspect.unwrap(_read))

    def make(number: int) -> Record:
        if number == 1:
            raise ValueError("is broken")
        return dataclasses.replace(TEXT, id=f"record-{number}")

    source = Source(tmp_path / "a.json", range(50), make)

    def ids(count: int, seed: int | None) -> list[str]:
        inspect.unwrap(show)(source, tmp_path / "a.html", count, seed)
        text = Page((tmp_path / "a.html").read_text()).text
        return [word for word in text.split() if word.startswith("record-") or word == "broken"]

    assert ids(3, None) == ["record-0", "broken", "record-2"]
    assert ids(8, 5) == ids(8, 5) != ids(8, 6) and len(ids(8, 5)) == 8
    assert len(ids(99, 0)) == len(ids(99, None)) == 50


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.html or \.png"):
        show([TEXT], tmp_path / "a.jpg", 1)
    with pytest.raises(ValueError, match="0 of 1 records"):
        show([TEXT], tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match="2 of 0 records"):
        show([], tmp_path / "a.png", 2)
    with pytest.raises(ValueError, match="no records"):
        sheet([], tmp_path / "a.png")
