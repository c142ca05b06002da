"""From the options of a command to predictions: made by a checkpoint, or read from files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress

from lgjax.convert import meta
from lgjax.eval.predict import predict
from lgjax.eval.predictions import Prediction, match, read
from lgjax.eval.questions import Question
from lgjax.eval.running import Running, process_of
from lgjax.infer.chat import GroundedChat
from lgjax.infer.load import DEBUG, folder_of
from lgjax.infer.request import Options
from lgjax.parallel.mesh import make_mesh

PREDICTIONS = "predictions"


def predictions_for(
    running: Running, questions: Sequence[Question], part: str = "", **options: Any
) -> list[tuple[Question, Prediction]] | None:
    """Every question with its prediction: read from --predictions, or made by --checkpoint.

    part: the folder within, where a benchmark makes several runs; options: fields of
    `lgjax.infer.request.Options` that a benchmark fixes. None: the other processes of the run have not made
    their part yet.

    Raises:
        ValueError: neither or both of them are given, or predictions that do not fit the questions.
        FileNotFoundError: pictures, predictions or checkpoint are not there.
    """
    if (running.checkpoint is not None) == (running.predictions is not None):
        raise ValueError(
            "name either a checkpoint (--checkpoint DIR) or predictions (--predictions FILE_OR_DIR)"
        )
    questions = running.limited(questions)
    folder = None if running.predictions is None else running.predictions / part
    if folder is None:
        if running.out is None:
            raise ValueError("--checkpoint needs --out DIR, the folder for predictions and report")
        folder = running.out / PREDICTIONS / part
        if missing := make(running, questions, folder, **options):
            print(f"wrote this part to {folder}; {missing} shards of other processes are missing")
            return None
    found = read(folder)
    if running.predictions is not None and running.limit is not None:
        wanted = {question.id for question in questions}
        found = [prediction for prediction in found if prediction.question_id in wanted]
    return [(question, prediction) for question, prediction in match(found, questions) if prediction]


def checkpoint_of(running: Running) -> str:
    """The checkpoint that predicts.

    Raises:
        ValueError: none is named.
    """
    if not running.checkpoint:
        raise ValueError(
            "no checkpoint: name one with --checkpoint DIR, or try --checkpoint tiny, the one of the package"
        )
    return running.checkpoint


def make(running: Running, questions: Sequence[Question], folder: Path, **options: Any) -> int:
    """Predict with a progress bar; returns how many shards other processes have yet to make."""
    chosen = options_of(running, **options)
    Options(**chosen)  # refused before a model is loaded
    process, checkpoint = process_of(running.process), checkpoint_of(running)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("predicting", total=None)
        return predict(
            lambda: load(running),
            questions,
            folder,
            settings={
                "checkpoint": checkpoint,
                "weights": weights_of(checkpoint),
                "dtype": running.dtype,
                **chosen,
            },
            options=chosen,
            batch=running.batch * copies(running),
            process=process,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def options_of(running: Running, **options: Any) -> dict[str, Any]:
    """The options of `GroundedChat.ask_batch`; `options` go before those of the command line."""
    own = {"threshold": running.threshold, "queries": running.queries, "max_tokens": running.max_tokens}
    return {**own, **options}


def weights_of(checkpoint: str) -> str:
    """A checksum that tells the weights of two checkpoints of one name apart; "" of a preset.

    Raises:
        FileNotFoundError, ValueError: there is no such checkpoint.
    """
    folder = folder_of(checkpoint)
    if checkpoint == DEBUG and not folder.exists():
        return ""
    meta.read(folder)  # says what is wrong before anything is written
    return hashlib.sha256((folder / meta.FILE).read_bytes()).hexdigest()[:16]  # the file holds a fingerprint


def copies(running: Running) -> int:
    """Copies of the model on the devices of this machine."""
    if min(running.fsdp, running.tensor) < 1:
        raise ValueError("--fsdp and --tensor must be at least 1")
    return max(1, jax.device_count() // (running.fsdp * running.tensor))


def load(running: Running) -> GroundedChat:
    """Load the checkpoint, a copy on each group of --fsdp x --tensor devices; the last one is kept."""
    return _load(checkpoint_of(running), running.dtype, copies(running), running.fsdp, running.tensor)


@functools.lru_cache(maxsize=1)
def _load(checkpoint: str, dtype: str, data: int, fsdp: int, tensor: int) -> GroundedChat:
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor) if jax.device_count() > 1 else None
    return GroundedChat.load(checkpoint, dtype=dtype, mesh=mesh)
