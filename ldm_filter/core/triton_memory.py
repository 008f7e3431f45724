"""Where a GPU kernel with its matrices in registers reads and writes them.

A field is a tuple ``(pointer, own, varying)`` over contiguous rows of numbers: ``own`` is None where all sequences share
the row, ``varying`` is None where all steps do.

The rows of a block of sequences are read and written as one tile, so that neighbouring threads touch neighbouring numbers, or in pieces of
16 bytes, each by the thread whose sequence it is: that touches a sector of memory twice, but nothing moves between threads, which for rows of many
numbers takes longer. Pointers are carried from step to step, those of the pieces too: Triton looks through all that one is computed from, which
takes minutes otherwise.
"""

# ruff: noqa: RUF005, SIM108 - Triton's tuples are put together with +

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["columns", "fetched", "held", "moved", "places", "read", "write"]


@triton.jit
def places(fields, counts: tl.constexpr, b, shared, t, T, SIZE: tl.constexpr, PIECES: tl.constexpr = False):
    """Where the rows of these fields are at step t, or their first pieces: of sequences b, or, pointers of a single number, of the ``shared``-th of
    what they share."""
    out = ()
    for k in tl.static_range(SIZE):
        out = out + (_place(fields[k], b, shared, t, T, counts[k], PIECES),)
    return out


@triton.jit
def _place(field, b, shared, t, T, COUNT: tl.constexpr, PIECES: tl.constexpr):
    if field[0] is None:
        out = (shared,)
    elif field[1] is None:
        row = shared.to(tl.int64)
        out = (field[0] + (row * T + t if field[2] is not None else row) * COUNT,)
    else:
        row = b.to(tl.int64) * T + t if field[2] is not None else b.to(tl.int64)
        if COUNT == 1:
            out = (field[0] + row,)
        else:
            ROW: tl.constexpr = triton.next_power_of_2(COUNT)
            W: tl.constexpr = min(ROW, 128 // field[0].dtype.element_ty.primitive_bitwidth) if PIECES else ROW
            out = ()
            for k in tl.static_range(0, COUNT, W):
                out = out + (field[0] + (row * COUNT)[:, None] + (k + tl.arange(0, W)[None, :]),)
    return out


@triton.jit
def moved(at, fields, counts: tl.constexpr, steps, still, SIZE: tl.constexpr):
    """The places some steps on; ``still`` is 0, which the compiler must not know, or it would not carry what stays where it is."""
    out = ()
    for k in tl.static_range(SIZE):
        here = ()
        for piece in tl.static_range(len(at[k])):
            if fields[k][0] is None:
                here = here + (at[k][piece],)
            elif fields[k][2] is not None:
                here = here + (at[k][piece] + steps * counts[k],)
            else:
                here = here + ((at[k][piece] if fields[k][1] is None else at[k][piece] + still),)
        out = out + (here,)
    return out


@triton.jit
def fetched(at, COUNT: tl.constexpr, on=None):
    """The tiles, one or more, of the rows of a block, as they are stored; zeros where ``on``, for a step or each sequence, is False."""
    out = ()
    if len(at[0].shape) == 1:
        out = (tl.load(at[0]) if on is None else tl.load(at[0], mask=tl.where(on, tl.arange(0, at[0].shape[0]), -1) >= 0, other=0.0),)
    elif len(at[0].shape) == 2:
        W: tl.constexpr = at[0].shape[1]
        for k in tl.static_range(len(at)):
            if on is None and k * W + W <= COUNT:
                out = out + (tl.load(at[k]),)
            else:
                mask = tl.arange(0, W)[None, :] < COUNT - k * W
                if on is not None:
                    mask = mask & (tl.where(on, tl.arange(0, at[0].shape[0]), -1)[:, None] >= 0)
                out = out + (tl.load(at[k], mask=mask, other=0.0),)
    return out


@triton.jit
def columns(tiles, DTYPE: tl.constexpr):
    """The numbers of each sequence's row (and what fills up its last tile)."""
    out = ()
    for k in tl.static_range(len(tiles)):
        if len(tiles[k].shape) == 1:
            out = out + (tiles[k].to(DTYPE),)
        else:
            out = out + _columns(tiles[k].to(DTYPE), tiles[k].shape[1])
    return out


@triton.jit
def held(at, COUNT: tl.constexpr):
    """The numbers of each sequence's row as they are stored; nothing of what sequences share."""
    return columns(fetched(at, COUNT), at[0].dtype.scalar.element_ty)


@triton.jit
def read(at, on, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """A row of COUNT numbers for each sequence, or one for all of them; zeros where ``on``, for a step or each sequence, is False."""
    if len(at[0].shape) == 0:
        out = ()
        for k in tl.static_range(COUNT):
            out = out + ((tl.load(at[0] + k) if on is None else tl.load(at[0] + k, mask=on, other=0.0)).to(DTYPE),)
    else:
        out = columns(fetched(at, COUNT, on), DTYPE)
    return out


@triton.jit
def write(at, inside, values, COUNT: tl.constexpr):
    """A row for each sequence inside the batch, or one for all of them: the sum over the block where each sequence has a value."""
    if len(at[0].shape) == 0:
        for k in tl.static_range(COUNT):
            tl.store(at[0] + k, (values[k] if len(values[k].shape) == 0 else tl.sum(values[k], 0)).to(at[0].dtype.element_ty))
    elif len(at[0].shape) == 1:
        tl.store(at[0], values[0].to(at[0].dtype.element_ty), mask=inside)
    else:
        W: tl.constexpr = at[0].shape[1]
        for k in tl.static_range(len(at)):
            tile = _tile(values[k * W : k * W + W], min(W, COUNT - k * W), W, at[0].dtype.scalar.element_ty)
            mask = inside[:, None]
            if k * W + W > COUNT:
                mask = mask & (tl.arange(0, W)[None, :] < COUNT - k * W)
            tl.store(at[k], tile, mask=mask)


@triton.jit
def _columns(tile, W: tl.constexpr):
    """The columns of a (BLOCK, W) tile, W a power of two: halved again and again, the last bit of the index first."""
    BLOCK: tl.constexpr = tile.shape[0]
    parts = (tile,)
    for level in tl.static_range(12):
        if (W >> level) > 1:
            even = ()
            odd = ()
            for k in tl.static_range(1 << level):
                if (W >> level) > 2:
                    x, y = tl.split(parts[k].reshape(BLOCK, (W >> level) // 2, 2))
                else:
                    x, y = tl.split(parts[k])
                even = even + (x,)
                odd = odd + (y,)
            parts = even + odd
    return parts


@triton.jit
def _tile(values, COUNT: tl.constexpr, W: tl.constexpr, DTYPE: tl.constexpr):
    """The (BLOCK, W) tile with these columns and zeros: joined in pairs again and again, the first bit of the index first."""
    BLOCK: tl.constexpr = values[0].shape[0]
    parts = ()
    for k in tl.static_range(W):
        parts = parts + ((values[k].to(DTYPE) if k < COUNT else tl.full((BLOCK,), 0.0, DTYPE)),)
    for level in tl.static_range(12):
        if (W >> level) > 1:
            joined = ()
            for k in tl.static_range((W >> level) // 2):
                joined = joined + (tl.join(parts[k], parts[k + (W >> level) // 2]).reshape(BLOCK, 2 << level),)
            parts = joined
    return parts[0]
