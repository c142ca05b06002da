"""What a training run is: model, data, losses, what learns how fast, and on which devices.

Files in `configs/` hold one `get_config()` each that returns a `TrainConfig`. Source:
spec/training_and_data.md 2, 3, 4, 14.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from lgjax.config import ModelConfig
from lgjax.convert.meta import from_json
from lgjax.data.batch import BatchConfig, Layout
from lgjax.data.pipeline import Mixture, Stream
from lgjax.data.rounds import Wording
from lgjax.data.scene_text import SORTS, Sort
from lgjax.data.scenes import SceneConfig, Split
from lgjax.data.schema import Records
from lgjax.data.sources.scenes import Scenes
from lgjax.losses.grounding import Weights as GroundingWeights
from lgjax.losses.points import NUM_POINTS
from lgjax.losses.prompting import Weights as PromptingWeights
from lgjax.models.attention import Kernel

Preset = Literal["paper", "as_code"]
Loss = Literal["language", "grounding", "prompting", "words", "names", "phrases"]
Attention = Literal["auto", Kernel]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataStream:
    """A dataset and its weight among its rows.

    folder: made by `lgjax data build`, or gs://BUCKET/DIR with a copy; without one, scenes are composed as
    training goes, saying only `sorts` about them, `size` pixels wide, with up to `max_things`, from `seed`.
    count: take only the first records.
    """

    folder: str = ""
    split: str = "train"
    weight: float = 1.0
    count: int | None = None
    sorts: tuple[Sort, ...] = SORTS
    size: int = 128
    max_things: int = 6
    seed: int = 0

    def records(self) -> Records:
        """The records of this stream.

        Raises:
            FileNotFoundError, ValueError: the folder cannot be read, or holds no such split.
        """
        if not self.folder:
            if self.split not in get_args(Split):
                raise ValueError(
                    f"composed scenes have no split '{self.split}': {', '.join(get_args(Split))}"
                )
            scenes = Scenes(
                config=SceneConfig(size=self.size, max_things=self.max_things),
                split=cast(Split, self.split),
                seed=self.seed,
                sorts=self.sorts,
            )
            return scenes if self.count is None else dataclasses.replace(scenes, count=self.count)
        from lgjax.data.read import Dataset

        found = Dataset(self.folder, self.split)
        return found if self.count is None else FirstRecords(found, self.count)


@dataclasses.dataclass(frozen=True)
class FirstRecords(Sequence[Any]):
    """The first `count` of some records."""

    records: Records
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.records))

    def __getitem__(self, index: Any) -> Any:
        return self.records[range(len(self))[index]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A batch is `groups` groups of `grounded_rows` grounded samples and `text_rows` samples of text.

    groups: of a whole step, over all devices and micro-batches. length, phrases, objects, mask_side, wording,
    template, words, name_weight: see `lgjax.data.batch.BatchConfig`. held_out: samples that the run is
    measured on, by the same weights. workers: processes a host that make batches; 0 makes them in threads.
    """

    grounded: tuple[DataStream, ...] = ()
    text: tuple[DataStream, ...] = ()
    held_out: tuple[DataStream, ...] = ()
    grounded_rows: int = 0
    text_rows: int = 0
    groups: int = 1
    length: int = 1536
    phrases: int = 48
    objects: int = 100
    mask_side: int = 512
    wording: Wording = "released"
    template: Layout = "v1"
    words: bool = False
    name_weight: float = 1.0
    workers: int = 0

    def mixture(self) -> Mixture:
        """The training data.

        Raises:
            FileNotFoundError, ValueError: see `DataStream.records` and `Mixture`.
        """
        return Mixture(
            grounded=_streams(self.grounded),
            text=_streams(self.text),
            grounded_rows=self.grounded_rows,
            text_rows=self.text_rows,
            groups=self.groups,
        )

    def held_out_mixture(self) -> Mixture:
        """The held-out data: as many grounded rows as in training, or rows of text where it has no others.

        Raises:
            FileNotFoundError, ValueError: see `DataStream.records` and `Mixture`.
        """
        streams = _streams(self.held_out)
        if self.grounded_rows:
            return Mixture(grounded=streams, grounded_rows=self.grounded_rows, groups=self.groups)
        return Mixture(text=streams, text_rows=self.text_rows, groups=self.groups)

    def batch(self, model: ModelConfig) -> BatchConfig:
        """Static sizes of a batch. Released training takes the state at `<seg>` (spec 12, Q1)."""
        return BatchConfig.of(
            model,
            length=self.length,
            phrases=self.phrases,
            objects=self.objects,
            mask_side=self.mask_side,
            wording=self.wording,
            template=self.template,
            words=self.words,
            name_weight=self.name_weight,
            seg_state=model.seg_state,
        )


