"""The commands of `lgjax annotate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lgjax.llm.limits import Limits

app = tyro.extras.SubcommandApp()
HELP = "Make grounded chat of your own pictures, and check it."
_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
_SECONDS_BETWEEN_LINES = 30
_Dir = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]


@app.command
def run(
    *,
    instances: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    target: Annotated[Path, tyro.conf.arg(name="to", metavar="DIR")],
    chats: _File = None,
    captions: _File = None,
    images: _Dir = None,
    annotator: Literal["matcher", "endpoint", "batch"] = "matcher",
    model: str | None = None,
    url: str | None = None,
    write: Literal["conversation", "detail", "reasoning"] | None = None,
    questions: bool = False,
    marks: bool = False,
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "0/1",
    piece: int = 200,
    dry_run: bool = False,
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = Limits(),  # noqa: B008
) -> None:
    """Tie the phrases of conversations about pictures to the instances in them.

    A run that was stopped, however it came, goes on with the same command. Several machines take a shard each
    (--shard 0/8, 1/8 ...) and write into one folder; the last one to finish joins the results.

    Args:
        instances: COCO file of the instances of the pictures.
        target: Folder to write; `lgjax data build lg_gvc --from` reads it.
        chats: Conversations in the layout of LLaVA-Instruct.
        captions: COCO captions, in place of conversations: each becomes an answer as it is, or see --write.
        images: Folder of the pictures, for `lgjax data build`, for sheets and for --marks.
        annotator: matcher works offline by names, counts and sides; endpoint asks a language model (key in
            OPENAI_API_KEY); batch writes request files for OpenAI's batches into DIR/batch and, run again,
            reads the result files that were put there.
        model: Name of the language model.
        url: Address of an endpoint like OpenAI's, for example http://localhost:8000/v1.
        write: Let the language model write conversations in this style from captions and boxes first.
        questions: Annotate the questions too: chat about regions, read by lg_visual_prompt.
        marks: Draw numbers into the pictures too: marked chat in DIR/marked, read by lg_instruct
            (--file chat.json).
        shard: Part I of N of the work, I from 0.
        piece: Conversations that are saved together.
        dry_run: Only count what would be asked, and what it would cost at most.
        limits: How fast and how much the language model may be asked.
    """
    from lgjax.annotate import writing
    from lgjax.annotate.asking import Asking
    from lgjax.annotate.inputs import read_inputs
    from lgjax.annotate.matcher import Matcher
    from lgjax.annotate.pieces import Shard
    from lgjax.annotate.run import Job, prepare, work

    part = Shard.parse(shard)
    if annotator == "matcher" and (model or url or write or dry_run):
        raise ValueError(
            "the matcher asks nobody: --model, --url, --write, --dry-run need another --annotator"
        )
    if annotator != "matcher" and not model:
        raise ValueError("name the language model with --model")
    if annotator == "batch" and url:
        raise ValueError("batches are uploaded by hand: --url needs --annotator endpoint")
    asked = _language_model("batch" if dry_run else annotator, target, url, limits)
    job = Job(
        inputs=read_inputs(instances, chats, captions, write),
        annotator=Asking(asked, model) if asked and model else Matcher(),
        writer=writing.Writer(asked, model, write) if asked and model and write else None,
        out=target,
        instances=instances,
        images=images,
        questions=questions,
        marks=marks,
        piece=piece,
    )
    if dry_run:
        _count(job, part, asked, limits)
        return
    prepare(job)
    complete = _with_progress(lambda progress: work(job, part, progress), job.size_of(part), shard)
    _say_costs(asked, limits)
    if complete:
        _finish(job)
    else:
        print(
            f"answers are still to come: put result files into {target / 'batch'}, run the same command again"
        )


def _language_model(annotator: str, target: Path, url: str | None, limits: Limits) -> Any:
    """What the annotator asks; None for the matcher."""
    from lgjax.llm.batch_files import BatchFiles
    from lgjax.llm.request import Cache

    if annotator == "matcher":
        return None
    if annotator == "batch":
        return BatchFiles(target / "batch", Cache(target / "replies"))
    from lgjax.llm.client import Client

    return Client(Cache(target / "replies"), limits, url)


def _count(job: Any, part: Any, asked: Any, limits: Limits) -> None:
    """Say what a run would ask first; what is asked about its answers cannot be known yet."""
    from lgjax.annotate.pieces import annotate
    from lgjax.llm.limits import estimate

    for piece in part.of(len(job.ranges)):
        annotate(job.inputs, job.ranges[piece], job.annotator, job.writer, questions=job.questions)
    print(f"at most {estimate(list(asked.missing.values()), asked.cache, limits)}; nothing was sent")
    print("asking again, where an answer is cut or cannot be taken, comes on top")
    if job.writer is not None:
        print("annotating the conversations that are written then comes on top")


def _with_progress(work: Callable[[Callable[[int], None]], bool], total: int, shard: str) -> bool:
    """Work with a progress line, in a log with a line every half minute, and say how fast it went."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TextColumn("conversations, {task.description}"), TimeRemainingColumn())
    begin = said = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("", total=total)

        def so_far() -> str:
            done = int(bar.tasks[0].completed)
            seconds = time.monotonic() - begin
            rate = done / max(seconds, 1e-9)
            done_of = f"{done:,} of {total:,} conversations of shard {shard}"
            return f"{done_of} in {seconds:.1f} s, {rate:.0f} a second"

        def settled(count: int) -> None:
            nonlocal said
            bar.advance(shown, count)
            bar.update(shown, description=so_far().rpartition(", ")[2])
            if not bar.console.is_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                bar.console.print(so_far())
                said = time.monotonic()

        complete = work(settled)
    print(so_far())
    return complete


