"""Endless batches for training: a weighted mixture of datasets, equal for any number of workers and hosts.

Batch number t is a pure function of (seed, t): each dataset is a seeded permutation for every epoch, rows
take their samples by position, and the random numbers of a sample come from that position too. Workers and
hosts only decide who computes which rows. Source: spec/training_and_data.md 14.2, 14.5, 15.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from lgjax.data.batch import CUTS, Batch, BatchConfig, SampleMaker, concatenate
from lgjax.data.images import Number
from lgjax.data.schema import Records, reason_of
from lgjax.text.tokenizer import Tokenizer

MAX_FAULTS = 0.05  # share of rows that may be fillers
ALWAYS_ALLOWED = 20  # fillers, before the share is looked at


@dataclasses.dataclass(frozen=True)
class Stream:
    """A dataset and its weight in the mixture; records are asked for in any order, by several processes."""

    records: Records
    weight: Number = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """What a batch is made of: `groups` times `grounded_rows` samples of the streams `grounded`, each
    followed by `text_rows` of the streams `text`. A group belongs to one device.

    Weights are kept exactly and evenly: with weights 1 and 3 every four rows in order hold one and three.

    Raises:
        ValueError: rows without streams or streams without rows, an empty dataset, a weight not above 0.
    """

    grounded: tuple[Stream, ...] = ()
    text: tuple[Stream, ...] = ()
    grounded_rows: int = 0
    text_rows: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        for name, streams, rows in (
            ("grounded", self.grounded, self.grounded_rows),
            ("text", self.text, self.text_rows),
        ):
            if bool(streams) != (rows > 0):
                raise ValueError(f"{len(streams)} {name} streams for {rows} {name} rows of a group")
            for number, stream in enumerate(streams):
                if not len(stream.records):
                    raise ValueError(f"{name} stream {number} has no records")
                if not (stream.weight > 0 and math.isfinite(stream.weight)):
                    raise ValueError(f"{name} stream {number} has weight {stream.weight}; it must be above 0")
        if self.groups < 1 or not (self.grounded or self.text):
            raise ValueError("a mixture needs at least one group of at least one row")

    @property
    def rows(self) -> int:
        """Rows of a whole batch."""
        return self.groups * (self.grounded_rows + self.text_rows)


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """The sample of a position in a stream; a record that cannot be used gives a filler."""

    name: str
    stream: int
    records: Records
    maker: SampleMaker

    def __call__(self, index: int, rng: np.random.Generator) -> Batch:
        made = self._made(index, rng)
        stream = np.full(1, self.stream, np.int32)
        return made._replace(language=made.language._replace(stream=stream))

    def _made(self, index: int, rng: np.random.Generator) -> Batch:
        record = None
        try:
            record = self.records[index]
            return self.maker(record, rng)
        # whatever a record holds, it must not end the run
        except Exception as error:
            where = f" (id {record.id})" if record is not None else ""
            what = str(error) if isinstance(error, ValueError | OSError) else repr(error)
            return self.maker.filler(f"{self.name}: record {index}{where}: {what}")


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Random access to the part of every batch that one host computes."""

    mixture: Mixture
    grounded: grain.MapDataset | None
    text: grain.MapDataset | None
    host: int
    hosts: int

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> Batch:
        count = self.mixture.groups // self.hosts
        first = (index * self.hosts + self.host) * count
        rows = []
        for group in range(first, first + count):
            for lane, size in (
                (self.grounded, self.mixture.grounded_rows),
                (self.text, self.mixture.text_rows),
            ):
                rows += [lane[group * size + row] for row in range(size)] if lane is not None else []
        return concatenate(rows)


def _lane(
    name: str, streams: Sequence[Stream], maker: SampleMaker, seed: int, first: int
) -> grain.MapDataset | None:
    """One endless dataset of samples; its index alone decides on the sample and its random numbers.

    `first` is the number of its first stream in the mixture.
    """
    if not streams:
        return None
    parts = []
    for number, stream in enumerate(streams):
        # no two streams may share random numbers, whatever their seeds are
        state = np.random.SeedSequence([seed, int(maker.grounded), number]).generate_state(1)
        indices = grain.MapDataset.range(len(stream.records)).seed(int(state[0]))
        sampler = _Sampler(f"{name} stream {number}", first + number, stream.records, maker)
        # random numbers go by position, so they must be drawn before hosts take their share
        parts.append(indices.shuffle().repeat().random_map(sampler))
    return grain.MapDataset.mix(parts, [stream.weight for stream in streams])


