"""The table and the JSON of a run, from figures that are made up."""

import dataclasses

import jsonschema
import pytest

from lgjax.bench import report
from lgjax.bench.cases import CASES
from lgjax.bench.machine import Ceilings
from lgjax.bench.run import Result, Side
from lgjax.bench.timing import Spread

NUMBER = {"type": "number", "minimum": 0}
MAYBE = {"type": ["number", "null"], "minimum": 0}
SPREAD = {"median": NUMBER, "least": NUMBER, "most": NUMBER}
CEILINGS = {
    "type": "object",
    "required": ["cores", "platform", "copy", "read", "float32", "bfloat16"],
    "properties": {
        "copy": NUMBER,
        "read": NUMBER,
        "float32": {"type": "object", "additionalProperties": NUMBER, "minProperties": 1},
        "bfloat16": {"type": "object", "additionalProperties": NUMBER, "minProperties": 1},
    },
}
SIDE = {
    "type": "object",
    "required": ["seconds", *SPREAD, "first_seconds", "compile_seconds", "peak_memory_bytes", "per_second"],
    "properties": {
        "seconds": {"type": "array", "items": NUMBER, "minItems": 1},
        "first_seconds": NUMBER,
        "compile_seconds": MAYBE,
        "peak_memory_bytes": {"type": "integer", "minimum": 1},
        "per_second": {"type": "object", "additionalProperties": NUMBER},
        **SPREAD,
    },
}
CASE = {
    "type": "object",
    "required": ["case", "what", "error", "sides", "flops", "bytes", "share_of_ceiling", "rival", "ratio"],
    "properties": {
        "case": {"enum": [case.name for case in CASES]},
        "what": {"type": ["string", "null"]},
        "error": {"type": ["string", "null"]},
        "sides": {"type": "object", "additionalProperties": SIDE},
        "flops": MAYBE,
        "bytes": MAYBE,
        "limit": {"enum": ["products", "memory", None]},
        "best_seconds": MAYBE,
        "share_of_ceiling": MAYBE,
        "rival": {"type": ["string", "null"]},
        "ratio": {"type": ["object", "null"], "required": [*SPREAD], "properties": SPREAD},
        "outputs_differ_by": MAYBE,
    },
    # a case has an error or figures of lgjax, or both
    "anyOf": [
        {"properties": {"error": {"type": "string"}}},
        {"properties": {"sides": {"required": ["lgjax"]}}},
    ],
}
SCHEMA = {
    "type": "object",
    "required": ["machine", "ceilings", "preset", "models", "runs", "versions", "cases", "failed", "missing"],
    "properties": {
        "machine": {"type": "object", "required": ["processor", "cores", "memory_bytes", "load_at_start"]},
        "ceilings": {
            "type": "object",
            "required": ["one_core", "used_cores"],
            "additionalProperties": CEILINGS,
        },
        "runs": {"type": "integer", "minimum": 1},
        "cases": {"type": "array", "items": CASE},
        "failed": {"type": "array", "items": {"type": "string"}},
        "missing": {"type": "array", "items": {"enum": [case.name for case in CASES]}},
    },
}


def side(*seconds: float, compiles: bool = True) -> Side:
    facts = {
        "what": "work",
        "output": [],
        "flops": 4e9,
        "num_bytes": 5e8,
        "computes": "float32",
        "handled": {"tokens": 10},
        "compiles": compiles,
    }
    return Side(seconds=seconds, first_seconds=3.0, peak_memory_bytes=2**30, facts=facts)


def made_up() -> report.Run:
    cases = {case.name: case for case in CASES}
    one = Ceilings(
        cores=1, platform="cpu", copy=1e10, read=8e9, float32={"jax": 1e11}, bfloat16={"torch": 9e10}
    )
    results = [
        Result(
            case=cases["decode"],
            sides={"lgjax": side(0.5, 0.4, 0.6), "torch": side(1.0, 0.8, 0.6, compiles=False)},
            ratio=Spread(0.5, 0.5, 1.0),
            apart=0.0,
            best=(0.05, "memory"),
        ),
        Result(case=cases["chat"], sides={"lgjax": side(0.002, 0.002, 0.004)}),
        Result(case=cases["data"], sides={}, error="lgjax: no module of the train extra"),
    ]
    known = {"processor": "a processor", "cores": 2, "memory_bytes": 24 * 2**30, "load_at_start": 0.1}
    return report.Run(
        machine=known,
        one=one,
        top=dataclasses.replace(one, cores=2, copy=2e10),
        preset="debug",
        dtype="float32",
        models="small ones",
        runs=3,
        versions={"lgjax": "0", "jax": "1"},
        asked=[result.case.name for result in results],
        results=results,
    )


def test_json_has_its_schema_and_the_figures():
    plain = report.as_json(made_up())
    jsonschema.validate(plain, SCHEMA)
    decode, chat, data = plain["cases"]
    assert decode["sides"]["lgjax"]["median"] == 0.5
    assert decode["sides"]["lgjax"]["compile_seconds"] == 2.5
    assert decode["sides"]["torch"]["compile_seconds"] is None
    assert decode["sides"]["lgjax"]["per_second"] == {"tokens": 20}
    assert decode["share_of_ceiling"] == pytest.approx(0.1)
    assert decode["ratio"] == {"median": 0.5, "least": 0.5, "most": 1.0}
    assert chat["ratio"] is None and chat["rival"] is None
    assert data["error"] and not data["sides"]
    assert plain["failed"] == ["data"]
    broken = plain | {"cases": [data | {"error": None}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_table_has_a_row_for_each_case_and_equal_columns():
    text = report.as_markdown(made_up())
    tables = [block.split("\n") for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [6, 4]  # ceilings; decode and chat
    for table in tables:
        assert len({line.count(" | ") for line in table}) == 1
    decode, chat = tables[1][2:]
    assert decode == (
        "| decode | 500 ms | 400 ms - 600 ms | 2.5 s | 1.00 GiB | 4 G | 500 M | 20 tokens | 10% (memory) "
        "| **0.50** (0.50 - 1.00) torch [1] |"
    )
    assert chat.startswith("| chat | 2 ms | 2 ms - 4 ms |") and chat.endswith("| - |")
    assert "20.0 GB/s" in tables[0][2] and "10.0 GB/s" in tables[0][2]
    assert "[1] decode: torch is LlamaForCausalLM" in text and "outputs are equal" in text
    assert "data failed: lgjax: no module" in text


def test_without_a_rival_there_is_no_column_for_it():
    run = made_up()
    alone = dataclasses.replace(run, results=run.results[1:2])
    assert "time of lgjax" not in report.as_markdown(alone)
    assert alone.failed == []


@pytest.mark.parametrize(
    ("value", "text"), [(123.4, "123 s"), (1.0, "1 s"), (0.0123, "12.3 ms"), (0.00001, "0.01 ms")]
)
def test_seconds_are_written_with_their_unit(value, text):
    assert report.seconds(value) == text


def test_what_is_no_counterpart_but_by_shape_says_so():
    remark = {case.name: case.remark for case in CASES}["grounding"]
    assert "by shape only" in remark
