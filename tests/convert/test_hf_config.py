"""config.json of several generations of Hugging Face LLaMA and LLaVA, and our own writing of it."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgjax import config as configs
from lgjax.config import RopeScaling
from lgjax.convert import hf_config, manifest

OLD = {
    "vocab_size": 32003,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def test_defaults_are_the_first_llamas():
    assert hf_config.llama_config(OLD) == configs.LlamaConfig()


@pytest.mark.parametrize(
    ("fields", "base", "scaling"),
    [
        ({"rope_scaling": None}, 10000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 1e4, RopeScaling(kind="linear", factor=2.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        (
            {
                "rope_theta": 5e5,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 4096,
                },
            },
            5e5,
            RopeScaling(kind="llama3", factor=32.0, original_max_positions=4096),
        ),
    ],
)
def test_rotary_base_and_scaling(fields, base, scaling):
    found = hf_config.llama_config({**OLD, **fields})
    assert (found.rope_base, found.rope_scaling) == (base, scaling)


@pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic"])
def test_other_scalings_are_refused(kind):
    with pytest.raises(ValueError, match=f"rope scaling '{kind}' is not supported"):
        hf_config.llama_config({**OLD, "rope_scaling": {"rope_type": kind, "factor": 2.0}})
    with pytest.raises(ValueError, match="rope scaling 'linear' has no factor"):
        hf_config.llama_config({**OLD, "rope_scaling": {"type": "linear"}})


def test_every_fault_has_its_line():
    with pytest.raises(ValueError) as caught:
        hf_config.llama_config({"hidden_act": "relu", "vocab_size": "many", **dict(list(OLD.items())[1:4])})
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1].split(" is ")[0] for line in lines] == [
        "hidden_act",
        "vocab_size",
        "num_attention_heads",
    ]


@given(st.data())
def test_written_config_reads_back(data):
    """to_json and the shapes of the manifest give the same sizes again, whatever they are."""
    scaling = st.one_of(
        st.none(),
        st.builds(RopeScaling, kind=st.just("linear"), factor=st.sampled_from([2.0, 4.0])),
        st.builds(
            RopeScaling,
            kind=st.just("llama3"),
            factor=st.just(8.0),
            low_freq_factor=st.sampled_from([1.0, 2.0]),
            original_max_positions=st.sampled_from([64, 8192]),
        ),
    )
    small = configs.debug()
    llama = dataclasses.replace(
        small.llama,
        num_kv_heads=data.draw(st.sampled_from([1, 2, 4])),
        head_dim=data.draw(st.sampled_from([8, 16, 24])),
        num_layers=data.draw(st.integers(1, 3)),
        rope_scaling=data.draw(scaling),
        rope_base=data.draw(st.sampled_from([1e4, 5e5])),
        tie_embeddings=data.draw(st.booleans()),
        attention_bias=data.draw(st.booleans()),
    )
    clip = dataclasses.replace(
        small.clip, select_layer=data.draw(st.sampled_from([-1, -2])), num_layers=data.draw(st.integers(2, 4))
    )
    assert small.grounding is not None and small.prompt is not None
    swin = dataclasses.replace(
        small.grounding.swin, window=data.draw(st.sampled_from([2, 5, 7])), depths=(1, 2, 1, 1), mlp_ratio=2
    )
    transformer = dataclasses.replace(
        small.grounding.transformer,
        num_points=data.draw(st.sampled_from([2, 4])),
        decoder_layers=data.draw(st.integers(1, 3)),
        norm_groups=4,
    )
    grounding = dataclasses.replace(small.grounding, swin=swin, transformer=transformer, num_queries=77)
    model = dataclasses.replace(
        small,
        llama=llama,
        clip=clip,
        grounding=data.draw(st.sampled_from([grounding, None])),
        prompt=data.draw(st.sampled_from([dataclasses.replace(small.prompt, num_mask_tokens=6), None])),
        seg_state=data.draw(st.sampled_from(["before", "at"])),
        history=data.draw(st.sampled_from(["demo", "training"])),
    )
    raw = json.loads(json.dumps(hf_config.to_json(model)))
    shapes = {key: entry.shape for key, entry in manifest.manifest(model).items()}
    assert hf_config.llava_config(raw, shapes) == model
