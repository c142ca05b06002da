"""Composed scenes as a dataset: endless, seeded, one record a number. Nothing is read from disk."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import overload

import numpy as np

from lgjax.data.scene_text import SORTS, Sort, records
from lgjax.data.scenes import Scene, SceneConfig, Split, compose
from lgjax.data.schema import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(Sequence[Record]):
    """Records of composed scenes; number i is a pure function of (config, split, seed, i).

    sorts: what is said about a scene, one of them drawn for each number; count: how many there are.

    Raises:
        ValueError: no sorts, a count below 1, or a seed below 0.
    """

    config: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    split: Split = "train"
    seed: int = 0
    sorts: tuple[Sort, ...] = SORTS
    count: int = 2**31

    def __post_init__(self) -> None:
        if not self.sorts or self.count < 1 or self.seed < 0:
            raise ValueError(
                f"{self.count} scenes of {len(self.sorts)} sorts with seed {self.seed}: "
                "count and sorts must be at least 1, the seed 0"
            )

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """The record with this number.

        Raises:
            IndexError: there is none.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        scene, rng = self._scene(index)
        sort = self.sorts[int(rng.integers(len(self.sorts)))]
        return records(scene, rng, self._name(index), (sort,))[sort]

    def scene(self, index: int) -> Scene:
        """The scene with this number.

        Raises:
            IndexError: there is none.
        """
        return self._scene(index)[0]

    def records(self, index: int) -> dict[Sort, Record]:
        """Everything that is said about the scene with this number.

        Raises:
            IndexError: there is none.
        """
        return records(*self._scene(index), self._name(index))

    def _scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        if not -self.count <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        rng = np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), index % self.count])
        return compose(rng, self.config, self.split), rng

    def _name(self, index: int) -> str:
        return f"{self.split}-{self.seed}-{index % self.count}"
