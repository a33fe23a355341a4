"""experiments/benchmarks/collectives.py against programs whose traffic is counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.collectives import collectives, parse, totals

RING = [(i, (i + 1) % 8) for i in range(8)]
BLOCK = 16 * 4 * 4  # bytes of one device's (16, 4) float32 block of a (128, 4) array


def _hlo(f, *shapes, mesh=None, specs=None, out=None) -> str:
    """Compiled text of f under shard_map; by default over one axis 'x' of 8 devices that splits the rows."""
    auto = jax.sharding.AxisType.Auto
    mesh = mesh or jax.make_mesh((8,), ("x",), (auto,))
    specs = specs or (P("x"),) * len(shapes)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out or P("x"), check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("kind", "f", "expected"),
    [
        ("all-gather", lambda x: jax.lax.all_gather(x, "x", tiled=True), 8 * BLOCK),
        ("all-reduce", lambda x: jax.lax.psum(x, "x"), BLOCK),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "x", tiled=True), BLOCK // 8),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "x", 0, 0, tiled=True), BLOCK),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "x", RING), BLOCK),
    ],
)
def test_output_bytes_of_each_kind(kind, f, expected):
    (one,) = collectives(_hlo(f, (128, 4)))
    assert (one.kind, one.dtype, one.bytes, one.trips, one.known) == (kind, "f32", expected, 1, True)
    assert one.group == (0 if kind == "collective-permute" else 8)


@pytest.mark.mesh
def test_a_loop_multiplies_and_so_does_a_loop_in_it():
    def nested(x):
        def outer(carry, _):
            carry = jax.lax.ppermute(carry, "x", RING)
            return jax.lax.fori_loop(0, 3, lambda i, c: jax.lax.psum(c, "x") / 8, carry), None

        return jax.lax.scan(outer, x, None, length=5)[0]

    table = totals(collectives(_hlo(nested, (128, 4))))
    assert table["collective-permute"]["calls"] == 5
    assert table["all-reduce"] == {
        "instructions": 1, "calls": 15, "bytes_once": BLOCK, "bytes": 15 * BLOCK, "trips_known": True,
    }  # fmt: skip


@pytest.mark.mesh
def test_a_loop_of_unknown_length_counts_once_and_says_so():
    def until_large(x, limit):
        def body(c):
            return jax.lax.ppermute(c, "x", RING) + 1.0

        return jax.lax.while_loop(lambda c: jnp.sum(c) < limit, body, x)

    (one,) = collectives(_hlo(until_large, (128, 4), (), specs=(P("x"), P())))
    assert (one.bytes, one.trips, one.known) == (BLOCK, 1, False)
    assert totals([one])["collective-permute"]["trips_known"] is False


@pytest.mark.mesh
def test_groups_along_one_axis_of_a_mesh():
    mesh = Mesh(jax.make_mesh((8,), ("x",)).devices.reshape(2, 4), ("data", "tensor"))
    f = lambda x: jax.lax.all_gather(x, "tensor", axis=1, tiled=True)
    text = _hlo(f, (8, 16), mesh=mesh, specs=(P("data", "tensor"),), out=P("data"))
    (one,) = collectives(text)
    assert (one.kind, one.bytes, one.group) == ("all-gather", 4 * 16 * 4, 4)


@pytest.mark.mesh
def test_a_program_without_collectives_has_none():
    assert collectives(_hlo(lambda x: x * 2, (128, 4))) == []


def test_text_that_is_not_hlo():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("module @jit_f {\n}\n")


# What TPU writes, shortened: layouts with tiles, no known_trip_count, and two disguises of a collective.
TPU = """\
HloModule jit_step, is_scheduled=true

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%x, %y)
}

