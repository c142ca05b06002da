"""What the commands show in a terminal: an answer, a session of questions, a conversion."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lgjax.convert.convert import convert as convert_weights
from lgjax.data.images import ImageSource, load_image
from lgjax.draw import coloured_text
from lgjax.infer.answer import Answer
from lgjax.infer.chat import Conversation, GroundedChat
from lgjax.infer.load import TINY
from lgjax.infer.regions import Again, Region, load_mask, parse_box, parse_click, parse_scribble
from lgjax.infer.request import Options
from lgjax.infer.ungrounded import Ungrounded, treat
from lgjax.parallel.mesh import make_mesh

LIMITS = "the small model knows drawn things, not photographs, and often errs (--checkpoint names another)"
HELP = """\
/image PATH        another picture (starts a new conversation)
/click X,Y         point at pixel X,Y; write % in the question where it is meant
/box X0,Y0,X1,Y1   the same with a box
/scribble X,Y ...  the same with points over one thing, or several clicks on it
/mask FILE         the same with a picture that is bright where the thing is
/again N           point at the N-th region of earlier questions
/mark FILE ...     draw numbers on the things of mask files; ask about <1>, <2>, ... (a new conversation)
/undo              take back the last region, else the last question
/save [DIR]        write answer.json and answer.png of the last answer
/quit              leave"""


def _parse_again(text: str) -> Again:
    if not text.isdecimal():
        raise ValueError(f"'{text}' is no number of a region; write 1 for the first one")
    return Again(int(text))


_REGIONS: dict[str, Callable[[str], Region]] = {
    "/click": parse_click,
    "/box": parse_box,
    "/scribble": parse_scribble,
    "/mask": load_mask,
    "/again": _parse_again,
}


def save(answer: Answer, folder: Path) -> tuple[Path, Path]:
    """Write answer.json and answer.png into `folder`, which is made when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    text, picture = folder / "answer.json", folder / "answer.png"
    text.write_text(json.dumps(answer.to_json(), indent=1) + "\n", encoding="utf-8")
    answer.draw().save(picture)
    return text, picture


def show(console: Console, answer: Answer) -> None:
    """Print the answer in colours, then a line for each phrase with its boxes."""
    if not answer.text:
        console.print("nothing of the answer was found in the picture", style="dim")
    console.print(coloured_text(answer.text, answer.phrases), soft_wrap=not console.is_terminal)
    if not answer.finished:
        console.print("[dim]… cut by the limit of tokens (--max-tokens)[/dim]")
    if not answer.phrases:
        return
    table = Table("phrase", "score", "box (x0, y0, x1, y1)", "mask pixels", box=None, header_style="dim")
    for phrase in answer.phrases:
        name = Text(phrase.text)  # not a str: the model's words may look like rich's markup
        if not len(phrase.boxes):
            table.add_row(name, "-", "nothing found", "")
        for box, score, mask in zip(phrase.boxes, phrase.scores, phrase.masks, strict=True):
            corners = ", ".join(f"{value:.0f}" for value in box)
            table.add_row(name, f"{score:.2f}", corners, str(int(mask.sum())))
    console.print(table)


def example() -> tuple[Path, str]:
    """A picture that comes with the package, and a question about it."""
    return Path(str(resources.files("lgjax") / "assets" / "scene.png")), "Describe the picture."


def load(console: Console, checkpoint: str, dtype: str, devices: tuple[int, int]) -> GroundedChat:
    """Load a checkpoint with a progress line.

    Raises:
        FileNotFoundError, ValueError: see `load_model`.
    """
    mesh = None if devices == (1, 1) else make_mesh(fsdp=devices[0], tensor=devices[1])
    with console.status(Text(f"loading {checkpoint} …")):
        return GroundedChat.load(checkpoint, dtype=dtype, mesh=mesh)


