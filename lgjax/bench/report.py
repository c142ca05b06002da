"""What was measured as JSON and as a Markdown table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lgjax.bench.cases import OURS
from lgjax.bench.machine import Ceilings
from lgjax.bench.run import Result, Side
from lgjax.bench.timing import Spread

COLUMNS = ("case", "median", "least - most", "compile", "peak", "ops", "bytes", "a second", "of the ceiling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that a run of the command found.

    machine: see `machine.described`; one, top: ceilings of one core and of the cores that were used; models:
    sizes in a sentence; versions: of the libraries; asked: names of all cases; results: of those so far.
    """

    machine: dict[str, Any]
    one: Ceilings
    top: Ceilings
    preset: str
    dtype: str
    models: str
    runs: int
    versions: dict[str, str]
    asked: Sequence[str]
    results: Sequence[Result]

    @property
    def missing(self) -> list[str]:
        """Names of the cases that a run which was interrupted did not come to."""
        return [name for name in self.asked if name not in [result.case.name for result in self.results]]

    @property
    def failed(self) -> list[str]:
        """Names of the cases that were not measured, or whose outputs are not those of the rival."""
        return [result.case.name for result in self.results if result.error is not None]


def as_json(run: Run) -> dict[str, Any]:
    """As plain dicts and lists."""
    return {
        "machine": run.machine,
        "ceilings": {
            "one_core": dataclasses.asdict(run.one),
            "used_cores": dataclasses.asdict(run.top),
        },
        "preset": run.preset,
        "dtype": run.dtype,
        "models": run.models,
        "runs": run.runs,
        "versions": run.versions,
        "cases": [_case(result) for result in run.results],
        "failed": run.failed,
        "missing": run.missing,
    }


def _case(result: Result) -> dict[str, Any]:
    facts = result.sides[OURS].facts if result.sides else {}
    return {
        "case": result.case.name,
        "what": facts.get("what"),
        "error": result.error,
        "sides": {name: _side(side) for name, side in result.sides.items()},
        "flops": facts.get("flops"),
        "bytes": facts.get("num_bytes"),
        "computes": facts.get("computes"),
        "limit": None if result.best is None else result.best[1],
        "best_seconds": None if result.best is None else result.best[0],
        "share_of_ceiling": result.share,
        "rival": next((name for name in result.sides if name != OURS), None),
        "ratio": None if result.ratio is None else dataclasses.asdict(result.ratio),
        "outputs_differ_by": result.apart,
        "remark": result.case.remark if len(result.sides) > 1 else "",
    }


def _side(side: Side) -> dict[str, Any]:
    spread = Spread.of(side.seconds)
    handled: dict[str, float] = side.facts["handled"]
    return {
        "seconds": list(side.seconds),
        **dataclasses.asdict(spread),
        "first_seconds": side.first_seconds,
        "compile_seconds": side.compile_seconds,
        "peak_memory_bytes": side.peak_memory_bytes,
        "per_second": {name: count / spread.median for name, count in handled.items()},
    }


def as_markdown(run: Run) -> str:
    """The table, what it was measured on, and what it compares."""
    rival = any(len(result.sides) > 1 for result in run.results)
    head = [*COLUMNS, *(["time of lgjax / time of"] if rival else [])]
    lines = [*_preface(run), "", _row(head), _row(["---"] * len(head))]
    notes, number = [], 0
    for result in run.results:
        if not result.sides:
            continue
        mark = ""
        if len(result.sides) > 1:
            number += 1
            mark = f" [{number}]"
            notes.append(f"[{number}] {result.case.name}: {result.case.remark}{_agreement(result)}")
        cells = [result.case.name, *_figures(result), *([_ratio(result) + mark] if rival else [])]
        lines.append(_row(cells))
    lines += ["", *(f"- {result.case.name}: {_what(result)}" for result in run.results if result.sides)]
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    faults = [f"- {result.case.name} failed: {result.error}" for result in run.results if result.error]
    faults += [f"- {name} was not measured: the run was interrupted" for name in run.missing]
    return "\n".join([*lines, *(["", *faults] if faults else [])])


def _preface(run: Run) -> list[str]:
    one, top, machine = run.one, run.top, run.machine
    cores = f"{top.cores} of {machine['cores']} cores" if top.platform == "cpu" else top.platform
    used = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    lines = [
        f"{machine['processor']}, {cores}, {machine['memory_bytes'] / 2**30:.0f} GiB; {used}; "
        f"median of {run.runs} runs.",
        f"Preset {run.preset}: {run.models}.",
        "compile: what the first time took beyond the others; peak: of a whole process (one of torch holds "
        "jax too).",
        "",
    ]
    columns = {"one core": one, f"{top.cores} cores": top} if top.cores > 1 else {"one core": one}
    if top.platform != "cpu":
        columns = {top.platform: top}
    rows = {
        "copy in memory, read and written": [f"{found.copy / 1e9:.1f} GB/s" for found in columns.values()],
        "read from memory": [f"{found.read / 1e9:.1f} GB/s" for found in columns.values()],
        "product of float32 matrices, by the best library": [_best(c.float32) for c in columns.values()],
        "product of bfloat16 matrices, by the best library": [_best(c.bfloat16) for c in columns.values()],
    }
    lines += [_row(["ceiling", *columns]), _row(["---"] * (1 + len(columns)))]
    return lines + [_row([name, *cells]) for name, cells in rows.items()]


def _best(rates: Mapping[str, float]) -> str:
    name = max(rates, key=lambda library: rates[library])
    return f"{rates[name] / 1e9:.0f} GFLOP/s ({name})"


def _figures(result: Result) -> list[str]:
    ours = result.sides[OURS]
    spread, facts = Spread.of(ours.seconds), ours.facts
    rates = [f"{count / spread.median:.3g} {name}" for name, count in facts["handled"].items()]
    share = "-"
    if result.best is not None and result.share is not None:
        share = f"{result.share:.0%} ({result.best[1]})"
    return [
        seconds(spread.median),
        f"{seconds(spread.least)} - {seconds(spread.most)}",
        "-" if ours.compile_seconds is None else seconds(ours.compile_seconds),
        f"{ours.peak_memory_bytes / 2**30:.2f} GiB",
        _scaled(facts["flops"]),
        _scaled(facts["num_bytes"]),
        ", ".join(rates) or "-",
        share,
    ]


def _ratio(result: Result) -> str:
    if result.ratio is None:
        return "-"
    rival = next(name for name in result.sides if name != OURS)
    least, most = result.ratio.least, result.ratio.most
    return f"**{result.ratio.median:.2f}** ({least:.2f} - {most:.2f}) {rival}"


def _what(result: Result) -> str:
    text = result.sides[OURS].facts["what"]
    for name, side in result.sides.items():
        if name != OURS:
            text += (
                f"; {name}: {seconds(Spread.of(side.seconds).median)}, "
                f"peak {side.peak_memory_bytes / 2**30:.2f} GiB"
            )
    return text


def _agreement(result: Result) -> str:
    if result.apart is None:
        return ""
    return "; outputs are equal" if result.apart == 0 else f"; outputs differ by {result.apart:.1g}"


def seconds(value: float) -> str:
    """A time with three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _scaled(value: float | None) -> str:
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
