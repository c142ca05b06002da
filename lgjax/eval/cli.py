"""The commands of `lgjax eval`; each stands in the module of what it measures."""

from __future__ import annotations

import tyro

from lgjax.eval.commands.chair import chair
from lgjax.eval.commands.chat_score import chat_score
from lgjax.eval.commands.grounding_bench import grounding_bench, grounding_bench_set
from lgjax.eval.commands.pope import pope
from lgjax.eval.commands.records import records
from lgjax.eval.commands.scenes import scenes

app = tyro.extras.SubcommandApp()
HELP = "Measure a checkpoint, or predictions that were made before."

app.command(scenes)
app.command(records)
app.command(grounding_bench)
app.command(grounding_bench_set)
app.command(chat_score)
app.command(pope)
app.command(chair)
