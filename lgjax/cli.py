"""The `lgjax` command: parse, call, print."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lgjax import __version__
from lgjax.annotate import cli as annotate
from lgjax.bench.cli import bench
from lgjax.data import cli as data
from lgjax.eval import cli as evaluate
from lgjax.jobs import cli as plan
from lgjax.serve.cli import serve
from lgjax.train import cli as train

DESCRIPTION = """Grounded visual chat: ask about a picture, get an answer whose phrases have boxes and masks.

  lgjax chat                                   an example, with the small model of the package
  lgjax convert LLAVA_GROUNDING_FOLDER model   once: turn PyTorch weights into a checkpoint
  lgjax chat photo.jpg "Describe the scene." --checkpoint model --out answer
  lgjax serve --checkpoint model               the same over HTTP, as OpenAI's chat completions
  lgjax data build lg_coco --from coco --to data/lg_coco
  lgjax annotate run --instances instances.json --chats chats.json --to mine    grounded chat of your own
  lgjax train --config configs/stage1.py       train a stage (--help, --dry-run)
  lgjax eval scenes --checkpoint model         measure a checkpoint
  lgjax plan --config configs/stage2.py --target v5e:4x4     does it fit on machines that are not here
  lgjax bench --against torch                  how fast it is here, beside PyTorch
  lgjax checkpoint runs/stage1 model           the model of a run that was not finished
  lgjax --version                              which version this is
"""

app = tyro.extras.SubcommandApp()
_Regions = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NUMBERS")]
_Files = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")]


@app.command
def chat(
    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE]")] = None,
    question: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[QUESTION]")] = None,
    /,
    *,
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")] = "tiny",
    click: _Regions = (),
    box: _Regions = (),
    scribble: _Regions = (),
    mask: _Files = (),
    mark: _Files = (),
    broadcast: bool = False,
    ground: bool = True,
    threshold: float | None = 0.2,
    queries: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_tokens: int = 256,
    answer: str | None = None,
    flag_ungrounded: bool = False,
    drop_ungrounded: bool = False,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    fsdp: int = 1,
    tensor: int = 1,
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Ask about a picture; phrases of the answer come with boxes and masks.

    Without a question an interactive session starts (/help lists its commands); without a picture an example
    is described.

    Args:
        image: The picture (any format that Pillow reads).
        question: What to ask. Write % where a region is meant, with a space on both sides, not as the
            first word: "What is the object % doing?"
        checkpoint: Folder made by `lgjax convert`; "tiny" comes with the package and knows drawn things, not
            photographs, "debug" is untrained.
        click: X,Y of a clicked pixel; may be given several times, one % each.
        box: X0,Y0,X1,Y1 of a box in pixels; may be given several times, one % each, after the clicks.
        scribble: "X,Y X,Y ..." over one thing, or several clicks on it; after the boxes. The point nearest to
            their mean becomes the click that the model reads.
        mask: A picture file, bright where the thing is; after the scribbles. The box around it is read.
        mark: A mask file; its number is drawn into the picture, and the question says <1>, <2>, ... (with
            --no-ground, as such chats are trained).
        broadcast: In a session the newest region stands for every % so far, as in the released demo.
        ground: Add "(with grounding)" to the question, which asks the model for boxes and masks.
        threshold: A query answers for a phrase above this probability; None keeps only the best query.
        queries: Object queries of the grounding model, at most 900 (default: the checkpoint's, 300).
        temperature: 0 always takes the likeliest word; higher samples.
        top_p: Sample only from the likeliest words that together reach this probability.
        seed: Seed of the sampling.
        max_tokens: Most tokens to write.
        answer: Ground this text instead of a generated one, for example
            "<g_s> A dog <g_e> <seg> on <g_s> a sofa <g_e> <seg> ."
        flag_ungrounded: Mark phrases of which nothing is found above the threshold, "a kite [not found]":
            likely they are made up.
        drop_ungrounded: Take these phrases out of the answer, and mend its grammar.
        dtype: Numbers of the language model; auto takes float32 where it fits into memory.
        fsdp: Devices over which the weights are split by their inner width.
        tensor: Devices over which heads and MLP columns are split.
        json: Print the answer as JSON instead of coloured text.
        out: Folder for answer.json and the picture answer.png (in a session: of /save).
    """
    from lgjax import terminal

    if flag_ungrounded and drop_ungrounded:
        raise ValueError("--flag-ungrounded and --drop-ungrounded exclude each other")
    terminal.chat(
        image,
        question,
        checkpoint=checkpoint,
        clicks=click,
        boxes=box,
        scribbles=scribble,
        masks=mask,
        marks=mark,
        broadcast=broadcast,
        dtype=dtype,
        devices=(fsdp, tensor),
        ungrounded="flag" if flag_ungrounded else "drop" if drop_ungrounded else "keep",
        as_json=json,
        out=out,
        options=dict(
            ground=ground,
            threshold=threshold,
            queries=queries,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_tokens=max_tokens,
            answer=answer,
        ),
    )


