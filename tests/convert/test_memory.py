"""Conversion and export read every byte once and stay small in memory, measured in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lgjax import config as configs
from tests import synthetic

pytest.importorskip("torch")

MEASURED = """
import dataclasses, json, sys, threading, time
from pathlib import Path
from lgjax.convert import export, read, store
from lgjax.convert.convert import convert

source, target, back = map(Path, sys.argv[1:4])
peak, loaded, calls = 0, 0, 0

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

def sample():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.01)

def counted(opener):
    def opened(path):
        source = opener(path)
        def wrap(tensor):
            def load():
                global loaded, calls
                value = tensor.load()
                loaded, calls = loaded + value.nbytes, calls + 1
                return value
            return dataclasses.replace(tensor, load=load)
        return dataclasses.replace(source, tensors={k: wrap(t) for k, t in source.tensors.items()})
    return opened

threading.Thread(target=sample, daemon=True).start()
read.open_folder = counted(read.open_folder)
start = time.time()
convert(source, target)
report = {"seconds": time.time() - start, "peak": peak, "loaded": loaded}
if len(sys.argv) > 3:
    peak, start = anonymous(), time.time()
    export.export(target, back)
    report |= {"export_seconds": time.time() - start, "export_peak": peak}
print(json.dumps(report))
"""


def measure(*paths: Path) -> dict:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


def test_bytes_are_read_once(tmp_path):
    synthetic.write_checkpoint(tmp_path / "source", configs.debug())
    report = measure(tmp_path / "source", tmp_path / "converted", tmp_path / "back")
    held = sum(
        tensor.load().nbytes
        for key, tensor in synthetic.tensors(configs.debug(), "float16").items()
        if "bbox_embed" not in key and "decoder.norm" not in key and "decoder_norm" not in key
    )
    assert held * 0.95 <= report["loaded"] <= held * 1.1, (report, held)


@pytest.mark.slow
def test_full_size_stays_under_four_gibibytes(tmp_path):
    """Two shards of 7 GB; needs 42 GB of disk and some minutes."""
    source = Path(os.environ.get("LGJAX_FULL_SOURCE") or tmp_path / "source")
    if not source.exists():
        tokenizer_folder = tmp_path / "tokenizer"
        tokenizer_folder.mkdir()
        synthetic.write_checkpoint(
            source, configs.llava_g_7b(), tokenizer=synthetic.full_size_tokenizer(tokenizer_folder)
        )
    report = measure(source, tmp_path / "converted", tmp_path / "back")
    print(report)
    assert report["peak"] < 4 * 2**30 and report["export_peak"] < 4 * 2**30
    assert report["loaded"] < 1.02 * size(source)
    assert size(tmp_path / "back") >= 0.999 * size(source)
