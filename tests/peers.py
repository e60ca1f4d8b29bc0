"""Layers of peers, in training, from their formulas: (y, mean, variance) after a batch `[N, C]`."""

from __future__ import annotations

import numpy as np


def ioffe_bounds(step: float) -> dict[str, float]:
    """Ioffe 2017, section 4: 1 and 0 for 5,000 steps, then up to 3 at 40,000 and 5 at 25,000."""
    r = float(np.interp(step, [5_000, 40_000], [1.0, 3.0]))
    return {"rmax": r, "rmin": 1 / r, "dmax": float(np.interp(step, [5_000, 25_000], [0.0, 5.0]))}


def crossq(x, gamma, beta, mean, variance, step, warmup=100_000, epsilon=1e-3, share=0.01):
    """torchrl's BatchRenorm1d with the numbers of CrossQ: renorm against the moving statistics."""
    center, spread = x.mean(0), np.sqrt(x.var(0) + epsilon)
    moving = np.sqrt(variance + epsilon)
    on = float(step >= warmup)
    r = 1 + on * (np.clip(spread / moving, 1 / 3, 3) - 1)
    d = on * np.clip((center - mean) / moving, -5, 5)
    y = ((x - center) / spread * r + d) * gamma + beta
    return y, mean + share * (center - mean), variance + share * (x.var(0, ddof=1) - variance)


def tabnet(x, gamma, beta, mean, variance, size=128, epsilon=1e-5, share=0.02):
    """pytorch-tabnet's GBN: a plain layer on each of ceil(N / size) consecutive, even chunks."""
    chunks = -(-len(x) // size)
    rows = -(-len(x) // chunks)
    y = []
    for start in range(0, len(x), rows):
        chunk = x[start : start + rows]
        y.append((chunk - chunk.mean(0)) / np.sqrt(chunk.var(0) + epsilon) * gamma + beta)
        mean = (1 - share) * mean + share * chunk.mean(0)
        variance = (1 - share) * variance + share * chunk.var(0, ddof=1)
    return np.concatenate(y), mean, variance