@app.command
def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    /,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    seg_state: Literal["before", "at"] | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Turn PyTorch weights into an lgjax checkpoint folder.

    SOURCE is a LLaVA-Grounding folder (config.json, *.bin or *.safetensors, tokenizer files), or a part that
    training starts from: a LLaMA/Vicuna or CLIP folder, an OpenSeeD .pt, a Semantic-SAM .pth, an
    mm_projector.bin; or an lgjax checkpoint, to write it with --quantize or --dtype. .bin, .pt and .pth files
    need torch: pip install "lgjax[convert]".

    Args:
        source: The folder or file with the weights.
        target: The folder to write.
        dtype: Number type of language model, vision tower and projector; None keeps every tensor's own.
        quantize: Keep the matrices of these parts in 8 or 4 bits: a half or a quarter of bfloat16's
            bytes, a little less exact. Such a checkpoint answers; it cannot be trained or exported.
        seg_state: The hidden state that stands for a phrase: "before" (the default) as the released inference
            takes it (the one that predicts the <seg> token), "at" as the released training does.
        tokenizer: Folder or tokenizer.model, when the source has none.
        overwrite: Replace an existing checkpoint.
    """
    from lgjax import terminal

    terminal.convert(source, target, dtype, quantize, seg_state, tokenizer, overwrite)


@app.command
def export(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    /,
    *,
    format: Literal["bin", "safetensors"] | None = None,
    shard_gb: float | None = None,
) -> None:
    """Write a checkpoint in the original's PyTorch layout again.

    Without options a converted checkpoint gives its source's files back, bit for bit.

    Args:
        checkpoint: Folder made by `lgjax convert`.
        target: The folder to write.
        format: .bin (needs torch) or .safetensors files; None as the source was.
        shard_gb: Largest size of a file in GB; None as the source was.
    """
    from lgjax.convert.export import export

    if shard_gb is not None and shard_gb <= 0:
        raise ValueError(f"--shard-gb {shard_gb} must be above 0")
    size = None if shard_gb is None else int(shard_gb * 1e9)
    for name in export(checkpoint, target, format=format, shard_bytes=size):
        print(f"wrote {target / name}")


@app.command
def inspect(folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")], /) -> None:
    """Say what a checkpoint folder holds: sizes, number types, token ids, fingerprint, source.

    Args:
        folder: Folder made by `lgjax convert`.
    """
    from lgjax.convert.describe import describe

    print(describe(folder))


@app.command
def checkpoint(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    /,
    *,
    step: str = "last",
) -> None:
    """Write the model of a training run as a checkpoint folder; a finished run holds its own in RUN/model.

    Args:
        run: Folder of `lgjax train`.
        target: The folder to write.
        step: "last", "best" (smallest loss on held-out data), or the number of a step that is kept.
    """
    from lgjax.train.finish import model_of_run

    print(f"wrote {target}, the model of step {model_of_run(run, target, step=step)}")


app.command(data.app, name="data", help=data.HELP)
app.command(evaluate.app, name="eval", help=evaluate.HELP)
app.command(annotate.app, name="annotate", help=annotate.HELP)
app.command(serve)
app.command(bench)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; faults of the input end with one line and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--version"], ["-V"]):
        print(f"lgjax {__version__}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ended like Ctrl-C: what is half written goes
    try:
        # the options of these are those of a configuration file
        if (command := {"train": train.main, "plan": plan.main}.get((arguments or [""])[0])) is not None:
            command(arguments[1:])
            return
        app.cli(prog="lgjax", args=arguments or ["--help"], description=DESCRIPTION)
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if os.environ.get("LGJAX_DEBUG"):
            raise
        print(f"lgjax: {error or type(error).__name__}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
