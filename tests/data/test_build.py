"""Builds: what went in comes out, the same bytes for any workers and after any stop, faults counted."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgjax.cli import main
from lgjax.data.build import build
from lgjax.data.masks import clean
from lgjax.data.read import Dataset, verify
from lgjax.data.schema import Record, Source
from lgjax.data.shards import reason_of
from tests.data.sources import examples
from tests.data.toy import FAULTS, LgToy, write

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("toy") / "source", 60)


def make(source: Path, target: Path, **keywords) -> dict:
    return build(LgToy(source=source), target, **{"workers": 1, "shard_records": 8, **keywords})


@pytest.fixture(scope="module")
def built(source) -> Path:
    target = source.parent / "built"
    make(source, target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class LgStopped(LgToy, skip_registration=True):
    """The same records, but the reader fails after twenty."""

    name = "lg_toy"

    @staticmethod
    def read(folder: Path) -> dict[str, Source]:
        def fail(item: dict) -> Record:
            if item["id"] == 26:
                raise RuntimeError("stopped")
            return source.make(item)

        source = LgToy.read(folder)["train"]
        return {**LgToy.read(folder), "train": dataclasses.replace(source, make=fail)}


def with_bytes(record: Record) -> Record:
    """The record that comes out: cleaned, its picture the bytes of the file."""
    image = Path(record.image).read_bytes() if isinstance(record.image, str) else None
    return dataclasses.replace(clean(record), image=image)


@pytest.mark.parametrize("split", ["train", "val"])
def test_records_come_back_in_order_with_the_bytes_of_their_pictures(source, built, split):
    records = LgToy(source=source).records()[split]
    read = Dataset(built, split)
    assert len(read) == len(records)
    assert list(read) == [with_bytes(record) for record in records]
    assert {r.image is None for r in read} == {True, False}
    assert read[-1] == read[len(read) - 1] and read[1:3] == [read[1], read[2]]
    with pytest.raises(IndexError):
        read[len(read)]


def test_nothing_but_the_dataset_is_left(built):
    names = {path.name for path in built.iterdir()}
    shards = {f"lg_toy-train.array_record-{i:05d}-of-00007" for i in range(7)}
    assert names == {
        "dataset_info.json",
        "features.json",
        "manifest.json",
        "lg_toy-val.array_record-00000-of-00001",
        *shards,
    }
    assert not built.with_name("built.incomplete").exists()


def test_two_workers_write_the_same_bytes(source, built, tmp_path):
    make(source, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(built)


def test_manifest_counts_and_checksum(source, built):
    manifest = verify(built)
    records = LgToy(source=source).records()["train"]
    counts = manifest["splits"]["train"]
    assert counts["records"] == len(records) and counts["skipped"] == counts["dropped"] == 0
    for name in ("turns", "objects", "phrases", "expressions"):
        assert counts[name] == sum(len(getattr(record, name)) for record in records)
    assert [shard["records"] for shard in manifest["shards"].values()] == [8, 8, 8, 8, 8, 8, 6, 6]


def process(source: Path, target: Path, workers: int, seconds: float) -> subprocess.Popen:
    code = f"from tests.data import toy; toy.main({str(source)!r}, {str(target)!r}, '{workers}', '{seconds}')"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def reports(work: Path) -> dict[str, tuple[int, int]]:
    """Finished shards: their inode and time."""
    names = [path.stem for path in (work / ".build").glob("lg_toy-*.json")]
    return {name: ((work / name).stat().st_ino, (work / name).stat().st_mtime_ns) for name in names}


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGKILL, 2), (signal.SIGTERM, 1)])
def test_a_killed_build_goes_on_where_it_stopped(source, tmp_path, number, workers):
    target, work = tmp_path / "out", tmp_path / "out.incomplete"
    running = process(source, target, workers, 0.02)
    end = time.monotonic() + 60
    while len(reports(work)) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    running.send_signal(number)
    running.wait(20)
    time.sleep(0.3)  # orphans end with their parent
    finished = reports(work)
    assert 3 <= len(finished) < 8 and not target.exists()
    with pytest.raises(ValueError, match=r"no built dataset \(its build has not ended"):
        Dataset(target)
    with pytest.raises(ValueError, match="no built dataset"):
        Dataset(work)
    (work / "lg_toy-train.array_record-00006-of-00007.123.tmp").write_bytes(b"half")

    # the same options, so that the same build is asked for
    dataset = LgToy(source=source, options={"seconds": 0.02})
    manifest = build(dataset, target, workers=1, shard_records=8)
    after = {name: ((target / name).stat().st_ino, (target / name).stat().st_mtime_ns) for name in finished}
    assert after == finished
    assert not list(target.glob("*.tmp")) and not work.exists()
    whole = make(source, tmp_path / "whole")
    assert manifest["checksum"] == whole["checksum"]


def test_ctrl_c_in_a_worker_build_leaves_no_process(source, tmp_path):
    running = process(source, tmp_path / "out", 2, 0.05)
    end = time.monotonic() + 60
    while not reports(tmp_path / "out.incomplete") and time.monotonic() < end:
        time.sleep(0.01)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    running.send_signal(signal.SIGINT)
    running.wait(20)
    assert not (tmp_path / "out").exists()
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_finished_build_that_was_not_renamed_is_taken_over(source, built, tmp_path):
    work = tmp_path / "out.incomplete"
    shutil.copytree(built, work)
    make(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(built) and not work.exists()


def test_another_source_is_refused(source, built, tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    faulty = {i: "missing" for i in range(60)}
    with pytest.raises(ValueError, match="What is finished stays"):
        make(write(tmp_path / "bad", 60, faulty), tmp_path / "out", max_skips=0.1)
    (tmp_path / "bad" / "records.json").write_text((source / "records.json").read_text())
    with pytest.raises(ValueError, match=r"begun with another source: files, records.json changed"):
        make(tmp_path / "bad", tmp_path / "out")
    # a finished one: the same is left alone, another is refused
    before = contents(built)
    assert make(source, built) == json.loads((built / "manifest.json").read_text())
    with pytest.raises(ValueError, match=r"holds another dataset \(limit differ"):
        make(source, built, limit=3)
    assert contents(built) == before
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="already there and no dataset"):
        make(source, tmp_path / "other")


def test_a_second_build_of_the_same_folder_is_refused(source, tmp_path):
    running = process(source, tmp_path / "out", 1, 0.05)
    end = time.monotonic() + 60
    while not reports(tmp_path / "out.incomplete") and time.monotonic() < end:
        time.sleep(0.01)
    try:
        with pytest.raises(ValueError, match="another build is at work"):
            build(LgToy(source=source, options={"seconds": 0.05}), tmp_path / "out", shard_records=8)
    finally:
        running.kill()
        running.wait()


def test_faults_are_counted_with_their_reasons(tmp_path):
    faulty = write(tmp_path / "faulty", 60, {i + 8: fault for i, fault in FAULTS.items()})
    manifest = make(faulty, tmp_path / "faulty-out")
    counts = manifest["splits"]["train"]
    found = {reason: entry["count"] for reason, entry in counts["skip_reasons"].items()}
    assert counts["skipped"] == 5 and counts["records"] == 54 - 5
    assert counts["drop_reasons"] == {"empty polygon": {"count": 2, "first": "19"}}
    parts = "truncated", "is not there", "picture is N x N, but", "lacks 'masks'", "no expression is left"
    for part in parts:
        assert [count for reason, count in found.items() if part in reason] == [1], (part, found)
    messages = [entry["examples"][0] for entry in counts["skip_reasons"].values()]
    assert all("records.json: record" in message and "(id " in message for message in messages)
    kept = {record.id for record in Dataset(tmp_path / "faulty-out")}
    assert kept == {str(i) for i in range(6, 60)} - {"11", "13", "15", "21", "25"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("a/b.json: record 3 (id 7): image file '/x/1.jpg' is not there", "image file '…' is not there"),
        ("b.json: record 3 lacks 'masks'", "lacks 'masks'"),
        ("b.jsonl: line 3: span (1, 99) lies outside", "span (N, N) lies outside"),
    ],
)
def test_equal_faults_have_one_reason(message, reason):
    assert reason_of(message) == reason


def test_too_many_skips_stop_the_build_and_it_can_go_on(tmp_path):
    faulty = write(tmp_path / "source", 60, {i: "missing" for i in range(20, 40)})
    with pytest.raises(ValueError, match=r"of 54 records of split 'train' cannot be used, more than 10.0%"):
        make(faulty, tmp_path / "out", max_skips=0.1)
    finished = reports(tmp_path / "out.incomplete")
    assert finished and not (tmp_path / "out").exists()
    picture = faulty / "images" / "21.jpg"
    assert not picture.exists()
    picture.write_bytes((faulty / "images" / "13.jpg").read_bytes())  # mended: it is tried again
    manifest = make(faulty, tmp_path / "out", max_skips=0.5)
    assert manifest["splits"]["train"]["skipped"] == 14
    assert "21" in {record.id for record in Dataset(tmp_path / "out")}


def test_what_is_wrong_with_the_source_leaves_no_folder(source, tmp_path):
    with pytest.raises(ValueError, match="has no split test"):
        make(source, tmp_path / "out", splits=["test"])
    assert not list(tmp_path.glob("out*"))


def test_a_split_of_which_nothing_is_left(tmp_path):
    faulty = write(tmp_path / "source", 6, {0: "field"})
    with pytest.raises(ValueError, match=r"1 of 1 records of split 'val' .*none is left.*lacks 'masks'"):
        make(faulty, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ("test",)}, "has no split test; it has train, val"),
        ({"workers": 0}, "workers 0"),
        ({"max_skips": 2.0}, "max_skips 2.0"),
        ({"limit": 0}, "limit 0"),
    ],
)
def test_options_that_cannot_be(source, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(source, tmp_path / "out", **options)


def test_a_target_below_the_source_is_not_part_of_it(source, built, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "loop").symlink_to(tmp_path / "source")
    target = tmp_path / "source" / "out"
    with pytest.raises(RuntimeError, match="stopped"):
        build(LgStopped(source=tmp_path / "source"), target, workers=1, shard_records=8)
    assert len(reports(tmp_path / "source" / "out.incomplete")) == 2
    manifest = make(tmp_path / "source", target)
    assert manifest["checksum"] == verify(built)["checksum"]
    assert make(tmp_path / "source", target) == manifest


def test_limit_and_splits(source, tmp_path):
    make(source, tmp_path / "out", limit=3, splits=("train",))
    assert [record.id for record in Dataset(tmp_path / "out")] == ["6", "7", "8"]
    with pytest.raises(ValueError, match="has no split 'val'; it has train"):
        Dataset(tmp_path / "out", "val")


def test_damaged_datasets_are_told_apart(built, tmp_path):
    def damaged(name: str, change) -> Path:
        shutil.copytree(built, tmp_path / name)
        change(tmp_path / name / "lg_toy-train.array_record-00001-of-00007")
        return tmp_path / name

    gone = damaged("gone", Path.unlink)
    cut = damaged("cut", lambda path: path.write_bytes(path.read_bytes()[:-5000]))
    data = (built / "lg_toy-train.array_record-00001-of-00007").read_bytes()
    changed = damaged("changed", lambda path: path.write_bytes(b"\0" * len(data)))
    with pytest.raises(ValueError, match=r"lacks 1 shards, first lg_toy-train\.array_record-00001"):
        Dataset(gone)
    with pytest.raises(ValueError, match=r"00001-of-00007 has \d+ bytes, but \d+ were written"):
        Dataset(cut)
    with pytest.raises(ValueError, match="record 9 of 'train' cannot be read"):
        Dataset(changed)[9]
    for folder in (gone, cut, changed):
        with pytest.raises(ValueError, match=r"1 shards of .* missing or changed: lg_toy-train"):
            verify(folder)
    with pytest.raises(ValueError, match="no built dataset"):
        verify(tmp_path)


def test_datasets_go_to_other_processes(built):
    grain = pytest.importorskip("grain")
    read = Dataset(built, "train[:10]")
    copy = pickle.loads(pickle.dumps(read))
    assert len(copy) == 10 and copy[3] == read[3] and repr(copy) == repr(read)
    shuffled = grain.MapDataset.source(read).seed(1).shuffle().map(lambda record: record.id)
    assert sorted(shuffled, key=int) == [str(i) for i in range(6, 16)]
    assert "tensorflow" not in sys.modules


def test_command_line(tmp_path, capsys):
    folder = examples.write_coco(tmp_path / "coco")
    arguments = ["--from", str(folder), "--to", str(tmp_path / "out"), "--workers", "1"]
    main(["data", "build", "lg_coco", *arguments])
    out = " ".join(capsys.readouterr().out.split())
    assert "train val records 1 1 skipped 2 2" in out
    assert "2 records skipped" not in out and "1 objects dropped: empty polygon" in out and "checksum" in out
    assert [record.kind for record in Dataset(tmp_path / "out")] == ["referring"]
    main(["data", "verify", str(tmp_path / "out")])
    assert "is as it was built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lg_coco", "--from", "nowhere", "--to", "out"], "no instances_train2017.json"),
        (["lg_coco", "--from", ".", "--to", "out", "--split-by", "unc"], "split_by"),
        (["lg_cocos", "--from", ".", "--to", "out"], "lg_coco"),
    ],
)
def test_faults_of_the_command_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["data", "build", *arguments])
    assert stopped.value.code not in (0, None) and message in capsys.readouterr().err


def test_without_the_extra_there_is_one_line(tmp_path):
    code = (
        "import sys\nsys.modules['tensorflow_datasets'] = None\nfrom lgjax.cli import main\n"
        "main(['data', 'build', 'lg_coco', '--from', '.', '--to', 'out'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (
        done.returncode == 1 and 'pip install "lgjax[train]"' in done.stderr and done.stderr.count("\n") == 1
    )
