"""What the commands show in a terminal: an answer, a session of questions, a conversion."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lgjax.convert.convert import convert as convert_weights
from lgjax.draw import coloured_text
from lgjax.infer.answer import Answer
from lgjax.infer.chat import Conversation, GroundedChat
from lgjax.infer.regions import Region, parse_box, parse_click
from lgjax.infer.request import Options
from lgjax.infer.ungrounded import Ungrounded, treat
from lgjax.parallel.mesh import make_mesh

HELP = """\
/image PATH        another picture (starts a new conversation)
/click X,Y         point at pixel X,Y; write % in the question where it is meant
/box X0,Y0,X1,Y1   the same with a box
/undo              take back the last region, else the last question
/save [DIR]        write answer.json and answer.png of the last answer
/quit              leave"""


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


def load(console: Console, checkpoint: str, dtype: str, devices: tuple[int, int]) -> GroundedChat:
    """Load a checkpoint with a progress line.

    Raises:
        ValueError: no checkpoint was named, or it is not one.
    """
    if not checkpoint:
        raise ValueError(
            "no checkpoint: name one with --checkpoint DIR (made by `lgjax convert`), "
            "or try the plumbing with --checkpoint debug, a tiny untrained model"
        )
    mesh = None if devices == (1, 1) else make_mesh(fsdp=devices[0], tensor=devices[1])
    with console.status(Text(f"loading {checkpoint} …")):
        return GroundedChat.load(checkpoint, dtype=dtype, mesh=mesh)


def chat(
    image: Path,
    question: str | None,
    *,
    checkpoint: str,
    dtype: str,
    devices: tuple[int, int],
    clicks: tuple[str, ...],
    boxes: tuple[str, ...],
    ungrounded: Ungrounded,
    as_json: bool,
    out: Path | None,
    options: dict[str, Any],
) -> None:
    """Answer one question about `image`, or start a session when there is none."""
    console = Console(stderr=as_json)
    # what can be refused is refused before a model is loaded
    if Options(**options).threshold is None and ungrounded != "keep":
        raise ValueError("without a threshold every phrase is found; give --threshold a number")
    prompts: list[Region] = [*map(parse_click, clicks), *map(parse_box, boxes)]
    if question is None and as_json:
        raise ValueError("--json needs a question; a session shows its answers in colour")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    model = load(console, checkpoint, dtype, devices)
    conversation = model.start(image)
    if question is None:
        session(console, model, conversation, prompts, out or Path("lgjax-answers"), ungrounded, options)
        return
    answer = treat(_ask(console, conversation, question, prompts, options), ungrounded)
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
    model: GroundedChat,
    conversation: Conversation,
    prompts: list[Region],
    folder: Path,
    ungrounded: Ungrounded,
    options: dict[str, Any],
) -> None:
    """Read questions and commands until /quit or the end of the input; faults are printed, not raised."""
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
                conversation, prompts, last = model.start(Path(rest)), [], None
                console.print(Text(f"looking at {rest}", style="dim"))
            elif command in ("/click", "/box"):
                region = parse_click(rest) if command == "/click" else parse_box(rest)
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
    seg_state: str,
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
