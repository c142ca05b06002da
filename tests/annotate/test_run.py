"""Runs: sharded, stopped anywhere, behind a bad endpoint: the same bytes, everything once."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lgjax.annotate import pieces
from lgjax.annotate.asking import Asking
from lgjax.annotate.inputs import read_inputs
from lgjax.annotate.matcher import Matcher, match
from lgjax.annotate.pieces import Shard
from lgjax.annotate.reply import write_links
from lgjax.annotate.run import Job, finish, prepare, work
from lgjax.annotate.task import Instance, Task
from lgjax.llm.batch_files import BatchFiles
from lgjax.llm.client import Client
from lgjax.llm.limits import Limits
from lgjax.llm.request import Cache, Reply
from tests.annotate.sample import CAPTIONS, INSTANCES, write_chats
from tests.llm.endpoint import serve

LINE = r"(\d+)\.(.+): \[(.+), (.+), (.+), (.+)\]"


def job_of(out: Path, annotator=None, **options) -> Job:
    options = {"piece": 7, "chats": None, "captions": CAPTIONS, **options}
    inputs = read_inputs(INSTANCES, options.pop("chats"), options.pop("captions"))
    return Job(inputs, annotator or Matcher(), None, out, INSTANCES, **options)


def run(job: Job, shard: str = "0/1") -> dict | None:
    prepare(job)
    return finish(job) if work(job, Shard.parse(shard)) else None


def files_of(out: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(out)): p for p in sorted(out.rglob("*")) if p.is_file()}
    assert not [name for name in found if name.endswith(".tmp")]
    return {name: p.read_bytes() for name, p in found.items() if not name.startswith("replies/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What a run gives that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    report = run(job_of(out))
    assert report is not None and report["chats"] == 195
    return files_of(out)


def test_shards_of_any_number_and_order_give_the_same(tmp_path, whole):
    out = tmp_path / "out"
    assert run(job_of(out), "2/3") is None and run(job_of(out), "0/3") is None
    assert not (out / "report.json").exists()
    assert run(job_of(out), "1/2") is None  # other machines go on, two this time
    assert run(job_of(out), "0/2") == json.loads(whole["report.json"])
    assert files_of(out) == whole


def test_counts_are_those_of_the_files(whole):
    report = json.loads(whole["report.json"])
    records = json.loads(whole["annotations/grounded_visual_chat_data.json"])
    assert report["grounded chats"] == len(records) == 195 - report["rejected chats"]["no phrase is grounded"]
    assert report["phrases in answers"] == sum(len(record["gd_ls"]) for record in records)
    assert report["instances of phrases"] == sum(len(ids) for record in records for ids in record["gd_ls"])
    kept = json.loads(whole["annotations/instances_train2017_gvc.json"])
    assert {image["file_name"] for image in kept["images"]} == {record["image"] for record in records}
    assert {a["image_id"] for a in kept["annotations"]} == {image["id"] for image in kept["images"]}


def annotate(body: dict) -> str:
    """Answer as a good annotator: what the matcher finds, from the prompt alone."""
    things, text = body["messages"][-1]["content"].split("\n\nText:\n")
    instances = [
        Instance(number, category, (float(a), float(b), float(c), float(d)))
        for number, category, a, b, c, d in re.findall(LINE, things)
    ]
    task = Task(text, tuple(instances))
    return write_links(task, match(task))


class Good:
    """A language model that answers well, at once."""

    def complete(self, requests):
        return [Reply(annotate(request.body), 10, 5) for request in requests]


def bad(*faults: str):
    """Two of three texts meet one or two of these faults."""

    def fault(body: dict, times: int) -> str:
        rng = random.Random(body["messages"][-1]["content"])
        return rng.choice(faults) if times < rng.randrange(3) else ""

    return fault


WORKER = """
import sys
from pathlib import Path
from lgjax.annotate.asking import Asking
from lgjax.annotate.inputs import read_inputs
from lgjax.annotate.pieces import Shard
from lgjax.annotate.run import Job, finish, prepare, work
from lgjax.llm.client import Client
from lgjax.llm.limits import Limits
from lgjax.llm.request import Cache
out, url, instances, captions = sys.argv[1:]
out, instances = Path(out), Path(instances)
client = Client(Cache(out / "replies"), Limits(concurrency=8), url)
job = Job(read_inputs(instances, None, Path(captions)), Asking(client, "m"), None, out, instances, piece=20)
print("ready", flush=True)
prepare(job)
work(job, Shard())
finish(job)
"""


def kill_and_go_on(tmp_path: Path, kills: int) -> None:
    """A run whose process is killed again and again equals one that never was, and asks nothing twice."""
    rng = random.Random(kills)
    run(job_of(tmp_path / "whole", Asking(Good(), "m"), piece=20))
    out = tmp_path / "killed"
    with serve(annotate, bad("429", "500", "html", "short")) as endpoint:
        arguments = [sys.executable, "-c", WORKER, out, endpoint.url, INSTANCES, CAPTIONS]
        environment = {**os.environ, "OPENAI_API_KEY": "any"}
        returned = []
        for turn in range(kills + 1):
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            if turn < kills:
                wait_for = endpoint.asked.total() + rng.randrange(300 // (kills + 1))
                while endpoint.asked.total() < wait_for and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0.0, 0.05))
                process.send_signal(signal.SIGKILL)
            returned.append(process.wait())
        assert returned == [-signal.SIGKILL] * kills + [0]
        # an answer may be lost on its way when the process dies, but what was kept is not asked for again
        assert sum(endpoint.answered.values()) <= len(endpoint.answered) + 8 * kills
    assert files_of(out) == files_of(tmp_path / "whole")


def test_killed_twice(tmp_path):
    kill_and_go_on(tmp_path, 2)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    kill_and_go_on(tmp_path, 20)


@pytest.mark.parametrize("renamed", [False, True], ids=["before", "after"])
def test_stopped_at_every_single_write(tmp_path, monkeypatch, renamed):
    chats, rename = write_chats(tmp_path / "chats.json"), Path.rename

    def job(out: Path) -> Job:
        return job_of(out, chats=chats, captions=None, questions=True, piece=2)

    run(job(tmp_path / "whole"))
    writes = 0

    def stop_at(last: int):
        def stopping(self: Path, target: Path) -> None:
            nonlocal writes
            writes += 1
            if writes > last:
                if renamed:
                    rename(self, target)
                raise KeyboardInterrupt
            rename(self, target)

        return stopping

    for last in range(100):
        out, writes = tmp_path / f"stopped{last}", 0
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "rename", stop_at(last))
            run(job(out))
            break
        assert not (out / "report.json").exists() or renamed
        run(job(out))
        assert files_of(out) == files_of(tmp_path / "whole")
    assert last > 8  # run.json, three pieces, two files and their instances, the report


def test_an_endpoint_that_errs_in_every_way_and_dies_is_survived(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    garbled: set[str] = set()

    def answer(body: dict) -> str:
        text = body["messages"][-1]["content"]
        if text.startswith("This answer cannot be used"):
            return annotate({"messages": body["messages"][:-2]})
        if text not in garbled and random.Random(text).random() < 0.2:
            garbled.add(text)
            return "(Nothing of the kind) [99.dog]"
        return annotate(body)

    with serve(answer, bad("429", "500", "late", "cut", "html", "short"), late=0.7) as endpoint:
        threading.Timer(0.5, endpoint.die).start()
        threading.Timer(1.3, endpoint.start).start()
        client = Client(Cache(tmp_path / "replies"), Limits(concurrency=16, timeout=0.5), endpoint.url)
        report = run(job_of(tmp_path / "asked", Asking(client, "m"), piece=100))
    assert report is not None and not report["rejected texts"]
    # a garbled answer that came too late was never read
    assert 5 < report["texts taken after repair"] <= len(garbled)
    good = run(job_of(tmp_path / "good", Asking(Good(), "m"), piece=100))
    assert good == {**report, "texts taken after repair": 0}


def test_batches_are_written_then_read(tmp_path):
    out = tmp_path / "out"

    def job() -> tuple[Job, BatchFiles]:
        files = BatchFiles(out / "batch", Cache(out / "replies"))
        return job_of(out, Asking(files, "m")), files

    first, files = job()
    assert run(first) is None
    (requests,) = files.write()
    lines = [json.loads(line) for line in requests.read_text().split("\n") if line]
    results = [
        {
            "custom_id": line["custom_id"],
            "response": {
                "status_code": 200,
                "body": {
                    "choices": [{"message": {"content": annotate(line["body"])}, "finish_reason": "stop"}]
                },
            },
        }
        for line in reversed(lines)
    ]
    (out / "batch" / "output.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    then, files = job()
    report = run(then)
    assert report is not None and not files.write()
    run(job_of(tmp_path / "good", Asking(Good(), "m")))
    asked = {name: data for name, data in files_of(out).items() if not name.startswith("batch/")}
    assert asked == files_of(tmp_path / "good")


def test_conversations_with_questions_and_rejects(tmp_path):
    job = job_of(
        tmp_path / "out", chats=write_chats(tmp_path / "chats.json"), captions=None, questions=True, piece=2
    )
    report = run(job)
    assert report is not None
    assert report["rejected chats"] == {
        "the picture has no instances": 1,
        "a text already holds <seg>": 1,
        "messages do not go human, gpt, human, gpt ...": 1,
    }
    assert (report["chats"], report["grounded chats"], report["chats about regions"]) == (6, 3, 2)
    records = json.loads((job.out / "annotations" / "grounded_visual_chat_data.json").read_text())
    assert records[2]["conversations"][1]["value"].endswith("<g_s> their dog <g_e> <seg> .\nIt is autumn.")


def test_a_run_is_not_mixed_with_another(tmp_path):
    out = tmp_path / "out"
    run(job_of(out), "0/2")
    with pytest.raises(ValueError, match="was begun with other piece, questions"):
        prepare(job_of(out, piece=9, questions=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run"):
        prepare(job_of(tmp_path / "mine"))
    with pytest.raises(ValueError, match=r"no folder .* with pictures"):
        prepare(job_of(tmp_path / "new", images=tmp_path / "no"))
    with pytest.raises(ValueError, match="name their folder"):
        prepare(job_of(tmp_path / "new", marks=True))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/0"])
def test_faulty_shards(text):
    with pytest.raises(ValueError, match="must be I/N with I from 0 to N - 1"):
        Shard.parse(text)


def test_two_machines_that_write_one_file_do_not_meet(tmp_path, monkeypatch):
    def parts():
        yield b"whole, "
        with monkeypatch.context() as patch:
            patch.setattr("platform.node", lambda: "another")
            pieces.save(tmp_path / "a", [b"of another"])  # while this one is under way
        yield b"at last"

    pieces.save(tmp_path / "a", parts())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole, at last"]


def test_pieces_of_a_shard_are_every_nth():
    assert [list(Shard(i, 3).of(7)) for i in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert pieces.ranges(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]
