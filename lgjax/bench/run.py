"""Measure cases: each side in a process of its own, in turn, so that both see the machine alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lgjax.bench.cases import OURS, TORCH, Case, Setting
from lgjax.bench.machine import Ceilings
from lgjax.bench.timing import Spread, best_seconds, disagreement, ratios
from lgjax.bench.worker import MACHINE, Job

PAUSE = 0.1  # seconds between turns: threads that wait for more work go to sleep
ALIKE = 1e-3  # how far outputs of two sides may lie apart
ALIKE_16_BITS = 5e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """What was measured of a case by one who does it.

    seconds: of each turn; first_seconds: of the first time, which compiles; facts: see `timing.Facts`.
    """

    seconds: tuple[float, ...]
    first_seconds: float
    peak_memory_bytes: int
    facts: dict[str, Any]

    @property
    def compile_seconds(self) -> float | None:
        """What the first time took beyond the others; None for work that compiles nothing."""
        if not self.facts["compiles"]:
            return None
        return max(0.0, self.first_seconds - Spread.of(self.seconds).median)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A case that was measured, or why it was not.

    sides: by name, "lgjax" first; ratio: our time by the rival's, turn by turn; apart: how far outputs
    differ; best: the shortest time that the machine's ceilings allow, and which of them; error: None where
    all went well.
    """

    case: Case
    sides: dict[str, Side]
    ratio: Spread | None = None
    apart: float | None = None
    best: tuple[float, str] | None = None
    error: str | None = None

    @property
    def share(self) -> float | None:
        """The fraction of the machine's ceiling that lgjax reaches."""
        return None if self.best is None else self.best[0] / Spread.of(self.sides[OURS].seconds).median


class Failure(RuntimeError):
    """Why a side of a case could not be measured."""

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(f"{side}: {reason}")
        self.side = side


class Worker:
    """A measuring process, see `lgjax.bench.worker`."""

    def __init__(self, job: Job, errors: IO[bytes]) -> None:
        self._side, self._errors = job.side, errors
        package = str(Path(__file__).parent.parent.parent)
        threads = str(job.setting.cores)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lgjax.bench.worker", job.as_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
                **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
            },
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """The next message.

        Raises:
            Failure: an error of the process, or its sudden end.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message = json.loads(line) if line else {"error": self._ending()}
        if "error" in message:
            raise Failure(self._side, message["error"])
        return message

    def tell(self, word: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says why
            print(word, file=self._process.stdin, flush=True)

    def finish(self) -> dict[str, Any]:
        """End the input, and hear the last message."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.hear()

    def end(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def _ending(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, most likely for want of memory"
        self._errors.seek(0)
        told = self._errors.read().decode(errors="replace").strip().split("\n")[-1]
        return f"its process ended with status {code}" + (f": {told}" if told else "")


@contextlib.contextmanager
def working(job: Job) -> Iterator[Worker]:
    """A process for a job, which is gone afterwards; with LGJAX_DEBUG its errors are shown."""
    with tempfile.TemporaryFile() as errors:
        worker = Worker(job, errors)
        try:
            yield worker
        finally:
            worker.end()
            if os.environ.get("LGJAX_DEBUG"):
                errors.seek(0)
                sys.stderr.write(errors.read().decode(errors="replace"))


def measure_machine(setting: Setting) -> Ceilings:
    """The ceilings of as many cores.

    Raises:
        Failure: they cannot be measured.
    """
    with working(Job(case=MACHINE, side=OURS, setting=setting)) as worker:
        return Ceilings(**worker.hear())


def measure(case: Case, setting: Setting, top: Ceilings, *, runs: int, against: bool) -> Result:
    """Measure a case, with PyTorch beside it if `against`; what fails is told in the result.

    Where the rival fails, lgjax is measured alone.
    """
    rival = None if case.rival == TORCH and not against else case.rival
    sides = [OURS, *([rival] if rival else [])]
    try:
        found = _in_turn(case, sides, setting, runs)
    except Failure as error:
        if error.side == OURS:
            return Result(case=case, sides={}, error=str(error))
        alone = measure(dataclasses.replace(case, rival=None), setting, top, runs=runs, against=False)
        return dataclasses.replace(alone, case=case, error=str(error))
    ours = found[OURS]
    best = best_seconds(
        ours.facts["flops"], ours.facts["num_bytes"], top.rate(ours.facts["computes"]), top.read
    )
    if rival is None:
        return Result(case=case, sides=found, best=best)
    theirs = found[rival]
    apart, error = None, None
    if case.agrees:
        apart = disagreement(ours.facts["output"], theirs.facts["output"])
        bound = ALIKE
        if setting.dtype != "float32" and case.name == "prefill":
            bound = ALIKE_16_BITS
        elif setting.dtype != "float32" and case.name in ("decode", "decode-batch"):
            # greedy ids part for good after the first near tie, which fewer bits do bring about
            bound = math.inf
        if apart > bound:
            error = f"lgjax and {rival} do not find the same: outputs differ by {apart:.2g}"
    ratio = ratios(ours.seconds, theirs.seconds)
    return Result(case=case, sides=found, ratio=ratio, apart=apart, best=best, error=error)


def _in_turn(case: Case, sides: Sequence[str], setting: Setting, runs: int) -> dict[str, Side]:
    """Warm the sides up one after the other, then let each do the work once, again and again."""
    with contextlib.ExitStack() as stack:
        workers, warm = {}, {}
        for side in sides:
            workers[side] = stack.enter_context(working(Job(case=case.name, side=side, setting=setting)))
            warm[side] = workers[side].hear()
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(runs):
            for side in sides:
                time.sleep(PAUSE)
                workers[side].tell("run")
                seconds[side].append(workers[side].hear()["seconds"])
        found = {}
        for side in sides:
            last = workers[side].finish()
            found[side] = Side(
                seconds=tuple(seconds[side]),
                first_seconds=warm[side].pop("first_seconds"),
                peak_memory_bytes=last["peak_memory_bytes"],
                facts=warm[side],
            )
        return found
