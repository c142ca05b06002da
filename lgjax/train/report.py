"""How a run is reported: a JSON line, TensorBoard scalars and a line of text every few steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from jax.typing import ArrayLike
from rich.console import Console
from rich.text import Text

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"

# losses as the line of text calls them, in its order
_LOSSES = {"language": "language", "mask_cls": "cls"}
_SHAPES = {"bbox": "box", "giou": "giou", "mask_bce": "mask", "mask_dice": "dice", "iou_score": "iou"}


class _Step(NamedTuple):
    """What was added for a step; metrics, tokens and images may still be computed on a device."""

    metrics: dict[str, ArrayLike]
    tokens: ArrayLike
    images: ArrayLike
    seconds: float
    waited: float


class Report:
    """Writes the means of every `every` steps to `folder`, and prints them.

    log.jsonl gets an object with "step", every metric, and the speeds: "speed/step_seconds",
    "speed/data_share" (of the time, waited for data), "speed/tokens_per_second", "speed/images_per_second",
    "speed/utilisation" (if `flops`, the operations of a step, and `peak`, those of all devices in a second,
    are known) and "speed/seconds_left"; what is not finite is null. tensorboard/ gets the same as scalars.

    A run that goes on says after which step (`start`, 0 for a new one): later lines of log.jsonl and a torn
    last one are dropped, and TensorBoard hides its later scalars. Of several processes only one has `write`;
    the others do nothing here. Use it as a context manager, or call `close`.

    Raises:
        ImportError: tensorboardX is missing.
        ValueError: `every` is below 1, or log.jsonl is damaged before its last line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        start: int = 0,
        every: int = 1,
        flops: float | None = None,
        peak: float | None = None,
        write: bool = True,
        console: Console | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"a report every {every} steps is not possible; use 1 or more")
        self._total_steps, self._every, self._flops, self._peak = total_steps, every, flops, peak
        self._steps: list[_Step] = []
        self._log: TextIO | None = None
        self._scalars: Any = None
        if not write:
            return
        self._console = console or Console()
        scalar_writer = _scalar_writer()
        folder.mkdir(parents=True, exist_ok=True)
        _drop_after(folder / LOG, start)
        # the suffix keeps a run that goes on within a second from writing over the file of the one before
        self._scalars = scalar_writer(
            str(folder / TENSORBOARD), purge_step=start + 1, filename_suffix=f".{start}"
        )
        self._log = (folder / LOG).open("a", encoding="utf-8")

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        step: int,
        metrics: Mapping[str, ArrayLike],
        *,
        seconds: float,
        waited: float,
        tokens: ArrayLike,
        images: ArrayLike,
    ) -> dict[str, int | float] | None:
        """Take in a step; every `every` steps and at the last one, write a line and return its values.

        metrics are scalars by name, such as "loss", "loss/giou", "rate/llama" or "skipped" (1 for a step
        whose update was left out); they stay on the device until a line is due. seconds: from the last `add`
        to this one, so that waiting for the device, which happens in here, is part of it; waited: of these,
        for data; tokens, images: of the step, over all devices.
        """
        if self._log is None:
            return None
        self._steps.append(_Step(dict(metrics), tokens, images, seconds, waited))
        if step % self._every and step != self._total_steps:
            return None
        row = {"step": step, **self._means(step)}
        self._steps.clear()
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._log.write(json.dumps(finite, allow_nan=False) + "\n")
        self._log.flush()
        for name, value in row.items():
            if name != "step":
                self._scalars.add_scalar(name, value, step)
        text = Text(progress_line(row, self._total_steps))
        self._console.print(text, soft_wrap=not self._console.is_terminal)
        return row

    def close(self) -> None:
        """Write out what is still in memory; steps since the last line are not reported."""
        if self._log is not None:
            self._log.close()
            self._scalars.close()
            self._log = None

    def _means(self, step: int) -> dict[str, int | float]:
        steps = jax.device_get(self._steps)
        names = dict.fromkeys(name for entry in steps for name in entry.metrics)
        means: dict[str, int | float] = {}
        for name in names:
            values = [float(entry.metrics[name]) for entry in steps if name in entry.metrics]
            means[name] = float(np.mean(values))
        seconds = sum(entry.seconds for entry in steps)
        means["speed/step_seconds"] = seconds / len(steps)
        means["speed/data_share"] = sum(entry.waited for entry in steps) / seconds
        means["speed/tokens_per_second"] = sum(float(entry.tokens) for entry in steps) / seconds
        means["speed/images_per_second"] = sum(float(entry.images) for entry in steps) / seconds
        if self._flops is not None and self._peak is not None:
            means["speed/utilisation"] = self._flops * len(steps) / seconds / self._peak
        means["speed/seconds_left"] = (self._total_steps - step) * seconds / len(steps)
        return means


def progress_line(row: Mapping[str, int | float], total_steps: int) -> str:
    """One line of text for the values of a line of log.jsonl; what is absent is left out."""
    fields = [f"step {row['step']}/{total_steps}"]
    if "loss" in row:
        fields.append(f"loss {row['loss']:.3f}" + _losses(row))
    if row.get("skipped"):
        fields.append(f"skipped {_percent(row['skipped'])}")
    seconds, share = _number(row["speed/step_seconds"]), _percent(row["speed/data_share"])
    fields.append(f"{seconds} s/step (data {share})")
    fields.append(f"{_thousands(row['speed/tokens_per_second'])} tok/s")
    fields.append(f"{_thousands(row['speed/images_per_second'])} img/s")
    if "speed/utilisation" in row:
        fields.append(f"{_percent(row['speed/utilisation'])} of peak")
    fields.append(f"{_clock(row['speed/seconds_left'])} left")
    return "  ".join(fields)


def _losses(row: Mapping[str, int | float]) -> str:
    """The parts of the loss in brackets, those of visual prompts last."""

    def named(names: Mapping[str, str], prefix: str) -> str:
        present = {name: row[prefix + key] for key, name in names.items() if prefix + key in row}
        return " ".join(f"{name} {_number(value)}" for name, value in present.items())

    parts, prompts = named(_LOSSES | _SHAPES, "loss/"), named(_SHAPES, "loss/prompt_")
    both = [parts] * bool(parts) + [f"prompts {prompts}"] * bool(prompts)
    return f" ({', '.join(both)})" if both else ""


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.00995 or share == 0 else 1}f} %"


def _thousands(value: float) -> str:
    unit = ""
    for larger in ("k", "M", "G"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.{1 if 0 < value < 9.95 else 0}f}{unit}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _scalar_writer() -> type:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'training writes TensorBoard logs with tensorboardX, which is missing: pip install "lgjax[train]"'
        ) from error
    return SummaryWriter


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines of later steps and a torn last line; the file is whole at every moment."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            later = row["step"] > step
        except (ValueError, TypeError, KeyError) as error:
            # a whole file ends with a line break, so its last "line" is empty
            if number < len(lines):
                raise ValueError(
                    f"{path} line {number} is no report of a step; mend it or move the file away"
                ) from error
            continue
        if not later:
            kept.append(line + "\n")
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