def _streams(streams: tuple[DataStream, ...]) -> tuple[Stream, ...]:
    return tuple(Stream(stream.records(), stream.weight) for stream in streams)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: the sum of `parts`, each a mean.

    The last three parts are for models that start without pre-training; all read words by the input table of
    the language model: "words", what image tokens (and visual prompts) show; "names", what the grounding
    model's tokens (and, beside the part "grounding", its queries) show; "phrases", what the state of a <seg>
    stands for. Beside "names", the class loss of "grounding", which would unlearn names first, gives way to
    the softmax of inference: each phrase learns to choose its own queries among all. phrases: the grounding
    model learns from the states of the language model, or from the names of the objects.

    queries: object queries of the grounding model; points: where each mask is compared; detach_seg: grounding
    sends no gradient into the language model (paper Table 14). language_mean: the language loss is the mean
    over the tokens of the whole batch, or the sum of one mean for each stream. object_mean: grounding and
    visual-prompt losses are divided by the objects of the whole batch, of the sample's stream, or of its
    group (times the number of groups). phrase_mean: class losses are divided by the most phrases of a sample
    of the same stream and group, or by the sample's own number.

    Source: spec/training_and_data.md 4, 14.3; spec/grounding_model.md 7, 10.
    """

    parts: tuple[Loss, ...] = ("language", "grounding")
    phrases: Literal["states", "names"] = "states"
    grounding: GroundingWeights = dataclasses.field(default_factory=GroundingWeights)
    prompting: PromptingWeights = dataclasses.field(default_factory=PromptingWeights)
    queries: int = 300
    points: int = NUM_POINTS
    detach_seg: bool = False
    drop_path: bool = True
    language_mean: Literal["batch", "stream"] = "batch"
    object_mean: Literal["batch", "stream", "group"] = "batch"
    phrase_mean: Literal["group", "sample"] = "group"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast each part learns, as a multiple of the run's rate; 0 is frozen.

    new_tokens: the last three rows of input table and head alone (`<g_s>`, `<g_e>`, `<seg>`), where the
    whole tables are frozen; slow: what backbone and sampling offsets of the two vision models get of their
    model's rate. Source: spec/training_and_data.md 3.2.
    """

    clip: float = 0.0
    projector: float = 0.0
    embed: float = 0.0
    head: float = 0.0
    new_tokens: float = 0.0
    llama: float = 0.0
    grounding: float = 0.0
    prompt: float = 0.0
    slow: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW or Muon with linear warm-up and half a cosine to zero.

    method: Muon moves all matrices but the two tables along the nearest orthogonal ones, and the rest as
    AdamW does; it learns from fewer samples where a model starts from nothing. lr: the run's rate, reached
    after `warmup` (a share of all steps); clip_norm: largest norm of all gradients together; lora: rank of
    low-rank updates that learn in place of the language model's matrices (0: the matrices themselves).
    Source: spec/training_and_data.md 3.1.
    """

    method: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    rates: Rates = Rates()
    warmup: float = 0.03
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    lora: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices of each mesh axis; one of them may be 0: all that are left."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """Fill in the axis that is 0.

        Raises:
            ValueError: two axes are 0, or the others do not divide the number of devices.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(0) > 1:
            raise ValueError("only one mesh axis can be 0 (all devices that are left)")
        if 0 in sizes:
            others = int(np.prod([size for size in sizes if size]))
            if devices % others:
                raise ValueError(f"a mesh of {others} x ? devices does not fit {devices} devices")
            sizes[sizes.index(0)] = devices // others
        return sizes[0], sizes[1], sizes[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run.

    start: checkpoint folders (of `lgjax convert`, or `model` of an earlier run); a parameter comes from the
    last of them that holds it, and is fresh where none does. tokenizer: folder or tokenizer.model; without
    one, that of the last folder that has one. steps: of the optimiser, each of `accumulate` micro-batches.
    compute: numbers of vision tower and language model; grounding and visual prompts compute in float32.
    frozen: how matrices that do not learn are kept; model_dtype: how vision tower and language model of the
    finished model are written. remat: compute layers again in the backward pass, for memory; scan_layers:
    compile one layer of the language model for all; attention: of the language model, by default the kernel
    of its devices ("splash" on TPUs, "cudnn" on GPUs). Every `log_every` steps a line is printed,
    `save_every` a checkpoint written (the last `keep` stay, and the best on held-out data), `measure_every`
    (and with every checkpoint) the losses of `measure_batches` held-out batches taken, `draw_every`
    `draw_count` answers drawn; 0 turns these off. bad_steps: so many steps in a row without finite numbers
    end the run.
    """

    name: str
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    start: tuple[str, ...] = ()
    tokenizer: str = ""
    steps: int = 1000
    accumulate: int = 1
    seed: int = 0
    compute: Literal["float32", "bfloat16"] = "float32"
    frozen: Literal["float32", "bfloat16", "int8"] = "float32"
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    scan_layers: bool = False
    attention: Attention = "auto"
    bad_steps: int = 10
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    measure_every: int = 0
    measure_batches: int = 4
    draw_every: int = 0
    draw_count: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be trained, in the words of the fields."""
        if wrong := _wrong(self):
            raise ValueError(wrong)


# least and most of the numbers of a run; most None: no limit
_RANGES: dict[str, tuple[float, float | None]] = {
    "steps": (1, None),
    "accumulate": (1, None),
    "bad_steps": (1, None),
    "log_every": (1, None),
    "keep": (1, None),
    "measure_batches": (1, None),
    "save_every": (0, None),
    "measure_every": (0, None),
    "draw_every": (0, None),
    "draw_count": (0, None),
    "seed": (0, None),
    "optim.lr": (0, None),
    "optim.warmup": (0, 1),
    "optim.weight_decay": (0, None),
    "optim.b1": (0, 1),
    "optim.b2": (0, 1),
    "optim.eps": (0, None),
    "optim.clip_norm": (0, None),
    "optim.lora": (0, None),
    "loss.queries": (1, None),
    "loss.points": (4, None),
    **{f"optim.rates.{name.name}": (0, None) for name in dataclasses.fields(Rates)},
}


def _wrong(config: TrainConfig) -> str | None:
    for name, (least, most) in _RANGES.items():
        value: Any = functools.reduce(getattr, name.split("."), cast(Any, config))
        if value is not None and not (least <= value <= (most or sys.float_info.max)):
            return f"{name} {value} must be {least} or more" + ("" if most is None else f", at most {most}")
    model, loss, rates = config.model, config.loss, config.optim.rates
    parts = {"language": model.llama, "grounding": model.grounding, "prompting": model.prompt}
    parts |= {"words": model.llama, "names": model.grounding, "phrases": model.llama}
    if unknown := [part for part in loss.parts if part not in parts]:
        return f"loss.parts names '{unknown[0]}'; there are {', '.join(parts)}"
    if absent := [part for part in loss.parts if parts[part] is None]:
        return f"loss.parts names '{absent[0]}', but the model has no such part"
    if not loss.parts:
        return "loss.parts is empty: there is nothing to minimise"
    values = dataclasses.asdict(rates)
    if not any(value for name, value in values.items() if name != "slow"):
        return "every rate in optim.rates is 0: nothing would learn"
    if rates.new_tokens and (rates.embed or rates.head):
        return "optim.rates.new_tokens is for frozen tables; with embed or head learning it must be 0"
    if config.optim.lora and not rates.llama:
        return "optim.lora needs optim.rates.llama above 0"
    if config.attention == "cudnn" and config.compute == "float32":
        return "attention cudnn needs compute bfloat16"
    if config.data.groups % config.accumulate:
        return f"data.groups {config.data.groups} cannot be cut into {config.accumulate} micro-batches"
    if not config.data.grounded_rows and set(loss.parts) != {"language"}:
        return "every part of the loss but language needs data.grounded_rows above 0"
    if not config.data.words and (loss.phrases == "names" or set(loss.parts) & {"words", "names", "phrases"}):
        return "words, names and phrases in loss.parts and loss.phrases 'names' need data.words"
    if config.accumulate > 1 and set(loss.parts) & {"words", "names", "phrases"}:
        return "words, names and phrases in loss.parts are means over a whole batch: they need accumulate 1"
    if config.measure_every and not config.data.held_out:
        return "measure_every needs data.held_out: samples to measure on"
    return None


def to_json(config: TrainConfig) -> str:
    """The configuration as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def from_text(text: str) -> TrainConfig:
    """Undo `to_json`.

    Raises:
        TypeError, ValueError, KeyError: the text is no configuration of this version.
    """
    return from_json(TrainConfig, json.loads(text))


def read_run(folder: Path) -> TrainConfig:
    """The configuration of a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its configuration is damaged or of another version.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no training run (no config.json)")
    try:
        return from_text(path.read_text())
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or of another version ({error}); give --config") from error


def load_config(path: Path, preset: Preset) -> TrainConfig:
    """Run `get_config` of a Python file; files with two presets take which one is meant.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not run, has no `get_config`, or that returns something else, or knows no presets.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        make = runpy.run_path(str(path)).get("get_config")
        takes = len(inspect.signature(make).parameters) if callable(make) else 0
        if preset != "paper" and not takes:
            raise ValueError("it has no presets; leave out --preset")
        config = None if make is None else make(preset) if takes else make()
    # a file of the user's may go wrong in any way
    except Exception as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path} needs a function get_config() that returns a TrainConfig, found {config!r}")
    return config
