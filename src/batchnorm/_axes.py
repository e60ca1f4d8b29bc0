"""The view: any input as `[A, G, B, C, D]`, with statistics over A, B and D.

The plan is integers only; a size may also be a scalar tensor where a framework leaves it open until
run time, it is only ever multiplied.

    input                        axis      ghost   view
    [N, H, W, C]                 -1        no      [1, 1, N*H*W, C, 1]
    [N, C, H, W]                 1         no      [N, 1, 1, C, H*W]
    [N, P, S, Q]                 [1, 3]    no      [N, P, S, Q, 1]
    [N, H, W, C]                 -1        v       [v, N/v, H*W, C, 1]
    [N, C, H, W]                 1         v       [v, N/v, 1, C, H*W]
    [N, C, H, W]                 1         chunks  [1, N/v, v, C, H*W]

Anything with more alternations of reduced and kept dimensions is transposed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Size = Any  # an int, or a scalar tensor where the size is unknown until run time


class View(NamedTuple):
    """How to lay an input out as `[A, G, B, C, D]`, and how to lay its per-channel vectors out.

    `split` is the input's shape with the batch split into ghost batches, `permutation` reorders it
    (None: it does not have to be), `canonical` is the view. `features` is the length of a
    per-channel vector. `consecutive` ghost batches are the first dimension of `split`, else they
    are the second. With ghost batches the groups are the axis G and every feature is in C;
    without them, vectors of all features reshape to `[G, C]`.
    """

    axes: tuple[int, ...]
    shape: tuple[Size, ...]
    split: tuple[Size, ...]
    permutation: tuple[int, ...] | None
    canonical: tuple[Size, Size, Size, Size, Size]
    groups: Size | None
    consecutive: bool = False

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> View:
        """That of an array which is laid out as `[A, G, B, C, D]` already."""
        a, g, b, c, d = sizes
        return cls((1, 3), (a, g, b, c, d), (a, g, b, c, d), None, (a, g, b, c, d), None)

    @property
    def features(self) -> int:
        return product(self.shape[axis] for axis in self.axes)

    @property
    def rows(self) -> Size:
        """Rows that a per-channel vector of parameters fills: 1 with ghost batches, else G."""
        return 1 if self.groups is not None else self.canonical[1]

    @property
    def values_per_group(self) -> Size:
        """How many elements each statistic is taken over, when nothing is weighted: A * B * D."""
        a, _, b, _, d = self.canonical
        return a * b * d

    @property
    def row_shape(self) -> tuple[Size, Size]:
        """The shape `[R, C]` of a parameter or statistic."""
        return self.rows, self.canonical[3]

    @property
    def reduced(self) -> tuple[int, ...]:
        """The dimensions of `split` that statistics are taken over."""
        added = len(self.split) - len(self.shape)
        group = {0 if self.consecutive else 1} if added else set()
        kept = {axis + added for axis in self.axes} | group
        return tuple(i for i in range(len(self.split)) if i not in kept)

    def apart(self, ops: Any, x: Any) -> Any:
        """x in its own dimensions, the batch split into ghost batches: of the shape `split`."""
        return x if self.groups is None else ops.reshape(x, self.split)

    def along(self, ops: Any, row: Any) -> Any:
        """A vector, `[G or 1, C]` or `(C,)`, in the shape that broadcasts against `split`."""
        if self.groups is None:
            return self.spread(ops, row)
        rows = ops.shape(row)[0] if len(ops.shape(row)) == 2 else 1
        sizes = [size if i in self.axes else 1 for i, size in enumerate(self.shape)]
        front = (rows, 1) if self.consecutive else (1, rows)
        return ops.reshape(row, [*front, *sizes[1:]])

    def apply(self, ops: Any, x: Any) -> Any:
        """x with its dimensions in an order in which it reads as `[A, G, B, C, D]`."""
        if self.permutation is None:
            return x
        return ops.transpose(ops.reshape(x, self.split), self.permutation)

    def apply_to_weights(self, ops: Any, weights: Any) -> Any:
        """Weights of the shape `split` but 1 on the axes, as `[A, groups or 1, B, 1, D]`."""
        a, _, b, _, d = self.canonical
        groups = 1 if self.groups is None else self.groups
        if self.permutation is not None:
            weights = ops.transpose(weights, self.permutation)
        return ops.reshape(weights, (a, groups, b, 1, d))

    def undo(self, ops: Any, y: Any) -> Any:
        """What came of an x in the view's order, in x's own."""
        if self.permutation is None:
            return y
        y = ops.transpose(y, [self.permutation.index(i) for i in range(len(self.split))])
        return ops.reshape(y, self.shape)

    def spread(self, ops: Any, row: Any) -> Any:
        """A parameter `[R, C]` in the shape that broadcasts against x."""
        return ops.reshape(
            row, [size if i in self.axes else 1 for i, size in enumerate(self.shape)]
        )

    def spread_groups(self, ops: Any, row: Any) -> Any:
        """What each group has, `[G or 1, 1]`, in a shape that broadcasts against x."""
        if self.groups is None:
            return self.spread(ops, ops.broadcast_to(row, self.row_shape))
        column = ops.broadcast_to(row, (self.groups, 1))
        if not self.consecutive:
            column = ops.reshape(column, (1, self.groups))
        each = ops.broadcast_to(column, self.split[:2])
        return ops.reshape(each, [self.shape[0], *[1] * (len(self.shape) - 1)])


def product(sizes: Any) -> Any:
    """The product of sizes; 1 for none."""
    result = 1
    for size in sizes:
        result = result * size
    return result


def shape_of(ops: Any, value: Any, owner: str, name: str) -> tuple[Size, ...]:
    """The shape of an argument, by its name.

    Raises:
        ValueError: not even its rank is known.
    """
    shape: tuple[Size, ...] | None = ops.shape(value)
    if shape is None:
        raise ValueError(
            f"{owner}: {name} must have a known rank; got an unknown one. Set its static shape."
        )
    return shape


def resolve(axis: int | Sequence[int], rank: int, owner: str) -> tuple[int, ...]:
    """The axes as ascending non-negative integers.

    Raises:
        ValueError: an axis is outside the rank or named twice, or the input has no dimension.
    """
    if rank < 1:
        raise ValueError(f"{owner}: the input must have at least one dimension; got a scalar.")
    if isinstance(axis, int) and -rank <= axis < rank:
        return (axis % rank,)
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    for one in given:
        if not -rank <= one < rank:
            raise ValueError(
                f"{owner}: axis must be in [{-rank}, {rank - 1}]; got {one} for an input of "
                f"rank {rank}."
            )
    axes = tuple(sorted(one % rank for one in given))
    if len(set(axes)) != len(axes):
        raise ValueError(
            f"{owner}: axis must name each dimension once; got {list(given)} for an input of "
            f"rank {rank}."
        )
    return axes


def parameter_shape(shape: Sequence[Size], axes: Sequence[int]) -> tuple[Size, ...]:
    """The shape of gamma, beta and the statistics: `(C,)` for one axis, else rank(x) with ones."""
    if len(axes) == 1:
        return (shape[axes[0]],)
    return tuple(size if i in axes else 1 for i, size in enumerate(shape))


def view(
    shape: Sequence[Size],
    axes: tuple[int, ...],
    virtual_batch_size: Size | None = None,
    groups: Size | None = None,
    consecutive: bool = False,
) -> View:
    """The view of an input of this shape.

    Args:
        shape: the input's sizes.
        axes: ascending axes that keep their own statistics, from `resolve`.
        virtual_batch_size: the size v of a ghost batch; None for one group. Group j holds the
            samples j, j + groups, j + 2 * groups, ... as the originals do.
        groups: how many ghost batches there are.
        consecutive: group j holds v samples in a row instead, from j * v on.
    """
    shape = tuple(shape)
    if len(axes) == 1 and virtual_batch_size is None:  # most calls: the rest is for all others
        return View(axes, shape, shape, None, _around(axes[0], shape), groups)
    kinds = ["feature" if i in axes else "reduced" for i in range(len(shape))]
    split = shape
    if virtual_batch_size is not None:
        split = (virtual_batch_size, groups, *shape[1:])
        kinds = ["reduced", "group", *kinds[1:]]
        if consecutive:
            split = (groups, virtual_batch_size, *shape[1:])
            kinds = ["group", "reduced", *kinds[2:]]
    feature_runs = [kind for kind, _ in _runs(kinds, split) if kind == "feature"]
    permutation = None
    if len(feature_runs) > (2 if virtual_batch_size is None else 1):
        front = [] if virtual_batch_size is None else [0, 1]  # v and the groups
        reduced = [i for i, kind in enumerate(kinds) if kind == "reduced" and i not in front]
        features = [i for i, kind in enumerate(kinds) if kind == "feature"]
        permutation = (*front, *reduced, *features)
    canonical = _canonical(
        [split[i] for i in permutation or range(len(split))],
        [kinds[i] for i in permutation or range(len(kinds))],
    )
    return View(axes, shape, split, permutation, canonical, groups, consecutive)


def _around(axis: int, shape: tuple[Size, ...]) -> tuple[Size, Size, Size, Size, Size]:
    """The view with statistics for one axis."""
    before, after = product(shape[:axis]), product(shape[axis + 1 :])
    if axis == len(shape) - 1:  # nothing behind the channels: the rows are one contiguous run
        return 1, 1, before, shape[axis], 1
    return before, 1, 1, shape[axis], after


def _runs(kinds: Sequence[str], sizes: Sequence[Size]) -> list[tuple[str, Size]]:
    """Neighbours of one kind as one: [(kind, product of their sizes), ...]."""
    runs: list[tuple[str, Size]] = []
    for kind, size in zip(kinds, sizes, strict=True):
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] * size)
        else:
            runs.append((kind, size))
    return runs


def _canonical(sizes: list[Size], kinds: list[str]) -> tuple[Size, Size, Size, Size, Size]:
    """Merges neighbours of one kind, then names the at most five runs A, G, B, C, D."""
    runs = _runs(kinds, sizes)
    kept = [i for i, (kind, _) in enumerate(runs) if kind != "reduced"]

    def reduced(start: int, stop: int) -> Size:
        return product(size for _, size in runs[start:stop])

    if len(kept) == 1:
        return _around(kept[0], tuple(size for _, size in runs))
    g, c = kept
    return reduced(0, g), runs[g][1], reduced(g + 1, c), runs[c][1], reduced(c + 1, len(runs))
