"""A batch is what the model takes, and room to spare in it changes nothing that the model says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lgjax.data.batch import Batch, BatchConfig, SampleMaker, concatenate
from lgjax.data.images import CLIP_MEAN, CLIP_STD
from lgjax.models.grounding import normalize_pixels
from lgjax.models.llava_grounding import Inputs
from tests.data.records import TOKENIZER, caption, chat, region
from tests.models.batch import CONFIG, assert_close, forward, parameters

SMALL = BatchConfig.of(CONFIG, length=160, phrases=3, objects=4)
LARGE = dataclasses.replace(SMALL, length=224, phrases=6, objects=7)
RECORDS = (chat(1, regions=True), caption(2), region(3))


@functools.cache
def made(config: BatchConfig) -> Batch:
    maker = SampleMaker(config, TOKENIZER, grounded=True)
    return concatenate([maker(record, np.random.default_rng(i)) for i, record in enumerate(RECORDS)])


def inputs(batch: Batch) -> Inputs:
    language, ground = jax.tree.map(jnp.asarray, (batch.language, batch.grounding))
    return Inputs(
        clip_images=(language.clip_images / 255 - jnp.asarray(CLIP_MEAN)) / jnp.asarray(CLIP_STD),
        pixels=normalize_pixels(ground.images),
        plan=language.plan,
        seg_positions=ground.seg_positions,
        seg_mask=ground.seg_mask,
        prompts=ground.prompts,
        is_box=ground.is_box,
        prompt_mask=ground.object_mask,
    )


def test_room_to_spare_changes_no_output():
    small, large = (forward(parameters(), inputs(made(config))) for config in (SMALL, LARGE))
    real = np.asarray(made(SMALL).language.plan.mask)
    assert_close(large.hidden[:, : SMALL.length][real], np.asarray(small.hidden)[real])
    seg = made(SMALL).grounding.seg_mask
    assert seg.any(1).tolist() == [True, True, False]
    logits = [np.asarray(out.predictions["final"].logits) for out in (small, large)]
    for row in range(2):
        assert_close(logits[1][row][:, : SMALL.phrases][:, seg[row]], logits[0][row][:, seg[row]])
        for name in ("boxes", "mask_embedding"):
            found, want = (np.asarray(getattr(out.predictions["final"], name))[row] for out in (large, small))
            assert_close(found, want)
    things = made(SMALL).grounding.object_mask
    found, want = (np.asarray(out.prompts[-1].states) for out in (large, small))
    assert_close(found[:, : SMALL.objects][things], want[things])
