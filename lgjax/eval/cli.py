"""The commands of `lgjax eval`; each stands in the module of what it measures."""

from __future__ import annotations

import tyro

from lgjax.eval.commands.records import records

app = tyro.extras.SubcommandApp()
HELP = "Measure a checkpoint, or predictions that were made before."

app.command(records)
