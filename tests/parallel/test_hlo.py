"""Bytes that travel in a compiled program, against programs whose traffic is known by construction."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lgjax.parallel.hlo import Collective, collectives
from lgjax.parallel.mesh import make_mesh

ROWS = PartitionSpec(("data", "fsdp"))


def found(function: Any, *, steps: int = 1, slices: int = 1, shape: tuple[int, int] = (1, 8)) -> Any:
    """Collectives of `function` of a device's float32 [16, 8], run `steps` times in a loop."""
    mesh = make_mesh(*shape)

    def local(x: jax.Array) -> jax.Array:
        def step(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(carry + jnp.resize(function(carry), carry.shape)), None

        return jax.lax.scan(step, x, None, length=steps)[0]

    run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False))
    text = run.lower(jnp.zeros((8 * 16, 8))).compile().as_text()
    return {one.kind: one for one in collectives(text, 8, slices)}


SIZE = 16 * 8 * 4  # bytes of a device's array
RING = [(i, (i + 1) % 8) for i in range(8)]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(
    ("kind", "function", "sent"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "fsdp"), 2 * SIZE * 7 / 8),
        ("all-gather", lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), SIZE * 7),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), SIZE * 7 / 8),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True), SIZE * 7 / 8),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "fsdp", RING), SIZE),
    ],
)
def test_bytes_of_each_kind(kind: str, function: Any, sent: float, steps: int):
    one = found(function, steps=steps)
    assert one.keys() == {kind}
    assert one[kind] == Collective(kind=kind, count=steps, sent=float(steps * sent), across=0.0)


@pytest.mark.parametrize(
    ("axes", "share", "across"),
    [(("data",), 1 / 2, True), (("fsdp",), 3 / 4, False), (("data", "fsdp"), 7 / 8, True)],
)
def test_what_travels_between_slices(axes: tuple[str, ...], share: float, across: bool):
    """Two slices of four; the data axis lies across them."""
    one = found(lambda x: jax.lax.psum(x, axes), shape=(2, 4), slices=2)["all-reduce"]
    assert one.sent == pytest.approx(2 * SIZE * share)
    assert one.across == (one.sent if across else 0)


# what the TPU compiler writes: loops that are unrolled by two, groups as axes of a mesh, starts with contexts
TPU = """HloModule jit_step, is_scheduled=true

%condition.1 (p: (bf16[4,256], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8)
  %p = (bf16[4,256]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %part.1 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %compare.1 = pred[]{:T(512)} compare(%part.1, %constant.1), direction=LT
}

%body.1 (q: (bf16[4,256], u32[])) -> (bf16[4,256], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %q = (bf16[4,256]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %part.2 = bf16[4,256]{1,0:T(8,128)(2,1)} get-tuple-element(%q), index=0
  %part.3 = u32[]{:T(128)} get-tuple-element(%q), index=1
  %start.1 = (bf16[4,256]{1,0}, bf16[4,256]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%part.2), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %done.1 = bf16[4,256]{1,0} collective-permute-done(%start.1)
  %add.1 = u32[]{:T(128)} add(%part.3, %constant.2)
  ROOT %tuple.1 = (bf16[4,256]{1,0}, u32[]{:T(128)}) tuple(%done.1, %add.1)
}

%all-reduce-scatter.1 (r: f32[64]) -> f32[16] {
  %r = f32[64]{0:T(256)} parameter(0)
  ROOT %all-reduce.1 = f32[64]{0} all-reduce(%r), replica_groups=mesh['a'=1,'b'=4] {'b'}, to_apply=%sum
}

ENTRY %main (a: bf16[4,256], f: f32[64]) -> bf16[4,256] {
  %a = bf16[4,256]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %tuple.2 = (bf16[4,256]{1,0}, u32[]) tuple(%a, %zero)
  %while.1 = (bf16[4,256]{1,0}, u32[]) while(%tuple.2), condition=%condition.1, body=%body.1
  %all-gather.1 = bf16[8,256]{1,0} all-gather(%a), replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}
  %all-gather.2 = bf16[8,256]{1,0} all-gather(%a), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %send.1 = (f32[64]{0:T(256)}, u32[], token[]) send(%f, %token), channel_id=9, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %alone = f32[64]{0} all-reduce(%f), replica_groups={{0},{1},{2},{3}}, to_apply=%sum
  ROOT %fusion.1 = f32[16]{0} fusion(%f), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_the_text_of_the_tpu_compiler():
    one = {collective.kind: collective for collective in collectives(TPU, 4, slices=2)}
    size = 4 * 256 * 2
    # pairs 1 -> 2 and 3 -> 0 leave their slices
    assert one["collective-permute"] == Collective(
        kind="collective-permute", count=4, sent=4.0 * size, across=4.0 * size
    )
    # both gathers join devices 0 and 2, 1 and 3
    assert one["all-gather"] == Collective(kind="all-gather", count=2, sent=2.0 * size, across=2.0 * size)
    assert one["reduce-scatter"].sent == pytest.approx(64 * 4 * 3 / 4)
    # gradients of two slices; a group of one sends nothing
    assert one["all-reduce"] == Collective(kind="all-reduce", count=1, sent=256.0, across=256.0)
    assert len(one) == 4


def test_a_loop_over_layers_counts_once_for_each():
    """An FSDP forward of five layers gathers five matrices, whatever the compiler makes of the loop."""
    mesh = make_mesh(1, 8)
    weights = jax.ShapeDtypeStruct(
        (5, 64, 64), np.float32, sharding=jax.NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    rows = jax.ShapeDtypeStruct((16, 64), np.float32, sharding=jax.NamedSharding(mesh, ROWS))

    def forward(weights: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), rows, weights)[0]

    run = jax.jit(forward, out_shardings=jax.NamedSharding(mesh, ROWS))
    one = {c.kind: c for c in collectives(run.lower(weights, rows).compile().as_text(), 8)}
    assert one["all-gather"].count == 5
    assert one["all-gather"].sent == pytest.approx(5 * 64 * 64 * 4 * 7 / 8)
