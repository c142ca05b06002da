"""The `lgjax` command: parse, call, print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lgjax import __version__

DESCRIPTION = """Grounded visual chat: ask about a picture, get an answer whose phrases have boxes and masks.

  lgjax convert LLAVA_GROUNDING_FOLDER model   once: turn PyTorch weights into a checkpoint
  lgjax chat photo.jpg "Describe the scene." --checkpoint model --out answer
"""

app = tyro.extras.SubcommandApp()
_Regions = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NUMBERS")]


@app.command
def chat(
    image: tyro.conf.Positional[Path],
    question: tyro.conf.Positional[str | None] = None,
    /,
    *,
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")] = "",
    click: _Regions = (),
    box: _Regions = (),
    ground: bool = True,
    threshold: float | None = 0.2,
    queries: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_tokens: int = 256,
    answer: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Ask about a picture; phrases of the answer come with boxes and masks.

    Without a question an interactive session starts (/help lists its commands).

    Args:
        image: The picture (any format that Pillow reads).
        question: What to ask. Write % where a click or box is meant: "What is the object % doing?"
        checkpoint: Folder made by `lgjax convert`, or the name of a preset ("debug": tiny and untrained).
        click: X,Y of a clicked pixel; may be given several times, one % each.
        box: X0,Y0,X1,Y1 of a box in pixels; may be given several times, one % each, after the clicks.
        ground: Add "(with grounding)" to the question, which asks the model for boxes and masks.
        threshold: A query answers for a phrase above this probability; None keeps only the best query.
        queries: Object queries of the grounding model, 50 to 900 (default: the checkpoint's, 300).
        temperature: 0 always takes the likeliest word; higher samples.
        top_p: Sample only from the likeliest words that together reach this probability.
        seed: Seed of the sampling.
        max_tokens: Most tokens to write.
        answer: Ground this text instead of a generated one, for example
            "<g_s> A dog <g_e> <seg> on <g_s> a sofa <g_e> <seg> ."
        dtype: Numbers of the language model; auto takes float32 where it fits into memory.
        json: Print the answer as JSON instead of coloured text.
        out: Folder for answer.json and the picture answer.png.
    """
    from lgjax import terminal
    from lgjax.infer.request import Options

    terminal.chat(
        image,
        question,
        checkpoint=checkpoint,
        regions=(*click, *box),
        dtype=dtype,
        as_json=json,
        out=out,
        options=Options(
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


def _use_compilation_cache() -> None:
    """Keep compiled programs under the user's cache folder, unless the environment names another place."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lgjax" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; faults of the input end with one line and exit status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--version"], ["-V"]):
        print(f"lgjax {__version__}")
        return
    _use_compilation_cache()
    try:
        app.cli(prog="lgjax", args=arguments, description=DESCRIPTION)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("LGJAX_DEBUG"):
            raise
        print(f"lgjax: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
