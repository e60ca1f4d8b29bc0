"""The moving averages after a batch."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["vectors", "C"])
def remember(
    mean, remainder, variance, count, old_mean, old_variance, old_skipped, old_number,
    new_mean, new_variance, new_skipped, new_number,
    vectors, C, momentum: tl.float64,
    UNBIASED: tl.constexpr, PROPAGATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """new = momentum * old + (1 - momentum) * measured, as `bn_remember` says in batchnorm.h.

    A number of updates grows by one.
    """
    keep = tl.full((), momentum, tl.float64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < vectors
    n = tl.load(count + at // C, mask=known, other=0).to(tl.float64)
    square = tl.load(variance + at, mask=known, other=0).to(tl.float64)
    value = tl.load(mean + at, mask=known, other=0).to(tl.float64)
    value += tl.load(remainder + at, mask=known, other=0).to(tl.float64)
    usable = n > 0
    if not PROPAGATE:
        usable = usable & (value - value == 0) & (square - square == 0) & (square >= 0)
    if UNBIASED:
        square = square * tl.where(n > 1, n / tl.where(n > 1, n - 1, 1.0), 1.0)
    before = tl.load(old_mean + at, mask=known)
    moved = keep * before.to(tl.float64) + (1 - keep) * value
    tl.store(new_mean + at, tl.where(usable, moved.to(before.dtype), before), mask=known)
    before = tl.load(old_variance + at, mask=known)
    moved = keep * before.to(tl.float64) + (1 - keep) * square
    tl.store(new_variance + at, tl.where(usable, moved.to(before.dtype), before), mask=known)
    if old_skipped is not None:
        skipped = tl.load(old_skipped + at, mask=known)
        tl.store(new_skipped + at, tl.where(usable, skipped, skipped + 1), mask=known)
    if old_number is not None:  # noqa: SIM102 - decided at compile time, then at run time
        if tl.program_id(0) == 0:
            tl.store(new_number, tl.load(old_number) + 1)
