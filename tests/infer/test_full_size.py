"""The released size on one machine: convert, load in bfloat16, answer, ground; within 20 GiB."""

import json
import os
import subprocess
import sys
from importlib.resources import files

import pytest

from lgjax.config import llava_g_7b
from tests import synthetic

ANSWER = "<g_s> A cat <g_e> <seg> on <g_s> a sofa <g_e> <seg> by <g_s> two remotes <g_e> <seg> ."
MEASURED = """
import json, resource, sys, time
from lgjax import GroundedChat
from lgjax.infer import engine, generate, run

seconds = {}

def timed(module, name):
    plain = getattr(module, name)
    def call(*arguments):
        import jax
        start = time.time()
        out = jax.block_until_ready(plain(*arguments))
        seconds[name] = time.time() - start
        return out
    setattr(module, name, call)

parts = ((run, "_prefill"), (generate, "advance"), (engine, "encode_grounding"), (engine, "ground"))
for module, name in parts:
    timed(module, name)
start = time.time()
chat = GroundedChat.load(sys.argv[1], dtype="bfloat16")
loaded = time.time() - start
report = {"load": loaded}
for question in ("first", "again"):  # the first one compiles
    free = chat.ask(sys.argv[2], "What is it?", max_tokens=8)
    report[f"reading_{question}"] = seconds["_prefill"]
    report[f"s_per_token_{question}"] = seconds["advance"] / 7
    forced = chat.ask(sys.argv[2], "What is it?", answer=sys.argv[3], threshold=None)
    report[f"grounding_{question}"] = seconds["encode_grounding"] + seconds["ground"]
report["tokens"] = free.num_tokens
report["text"] = forced.text
report["phrases"] = [[phrase.text, len(phrase.boxes), list(phrase.masks.shape)] for phrase in forced.phrases]
report["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps(report))
"""


@pytest.mark.slow
def test_the_released_size_answers_within_20_gib(tmp_path):
    from lgjax.convert.convert import convert

    source, model = tmp_path / "llava-grounding", tmp_path / "model"
    tokenizer = synthetic.full_size_tokenizer(tmp_path)
    synthetic.write_checkpoint(source, llava_g_7b(), shards=2, dtype="float16", tokenizer=tokenizer)
    convert(source, model)
    for shard in source.glob("*.bin"):
        shard.unlink()
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    photo = str(files("lgjax") / "assets/cat.jpg")
    command = [sys.executable, "-c", MEASURED, str(model), photo, ANSWER]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["tokens"] == 8
    assert report["text"] == "A cat on a sofa by two remotes."
    shape = [1, 407, 640]
    assert report["phrases"] == [[text, 1, shape] for text in ("A cat", "a sofa", "two remotes")]
    assert report["peak_gib"] < 20
