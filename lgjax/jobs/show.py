"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lgjax.jobs.search import Found, described
from lgjax.parallel.plan import Plan

_ASSUMED = (
    "Seconds are bounds at data-sheet rates: products in bfloat16 at full rate, arguments and results once "
    "through memory, collectives over all links. 'best' hides all but the longest, 'worst' hides nothing; "
    "what is not counted (temporaries, norms, gathers, the input) makes a real step longer."
)


def show(plan: Plan, changed: str) -> None:
    """Print one plan; `changed`: options that suit the configuration to the target."""
    console = Console()
    console.print(f"{plan.job}\non {plan.target}, mesh {plan.mesh}", highlight=False)
    if changed:
        console.print(f"shared out by {changed}", highlight=False)
    used = "not known" if plan.peak_gib is None else f"{_digits(plan.peak_gib)} GiB"
    verdict = "[bold green]fits[/]" if plan.fits else "[bold red]does not fit[/]"
    console.print(f"{verdict}: {used} of {plan.limit_gib:.2f} GiB a device", highlight=False)
    if plan.refusal:
        console.print(plan.refusal, markup=False, highlight=False)
    if plan.suggestion:
        console.print(f"to try: {plan.suggestion}", markup=False, highlight=False)
    console.print(_memory(plan))
    if plan.collectives:
        console.print(_collectives(plan))
    if plan.involuntary:
        console.print(f"[yellow]{plan.involuntary} arrays are gathered whole on every device, unasked[/]")
    console.print(f"operations of a run: {plan.flops:.4g} on all devices (by the sizes of the model)")
    if plan.seconds is not None:
        console.print(_seconds(plan))
        console.print(_ASSUMED, style="dim")
    console.print(f"compiled in {plan.compile_seconds:.0f} s")


def _memory(plan: Plan) -> Table:
    table = Table("of a device", "GiB", title=f"memory: mostly {plan.dominates}")
    for name, size in plan.parts_gib.items():
        table.add_row(f"  {name}", _digits(size))
    table.add_row("all arguments", _digits(plan.arguments_gib))
    for name, size in (("temporaries", plan.temporaries_gib), ("peak", plan.peak_gib)):
        table.add_row(name, "-" if size is None else _digits(size))
    return table


def _digits(number: float) -> str:
    """With two decimals, smaller ones with two digits."""
    return f"{number:.2f}" if number >= 0.1 or not number else f"{number:.2g}"


def _collectives(plan: Plan) -> Table:
    table = Table("kind", "times", "GB sent by a device", "between slices", title="collectives of a run")
    for one in plan.collectives:
        table.add_row(one.kind, f"{one.count:,}", _digits(one.sent / 1e9), _digits(one.across / 1e9))
    return table


def _seconds(plan: Plan) -> Table:
    seconds = plan.seconds
    assert seconds is not None
    table = Table("of a run", "seconds", title="bounds of time")
    rows = {
        "products": seconds.compute,
        "memory": seconds.memory,
        "links": seconds.links,
        "network between slices": seconds.network,
        "best": seconds.best,
        "worst": seconds.worst,
    }
    for name, value in rows.items():
        table.add_row(name, _digits(value))
    for name, count in plan.handled.items():
        table.add_row(f"{name} a second", f"{count / seconds.worst:,.0f} to {count / seconds.best:,.0f}")
    return table


def show_search(found: Sequence[Found]) -> None:
    """Print what a search tried, the best first."""
    table = Table("images a second", "peak GiB", "options of lgjax train", title=f"on {found[0].plan.target}")
    for one in found:
        plan = one.plan
        rate = "does not fit"
        if plan.seconds is not None:
            rate = f"{1 / one.seconds_per_row:,.0f} to {plan.handled['images'] / plan.seconds.best:,.0f}"
        table.add_row(rate, "-" if plan.peak_gib is None else f"{plan.peak_gib:.2f}", described(one.config))
    console = Console()
    console.print(table)
    console.print(_ASSUMED, style="dim")