%all-reduce-scatter.3.clone (input.14: bf16[8,96,128]) -> bf16[8,96,64] {
  %input.14 = bf16[8,96,128]{1,2,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.88 = bf16[8,96,128]{1,2,0:T(8,128)(2,1)} all-reduce(%input.14), channel_id=18, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %slice = bf16[8,96,64]{1,2,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.88), dynamic_slice_sizes={8,96,64}
}

%start (p: bf16[32,16]) -> bf16[32,128] {
  %p = bf16[32,16]{0,1:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,128]{0,1:T(8,128)(2,1)} all-gather(%p), channel_id=200, replica_groups=[2,8]<=[8,2]T(1,0), dimensions={1}, frontend_attributes={chain_id="1"}
}

%done (p: bf16[32,16]) -> bf16[32,128] {
  %p = bf16[32,16]{0,1:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[32,128]{0,1:T(8,128)(2,1)} all-gather(%p), channel_id=200, replica_groups=[2,8]<=[8,2]T(1,0), dimensions={1}, frontend_attributes={chain_id="1"}
}

%body (arg: (s32[], bf16[32,16])) -> (s32[], bf16[32,16]) {
  %arg = (s32[]{:T(128)}, bf16[32,16]{0,1:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %copy.1 = s32[]{:T(128)} copy(%i)
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%copy.1, %one)
  %w = bf16[32,16]{0,1:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %begun = bf16[32,128]{0,1} fusion(%w), kind=kCustom, calls=%start
  %ended = bf16[32,128]{0,1} fusion(%w), kind=kCustom, calls=%done, metadata={op_name="jit(step)/dot"}
  %cp = (bf16[32,16]{0,1:T(8,128)(2,1)}, bf16[32,16]{0,1:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=10, source_target_pairs={{0,1},{1,0}}
  %cpd = bf16[32,16]{0,1:T(8,128)(2,1)} collective-permute-done(%cp)
  ROOT %out = (s32[]{:T(128)}, bf16[32,16]{0,1:T(8,128)(2,1)}) tuple(%next, %cpd)
}

%cond (arg.1: (s32[], bf16[32,16])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[32,16]{0,1:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %n = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

ENTRY %main (w: bf16[32,16], x: bf16[8,96,128]) -> bf16[8,96,64] {
  %w.1 = bf16[32,16]{0,1:T(8,128)(2,1)} parameter(0)
  %x.1 = bf16[8,96,128]{1,2,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %copy.2 = s32[]{:T(128)} copy(%zero)
  %init = (s32[]{:T(128)}, bf16[32,16]{0,1:T(8,128)(2,1)}) tuple(%copy.2, %w.1)
  %loop = (s32[]{:T(128)}, bf16[32,16]{0,1:T(8,128)(2,1)}) while(%init), condition=%cond, body=%body
  %ag = ((bf16[4]{0}, f32[2]{0}), (bf16[16]{0}, f32[8]{0})) all-gather-start(%a, %b), replica_groups={{0,1,2,3}}, dimensions={0}
  %agd = (bf16[16]{0}, f32[8]{0}) all-gather-done(%ag)
  ROOT %scattered = bf16[8,96,64]{1,2,0:T(8,128)(2,1)} fusion(%x.1), kind=kCustom, calls=%all-reduce-scatter.3.clone
}
"""  # noqa: E501


def test_what_tpu_writes():
    found = {one.kind: one for one in collectives(TPU) if one.trips > 1 or one.kind == "reduce-scatter"}
    assert {kind: (one.bytes, one.trips, one.known, one.group) for kind, one in found.items()} == {
        "all-gather": (32 * 128 * 2, 28, True, 8),  # two fusions, one chain
        "collective-permute": (32 * 16 * 2, 28, True, 0),
        "reduce-scatter": (8 * 96 * 64 * 2, 1, True, 2),  # not the all-reduce it is written as
    }
    assert len(collectives(TPU)) == 4


def test_the_start_of_a_combined_all_gather():
    (one,) = [one for one in collectives(TPU) if one.kind == "all-gather" and one.trips == 1]
    assert (one.dtype, one.shape, one.bytes) == ("bf16+f32", "(bf16[16], f32[8])", 16 * 2 + 8 * 4)


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("constant(28)", "constant(7)", 7),
        ("constant(1)", "constant(3)", 10),  # 0, 3, ... 27
        ("%copy.2 = s32[]{:T(128)} copy(%zero)", "%copy.2 = s32[]{:T(128)} constant(20)", 8),
        ("direction=LT", "direction=NE", None),
        ("add(%copy.1, %one)", "multiply(%copy.1, %one)", None),
    ],
)
def test_trips_from_the_counter(old, new, trips):
    assert old in TPU
    (one,) = [one for one in collectives(TPU.replace(old, new)) if one.kind == "collective-permute"]
    assert (one.trips, one.known) == (trips or 1, trips is not None)
