"""What a measurement shows: tables, settings, notes and the worst examples, as Markdown, HTML and JSON."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from lgjax.eval.lines import write_whole

Cell = str | int | float | None
MARKDOWN, HTML, SCORES, PICTURES = "report.md", "report.html", "scores.json", "worst"
_MAX_SIDE = 1024
_STYLE = """
body{margin:0 auto;padding:1rem;max-width:70rem;background:#181818;color:#ebebeb}
body{font:16px/1.5 system-ui,sans-serif}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;display:block;overflow-x:auto}
th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #444}
th:first-child,td:first-child{text-align:left}
th{color:#aaa;font-weight:normal}
main{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}
figure{margin:0;background:#262626;border-radius:.5rem;padding:.75rem;overflow-wrap:anywhere}
figcaption{color:#aaa;font-size:.9rem;margin-bottom:.5rem}
img{display:block;max-width:100%;height:auto}
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of figures under the names of their columns; the first column says what a row is about.

    A float is shown with three decimals, None as "-".
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A picture with what was predicted, drawn, and a line that says what is wrong with it."""

    title: str
    image: PIL.Image.Image


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What was measured; the first table holds the main figures.

    settings: of the predictions and of the measure (convention, split, ...); notes: whole sentences.
    """

    title: str
    settings: Mapping[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    worst: tuple[Example, ...] = ()


def show(report: Report, console: Console | None = None) -> None:
    """Print the main table and the notes."""
    console = console or Console()
    table = report.tables[0]
    grid = Grid(title=Text(report.title), box=None, header_style="dim", title_justify="left")
    for number, column in enumerate(table.columns):
        grid.add_column(Text(column), justify="right" if number else "left")
    for row in table.rows:
        grid.add_row(*(Text(_shown(cell)) for cell in row))
    console.print(grid)
    for note in report.notes:
        console.print(Text(note), style="dim", soft_wrap=True)


def write(report: Report, out: Path) -> None:
    """Write report.md, report.html (one file, pictures within), scores.json and the worst examples.

    Each file has its name when it is complete.
    """
    pictures = [f"{PICTURES}/{number:02d}.png" for number in range(1, len(report.worst) + 1)]
    for name, example in zip(pictures, report.worst, strict=True):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        example.image.save(out / name)
    write_whole(out / SCORES, json.dumps(scores(report), indent=1, ensure_ascii=False) + "\n")
    write_whole(out / MARKDOWN, markdown(report, pictures))
    write_whole(out / HTML, page(report))


def finish(report: Report, out: Path | None) -> None:
    """Print a report and, with a folder, write it there."""
    show(report)
    if out is not None:
        write(report, out)
        print(f"wrote {out / MARKDOWN}, {HTML} and {SCORES}")


def scores(report: Report) -> dict[str, Any]:
    """The figures as plain JSON: for each table a list of rows, column name -> value."""
    tables = {
        table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in report.tables
    }
    return {
        "title": report.title,
        "settings": dict(report.settings),
        "tables": tables,
        "notes": list(report.notes),
    }


def markdown(report: Report, pictures: Sequence[str]) -> str:
    """The report as Markdown; `pictures` are the files of the worst examples."""
    parts = [f"# {report.title}"]
    for table in report.tables:
        lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
        cells = [[_shown(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
        parts.append(f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells))
    parts += report.notes
    if report.settings:
        parts.append(
            "## Settings\n\n"
            + "\n".join(f"- {name}: `{_setting(value)}`" for name, value in report.settings.items())
        )
    if report.worst:
        drawn = [
            f"{example.title}\n\n![]({name})" for example, name in zip(report.worst, pictures, strict=True)
        ]
        parts += ["## The worst", *drawn]
    return "\n\n".join(parts) + "\n"


def page(report: Report) -> str:
    """The report as one HTML file without parts outside of it."""
    parts = [f"<h1>{html.escape(report.title)}</h1>"]
    for table in report.tables:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>"
            for row in table.rows
        )
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n<table><tr>{head}</tr>{rows}</table>")
    parts += [f"<p>{html.escape(note)}</p>" for note in report.notes]
    if report.settings:
        items = "".join(
            f"<li>{html.escape(name)}: <code>{html.escape(_setting(value))}</code></li>"
            for name, value in report.settings.items()
        )
        parts.append(f"<h2>Settings</h2>\n<ul>{items}</ul>")
    if report.worst:
        parts.append("<h2>The worst</h2>\n<main>" + "\n".join(map(_figure, report.worst)) + "</main>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _figure(example: Example) -> str:
    file, image = io.BytesIO(), example.image.convert("RGB")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    image.save(file, "JPEG", quality=88)
    code, title = base64.b64encode(file.getvalue()).decode(), html.escape(example.title)
    drawn = f'<img alt="{title}" src="data:image/jpeg;base64,{code}">'
    return f"<figure><figcaption>{title}</figcaption>{drawn}</figure>"


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
