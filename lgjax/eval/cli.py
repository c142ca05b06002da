"""The commands of `lgjax eval`; each stands in the module of what it measures."""

from __future__ import annotations

import tyro

from lgjax.eval.commands.captions import captions
from lgjax.eval.commands.coco import coco
from lgjax.eval.commands.flickr import flickr
from lgjax.eval.commands.records import records
from lgjax.eval.commands.referring import referring
from lgjax.eval.commands.scenes import scenes

app = tyro.extras.SubcommandApp()
HELP = "Measure a checkpoint, or predictions that were made before."

app.command(captions)
app.command(coco)
app.command(flickr)
app.command(referring)
app.command(scenes)
app.command(records)
