"""What `lgjax bench` measures, at which sizes, and who does the same work beside lgjax."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lgjax import config
from lgjax.config import ModelConfig

Name = Literal[
    "grounding",
    "grounding-again",
    "prompt",
    "clip",
    "prefill",
    "decode",
    "decode-batch",
    "chat",
    "first-word",
    "first-box",
    "second-turn",
    "second-question",
    "batch",
    "matching",
    "train-step",
    "data",
]
Preset = Literal["7b-parts", "tiny", "debug"]
Dtype = Literal["float32", "bfloat16", "int8", "int4"]
OURS = "lgjax"
TORCH = "torch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A piece of work.

    rival: who does it beside lgjax: "torch", or another way without it; None: nobody. agrees: both do it on
    the same numbers, and what they find must be the same. remark: what the comparison is one of.
    """

    name: Name
    rival: str | None = None
    agrees: bool = False
    remark: str = ""


CASES = (
    Case(
        name="grounding",
        rival=TORCH,
        remark=(
            "torch is Mask2Former of transformers with the same backbone, widths, layers and queries: a "
            "counterpart by shape only, with other weights, three levels where there are four here, no "
            "phrases, and masks of all queries after every layer of its decoder"
        ),
    ),
    Case(
        name="grounding-again",
        rival="from the picture",
        agrees=True,
        remark="other phrases in a picture whose features are kept, against starting with the picture again",
    ),
    Case(
        name="prompt",
        rival=TORCH,
        agrees=True,
        remark=(
            "torch is the same model, put together from Swin and layers of Deformable DETR of transformers: "
            "same weights, picture, regions"
        ),
    ),
    Case(
        name="clip",
        rival=TORCH,
        agrees=True,
        remark="torch is CLIPVisionModel of transformers and a linear layer: same weights, layers, picture",
    ),
    Case(
        name="prefill",
        rival=TORCH,
        agrees=True,
        remark="torch is LlamaForCausalLM of transformers, same weights and ids, logits of the last alone",
    ),
    Case(
        name="decode",
        rival=TORCH,
        agrees=True,
        remark="torch is LlamaForCausalLM of transformers, same weights and prompt, greedy, in a plain loop",
    ),
    Case(
        name="decode-batch",
        rival="one by one",
        agrees=True,
        remark="tokens after several prompts in a batch, against one after the other",
    ),
    Case(name="chat"),
    *(
        Case(
            name=name,
            rival="the whole answer",
            remark="an answer that is streamed, up to there, against the same stream up to its end",
        )
        for name in ("first-word", "first-box")
    ),
    Case(
        name="second-turn",
        rival="from the start",
        agrees=True,
        remark="a second question with what the first has left, against the same conversation read anew",
    ),
    Case(
        name="second-question",
        rival="the first",
        remark=(
            "a second question about a picture, against the first about it, at the sizes of the modules "
            "above; both answers are the same given tokens"
        ),
    ),
    Case(
        name="batch",
        rival="one by one",
        agrees=True,
        remark="the questions of a batch together, against one after the other",
    ),
    Case(
        name="matching",
        rival="scipy",
        agrees=True,
        remark="inside a compiled program, against scipy's linear_sum_assignment called back from one",
    ),
    Case(name="train-step"),
    Case(name="data"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a measuring process is told: the preset, the number type of the language model, its cores."""

    model: Preset
    dtype: Dtype
    cores: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the cases; the defaults are those of people's use.

    config: vision modules and language model with fresh parameters; chat: the checkpoint that answers and
    whose sizes a step of training has. phrases, prompts: in one picture. prompt_tokens: positions that are
    read before an answer (picture, question, conversation so far). problems, targets: assignments of a
    batch, and the most objects of each. data_*: rows, positions and canvas of batches of training data, and
    how long they are made. machine_*: side of the matrices, and bytes of an array that no cache holds, by
    which the machine is measured.
    """

    config: ModelConfig
    chat: Literal["tiny", "debug"]
    phrases: int = 5
    prompts: int = 6
    prompt_tokens: int = 384
    new_tokens: int = 16
    answer_tokens: int = 64
    batch: int = 8
    problems: int = 88
    targets: int = 100
    train_rows: int = 8
    data_rows: int = 8
    data_length: int = 1536
    data_canvas: int = 1024
    data_seconds: float = 3.0
    machine_side: int = 2048
    machine_bytes: int = 2**30


def sizes_of(preset: Preset) -> Sizes:
    """Sizes of a preset.

    "7b-parts" is the released model but for the depth of its language model: 4 of 32 layers, which fit into
    any machine twice and are read from memory, not from a cache, like all 32 of them.
    """
    if preset == "7b-parts":
        full = config.llava_g_7b()
        cut = dataclasses.replace(full, llama=dataclasses.replace(full.llama, num_layers=4))
        return Sizes(config=cut, chat="tiny")
    if preset == "tiny":
        return Sizes(config=config.tiny(), chat="tiny", prompt_tokens=128)
    return Sizes(
        config=config.debug(),
        chat="debug",
        prompt_tokens=64,
        new_tokens=8,
        answer_tokens=8,
        batch=2,
        problems=4,
        targets=20,
        train_rows=2,
        data_rows=1,
        data_length=512,
        data_canvas=128,
        data_seconds=0.5,
        machine_side=256,
        machine_bytes=2**24,
    )


def described(sizes: Sizes) -> str:
    """The models of the cases in a sentence."""
    model, llama = sizes.config, sizes.config.llama
    side = 0 if model.grounding is None else model.grounding.image_size
    return (
        f"vision modules: canvas {side} x {side}, CLIP at {model.clip.image_size}; language model: "
        f"{llama.num_layers} layers of width {llama.hidden_size}, {llama.vocab_size} ids; fresh parameters. "
        f"chat, first-word, first-box, second-turn, batch and train-step: the model '{sizes.chat}'"
    )
