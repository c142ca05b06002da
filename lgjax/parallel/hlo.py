"""What travels between devices in a compiled program, read from its text.

XLA's text names every collective once, also inside a loop; here each counts as often as its loops run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (\(.*?\)|\S+) ({_KINDS})(-start)?\(")
_BETWEEN_SLICES = re.compile(r' = (\(.*?\)) send\(.*_xla_megascale_transfer_type="(\w+)"')
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'known_trip_count":?\{"?n"?[:=]"?(\d+)')
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_PART = re.compile(r"%?([\w.\-]+) = \S+ get-tuple-element\(.*\), index=(\d+)")
_ADD = re.compile(r"%?([\w.\-]+) = \S+ add\((.*?)\)")
_COMPARE = re.compile(r"ROOT .* compare\((.*?)\), direction=(LT|LE)")
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind in a run of a program.

    count: how many; sent: bytes that a device sends in all of them, by the usual ring; across: bytes of these
    in groups whose devices are not all of one slice.
    """

    kind: str
    count: int
    sent: float
    across: float


def collectives(text: str, devices: int, slices: int = 1) -> tuple[Collective, ...]:
    """Collectives of a compiled program, by kind, the most bytes first.

    text: `as_text()` of a program for `devices` devices, those of a slice in a row. A loop whose length
    depends on data counts once; of several branches each counts.
    """
    bodies, entry = _computations(text)
    counts, sent, across = Counter[str](), defaultdict[str, float](float), defaultdict[str, float](float)
    slice_of = np.arange(devices) // max(devices // slices, 1)
    for name, times in _executions(bodies, entry).items():
        for line in bodies[name]:
            if found := _BETWEEN_SLICES.search(line):  # TPU slices speak over their hosts
                kind, size = found[2].lower().replace("_", "-"), _sizes(found[1])[0]
                moved = times * _sent(kind, size, slices)
                counts[kind] += times
                sent[kind] += moved
                across[kind] += moved
            if (found := _COLLECTIVE.search(line)) is None:
                continue
            kind, groups = found[2], _groups(line, devices)
            if name.lstrip("%").startswith("all-reduce-scatter"):  # a device keeps its part alone
                kind = "reduce-scatter"
                size = _result_bytes(found[1], "all-reduce", False) / groups.shape[1]
            else:
                size = _result_bytes(found[1], kind, bool(found[3]))
            if groups.shape[1] < 2:
                continue
            moved = times * _sent(kind, size, groups.shape[1])
            counts[kind] += times
            sent[kind] += moved
            if (slice_of[groups] != slice_of[groups][:, :1]).any():
                across[kind] += moved
    found = (Collective(kind=k, count=n, sent=sent[k], across=across[k]) for k, n in counts.items())
    return tuple(sorted(found, key=lambda one: -one.sent))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.split("\n"):
        if line.startswith("  "):
            lines.append(line)
        elif found := _COMPUTATION.match(line):
            lines = bodies.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
    return bodies, entry


def _executions(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs; a caller stands behind what it calls."""
    times = Counter({entry: 1})
    for name in reversed(bodies):
        for line in bodies[name] if times[name] else ():
            trips = _trips(line, bodies) if " while(" in line else 1
            for called in _called(line):
                times[called] += times[name] * trips
    return {name: count for name, count in times.items() if count and name in bodies}


def _called(line: str) -> Iterator[str]:
    for _, name in _CALLED.findall(line):
        yield name
    for names in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in names.split(","))


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Times that a loop runs: as noted by the compiler, or from 0 to its limit by what it adds each time."""
    if known := _KNOWN_TRIPS.search(line):
        return int(known[1])
    called = dict(_CALLED.findall(line))
    condition, body = (bodies.get(called.get(part, ""), []) for part in ("condition", "body"))
    limits, indices = _constants(condition), _indices(condition)
    compare = next((found for one in condition if (found := _COMPARE.search(one))), None)
    if compare is None:
        return 1
    names = _operands(compare[1])
    limit = next((limits[name] for name in names if name in limits), None)
    index = next((indices[name] for name in names if name in indices), None)
    if limit is None or index is None:
        return 1
    return max(-(-(limit + (compare[2] == "LE")) // _added(body, index)), 1)


def _added(body: list[str], index: int) -> int:
    """What the body of a loop adds to part `index` of what it carries."""
    root = next((one for one in body if " tuple(" in one and "ROOT" in one), "")
    parts = _operands(root.partition(" tuple(")[2].partition(")")[0])
    constants = _constants(body)
    for one in body:
        if index < len(parts) and (found := _ADD.search(one)) and found[1] == parts[index]:
            return next((constants[name] for name in _operands(found[2]) if constants.get(name)), 1)
    return 1


def _constants(body: list[str]) -> dict[str, int]:
    return {found[1]: int(found[2]) for one in body if (found := _CONSTANT.search(one))}


def _indices(body: list[str]) -> dict[str, int]:
    return {found[1]: int(found[2]) for one in body if (found := _PART.search(one))}


def _operands(text: str) -> list[str]:
    """Names in a list of operands, with or without their types."""
    return [part.split()[-1].lstrip("%") for part in text.split(",") if part.strip()]


def _result_bytes(shape: str, kind: str, starts: bool) -> float:
    """Bytes of what a device holds afterwards; the beginning of a long one also names what went in."""
    sizes = _sizes(re.sub(r"[su]32\[\]\S*", "", shape))
    return sum(sizes[len(sizes) // 2 :] if starts and kind != "all-reduce" else sizes)


def _sizes(shape: str) -> list[float]:
    """Bytes of every array of a shape."""
    return [
        math.prod(int(size) for size in dimensions.split(",") if size) * _bits(dtype) / 8
        for dtype, dimensions in _SHAPE.findall(shape)
    ]


def _bits(dtype: str) -> int:
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 8  # pred


def _sent(kind: str, size: float, group: int) -> float:
    """Bytes that each of `group` devices sends where the result has `size` bytes on each."""
    share = (group - 1) / group
    factors = {"all-reduce": 2 * share, "reduce-scatter": group - 1.0, "collective-permute": 1.0}
    return size * factors.get(kind, share)


def _groups(line: str, devices: int) -> np.ndarray:
    """Devices that take part together, one group a row; a permute's pairs are its groups."""
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        pairs = re.findall(r"\{(\d+),(\d+)\}", found[1])
        return np.asarray([[int(a), int(b)] for a, b in pairs])
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return np.asarray(
            [[int(one) for one in row.split(",")] for row in re.findall(r"\{(.*?)\}", found[1])]
        )
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, source = (_numbers(found[part]) for part in (1, 2))
        order = _numbers(found[3]) if found[3] else list(range(len(source)))
        return np.arange(math.prod(source)).reshape(source).transpose(order).reshape(shape[0], -1)
    if found := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        names, sizes = list(axes), [int(size) for size in axes.values()]
        together = [names.index(name) for name in re.findall(r"'(\w+)'", found[3])]
        apart = [axis for axis in range(len(names)) if axis not in together]
        grid = np.arange(math.prod(sizes)).reshape(sizes).transpose(*apart, *together)
        return grid.reshape(-1, math.prod(sizes[axis] for axis in together))
    return np.arange(devices)[None]  # none named: all of them


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]
