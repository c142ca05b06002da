"""What a program takes on devices that are not here: memory, communication, bounds of its time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from lgjax.parallel.hlo import Collective, collectives
from lgjax.parallel.topology import Target

GIB = 2**30
TEMPORARIES, OTHERS = "temporaries", "other arguments"  # of these: rows, or the cache of keys and values
_INVOLUNTARY = "Involuntary full rematerialization"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A program to plan for.

    lower: traces it; arguments: what it is given, by name, as trees of abstract arrays with shardings; flops:
    operations of one run over all devices, without those that are done again to save memory; handled: what
    one run gets through ("tokens", "images"); remedies: what to do where an argument, or the temporaries,
    take most of a memory that does not suffice.
    """

    name: str
    lower: Callable[[], Any]
    arguments: Mapping[str, Any]
    flops: float
    handled: Mapping[str, float]
    remedies: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one run, each as if nothing else took time, at the rates of the data sheet.

    compute: the job's operations in bfloat16; memory: arguments and results pass once between memory and
    cores; links, network: the collectives' bytes within and between slices. best: the longest of these, all
    others hidden behind it; worst: their sum, nothing hidden. A real run also waits for what is not counted
    here: temporaries, norms, gathers of single rows, small products.
    """

    compute: float
    memory: float
    links: float
    network: float

    @property
    def best(self) -> float:
        """All overlap."""
        return max(dataclasses.astuple(self))

    @property
    def worst(self) -> float:
        """Nothing overlaps."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A job on a target. Sizes are of one device, in GiB of 2**30 bytes; `flops` of all devices together.

    arguments_gib: those that the program reads or the job names. peak_gib: the most that is held at once;
    where the compiler refuses, what it says it would need, or None.
    temporaries_gib: the room for them, which where they come and go may be more than they take at the peak.
    parts_gib: arguments by name. dominates: which part, or the temporaries, is the largest. refusal: the
    reason why there is no program. compiler_flops: operations of one device as the compiler counts them, a
    loop's body once. involuntary: arrays that the partitioner gathers whole on every device
    because it finds no better way, which asks for another sharding. seconds: None where it does not fit.
    """

    job: str
    target: str
    mesh: dict[str, int]
    fits: bool
    limit_gib: float
    peak_gib: float | None
    arguments_gib: float
    temporaries_gib: float | None
    parts_gib: dict[str, float]
    dominates: str
    flops: float
    compiler_flops: float | None
    collectives: tuple[Collective, ...]
    involuntary: int
    seconds: Roofline | None
    handled: dict[str, float]
    compile_seconds: float
    suggestion: str
    refusal: str

    def as_json(self) -> dict[str, Any]:
        """As plain dicts and lists; collectives by kind, rates at best."""
        plain = dataclasses.asdict(self)
        names = [collective.pop("kind") for collective in plain["collectives"]]
        plain["collectives"] = dict(zip(names, plain["collectives"], strict=True))
        if self.seconds is not None:
            plain["seconds"] |= {"best": self.seconds.best, "worst": self.seconds.worst}
            plain["per_second"] = {name: n / self.seconds.best for name, n in self.handled.items()}
        return plain


def make_plan(job: Job, target: Target, mesh: Mesh) -> Plan:
    """Compile a job for a mesh of a target's devices and say what it takes.

    Raises:
        RuntimeError: the compiler fails for another reason than memory.
    """
    parts = {name: bytes_of_device(tree) / GIB for name, tree in job.arguments.items()}
    limit = (target.chip.memory or math.inf) / GIB
    arguments, peak, temporaries, found, seconds = sum(parts.values()), None, None, (), None
    refusal, compiler_flops = "", None
    began = time.perf_counter()
    compiled, warnings = None, []
    if arguments > limit:  # minutes of compilation would show nothing else
        refusal, peak = "not compiled, as the arguments alone do not fit", arguments
    else:
        lowered = job.lower()
        try:
            with _heard() as warnings:
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal, peak = _refusal(str(error))
    if compiled is not None:
        memory = compiled.memory_analysis()
        arguments = memory.argument_size_in_bytes / GIB
        temporaries = memory.temp_size_in_bytes / GIB
        found = collectives(compiled.as_text(), mesh.size, target.slices)
        written = memory.output_size_in_bytes / GIB
        seconds = _roofline(job, target, mesh.size, (arguments + written) * GIB, found)
        others = arguments - sum(parts.values())
        unread = max(-others, 0.0)  # of the named ones, the program takes less: the rest stays beside it
        arguments, peak = arguments + unread, memory.peak_memory_in_bytes / GIB + unread
        if others > 0.01 * arguments:
            parts[OTHERS] = others
        compiler_flops = (compiled.cost_analysis() or {}).get("flops")
    fits = not refusal and peak is not None and peak <= limit
    rest = temporaries if temporaries is not None else max((peak or arguments) - arguments, 0.0)
    sizes = {**parts, TEMPORARIES: rest}
    dominates = max(sizes, key=lambda name: sizes[name])
    return Plan(
        job=job.name,
        target=target.name,
        mesh=dict(mesh.shape),
        fits=fits,
        limit_gib=limit,
        peak_gib=peak,
        arguments_gib=arguments,
        temporaries_gib=temporaries,
        parts_gib=parts,
        dominates=dominates,
        flops=job.flops,
        compiler_flops=compiler_flops,
        collectives=found,
        involuntary="".join(warnings).count(_INVOLUNTARY),
        seconds=seconds if fits else None,
        handled=dict(job.handled),
        compile_seconds=time.perf_counter() - began,
        suggestion="" if fits else job.remedies.get(dominates, "take a larger slice or a smaller batch"),
        refusal=refusal,
    )


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What the compiler, which is no Python, writes to the standard error meanwhile; it is not shown."""
    heard: list[str] = []
    with tempfile.TemporaryFile() as file:
        shown = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            file.seek(0)
            heard.append(file.read().decode(errors="replace"))


def bytes_of_device(tree: Any) -> float:
    """Bytes of a device's pieces of abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _refusal(text: str) -> tuple[str, float | None]:
    """The compiler's reason in a line, and the GiB that it would need."""
    line = next((one for one in text.split("\n") if "RESOURCE_EXHAUSTED" in one), text)
    sizes = re.findall(r"(?:Used|required[\w ]*\()\s*([\d.]+)([MG])", text)
    needed = [float(size) / (1 if unit == "G" else 1024) for size, unit in sizes]
    return line.partition("RESOURCE_EXHAUSTED: ")[2][:300] or line[:300], max(needed, default=None)


def _roofline(
    job: Job, target: Target, devices: int, moved: float, found: tuple[Collective, ...]
) -> Roofline:
    chip = target.chip
    assert chip.bandwidth and chip.links and chip.network
    across = sum(one.across for one in found)
    return Roofline(
        compute=job.flops / (devices * chip.flops),
        memory=moved / chip.bandwidth,
        links=(sum(one.sent for one in found) - across) / chip.links,
        network=across / chip.network,
    )
