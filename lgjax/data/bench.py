"""How fast training batches are made on this machine, and where the time goes."""

from __future__ import annotations

import contextlib
import cProfile
import dataclasses
import inspect
import os
import pstats
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lgjax import draw
from lgjax.data import batch, images, masks, prompts, rounds
from lgjax.data.batch import BatchConfig, SampleMaker
from lgjax.data.pipeline import Counted, Mixture, Stream, batches
from lgjax.data.read import Dataset
from lgjax.data.scene_text import SORTS
from lgjax.data.scenes import SceneConfig
from lgjax.data.schema import Records, read_json
from lgjax.data.sources.scenes import Scenes
from lgjax.text.tokenizer import Tokenizer

PARTS = {
    "decode the picture": images.load_image,
    "grounding view": images.square_canvas,
    "CLIP view": images.clip_crop,
    "masks": masks.on_canvas,
    "draw prompts": prompts.draw_click,
    "draw the marks": draw.draw_marks,
    "write the rounds": rounds.rounds_of,
    "tokens and labels": batch.encode,
}


class Rate(NamedTuple):
    """Rows and batches per second over all that ran, and bytes of one batch."""

    rows: float
    batches: float
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Planned:
    """What `lgjax plan --json` says of a step: its rows, and the least and most seconds by its bounds."""

    rows: float
    best: float
    worst: float

    @classmethod
    def read(cls, path: Path) -> Planned:
        """Read a plan.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no plan of a step of training, or of one that does not fit.
        """
        plan = read_json(path)
        try:
            rows, seconds = plan["handled"]["images"], plan["seconds"]
            if seconds is None:
                raise ValueError(f"{path} plans a step that does not fit; there is no time to compare with")
            return cls(float(rows), float(seconds["best"]), float(seconds["worst"]))
        except (KeyError, TypeError) as error:
            wanted = "lgjax plan --config FILE --target SLICE --json"
            raise ValueError(f"{path} is no plan of a step; make one with `{wanted} > plan.json`") from error

    def against(self, rows: float, hosts: int) -> str:
        """Whether hosts that each make so many rows a second keep the devices busy, in a line.

        A real step takes longer than the least of its bounds, so that this asks for more than is needed.
        """
        wanted = self.rows / hosts / self.best
        least = -(-self.rows / self.best // rows)
        verdict = (
            f"enough, {rows / wanted:.1f} times what is asked"
            if rows >= wanted
            else f"too slow: steps take {self.rows / hosts / rows:.2f} s; {least:.0f} such hosts, or more "
            "--workers, keep up"
        )
        return (
            f"a step of {self.rows:.0f} rows takes {self.best:.2f} to {self.worst:.2f} s by its plan: each "
            f"of {hosts} hosts must make up to {wanted:.1f} rows a second, this one makes {rows:.1f}: "
            f"{verdict}"
        )


def mixture_of(grounded: Sequence[str], text: Sequence[str], grounded_rows: int, text_rows: int) -> Mixture:
    """The mixture of built folders, "DIR" or "DIR=WEIGHT" each; without any, composed scenes of 512 pixels.

    Raises:
        ValueError: a weight that is no number, or what `Dataset` and `Mixture` refuse.
    """
    if grounded or text:
        lanes = [tuple(map(_stream, lane)) for lane in (grounded, text)]
    else:
        config = SceneConfig(size=512)
        lanes = [(Stream(Scenes(config=config, sorts=sorts)),) for sorts in (SORTS[:3], SORTS[4:])]
    return Mixture(
        grounded=lanes[0],
        text=lanes[1],
        grounded_rows=grounded_rows if lanes[0] else 0,
        text_rows=text_rows if lanes[1] else 0,
    )


def _stream(text: str) -> Stream:
    folder, _, weight = text.partition("=")
    try:
        share = float(weight or 1)
    except ValueError as error:
        raise ValueError(f"'{text}': weight '{weight}' is no number") from error
    return Stream(Dataset(folder), share)


def maker_of(config: BatchConfig, tokenizer: Path | None) -> SampleMaker:
    """A maker of grounded samples; without a tokenizer the small one of the package is used.

    Raises:
        FileNotFoundError, ValueError: see `Tokenizer`.
    """
    if tokenizer is not None:
        known = Tokenizer.from_model_file(tokenizer) if tokenizer.is_file() else Tokenizer.load(tokenizer)
        return SampleMaker(config, known, grounded=True)
    shipped = resources.files("lgjax") / "assets" / "debug_tokenizer.model"
    with resources.as_file(shipped) as file:
        return SampleMaker(config, Tokenizer.from_model_file(file), grounded=True)


def report(
    mixture: Mixture,
    maker: SampleMaker,
    workers: int,
    seconds: float,
    planned: Planned | None = None,
    hosts: int = 1,
) -> str:
    """Measure both ways and say it in a few lines, the last of them against the step of a plan."""
    lines = []
    for name, streams in (("grounded", mixture.grounded), ("text", mixture.text)):
        for number, stream in enumerate(streams):
            own = dataclasses.replace(maker, grounded=name == "grounded")
            parts = part_times(own, stream.records, 100)
            total = sum(parts.values())
            lines.append(
                f"{name} stream {number}: {total:.1f} ms a sample, {1000 / total:.1f} a second on one core"
            )
            lines += [f"  {part:<20}{ms:8.2f} ms {ms / total:6.1%}" for part, ms in parts.items()]
    found = throughput(mixture, maker, workers, seconds)
    grounded, text = (mixture.groups * rows for rows in (mixture.grounded_rows, mixture.text_rows))
    lines.append(
        f"batches of {grounded} grounded and {text} text rows, {found.num_bytes / 2**20:.0f} MiB each: "
        f"{found.batches:.2f} a second, {found.rows:.1f} rows a second "
        f"({workers or 'no'} worker processes, {os.cpu_count()} cores)"
    )
    if planned is not None:
        lines.append(planned.against(found.rows, hosts))
    return "\n".join(lines)


def part_times(maker: SampleMaker, records: Records, count: int) -> dict[str, float]:
    """Milliseconds a sample for each of `PARTS`, for fetching the record, and for "the rest".

    One thread; their sum is the time of a sample. Samples that cannot be made count with what they took.
    """
    fetch = 0.0
    profiler = cProfile.Profile()
    for i in range(count):
        start = time.perf_counter()
        record = records[i % len(records)]
        fetch += time.perf_counter() - start
        profiler.enable()
        with contextlib.suppress(ValueError, OSError):
            maker(record, np.random.default_rng(i))
        profiler.disable()
    found = pstats.Stats(profiler)
    cumulative = {key: values[3] for key, values in found.stats.items()}  # pyright: ignore[reportAttributeAccessIssue]
    out = {"fetch the record": fetch}
    for name, function in PARTS.items():
        code = inspect.unwrap(function).__code__
        out[name] = cumulative.get((code.co_filename, code.co_firstlineno, code.co_name), 0.0)
    out["the rest"] = found.total_tt - sum(out.values()) + fetch  # pyright: ignore[reportAttributeAccessIssue]
    return {name: 1000 * seconds / count for name, seconds in out.items()}


def throughput(mixture: Mixture, maker: SampleMaker, workers: int, seconds: float) -> Rate:
    """Make batches for about `seconds` after the first two, with `workers` processes (0: threads)."""
    data = Counted(batches(mixture, maker.config, maker.tokenizer, seed=0, workers=workers))
    # the first ones wait for processes to start
    first = [next(data) for _ in range(max(2, 2 * workers))][-1]
    start, count, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        next(data)
        count, passed = count + 1, time.perf_counter() - start
    data.close()
    num_bytes = sum(array.nbytes for array in _arrays(first))
    return Rate(count * mixture.rows / passed, count / passed, num_bytes)


def _arrays(value: object) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    return [array for part in value for array in _arrays(part)] if isinstance(value, tuple) else []