def batches(
    mixture: Mixture,
    config: BatchConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    start: int = 0,
    host: int = 0,
    hosts: int = 1,
    workers: int = 0,
) -> grain.IterDataset[Batch]:
    """This host's part of every batch, from batch number `start` on, as numpy arrays.

    Hosts have consecutive groups, so their parts joined in order are the batch of one host. `workers`
    processes compute batches ahead; 0 uses threads of this process. Iterators have `get_state` and
    `set_state`; a run on another number of hosts or workers goes on with `start`.

    Raises:
        ValueError: the groups cannot be shared equally, or numbers out of range.
    """
    if not 0 <= host < hosts or mixture.groups % hosts:
        raise ValueError(f"{mixture.groups} groups cannot be shared by {hosts} hosts (this is host {host})")
    if min(seed, start, workers) < 0:
        raise ValueError(f"seed {seed}, start {start} and workers {workers} must not be negative")
    lanes = (
        _lane("grounded", mixture.grounded, SampleMaker(config, tokenizer, grounded=True), seed, 0),
        _lane(
            "text", mixture.text, SampleMaker(config, tokenizer, grounded=False), seed, len(mixture.grounded)
        ),
    )
    steps = grain.MapDataset.source(_Steps(mixture, *lanes, host, hosts))
    read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    out = steps[start:].to_iter_dataset(read)
    if workers:
        import absl.flags

        if not absl.flags.FLAGS.is_parsed():
            absl.flags.FLAGS.mark_as_parsed()  # grain's worker processes read flags
        out = out.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
    return out


def to_device(data: grain.IterDataset[Batch], sharding: Any, buffer: int = 2) -> grain.IterDataset:
    """Put batches on the devices, `buffer` of them ahead; the notes stay on the host.

    `sharding` splits the first axis of every array over the devices; on several hosts each gives its part.
    """

    def put(batch: Batch) -> Batch:
        def one(array: np.ndarray) -> jax.Array:
            return jax.make_array_from_process_local_data(sharding, array)

        language, grounding = jax.tree.map(one, (batch.language, batch.grounding))
        return Batch(language, grounding, batch.notes)

    return grain.experimental.ThreadPrefetchIterDataset(data.map(put), prefetch_buffer_size=buffer)


class Counted(Iterator[Batch]):
    """Batches one after the other, with a count of what was cut from samples and of fillers.

    `rows`, `cuts` (of each of `CUTS`), `faults` (reason -> times) and `examples` (reason -> the first such
    record) hold what came by so far. Each host counts its own rows.

    Raises:
        RuntimeError: more than a share of `max_faults` of the rows are fillers, and more than a few.
    """

    def __init__(self, data: grain.IterDataset[Batch], max_faults: float = MAX_FAULTS) -> None:
        self._iterator = iter(data)
        self._max_faults = max_faults
        self.rows = 0
        self.cuts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        notes = batch.notes
        self.rows += len(notes.fault)
        self.cuts.update(dict(zip(CUTS, notes.cuts.sum(0).tolist(), strict=True)))
        for row in notes.fault:
            if text := bytes(row).rstrip(b"\0").decode(errors="replace"):
                self.faults[reason_of(text)] += 1
                self.examples.setdefault(reason_of(text), text)
        wrong = self.faults.total()
        if wrong > ALWAYS_ALLOWED and wrong > self._max_faults * self.rows:
            reason, times = self.faults.most_common(1)[0]
            raise RuntimeError(
                f"{wrong} of {self.rows} samples could not be made, more than {self._max_faults:.0%}; "
                f"most often ({times} times): {reason}; first: {self.examples[reason]}"
            )
        return batch

    def get_state(self) -> Any:
        """What `set_state` takes to go on after the last batch that was given out."""
        return self._iterator.get_state()

    def set_state(self, state: Any) -> None:
        """Go on where `get_state` was called, with the same data, hosts and workers.

        Raises:
            ValueError: the state is of another number of workers.
        """
        try:
            self._iterator.set_state(state)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                "the state was taken with another number of workers; go on with `start` instead"
            ) from error

    def close(self) -> None:
        """Stop worker processes and threads."""
        self._iterator.close()
