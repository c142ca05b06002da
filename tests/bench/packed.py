"""What packed weights cost and save.

    python -m tests.bench.packed [--layers N] [--rounds N]     decoding, all forms by turns in one process
    python -m tests.bench.packed --checkpoints FULL INT8 ...   whole checkpoints, each in a process of its own

The first takes the language model of the released size, cut to a few layers, with random weights. The second
prints bytes on disk, the largest memory of loading and answering, seconds of the first answer about a picture
and of a second one of the same given tokens, seconds a token, and how far the logits of one text are from
those of the first checkpoint. Pin it to one core with `taskset -c 0`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from lgjax.bench.cases import Dtype
from lgjax.bench.talk import GIVEN
from lgjax.bench.weights import parameters
from lgjax.config import llava_g_7b
from lgjax.infer import generate
from lgjax.infer.load import load_model, use_compilation_cache
from lgjax.models.llama import Llama, init_cache

PROMPT, STEPS = 128, 8
TEXT = "USER: What do you see in this picture? ASSISTANT: A striped cat lies beside two remotes on a sofa."


def by_turns(layers: int, rounds: int) -> Table:
    """Tokens a second of every form, measured by turns."""
    config = dataclasses.replace(llava_g_7b().llama, num_layers=layers)
    whole = dataclasses.replace(llava_g_7b(), llama=config)
    forms = get_args(Dtype)
    sizes = generate.DecodeSizes(
        max_new_tokens=STEPS * (rounds + 1) + 1, max_segs=1, seg_id=1, stop_ids=(), seg_state="before"
    )
    limits = np.full(1, sizes.max_new_tokens, np.int32)
    embeds = jax.random.normal(jax.random.key(0), (1, PROMPT, config.hidden_size))
    models, params, states, seconds, reading = {}, {}, {}, {form: [] for form in forms}, {}
    for form in forms:
        params[form] = parameters(whole, "llama", dtype=form)["llama"]
        models[form] = model = Llama(config, scan_layers="layers" in params[form])
        for _ in range(2):  # the first one compiles
            start = time.perf_counter()
            room = PROMPT + sizes.max_new_tokens
            cache = init_cache(config, 1, room, scan_layers=model.scan_layers)
            hidden, cache = generate.prefill(model, params[form], embeds, np.full(1, PROMPT), cache)
            jax.block_until_ready(hidden)
            reading[form] = time.perf_counter() - start
        states[form] = generate.begin(model, params[form], sizes, hidden, cache, np.full(1, PROMPT), limits)
    for _ in range(rounds + 1):
        for form in forms:
            start = time.perf_counter()
            states[form] = generate.advance(models[form], params[form], sizes, states[form], limits, STEPS)
            jax.block_until_ready(states[form].ids)
            seconds[form].append((time.perf_counter() - start) / STEPS)
    table = Table("weights", "bytes", f"reading {PROMPT} s", "s a token", "least", "most", "against float32")
    first = statistics.median(seconds["float32"][1:])
    for form in forms:
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(params[form]))
        own = seconds[form][1:]
        middle = statistics.median(own)
        numbers = (f"{value:.4f}" for value in (reading[form], middle, min(own), max(own)))
        table.add_row(form, f"{held / 1e9:.2f} GB", *numbers, f"{first / middle:.2f}x")
    return table


def measure(checkpoint: str, out: str) -> None:
    """Load, ask two questions twice (the first ones compile), and write the logits of a text to `out`."""
    use_compilation_cache()
    from lgjax.infer.chat import GroundedChat

    start = time.perf_counter()
    model = load_model(checkpoint)
    report: dict[str, Any] = {"load": time.perf_counter() - start}
    photo = str(files("lgjax") / "assets/cat.jpg")
    for _ in range(2):
        talk = GroundedChat(model).start(photo)
        for name, question in (("first", "What is it?"), ("second", "What else is there?")):
            start = time.perf_counter()
            talk.ask(question, answer=GIVEN)
            report[name] = time.perf_counter() - start
    report["s_per_token"] = seconds_a_token(model)
    ids = np.asarray([model.tokenizer.encode(TEXT)], np.int32)

    def logits(module: Llama, ids: jax.Array) -> Any:
        positions = jnp.arange(ids.shape[1])[None]
        return module.logits(module(module.embed(ids), positions)[0])

    run = jax.jit(lambda params, ids: model.llama.apply({"params": params}, ids, method=logits))
    np.save(out, np.asarray(run(model.params["llama"], ids), np.float32))
    report["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(report))


def seconds_a_token(model: Any) -> float:
    """Median of decoding a few tokens after a prompt of 128."""
    config, llama, params = model.config.llama, model.llama, model.params["llama"]
    sizes = generate.DecodeSizes(max_new_tokens=33, max_segs=1, seg_id=1, stop_ids=(), seg_state="before")
    limits, lengths = np.full(1, 33, np.int32), np.full(1, PROMPT)
    embeds = jax.random.normal(jax.random.key(0), (1, PROMPT, config.hidden_size))
    cache = init_cache(config, 1, PROMPT + 33, scan_layers=llama.scan_layers)
    hidden, cache = generate.prefill(llama, params, embeds, lengths, cache)
    state = generate.begin(llama, params, sizes, hidden, cache, lengths, limits)
    found = []
    for _ in range(5):
        start = time.perf_counter()
        state = generate.advance(llama, params, sizes, state, limits, 4)
        jax.block_until_ready(state.ids)
        found.append((time.perf_counter() - start) / 4)
    return statistics.median(found[1:])


def compare(checkpoints: list[Path]) -> Table:
    """Measure every checkpoint in a process of its own."""
    table = Table(
        *("checkpoint", "on disk", "peak memory", "load s", "first answer s", "second answer s", "s a token"),
        *("logits: error", "same best token"),
    )
    wanted = None
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in checkpoints:
            out = Path(folder) / "logits.npy"
            command = [sys.executable, "-m", "tests.bench.packed", "--measure", str(checkpoint), str(out)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            report, logits = json.loads(done.stdout.splitlines()[-1]), np.load(out)
            wanted = logits if wanted is None else wanted
            error = np.sqrt(np.mean((logits - wanted) ** 2)) / wanted.std()
            same = np.mean(logits.argmax(-1) == wanted.argmax(-1))
            disk = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
            table.add_row(
                checkpoint.name,
                f"{disk / 1e9:.2f} GB",
                f"{report['peak'] / 1e9:.2f} GB",
                f"{report['load']:.1f}",
                f"{report['first']:.1f}",
                f"{report['second']:.1f}",
                f"{report['s_per_token']:.3f}",
                f"{error:.4f}",
                f"{same:.0%}",
            )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path, nargs="+")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
    elif options.checkpoints:
        Console().print(compare(options.checkpoints))
    else:
        Console().print(by_turns(options.layers, options.rounds))


if __name__ == "__main__":
    main()
