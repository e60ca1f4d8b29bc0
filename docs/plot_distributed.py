"""Predicts the step time of two networks over many replicas: writes docs/distributed.svg.

    python docs/plot_distributed.py

The model and its assumptions are in docs/distributed.md; nothing here was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Network:
    """A network: `channels` of each batch-norm layer, and seconds of a step on one replica."""

    name: str
    channels: tuple[int, ...]
    parameters: float
    seconds: float


@dataclass(frozen=True)
class Wire:
    """Between replicas: seconds until a message begins to arrive, and bytes a second."""

    name: str
    latency: float
    bandwidth: float


def bottlenecks() -> tuple[int, ...]:
    """Channels of the 53 batch-norm layers of ResNet-50."""
    layers = [64]
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        layers += [width, width, 4 * width] * blocks + [4 * width]
    return tuple(layers)


NETWORKS = (
    Network("ResNet-50, 100 ms a step", bottlenecks(), 25.6e6, 0.100),
    Network("ResNet-20, 10 ms a step", (16,) * 7 + (32,) * 6 + (64,) * 6, 0.27e6, 0.010),
)
WIRES = (
    Wire("100 Gbit/s, 20 us", 20e-6, 12.5e9),
    Wire("10 Gbit/s, 50 us", 50e-6, 1.25e9),
)
REPLICAS = tuple(2**i for i in range(10))


def all_gather(wire: Wire, replicas: int, size: float) -> float:
    """Recursive doubling: log2 R messages; everybody's bytes arrive at everybody."""
    return math.log2(replicas) * wire.latency + (replicas - 1) * size / wire.bandwidth


def all_reduce(wire: Wire, replicas: int, size: float) -> float:
    """Reduce-scatter and all-gather: 2 log2 R messages; twice the bytes, whatever R is."""
    share = 2 * (replicas - 1) / replicas
    return 2 * math.log2(replicas) * wire.latency + share * size / wire.bandwidth


def layer(wire: Wire, replicas: int, channels: int) -> float:
    """What one synchronized layer adds to a step."""
    forward = all_gather(wire, replicas, (3 * channels + 1) * FLOAT)
    return forward + all_reduce(wire, replicas, 2 * channels * FLOAT)


def step(network: Network, wire: Wire, replicas: int, group: int) -> float:
    """Seconds of a step with statistics over groups of so many replicas; 1 for local ones."""
    gradients = all_reduce(wire, replicas, network.parameters * FLOAT)
    over = min(group, replicas)
    return network.seconds + gradients + sum(layer(wire, over, c) for c in network.channels)


def main() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    ways = (("not synchronized", 1, ":"), ("over 32 replicas", 32, "--"), ("over all", 512, "-"))
    for line, network in zip(panels, NETWORKS, strict=True):
        for panel, wire in zip(line, WIRES, strict=True):
            for label, group, dashes in ways:
                times = [1e3 * step(network, wire, r, group) for r in REPLICAS]
                panel.plot(REPLICAS, times, dashes, color="black", linewidth=1.2, label=label)
            panel.set_title(f"{network.name}; {wire.name}", fontsize=9)
            panel.set_xscale("log", base=2)
            panel.set_ylim(bottom=0)
            panel.set_xticks(REPLICAS, [str(r) for r in REPLICAS])
            for r in (32, 512):
                row = [1e3 * step(network, wire, r, group) for _, group, _ in ways]
                print(network.name, "|", wire.name, "|", r, "|", *(f"{one:.1f}" for one in row))
    panels[0][0].legend(fontsize=8)
    figure.supxlabel("replicas", fontsize="medium")
    figure.supylabel("predicted milliseconds of a step", fontsize="medium")
    figure.savefig(
        Path(__file__).with_name("distributed.svg"), metadata={"Date": None, "Creator": None}
    )


if __name__ == "__main__":
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "batchnorm"  # the same file every time
    main()