def _say_costs(asked: Any, limits: Limits) -> None:
    """What was asked by this command and by the whole run; what is to be uploaded."""
    from lgjax.llm.batch_files import BatchFiles

    if asked is None:
        return
    if isinstance(asked, BatchFiles):
        for path in asked.write():
            print(f"wrote {path}: upload it, and put the file of results beside it")
    else:
        print(f"asked: {asked.spent}")
    count, prompt, completion = asked.cache.total()
    money = (
        f", {limits.money(prompt, completion):.2f} of money" if limits.price_in or limits.price_out else ""
    )
    print(f"the whole run so far: {count:,} answers, {prompt:,} + {completion:,} tokens{money}")


def _finish(job: Any) -> None:
    from lgjax.annotate.run import finish

    if (report := finish(job)) is None:
        print("other shards are not done yet; the last one joins the results")
        return
    _show(report)
    print(f"wrote {job.out}; build it: lgjax data build lg_gvc --from {job.out} --to DATASET")


@app.command
def check(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OTHER]")] = None,
    /,
    *,
    sheet: _File = None,
    count: int = 12,
    seed: int | None = None,
) -> None:
    """Say what a run has found, how far it agrees with another annotator, and draw a sheet.

    Args:
        folder: Folder of `lgjax annotate run`.
        other: Another such folder of the same texts, or a file that was checked by hand.
        sheet: A sheet to look at, .html or .png: conversations of the run; with OTHER those that differ.
        count: How many conversations the sheet shows.
        seed: Draw them at random; without it the first ones are shown.
    """
    from lgjax.annotate import check as checking

    done = checking.open_run(folder)
    texts = checking.texts_of_run(done)
    _show(done.report)
    total, tied = checking.named_phrases(texts)
    share = f"{tied / total:.1%}" if total else "-"
    print(f"{tied:,} of {total:,} phrases that name a category of COCO are tied to instances ({share})")
    theirs = None
    if other is not None:
        theirs = (
            checking.texts_of_run(checking.open_run(other))
            if other.is_dir()
            else checking.texts_of_file(other, done.inputs)
        )
        both = checking.agreement(texts, theirs)
        print(f"\nagainst {other}, in {both.texts:,} texts that both have:")
        print(f"  {both.common:,} of {both.first:,} links are there too (precision {both.precision:.3f})")
        print(
            f"  {both.found:,} of its {both.second:,} were found (recall {both.recall:.3f}), F1 {both.f1:.3f}"
        )
        print(f"  {both.same_spans:,} of {both.phrases:,} phrases have the same ends")
    if sheet is not None:
        shown = checking.show(done, sheet, count, seed, theirs)
        print(f"wrote {sheet} with {shown} conversations")


def _show(report: Mapping[str, Any]) -> None:
    """Print the counts, then what was rejected and why."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for name, value in report.items():
        if not isinstance(value, dict):
            table.add_row(name, f"{value:,}")
    console = Console()
    console.print(table)
    for name, reasons in report.items():
        for reason, number in reasons.items() if isinstance(reasons, dict) else ():
            console.print(f"{name}: {number:,} x {reason}", soft_wrap=True, markup=False, highlight=False)
