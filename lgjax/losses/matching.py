"""Exact minimum-cost assignment of objects to queries, on the device.

Shortest augmenting paths (Jonker-Volgenant) with the real number of objects as loop bound, so padded objects
cost nothing. Source: spec/performance_notes.md 5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LARGEST = 1e9  # costs beyond are not told apart


def assign(cost: Float[Array, "t q"], count: Int[Array, ""]) -> Int[Array, " t"]:
    """Query of each of the first `count` objects at the least total cost; -1 for the others.

    No query is given twice. With more objects than queries the cheapest choice of objects gets one each. A
    cost that is not finite is worse than all others.
    """
    objects, queries = cost.shape
    real = jnp.arange(objects)[:, None] < count
    usable = real & jnp.isfinite(cost)
    cost = jnp.where(usable, cost, 0).astype(jnp.float32).clip(-_LARGEST, _LARGEST)
    apart = 2 * jnp.abs(cost).max() + 1
    # more than all others can differ together, but no more than that: large numbers hide small ones
    cost = jnp.where(real & ~usable, apart * objects, cost)
    if objects > queries:
        # an extra query costs more than any real one, so it is taken only when those are used up
        extra = jnp.full((objects, objects - queries), cost.max() + apart, cost.dtype)
        cost = jnp.concatenate([cost, extra], axis=1)

    def add(row: jax.Array, state: _State) -> _State:
        return _augment(cost, row, state)

    columns = cost.shape[1]
    start = _State(
        row_price=jnp.zeros(objects),
        column_price=jnp.zeros(columns),
        row_of=jnp.full(columns, -1),
        column_of=jnp.full(objects, -1),
    )
    found = jax.lax.fori_loop(0, count, add, start).column_of
    return jnp.where(found < queries, found, -1)


def assign_all(cost: Float[Array, "n t q"], count: Int[Array, " n"]) -> Int[Array, "n t"]:
    """`assign` for n problems: one after the other on a CPU, in step on an accelerator."""
    return jax.lax.platform_dependent(
        cost,
        count,
        cpu=lambda cost, count: jax.lax.map(lambda problem: assign(*problem), (cost, count)),
        default=jax.vmap(assign),
    )


class _State(NamedTuple):
    """Dual prices, and who is assigned to whom (-1: nobody)."""

    row_price: jax.Array
    column_price: jax.Array
    row_of: jax.Array
    column_of: jax.Array


class _Search(NamedTuple):
    """Dijkstra over columns: shortest way to each, over which row, which are settled, the last of these."""

    row: jax.Array
    length: jax.Array
    way: jax.Array
    over: jax.Array
    settled: jax.Array
    column: jax.Array


def _augment(cost: Float[Array, "t c"], row: jax.Array, state: _State) -> _State:
    """Give `row` a column along the cheapest path that ends at a free one."""

    def unfinished(search: _Search) -> jax.Array:
        return (search.column < 0) | (state.row_of[search.column] >= 0)

    def step(search: _Search) -> _Search:
        reduced = cost[search.row] - state.row_price[search.row] - state.column_price + search.length
        better = ~search.settled & (reduced < search.way)
        way = jnp.where(better, reduced, search.way)
        over = jnp.where(better, search.row, search.over)
        # least value, then its first column: two reductions that XLA vectorises, unlike argmin
        open_ways = jnp.where(search.settled, jnp.inf, way)
        length = open_ways.min()
        column = jnp.where(open_ways == length, numbers, columns - 1).min()
        return _Search(state.row_of[column], length, way, over, search.settled | (numbers == column), column)

    columns = cost.shape[1]
    numbers = jnp.arange(columns)
    found = jax.lax.while_loop(
        unfinished,
        step,
        _Search(
            row=row,
            length=jnp.zeros(()),
            way=jnp.full(columns, jnp.inf),
            over=jnp.full(columns, -1),
            settled=jnp.zeros(columns, bool),
            column=jnp.asarray(-1),
        ),
    )
    gain = jnp.where(found.settled, found.length - found.way, 0)
    # free columns have no row: their index is out of range and dropped
    rows = jnp.where(state.row_of >= 0, state.row_of, cost.shape[0])
    row_price = state.row_price.at[rows].add(gain, mode="drop").at[row].add(found.length)

    def turn(path: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        column, row_of, column_of = path[:3]
        owner = found.over[column]
        return column_of[owner], row_of.at[column].set(owner), column_of.at[owner].set(column), owner

    path = turn((found.column, state.row_of, state.column_of))
    _, row_of, column_of, _ = jax.lax.while_loop(lambda path: path[3] != row, turn, path)
    return _State(row_price, state.column_price - gain, row_of, column_of)
