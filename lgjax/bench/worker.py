"""A measuring process: prepares one piece of work, then does it each time it is told to.

`python -m lgjax.bench.worker JOB`, started by `lgjax.bench.run`. Lines of JSON on its output: the facts of
the work when it is warm, the seconds of each time that a line "run" came in, its peak of memory at the end of
the input; or one with an error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from lgjax.bench.cases import OURS, TORCH, Name, Setting, sizes_of

if TYPE_CHECKING:
    from lgjax.bench.timing import Work

MACHINE = "machine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """case: its name, or "machine" for the ceilings; side: "lgjax" or the case's rival."""

    case: str
    side: str
    setting: Setting

    def as_text(self) -> str:
        """For the command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> Job:
        """Undo `as_text`."""
        plain = json.loads(text)
        return cls(case=plain["case"], side=plain["side"], setting=Setting(**plain["setting"]))


def bind(cores: int) -> None:
    """Bind this process to the first cores that it may use, before libraries make their threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def prepare(case: Name, side: str, setting: Setting) -> Work:
    """The work of a case, warm nowhere yet.

    Raises:
        ImportError: it needs an extra that is not installed.
    """
    sizes, dtype = sizes_of(setting.model), setting.dtype
    if side == TORCH:
        from lgjax.bench import torch_side

        torch_side.pin(setting.cores)
        match case:
            case "grounding":
                return torch_side.mask2former(sizes)
            case "prompt":
                return torch_side.prompt(sizes)
            case "clip":
                return torch_side.clip(sizes)
            case "prefill":
                return torch_side.prefill(sizes, dtype)
            case "decode":
                return torch_side.decode(sizes, dtype)
        raise ValueError(f"there is nothing of PyTorch to compare {case} with")
    from lgjax.bench import language, talk, training, vision
    from lgjax.infer.stream import Done, Found, Words

    ours = side == OURS
    match case:
        case "grounding":
            return vision.grounding(sizes)
        case "grounding-again":
            return vision.grounding_again(sizes, anew=not ours)
        case "prompt":
            return vision.prompt(sizes)
        case "clip":
            return vision.clip(sizes)
        case "prefill":
            return language.prefill(sizes, dtype)
        case "decode":
            return language.decode(sizes, dtype)
        case "decode-batch":
            return language.decode(sizes, dtype, rows=sizes.batch, together=ours)
        case "chat":
            return talk.chat(sizes)
        case "first-word":
            return talk.stream(sizes, Words if ours else Done)
        case "first-box":
            return talk.stream(sizes, Found if ours else Done)
        case "second-turn":
            return talk.second_turn(sizes, anew=not ours)
        case "second-question":
            return talk.second_question(sizes, dtype, first=not ours)
        case "batch":
            return talk.batch(sizes, together=ours)
        case "matching":
            return training.matching(sizes, by_scipy=not ours)
        case "train-step":
            return training.train_step(sizes)
        case "data":
            return training.data(sizes)


def serve(job: Job, say: Callable[[dict[str, Any]], None], asked: Iterable[str]) -> None:
    """Do a job: `say` is called with each message, `asked` yields the lines that come in."""
    import jax

    from lgjax.bench.timing import peak_memory

    if job.case == MACHINE:
        from lgjax.bench.machine import ceilings

        say(dataclasses.asdict(ceilings(job.setting.cores, sizes_of(job.setting.model))))
        return
    # what a compilation takes is a figure here, so it is never read from a cache
    jax.config.update("jax_enable_compilation_cache", False)
    work = prepare(cast(Name, job.case), job.side, job.setting)
    first = work.seconds()
    work.seconds()  # the first time may have left something to be done once more, such as other shapes
    facts = dataclasses.asdict(work.facts())
    say({**facts, "first_seconds": first})
    for line in asked:
        if line.strip() == "run":
            say({"seconds": work.seconds()})
    say({"peak_memory_bytes": peak_memory()})


def main() -> None:
    """Do the job of the command line."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no message

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    job = Job.read(sys.argv[1])
    bind(job.setting.cores)
    try:
        serve(job, say, sys.stdin)
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().split("\n")[0]
        if isinstance(error, ModuleNotFoundError):
            text = f'{error.name} is missing: pip install "lgjax[train,convert]"'
        say({"error": text or type(error).__name__})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