def chat(
    image: Path | None,
    question: str | None,
    *,
    checkpoint: str,
    dtype: str,
    devices: tuple[int, int],
    clicks: tuple[str, ...],
    boxes: tuple[str, ...],
    scribbles: tuple[str, ...],
    masks: tuple[Path, ...],
    marks: tuple[Path, ...],
    broadcast: bool,
    ungrounded: Ungrounded,
    as_json: bool,
    out: Path | None,
    options: dict[str, Any],
) -> None:
    """Answer one question about `image`, or start a session when there is none; see `example`."""
    console = Console(stderr=as_json)
    if image is None:
        image, question = example()
        options = {**options, "threshold": None}
        console.print(Text(f"{image}: {question} (the best box of each phrase)"), style="dim")
    if checkpoint == TINY and not Path(TINY).exists():
        console.print(LIMITS, style="dim")
    # what can be refused is refused before a model is loaded
    if Options(**options).threshold is None and ungrounded != "keep":
        raise ValueError("without a threshold every phrase is found; give --threshold a number")
    points: list[Region] = [
        *map(parse_click, clicks),
        *map(parse_box, boxes),
        *map(parse_scribble, scribbles),
    ]
    prompts: list[Region] = [*points, *map(load_mask, masks)]
    picture = load_image(image)
    marked = GroundedChat.mark(picture, [load_mask(path) for path in marks]) if marks else picture
    if question is None and as_json:
        raise ValueError("--json needs a question; a session shows its answers in colour")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    model = load(console, checkpoint, dtype, devices)
    start = functools.partial(model.start, broadcast=broadcast)
    if question is None:
        folder = out or Path("lgjax-answers")
        session(console, start, image, start(marked), prompts, folder, ungrounded, options)
        return
    answer = treat(_ask(console, start(marked), question, prompts, options), ungrounded)
    if as_json:
        print(json.dumps(answer.to_json()))
    else:
        show(console, answer)
    if out is not None:
        console.print(_wrote(save(answer, out)))


def _wrote(paths: tuple[Path, Path]) -> Text:
    return Text(f"wrote {paths[0]} and {paths[1]}", style="dim")


def _ask(
    console: Console,
    conversation: Conversation,
    question: str,
    prompts: list[Region],
    options: dict[str, Any],
) -> Answer:
    with console.status("looking …") as status:

        def show_step(what: str) -> None:
            status.update(f"{what} (what was never run before is compiled first) …")

        return conversation.ask(question, prompts, progress=show_step, **options)


def session(
    console: Console,
    start: Callable[[ImageSource], Conversation],
    image: Path,
    conversation: Conversation,
    prompts: list[Region],
    folder: Path,
    ungrounded: Ungrounded,
    options: dict[str, Any],
) -> None:
    """Read questions and commands until /quit or the end of the input; faults are printed, not raised.

    `conversation` is about `image`, perhaps with marks on it; `start` begins another one.
    """
    with contextlib.suppress(ImportError):  # arrow keys and history, where the system has them
        import readline  # noqa: F401
    console.print("Ask about the picture; /help lists the commands.", style="dim")
    last: Answer | None = None
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        command, _, rest = line.partition(" ")
        try:
            if not line:
                continue
            if command == "/quit":
                return
            if command == "/help":
                console.print(HELP, markup=False)
            elif command == "/image":
                if not rest:
                    raise ValueError("/image needs the path of a picture")
                conversation, image, prompts, last = start(Path(rest)), Path(rest), [], None
                console.print(Text(f"looking at {rest}", style="dim"))
            elif command == "/mark":
                marks = [load_mask(path) for path in shlex.split(rest)]
                conversation, prompts, last = start(GroundedChat.mark(image, marks)), [], None
                console.print(f"drew {len(marks)} marks; ask about <1>, <2>, ...", style="dim", markup=False)
            elif command in _REGIONS:
                region = _REGIONS[command](rest)
                conversation.check(region)
                prompts.append(region)
                console.print("write % in the next question where it is meant", style="dim")
            elif command == "/undo" and prompts:
                prompts.pop()
                console.print("took back the last region", style="dim")
            elif command == "/undo":
                conversation.undo()
                last = None
                console.print("took back the last question", style="dim")
            elif command == "/save":
                if last is None:
                    raise ValueError("there is no answer to save yet")
                console.print(_wrote(save(last, Path(rest) if rest else folder)))
            elif command.startswith("/"):
                raise ValueError(f"no command '{command}'; /help lists them")
            else:
                last = treat(_ask(console, conversation, line, prompts, options), ungrounded)
                prompts = []
                show(console, last)
        except (ValueError, OSError) as error:
            console.print(str(error), style="red", markup=False)
        except KeyboardInterrupt:
            console.print("stopped; the question is forgotten", style="dim")


def convert(
    source: Path,
    target: Path,
    dtype: str | None,
    quantize: str | None,
    seg_state: str | None,
    tokenizer: Path | None,
    overwrite: bool,
) -> None:
    """Convert weights with a progress bar and say what was found."""
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        meta = convert_weights(
            source,
            target,
            dtype=dtype,
            quantize=quantize,
            seg_state=seg_state,
            tokenizer=tokenizer,
            overwrite=overwrite,
            progress=lambda path, done, total: bar.update(
                task, completed=done, total=total, description=path
            ),
        )
    skipped = () if meta.source is None else meta.source.skipped
    print(f"wrote {target}: {', '.join(meta.parts)}; `lgjax inspect {target}` says more")
    if skipped:
        print(f"left out {len(skipped)} tensors that no parameter takes")
    if meta.source is not None and meta.source.missing:
        print(f"{len(meta.source.missing)} parameters have no tensor and stay fresh in training")
